// What is predicted from a pattern of requests, and what is not.
#include "cache/read_ahead.h"

#include <doctest/doctest.h>

#include <random>
#include <set>

#include "cache/frame_pool.h"

namespace extmem::cache {
namespace {

/// A reader and what was read ahead for it.
struct Reader {
  ReadAhead read_ahead;
  std::set<uint32_t> pages;  // ahead, not asked for yet
  uint64_t asked = 0;
  uint64_t hits = 0;
  uint64_t fetched = 0;

  void ask(uint32_t first, uint32_t length) {
    asked += length;
    for (uint32_t page = 0; page < length; ++page) hits += pages.erase(first + page);
    auto window = read_ahead.advise(first, length, 256);
    for (uint32_t index = 0; index < window.count; ++index) {
      uint32_t start = window.first + static_cast<uint32_t>(window.stride) * index;
      for (uint32_t page = 0; page < window.length; ++page) fetched += pages.insert(start + page).second ? 1 : 0;
    }
  }
  double hit_share() const { return static_cast<double>(hits) / static_cast<double>(asked); }
  double waste() const { return static_cast<double>(fetched - hits) / static_cast<double>(asked); }
  /// The cache had no room for what nobody asked for.
  void evict_unasked() {
    for (uint32_t page : pages) read_ahead.wasted(page);
    pages.clear();
  }
};

TEST_CASE("a sequential reader is served from what was read ahead") {
  Reader reader;
  for (uint32_t page = 0; page < 4096; page += 8) reader.ask(page, 8);
  CHECK(reader.hit_share() > 0.98);
  CHECK(reader.fetched - reader.hits <= 256);
}

TEST_CASE("so is one that goes backwards") {
  Reader reader;
  for (uint32_t page = 8192; page >= 8; page -= 8) reader.ask(page - 8, 8);
  CHECK(reader.hit_share() > 0.98);
  CHECK(reader.fetched <= 8192);  // nothing before the start of the file
}

TEST_CASE("strides are recognised, forwards and backwards") {
  for (int32_t stride : {16, -16}) {
    CAPTURE(stride);
    Reader reader;
    int32_t page = 100000;
    for (int step = 0; step < 200; ++step, page += stride) reader.ask(static_cast<uint32_t>(page), 1);
    CHECK(reader.hit_share() > 0.95);
    CHECK(reader.fetched - reader.hits <= 32);
  }
}

TEST_CASE("what the kernel has it does not ask for: a stream goes on beyond what it leaves out") {
  for (int32_t stride : {1, 16}) {
    CAPTURE(stride);
    Reader reader;
    std::mt19937 random(5);
    for (int32_t step = 0; step < 2000; ++step) {
      if (step < 50 || random() % 4 != 0) reader.ask(static_cast<uint32_t>(1000 + step * stride), 1);
    }
    CHECK(reader.hit_share() > 0.95);
  }
}

TEST_CASE("requests of a stream that overtake each other do not end it") {
  Reader reader;
  for (uint32_t page = 0; page < 256; page += 32) reader.ask(page, 32);
  for (uint32_t page = 256; page < 8192; page += 64) {
    reader.ask(page + 32, 32);
    reader.ask(page, 32);
  }
  CHECK(reader.hit_share() > 0.9);
}

TEST_CASE("interleaved streams are told apart, near and far") {
  for (uint32_t apart : {600u, 1000000u}) {
    CAPTURE(apart);
    Reader reader;
    for (uint32_t step = 0; step < 140; ++step) {
      for (uint32_t stream = 0; stream < 4; ++stream) reader.ask(stream * apart + step * 4, 4);
    }
    CHECK(reader.hit_share() > 0.9);
  }
}

TEST_CASE("one request in ten anywhere else does not end a stream") {
  for (uint32_t reach : {1000u, 10000000u}) {
    CAPTURE(reach);
    Reader reader;
    std::mt19937 random(3);
    uint32_t page = 5000000;
    for (int step = 0; step < 5000; ++step) {
      if (random() % 10 == 0) {
        reader.ask(5000000 + random() % reach, 1);
      } else {
        reader.ask(page++, 1);
      }
    }
    CHECK(reader.hit_share() > 0.85);
    CHECK(reader.waste() < 0.2);
  }
}

TEST_CASE("the majority of a stream's steps is its trend") {
  Reader reader;
  uint32_t page = 3000;
  for (int step = 0; step < 1000; ++step) {
    reader.ask(page, 1);
    page += step % 4 == 3 ? 37 : 5;
    if (step % 64 == 0) reader.evict_unasked();
  }
  CHECK(reader.hit_share() > 0.4);
  CHECK(reader.waste() < 1);
}

TEST_CASE("random access wastes next to nothing") {
  for (uint32_t pages : {2000u, 1000000u}) {
    CAPTURE(pages);
    Reader reader;
    std::mt19937 random(7);
    for (int step = 0; step < 10000; ++step) reader.ask(random() % pages, 1);
    CHECK(reader.waste() < 0.05);
  }
}

TEST_CASE("short runs are read ahead no further than they were long") {
  Reader reader;
  std::mt19937 random(9);
  for (int run = 0; run < 1000; ++run) {
    uint32_t first = random() % 10000000;
    for (uint32_t page = first; page < first + 4; ++page) reader.ask(page, 1);
    reader.evict_unasked();
  }
  CHECK(reader.waste() < 0.5);
}

TEST_CASE("waste makes a file's streams prove themselves for longer") {
  Reader eager;
  Reader wary;
  std::mt19937 random(9);
  for (int run = 0; run < 1000; ++run) {
    uint32_t first = random() % 10000000;
    for (uint32_t page = first; page < first + 3; ++page) {
      eager.ask(page, 1);
      wary.ask(page, 1);
    }
    wary.evict_unasked();
  }
  CHECK(wary.fetched < eager.fetched / 10);
  for (uint32_t page = 20000000; page < 20004096; ++page) wary.ask(page, 1);
  CHECK(wary.hits > 4000);  // and yet it finds the next long one
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
