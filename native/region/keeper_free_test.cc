// Persist and free: what is in the store gives its memory back and comes home when it is asked for, and nothing that
// somebody wrote is lost over that.
#include <doctest/doctest.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <thread>

#include "region/keeper.h"

using namespace extmem;
using namespace extmem::region;

namespace {

constexpr uint64_t kMiB = 1 << 20;
constexpr uint64_t kBytes = 8 * kMiB;

/// A region full of sevens that is kept, and whose absent blocks are brought.
struct Freed {
  Freed() {
    char made[] = "/tmp/extmem-free-XXXXXX";
    REQUIRE(mkdtemp(made) != nullptr);
    folder = made;
    std::string error;
    keeper = Keeper::open({.path = folder.string(), .store = {}}, regions, account, error);
    REQUIRE_MESSAGE(keeper != nullptr, error);
    Status status = Status::ok;
    region = Region::create({.id = 1, .bytes = kBytes, .thin = false, .kept = true}, account, status);
    REQUIRE(status == Status::ok);
    keeper->answer_for(*region);
    regions.insert(region);
    keeper->start();
    for (uint64_t at = 0; at < kBytes; at += kMiB) write(at, std::vector<uint8_t>(kMiB, 7));
  }
  ~Freed() {
    keeper->stop();
    std::filesystem::remove_all(folder);
  }

  void write(uint64_t offset, const std::vector<uint8_t>& data) {
    for (;;) {
      if (const auto outcome = region->write(offset, data)) {
        REQUIRE(outcome->status == Status::ok);
        return;
      }
      std::this_thread::yield();
    }
  }
  std::vector<uint8_t> read(uint64_t offset, uint64_t bytes) {
    std::vector<uint8_t> data(bytes);
    for (;;) {
      const auto outcome = region->read(offset, data);
      if (!outcome) {
        std::this_thread::yield();
        continue;
      }
      REQUIRE(outcome->status == Status::ok);
      return data;
    }
  }
  Keeper::Freed free(std::vector<Keeper::Piece> pieces = {{1, 0, kBytes}}) {
    Keeper::Freed told;
    const auto verdict = keeper->persist({.pieces = std::move(pieces), .freed = &told}, nullptr);
    CHECK_MESSAGE(verdict.ok(), verdict.why);
    return told;
  }

  std::filesystem::path folder;
  MemoryAccount account{16 * kBytes};
  RegionTable regions;
  std::shared_ptr<Region> region;
  std::unique_ptr<Keeper> keeper;
};

}  // namespace

TEST_CASE("what is persisted and freed takes no memory, and is read as it was") {
  Freed freed;
  freed.write(5 * kMiB, std::vector<uint8_t>(10, 9));
  freed.write(6 * kMiB, std::vector<uint8_t>(kMiB, 0));  // of zeros the store has nothing
  freed.free();
  CHECK(freed.region->info().resident_bytes == 0);
  CHECK(freed.region->info().absent_bytes == kBytes - kMiB);
  const auto data = freed.read(5 * kMiB, 11);
  CHECK(data == std::vector<uint8_t>{9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 7});
  CHECK(freed.region->info().resident_bytes == BlockState::kBytes);
  CHECK(freed.read(6 * kMiB, kMiB) == std::vector<uint8_t>(kMiB, 0));
  // What is written in part comes home first.
  freed.write(kMiB + 1, {1});
  CHECK(freed.read(kMiB, 3) == std::vector<uint8_t>{7, 1, 7});
  freed.free();
  CHECK(freed.region->info().resident_bytes == 0);
  CHECK(freed.read(kMiB, 3) == std::vector<uint8_t>{7, 1, 7});
}

TEST_CASE("of pieces, only their blocks are freed") {
  Freed freed;
  const auto told = freed.free({{1, 2 * kMiB + 5, kMiB}, {1, 2 * kMiB, 6}, {1, 2 * kMiB + 9, 7}});
  CHECK(told.freed_bytes == kMiB + BlockState::kBytes);
  CHECK(freed.region->info().absent_bytes == kMiB + BlockState::kBytes);
  CHECK(freed.region->info().resident_bytes == kBytes - kMiB - BlockState::kBytes);
}

