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

/// A region full of bytes, and a keeper with a store of its own.
struct Kept {
  Kept() {
    char made[] = "/tmp/extmem-keeper-XXXXXX";
    REQUIRE(mkdtemp(made) != nullptr);
    folder = made;
    open_again();
    Status status = Status::ok;
    region = Region::create({.id = 1, .bytes = kRegionBytes, .thin = false, .kept = true}, account, status);
    REQUIRE(status == Status::ok);
    const std::vector<uint8_t> data(kMiB, 7);
    for (uint64_t at = 0; at < kRegionBytes; at += kMiB) REQUIRE(region->write(at, data)->status == Status::ok);
    regions.insert(region);
  }
  ~Kept() { std::filesystem::remove_all(folder); }

  void open_again() {
    std::string error;
    keeper.reset();
    keeper = Keeper::open({.path = folder.string(), .store = {}}, regions, account, error);
    REQUIRE_MESSAGE(keeper != nullptr, error);
  }
  /// Persists; when a quarter is done, `free` is, and `settle` begins on another thread. Answers whether that was over
  /// first.
  bool persist_beside(const std::function<void()>& free, const std::function<store::Verdict()>& settle) {
    std::atomic<bool> begun{false}, done{false};
    std::thread other;
    const auto verdict = keeper->persist({}, 0, [&](const Keeper::Progress&) {
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
  REQUIRE(kept.keeper->persist({}, 0, nullptr).ok());
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
    CHECK(kept.keeper->persist({}, ending, nullptr).ok());
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
