// What is predicted from a pattern of requests, and what is not.
#include "cache/read_ahead.h"

#include <doctest/doctest.h>

#include <random>
#include <set>

#include "cache/frame_pool.h"

namespace extmem::cache {
namespace {

struct Predicted {
  std::set<uint64_t> pages;
  uint64_t hits = 0;
  uint64_t fetched = 0;

  void ask(ReadAhead& read_ahead, uint64_t first, uint32_t length) {
    for (uint32_t page = 0; page < length; ++page) hits += pages.erase(first + page);
    auto window = read_ahead.advise(first, length, 256);
    for (uint32_t index = 0; index < window.count; ++index) {
      uint64_t start = window.first + static_cast<uint64_t>(window.stride * static_cast<int64_t>(index));
      for (uint32_t page = 0; page < window.length; ++page) fetched += pages.insert(start + page).second ? 1 : 0;
    }
  }
};

TEST_CASE("a sequential reader is served from what was read ahead") {
  ReadAhead read_ahead;
  Predicted predicted;
  for (uint64_t page = 0; page < 4096; page += 8) predicted.ask(read_ahead, page, 8);
  CHECK(predicted.hits > 4000);
  CHECK(predicted.fetched - predicted.hits <= 256);
}

TEST_CASE("strides are recognised, forwards and backwards") {
  for (int64_t stride : {16, -16}) {
    ReadAhead read_ahead;
    Predicted predicted;
    auto page = static_cast<int64_t>(100000);
    for (int step = 0; step < 200; ++step, page += stride) predicted.ask(read_ahead, static_cast<uint64_t>(page), 1);
    CHECK(predicted.hits > 180);
  }
}

TEST_CASE("interleaved streams are told apart") {
  ReadAhead read_ahead;
  Predicted predicted;
  for (uint64_t step = 0; step < 500; ++step) {
    for (uint64_t stream = 0; stream < 4; ++stream) predicted.ask(read_ahead, stream * 1000000 + step * 4, 4);
  }
  CHECK(predicted.hits > 4 * 4 * 480);
}

TEST_CASE("random access wastes next to nothing") {
  ReadAhead read_ahead;
  Predicted predicted;
  std::mt19937_64 random(7);
  for (int step = 0; step < 10000; ++step) predicted.ask(read_ahead, random() % 1000000, 1);
  CHECK(predicted.fetched < 500);
}

TEST_CASE("the cold end goes first, what was asked for twice goes last") {
  FramePool frames(64 * kPageBytes);
  std::array<uint32_t, 3> taken;
  for (auto& frame : taken) {
    frame = frames.allocate();
    frames.list(frame, FramePool::End::hot);
  }
  frames[taken[0]].flags.fetch_or(Frame::kReferenced);
  auto keep = [](uint32_t) {};
  CHECK(frames.pick_victim(keep).frame == taken[1]);
  frames.unlist(taken[1]);
  CHECK(frames.pick_victim(keep).frame == taken[2]);
  frames.unlist(taken[2]);
  CHECK(frames.pick_victim(keep).frame == taken[0]);
}

TEST_CASE("every frame can be taken, and comes back") {
  FramePool frames(16 * kPageBytes);
  std::set<uint32_t> taken;
  while (uint32_t frame = frames.allocate()) taken.insert(frame);
  CHECK(taken.size() == 16);
  for (uint32_t frame : taken) frames.release(frame);
  CHECK(frames.free_count() == 16);
  CHECK(frames.allocate() != 0);
}

TEST_CASE("only the transitions of the table are allowed") {
  using enum PageState;
  CHECK(may_become(writing, redirtied));
  CHECK_FALSE(may_become(redirtied, clean));
  CHECK_FALSE(may_become(filling, dirty));
  CHECK_FALSE(may_become(dirty, clean));
  CHECK_FALSE(may_become(absent, clean));
}

}  // namespace
}  // namespace extmem::cache
