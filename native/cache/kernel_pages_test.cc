// What the kernel holds of our files is counted by page, once however often it is given, and goes oldest first.
#include "cache/kernel_pages.h"

#include <doctest/doctest.h>

#include <cstdlib>
#include <iostream>
#include <map>
#include <random>
#include <set>
#include <thread>
#include <vector>

namespace extmem::cache {
namespace {

constexpr uint32_t kChunk = KernelFile::kChunkPages;

TEST_CASE("a page given twice is counted once; what is taken is counted until it is settled") {
  KernelPages pages;
  auto file = pages.file(7);
  CHECK(pages.give(*file, 10, 20));
  CHECK_FALSE(pages.give(*file, 15, 5));
  CHECK(pages.give(*file, 25, 10));
  CHECK(pages.pages() == 25);
  auto taken = pages.take(7, 0, 11);
  CHECK(taken.pages == 2);
  CHECK(pages.pages() == 25);
  pages.settle(taken);
  CHECK(pages.pages() == 23);
  CHECK(pages.take(7, 0, 11).pages == 0);
  CHECK(pages.take(8, 0, UINT32_MAX).pages == 0);
}

TEST_CASE("what was given first is taken first, across files and once") {
  KernelPages pages;
  auto one = pages.file(1);
  auto other = pages.file(2);
  pages.give(*one, 3 * kChunk, 1);
  pages.give(*other, 0, 2 * kChunk);
  pages.give(*one, 0, 1);
  pages.give(*one, 3 * kChunk, 4);  // there already: it keeps its place
  pages.settle(pages.take(2, 0, kChunk - 1));
  std::vector<std::pair<uint64_t, uint32_t>> order;
  while (auto taken = pages.take_oldest()) {
    order.emplace_back(taken->node, taken->first / kChunk);
    pages.settle(*taken);
  }
  CHECK(order == std::vector<std::pair<uint64_t, uint32_t>>{{1, 3}, {2, 1}, {1, 0}});
  CHECK(pages.pages() == 0);
  CHECK_FALSE(pages.any_marked());
}

TEST_CASE("an inode that the kernel forgets takes its pages along, once nobody has it open") {
  KernelPages pages;
  pages.give(*pages.file(1), 0, 700);
  auto open = pages.file(2);
  pages.give(*open, 5, 5);
  pages.forget(1);
  CHECK(pages.pages() == 5);
  pages.forget(2);
  open.reset();
  CHECK(pages.pages() == 0);
  CHECK_FALSE(pages.take_oldest().has_value());
}

TEST_CASE("random gives and takes leave what a set of pages would") {
  const char* given = std::getenv("EXTMEM_SEED");
  uint64_t seed = given != nullptr ? std::strtoull(given, nullptr, 10) : std::random_device{}();
  std::cout << "seed " << seed << '\n';
  std::mt19937_64 random(seed);
  KernelPages pages;
  std::map<uint64_t, std::set<uint32_t>> model;
  auto size = [&] {
    uint64_t sum = 0;
    for (auto& [node, set] : model) sum += set.size();
    return sum;
  };
  for (int step = 0; step < 20'000; ++step) {
    uint64_t node = random() % 3;
    auto first = static_cast<uint32_t>(random() % (5 * kChunk));
    auto last = first + static_cast<uint32_t>(random() % (2 * kChunk));
    switch (random() % 8) {
      case 0:
        pages.settle(pages.take(node, first, last));
        model[node].erase(model[node].lower_bound(first), model[node].upper_bound(last));
        break;
      case 1:
        if (auto taken = pages.take_oldest()) {
          auto& set = model[taken->node];
          set.erase(set.lower_bound(taken->first), set.lower_bound(taken->first + taken->span));
          pages.settle(*taken);
        }
        break;
      case 2:
        pages.forget(node);
        model[node].clear();
        break;
      default:
        last = first + static_cast<uint32_t>(random() % 257);
        pages.give(*pages.file(node), first, last - first + 1);
        for (uint32_t page = first; page <= last; ++page) model[node].insert(page);
    }
    REQUIRE_MESSAGE(pages.pages() == size(), "seed ", seed, ", step ", step);
  }
}

TEST_CASE("givers and takers at once: nothing is counted twice, nothing is left behind") {
  KernelPages pages;
  std::vector<std::thread> threads;
  std::atomic<bool> done{false};
  std::thread taker([&] {
    while (!done.load()) {
      if (auto taken = pages.take_oldest()) pages.settle(*taken);
    }
  });
  for (uint64_t node = 0; node < 3; ++node) {
    threads.emplace_back([&, node] {
      std::mt19937_64 random(node);
      for (int step = 0; step < 20'000; ++step) {
        auto file = pages.file(node % 2);
        pages.give(*file, static_cast<uint32_t>(random() % (8 * kChunk)), 1 + random() % 100);
        if (random() % 500 == 0) pages.forget(node % 2);
      }
    });
  }
  for (auto& thread : threads) thread.join();
  done.store(true);
  taker.join();
  while (auto taken = pages.take_oldest()) pages.settle(*taken);
  CHECK(pages.pages() == 0);
}

}  // namespace
}  // namespace extmem::cache