TEST_CASE("a reply whose bytes were promised before they were freed waits for them") {
  Freed freed;
  REQUIRE(freed.region->check_read(0, kMiB)->status == Status::ok);
  freed.free();
  std::array<int, 2> pipe_ends{};
  REQUIRE(pipe(pipe_ends.data()) == 0);
  const UniqueFd reads(pipe_ends[0]), writes(pipe_ends[1]);
  CHECK_FALSE(freed.region->send(writes.get(), 0, 4096));
  for (;;) {
    if (const auto sent = freed.region->send(writes.get(), 0, 4096)) {
      CHECK(*sent == 4096);
      break;
    }
    std::this_thread::yield();
  }
  std::array<uint8_t, 4096> page{};
  REQUIRE(::read(reads.get(), page.data(), page.size()) == 4096);
  CHECK(page[4095] == 7);
}

TEST_CASE("what a client holds is persisted and stays in memory; it is freed when the client has let go of it") {
  Freed freed;
  auto given = freed.region->hand_over(1, {.rights = 3});
  REQUIRE(given->fd);
  const uint8_t byte = 9;
  REQUIRE(pwrite(given->fd.get(), &byte, 1, 3 * kMiB) == 1);  // and does not say so
  auto told = freed.free();
  CHECK(told.freed_bytes == 0);
  CHECK(told.held_bytes == kBytes);
  CHECK(freed.region->info().resident_bytes == kBytes);
  CHECK(freed.keeper->status().persisted_bytes == kBytes);
  CHECK(pwrite(given->fd.get(), &byte, 1, 4 * kMiB) == 1);

  void* mapping = mmap(nullptr, 4096, PROT_READ, MAP_SHARED, given->fd.get(), 0);
  REQUIRE(mapping != MAP_FAILED);
  given->fd.reset();
  CHECK(freed.free().held_bytes == kBytes);
  munmap(mapping, 4096);
  told = freed.free();
  CHECK(told.freed_bytes == kBytes);
  CHECK(told.held_bytes == 0);
  CHECK(freed.region->info().resident_bytes == 0);

  CHECK(freed.region->hand_over(1, {.rights = 3})->outcome.status == Status::denied);
  CHECK(freed.read(3 * kMiB, 2) == std::vector<uint8_t>{9, 7});
  CHECK(freed.read(4 * kMiB, 2) == std::vector<uint8_t>{9, 7});
  for (uint64_t at = 0; at < kBytes; at += kMiB) freed.read(at, kMiB);
  CHECK(freed.region->hand_over(1, {.rights = 3})->outcome.status == Status::ok);
}

TEST_CASE("what was given to a client since it was looked is not dropped, though that client has let go of it") {
  Freed freed;
  const auto before = freed.region->unshared();
  REQUIRE(before);
  freed.region->hand_over(1, {.rights = 3});
  const auto stored = [](uint64_t) { return true; };
  CHECK_FALSE(freed.region->drop(0, 128, *before, stored));
  CHECK(freed.region->info().resident_bytes == kBytes);
  const auto now = freed.region->unshared();
  REQUIRE(now);
  CHECK(*now != *before);
}

TEST_CASE("a region that a client has sealed, or cut, keeps its memory, and the others are freed") {
  Freed freed;
  Status status = Status::ok;
  auto other = Region::create({.id = 2, .bytes = kBytes, .thin = false, .kept = true}, freed.account, status);
  REQUIRE(status == Status::ok);
  freed.keeper->answer_for(*other);
  freed.regions.insert(other);
  REQUIRE(other->write(0, std::vector<uint8_t>(kMiB, 5))->status == Status::ok);
  uint64_t left = kMiB;
  {
    const auto given = other->hand_over(1, {.rights = 3});
    SUBCASE("sealed") { REQUIRE(fcntl(given->fd.get(), F_ADD_SEALS, F_SEAL_WRITE) == 0); }
    SUBCASE("cut") {
      REQUIRE(ftruncate(given->fd.get(), 4096) == 0);
      left = 4096;
    }
  }
  const auto told = freed.free({});
  CHECK(told.freed_bytes == kBytes);
  CHECK(told.held_bytes == left);
  CHECK(freed.region->info().resident_bytes == 0);
  CHECK(other->info().absent_bytes == 0);  // of what was cut off, nothing comes back as it was before
  std::vector<uint8_t> byte(1);
  CHECK(other->read(kMiB - 1, byte)->status == (left == kMiB ? Status::ok : Status::not_present));
}

