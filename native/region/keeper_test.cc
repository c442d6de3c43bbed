// Persisting, while regions are punched and destroyed: those who wait for that go first, and nothing that was freed is
// found in the store.
#include "region/keeper.h"

#include <doctest/doctest.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cstdlib>
#include <filesystem>
#include <thread>

using namespace extmem;
using namespace extmem::region;

namespace {

constexpr uint64_t kMiB = 1 << 20;
constexpr uint64_t kRegionBytes = 256 * kMiB;  // persist() tells its progress every 64 MiB
constexpr uint64_t kSmallBytes = 24 * kMiB;

/// A region full of bytes, and a keeper with a store of its own.
struct Kept {
  explicit Kept(uint64_t bytes = kRegionBytes) {
    char made[] = "/tmp/extmem-keeper-XXXXXX";
    REQUIRE(mkdtemp(made) != nullptr);
    folder = made;
    open_again();
    Status status = Status::ok;
    region = Region::create({.id = 1, .bytes = bytes, .thin = false, .kept = true}, account, status);
    REQUIRE(status == Status::ok);
    keeper->answer_for(*region);
    const std::vector<uint8_t> data(kMiB, 7);
    for (uint64_t at = 0; at < bytes; at += kMiB) REQUIRE(region->write(at, data)->status == Status::ok);
    regions.insert(region);
  }
  ~Kept() { std::filesystem::remove_all(folder); }

  void open_again(uint64_t bytes_per_second = 0) {
    std::string error;
    keeper.reset();
    keeper = Keeper::open({.path = folder.string(), .store = {}, .bytes_per_second = bytes_per_second}, regions,
                          account, error);
    REQUIRE_MESSAGE(keeper != nullptr, error);
  }
  /// Persists; when a quarter is done, `free` is, and `settle` begins on another thread. Answers whether that was over
  /// first.
  bool persist_beside(const std::function<void()>& free, const std::function<store::Verdict()>& settle) {
    std::atomic<bool> begun{false}, done{false};
    std::thread other;
    const auto verdict = keeper->persist({}, [&](const Keeper::Progress&) {
      if (other.joinable()) return;
      other = std::thread([&] {
        free();
        begun = true;
        CHECK(settle().ok());
        done = true;
      });
      while (!begun) std::this_thread::yield();
    });
    const bool was_first = done;
    REQUIRE(other.joinable());
    other.join();
    CHECK_MESSAGE(verdict.ok(), verdict.why);
    return was_first;
  }

  /// What the store has there, after a start.
  uint8_t restored_byte(uint64_t offset) {
    open_again();
    regions.remove(1);
    REQUIRE(keeper->restore().size() == 1);
    keeper->start();
    std::array<uint8_t, 1> byte;
    for (;;) {  // it is fetched
      if (auto outcome = regions.find(1)->read(offset, byte)) return byte[0];
      std::this_thread::yield();
    }
  }

  std::filesystem::path folder;
  MemoryAccount account{4 * kRegionBytes};
  RegionTable regions;
  std::shared_ptr<Region> region;
  std::unique_ptr<Keeper> keeper;
};

}  // namespace

TEST_CASE("who frees memory does not wait until everything is persisted, and what was freed does not come back") {
  Kept kept;
  CHECK(kept.persist_beside([&] { REQUIRE(kept.region->punch(0, kRegionBytes / 2) == Status::ok); },
                            [&] {
                              return kept.keeper->settle_freed({{1, 0, kRegionBytes / 2}});
                            }));
  kept.open_again();
  kept.regions.remove(1);
  REQUIRE(kept.keeper->restore().size() == 1);
  kept.keeper->start();
  auto restored = kept.regions.find(1);
  while (restored->blocks()->absent_count() > 0) std::this_thread::yield();
  std::array<uint8_t, 4096> page;
  REQUIRE(restored->read(kRegionBytes / 2 - page.size(), page)->status == Status::ok);
  CHECK(page[0] == 0);
  REQUIRE(restored->read(kRegionBytes / 2, page)->status == Status::ok);
  CHECK(page[0] == 7);
}

TEST_CASE("a region that is destroyed while it is persisted is not in the store afterwards") {
  Kept kept;
  kept.persist_beside(
      [&] {
        kept.regions.remove(1);
        kept.region->destroy();
      },
      [&] { return kept.keeper->remove({1}); });
  kept.open_again();
  CHECK(kept.keeper->restore().empty());
}

TEST_CASE(
    "of what clients store themselves, only the chunks that they marked are looked at, and at the end everything") {
  Kept kept;
  REQUIRE(kept.keeper->persist({}, nullptr).ok());
  const auto given = kept.region->hand_over(1, {.rights = 3});
  REQUIRE(given->fd);
  auto map = WrittenMap::open(UniqueFd(dup(given->written.get())));
  REQUIRE(map);
  const std::vector<uint8_t> page(4096, 9);
  auto store_at = [&](uint64_t offset) {
    CHECK(pwrite(given->fd.get(), page.data(), page.size(), static_cast<off_t>(offset)) == 4096);
  };
  auto persisted = [&](uint64_t ending) {
    const uint64_t before = kept.keeper->status().persisted_bytes;
    CHECK(kept.keeper->persist({.ending = ending}, nullptr).ok());
    return kept.keeper->status().persisted_bytes - before;
  };
  store_at(10 * kMiB);
  map->mark(10 * kMiB, page.size());
  store_at(100 * kMiB);  // and does not say so
  // Nothing is known yet of how the blocks of that chunk were.
  CHECK(persisted(0) == protocol::kLendBytes);
  store_at(10 * kMiB + 4096);
  map->mark(10 * kMiB + 4096, page.size());
  CHECK(persisted(0) == BlockState::kBytes);
  CHECK(persisted(0) == 0);
  CHECK(persisted(1) == kRegionBytes - protocol::kLendBytes);
  store_at(200 * kMiB);
  CHECK(persisted(1) == BlockState::kBytes);
}

