#include "cache/eviction.h"

#include <doctest/doctest.h>

#include <cstdlib>
#include <memory>
#include <random>
#include <set>
#include <vector>

namespace extmem::cache {
namespace {

using End = Eviction::End;

/// Frames from 1 on, all idle; those listed are what a cache holds.
struct Cache {
  explicit Cache(uint32_t count) : frames(new Frame[count + 1]), eviction(frames.get()), frame_count(count) {
    for (uint32_t index = 1; index <= count; ++index) frames[index].references.store(1);
  }
  void ask_again(uint32_t index) { frames[index].flags.fetch_or(Frame::kReferenced); }
  uint32_t evict() {
    uint32_t index = eviction.victim();
    if (index != 0) eviction.remove(index);
    return index;
  }
  /// Another page comes in where one goes. Answers which frame that was.
  uint32_t replace(End end) {
    uint32_t index = evict();
    REQUIRE(index != 0);
    frames[index].flags.store(0);
    eviction.insert(index, end);
    return index;
  }

  std::unique_ptr<Frame[]> frames;
  Eviction eviction;
  uint32_t frame_count;
};

TEST_CASE("what came first goes first, and later if it was asked for again") {
  Cache cache(3);
  for (uint32_t index : {1, 2, 3}) cache.eviction.insert(index, End::hot);
  cache.ask_again(1);
  CHECK(cache.evict() == 2);
  CHECK(cache.evict() == 3);
  CHECK(cache.evict() == 1);
  CHECK(cache.evict() == 0);
}

TEST_CASE("what the kernel keeps, too, goes before what only we have, the newest first") {
  Cache cache(4);
  cache.eviction.insert(1, End::hot);
  cache.eviction.insert(2, End::cold);
  cache.eviction.insert(3, End::cold);
  cache.eviction.insert(4, End::hot);
  CHECK(cache.evict() == 3);
  CHECK(cache.evict() == 2);
  CHECK(cache.evict() == 1);
}

TEST_CASE("what was asked for again outlives a crowd of new pages, up to four fifths of all") {
  Cache cache(100);
  for (uint32_t index = 1; index <= 100; ++index) cache.eviction.insert(index, End::hot);
  for (uint32_t index = 1; index <= 80; ++index) cache.ask_again(index);
  for (int page = 0; page < 10'000; ++page) CHECK(cache.replace(End::hot) > 80);
}

TEST_CASE("what is not asked for any more goes at last, though it was asked for twice") {
  Cache cache(100);
  for (uint32_t index = 1; index <= 100; ++index) cache.eviction.insert(index, End::hot);
  for (uint32_t index = 1; index <= 80; ++index) cache.ask_again(index);
  std::set<uint32_t> gone;
  for (int page = 0; page < 1000; ++page) {
    uint32_t index = cache.replace(End::hot);
    gone.insert(index);
    cache.ask_again(index);
  }
  CHECK(gone.size() == 100);
}

TEST_CASE("what is protected and asked for now and then stays, while others come and go") {
  Cache cache(100);
  for (uint32_t index = 1; index <= 100; ++index) cache.eviction.insert(index, End::hot);
  for (uint32_t index = 1; index <= 80; ++index) cache.ask_again(index);
  for (int page = 0; page < 5000; ++page) {
    if (page < 100 || page % 70 == 0) cache.ask_again(1);
    uint32_t index = cache.replace(End::hot);
    REQUIRE(index != 1);
    cache.ask_again(index);
  }
}

TEST_CASE("a fifth is for new pages, though all the others were asked for again") {
  Cache cache(100);
  for (uint32_t index = 1; index <= 100; ++index) {
    cache.eviction.insert(index, End::hot);
    cache.ask_again(index);
  }
  for (int page = 0; page < 100; ++page) cache.replace(End::hot);
  std::vector<int> came(101, -100);
  for (int page = 0; page < 1000; ++page) {
    uint32_t index = cache.replace(End::hot);
    CHECK(page - came[index] >= 20);
    came[index] = page;
  }
}

TEST_CASE("a stream that is read ahead for the kernel takes turns on its own frames") {
  constexpr int kWindow = 10;
  Cache cache(100);
  for (uint32_t index = 1; index <= 100; ++index) cache.eviction.insert(index, End::hot);
  std::set<uint32_t> taken;
  for (int window = 0; window < 100; ++window) {
    std::vector<uint32_t> ahead;
    for (int page = 0; page < kWindow; ++page) ahead.push_back(cache.replace(End::hot));
    for (uint32_t index : ahead) cache.eviction.cool(index);
    taken.insert(ahead.begin(), ahead.end());
  }
  CHECK(taken.size() == kWindow);
}

TEST_CASE("what is protected stays so when the kernel is given it") {
  Cache cache(10);
  for (uint32_t index = 1; index <= 10; ++index) cache.eviction.insert(index, End::hot);
  cache.ask_again(1);
  CHECK(cache.replace(End::cold) == 2);
  cache.eviction.cool(1);
  for (int page = 0; page < 100; ++page) CHECK(cache.replace(End::cold) == 2);
}

TEST_CASE("where all was asked for again, one goes all the same, and at once") {
  Cache cache(100'000);
  for (uint32_t index = 1; index <= cache.frame_count; ++index) {
    cache.eviction.insert(index, End::hot);
    cache.ask_again(index);
  }
  CHECK(cache.evict() != 0);
}

TEST_CASE("pages in use are passed over") {
  Cache cache(500);
  for (uint32_t index = 1; index <= 500; ++index) cache.eviction.insert(index, End::hot);
  for (uint32_t index = 1; index < 500; ++index) cache.frames[index].references.store(2);
  CHECK(cache.evict() == 500);
  CHECK(cache.evict() == 0);
}

TEST_CASE("all that is listed goes, each page once, whatever was done before") {
  const char* given = std::getenv("EXTMEM_SEED");
  unsigned seed = given == nullptr ? std::random_device{}() : static_cast<unsigned>(std::atoi(given));
  INFO("EXTMEM_SEED=", seed);
  std::mt19937 random(seed);
  Cache cache(200);
  std::set<uint32_t> listed;
  for (int step = 0; step < 20'000; ++step) {
    uint32_t index = 1 + random() % cache.frame_count;
    switch (random() % 5) {
      case 0:
        if (listed.insert(index).second) cache.eviction.insert(index, random() % 2 == 0 ? End::hot : End::cold);
        break;
      case 1:
        cache.eviction.remove(index);
        listed.erase(index);
        break;
      case 2:
        cache.ask_again(index);
        break;
      case 3:
        cache.eviction.cool(index);
        break;
      case 4:
        index = cache.evict();
        REQUIRE(listed.erase(index) == (index == 0 ? 0 : 1));
    }
  }
  while (uint32_t index = cache.evict()) REQUIRE(listed.erase(index) == 1);
  CHECK(listed.empty());
}

}  // namespace
}  // namespace extmem::cache