TEST_CASE("a thin region keeps its memory: what it gave back could be somebody else's by then") {
  Freed freed;
  Status status = Status::ok;
  auto thin = Region::create({.id = 2, .bytes = kBytes, .thin = true, .kept = true}, freed.account, status);
  REQUIRE(status == Status::ok);
  freed.keeper->answer_for(*thin);
  freed.regions.insert(thin);
  REQUIRE(thin->write(0, std::vector<uint8_t>(kMiB, 5))->status == Status::ok);
  const auto told = freed.free({{2, 0, kBytes}});
  CHECK(told.freed_bytes == 0);
  CHECK(told.held_bytes == kMiB);
}

TEST_CASE("a block that there is no room for is asked for in vain once, is not damaged, and comes when there is room") {
  Freed freed;
  freed.free();
  freed.region->end_writing();  // nothing is written to the memory any more
  std::vector<uint8_t> byte(1);
  for (;;) {
    if (const auto outcome = freed.region->read(0, byte)) {
      CHECK(outcome->status == Status::not_present);
      break;
    }
    std::this_thread::yield();
  }
  CHECK(freed.region->info().damaged_pages == 0);
  CHECK(freed.region->blocks()->absent(0));
  CHECK(freed.keeper->bring_edges(*freed.region, 1, 1) != Status::ok);
  // It ends with everything in the store: nothing of it is missing.
  freed.keeper->stop();
  CHECK(freed.keeper->persist({.ending = 3}, nullptr).ok());
  CHECK(freed.keeper->ended_incarnation() == 3);
  freed.keeper.reset();
  RegionTable regions;
  std::string error;
  freed.keeper = Keeper::open({.path = freed.folder.string(), .store = {}}, regions, freed.account, error);
  REQUIRE_MESSAGE(freed.keeper != nullptr, error);
  const auto restored = freed.keeper->restore();
  REQUIRE(restored.size() == 1);
  CHECK(restored[0].exact);
  freed.region = regions.find(1);
  freed.keeper->start();
  CHECK(freed.read(0, 1)[0] == 7);
}

TEST_CASE("a failure to bring a block is told once, and only while it is news") {
  BlockState state(4 * BlockState::kBytes);
  uint64_t block = 0;
  state.make_absent(1);
  state.make_absent(2);
  state.note_failed(1);
  CHECK(state.presence(BlockState::kBytes, 1, false, block) == BlockState::Presence::failed);
  CHECK(state.presence(BlockState::kBytes, 1, false, block) == BlockState::Presence::absent);
  state.note_failed(2);
  state.make_present(2);
  state.make_absent(2);
  CHECK(state.presence(2 * BlockState::kBytes, 1, false, block) == BlockState::Presence::absent);
}

TEST_CASE("what was read of the store before memory was freed again does not come home for what was put since") {
  Freed freed;
  freed.free();
  const uint64_t drops = freed.region->drops();
  const std::vector<uint8_t> former(BlockState::kBytes, 7);
  freed.write(0, {8});
  freed.free();
  CHECK_FALSE(freed.region->fill(0, former, drops));  // look again
  CHECK(freed.read(0, 1)[0] == 8);
}