TEST_CASE("of pieces, only the blocks that they touch are put; the rest keeps its marks") {
  Kept kept(kSmallBytes);
  auto persisted = [&](const Keeper::Job& job) {
    const uint64_t before = kept.keeper->status().persisted_bytes;
    CHECK(kept.keeper->persist(job, nullptr).ok());
    return kept.keeper->status().persisted_bytes - before;
  };
  const Keeper::Job job{.pieces = {{1, 10 * kMiB + 5, 1}, {1, 20 * kMiB - 1, 2}, {2, 0, kMiB}, {1, kMiB, 0}}};
  CHECK(persisted(job) == 3 * BlockState::kBytes);
  CHECK(persisted(job) == 0);
  CHECK(persisted({.pieces = {{1, 23 * kMiB, UINT64_MAX}}}) == kMiB);
  CHECK(persisted({}) == kSmallBytes - kMiB - 3 * BlockState::kBytes);
}

TEST_CASE("of pieces that clients write themselves too, the chunks that were marked are looked at") {
  Kept kept(kSmallBytes);
  REQUIRE(kept.keeper->persist({}, nullptr).ok());
  const auto given = kept.region->hand_over(1, {.rights = 3});
  REQUIRE(given->fd);
  auto map = WrittenMap::open(UniqueFd(dup(given->written.get())));
  for (uint64_t offset : {2 * kMiB, 14 * kMiB, 20 * kMiB}) {
    const uint8_t byte = 9;
    REQUIRE(pwrite(given->fd.get(), &byte, 1, static_cast<off_t>(offset)) == 1);
    map->mark(offset, 1);
  }
  REQUIRE(kept.keeper->persist({.pieces = {{1, 14 * kMiB, 4096}}}, nullptr).ok());
  CHECK(kept.region->take_written() == std::vector<uint64_t>{1, 10});
  // That is all that is known of what it does there.
  CHECK(kept.region->info().given);
  const RegionUsage usage = kept.region->info().usage;
  CHECK(usage.told_chunks == 1);
  REQUIRE(usage.hot.size() == 1);
  CHECK(usage.hot[0].offset == 14 * kMiB);
  CHECK(kept.restored_byte(14 * kMiB) == 9);
}

TEST_CASE(
    "in the background it keeps to its rate, lets those go first for whom somebody waits, and hides nothing from "
    "them") {
  Kept kept(kSmallBytes);
  kept.open_again(kMiB);  // at which all of it would take half a minute
  store::Verdict verdict;
  std::thread background([&] { verdict = kept.keeper->persist({.background = true}, nullptr); });
  while (kept.keeper->status().persisted_bytes == 0) std::this_thread::yield();
  // It has taken the marks of everything by now.
  CHECK(kept.keeper->persist({.pieces = {{1, 20 * kMiB, 4096}}}, nullptr).ok());
  CHECK(kept.keeper->status().persisted_bytes < kSmallBytes);
  kept.keeper->end_background();
  background.join();
  CHECK_MESSAGE(verdict.ok(), verdict.why);
  CHECK(kept.keeper->persist({}, nullptr).ok());
  CHECK(kept.keeper->status().persisted_bytes == kSmallBytes);  // nothing twice
  CHECK(kept.restored_byte(20 * kMiB) == 7);
}

TEST_CASE("a pace: what was taken is waited for, and of a rest a quarter of a second counts") {
  constexpr uint64_t kSecond = 1'000'000'000;
  Pace pace(1000);
  CHECK(pace.take(250, 100 * kSecond) == 0);
  CHECK(pace.take(500, 100 * kSecond) == kSecond / 2);
  CHECK(pace.take(500, 101 * kSecond) == kSecond / 4);
  CHECK(pace.take(1000, 200 * kSecond) == kSecond * 3 / 4);
  CHECK(Pace(0).take(UINT64_MAX, 1) == 0);
}

TEST_CASE("in the background it comes to its end also while somebody persists all the time") {
  Kept kept(kSmallBytes);
  std::atomic<bool> done{false};
  std::thread busy([&] {
    for (uint64_t at = 0; !done; at = (at + 4096) % kMiB) {
      CHECK(kept.region->write(at, std::vector<uint8_t>(4096, 8))->status == Status::ok);
      CHECK(kept.keeper->persist({.pieces = {{1, at, 4096}}}, nullptr).ok());
    }
  });
  const auto verdict = kept.keeper->persist({.background = true}, nullptr);
  done = true;
  busy.join();
  CHECK_MESSAGE(verdict.ok(), verdict.why);
  CHECK(kept.restored_byte(kSmallBytes - 1) == 7);
}