TEST_CASE("what is freed while a restore is under way comes home no more unless it is asked for") {
  constexpr uint64_t kBlocks = 8 * kBytes / BlockState::kBytes, kAsked = 64, kOnTheirWay = 4 * 8;
  Freed freed;
  Status status = Status::ok;
  freed.region = Region::create({.id = 2, .bytes = 8 * kBytes, .thin = false, .kept = true}, freed.account, status);
  REQUIRE(status == Status::ok);
  freed.regions.insert(freed.region);
  for (uint64_t at = 0; at < 8 * kBytes; at += kMiB) freed.write(at, std::vector<uint8_t>(kMiB, 7));
  REQUIRE(freed.keeper->persist({}, nullptr).ok());
  freed.keeper.reset();
  RegionTable regions;
  std::string error;
  freed.keeper = Keeper::open({.path = freed.folder.string(), .store = {}}, regions, freed.account, error);
  REQUIRE_MESSAGE(freed.keeper != nullptr, error);
  freed.keeper->restore();
  freed.region = regions.find(2);
  freed.keeper->start();
  freed.free({});
  for (uint64_t block = 0; block < kAsked; ++block) CHECK(freed.read(block * BlockState::kBytes, 1)[0] == 7);
  freed.keeper->stop();
  CHECK(freed.region->blocks()->absent_count() >= kBlocks - kAsked - kOnTheirWay);
}

TEST_CASE("a block of which a part is punched comes home before that") {
  Freed freed;
  freed.free();
  CHECK_FALSE(freed.region->punch(kMiB, BlockState::kBytes / 2));
  freed.keeper->bring_edges(*freed.region, kMiB, BlockState::kBytes / 2);
  CHECK(freed.region->punch(kMiB, BlockState::kBytes / 2) == Status::ok);
  const auto data = freed.read(kMiB, BlockState::kBytes);
  CHECK(data[BlockState::kBytes / 2 - 1] == 0);
  CHECK(data[BlockState::kBytes / 2] == 7);
}

TEST_CASE(
    "freed again and again while it is written, read and persisted, by messages and by descriptor: nothing is lost") {
  Freed freed;
  constexpr uint64_t kSpan = 2 * kMiB, kStep = 12 * 1024;
  constexpr auto kRest = std::chrono::milliseconds(2);
  std::atomic<bool> done{false};
  // Each writer has pages of its own, and knows what is in them.
  auto work = [&](uint64_t base, bool by_descriptor) {
    std::vector<uint8_t> round(kSpan / kStep + 1, 7);
    for (uint32_t turn = 1; !done; ++turn) {
      const uint64_t index = turn * 7919 % (kSpan / kStep), at = base + index * kStep;
      const std::vector<uint8_t> page(4096, static_cast<uint8_t>(turn));
      if (freed.read(at, 1)[0] != round[index]) {
        CHECK_MESSAGE(false, "lost at ", at);
        return;
      }
      bool stored = false;
      if (by_descriptor) {
        const auto given = freed.region->hand_over(base, {.rights = 3});
        stored = given && given->fd && pwrite(given->fd.get(), page.data(), 4096, static_cast<off_t>(at)) == 4096;
      }
      if (!stored) freed.write(at, page);
      round[index] = static_cast<uint8_t>(turn);
    }
    for (uint64_t index = 0; index < kSpan / kStep; ++index)
      CHECK(freed.read(base + index * kStep, 1)[0] == round[index]);
  };
  std::thread by_messages([&] { work(0, false); }), by_descriptor([&] { work(kSpan, true); });
  std::thread beside([&] {
    for (bool background = false; !done; background = !background, std::this_thread::sleep_for(kRest)) {
      const auto verdict = freed.keeper->persist({.background = background}, nullptr);
      if (!verdict.ok()) CHECK_MESSAGE(false, verdict.why);
    }
  });
  // What persists let go first: they rest in their midst.
  std::thread urgent([&] {
    for (; !done; std::this_thread::sleep_for(kRest)) freed.keeper->settle_freed({{1, 7 * kMiB, 1}});
  });
  for (int turns = 0; turns < 14; ++turns) {
    // Once in a while all is home: then descriptors are handed out again.
    if (turns % 6 == 0)
      for (uint64_t at = 0; at < kBytes; at += kMiB) freed.read(at, kMiB);
    freed.free();
  }
  done = true;
  by_messages.join();
  by_descriptor.join();
  beside.join();
  urgent.join();
  CHECK(freed.read(kBytes - 1, 1)[0] == 7);
}
