#include "region/region.h"

#include <doctest/doctest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>

using namespace extmem;
using namespace extmem::region;

namespace {

constexpr uint64_t kMiB = 1 << 20;
constexpr Grant kReadOnly{.rights = 1}, kReadWrite{.rights = 3};

std::shared_ptr<Region> make(MemoryAccount& account, const Region::Shape& shape) {
  Status status = Status::ok;
  auto region = Region::create(shape, account, status);
  REQUIRE(status == Status::ok);
  return region;
}

std::vector<uint8_t> bytes_of(size_t count, uint8_t byte) { return std::vector<uint8_t>(count, byte); }

}  // namespace

TEST_CASE("ranges near the end of the number space do not wrap around") {
  MemoryAccount account(16 * kMiB);
  auto region = make(account, {.id = 1, .bytes = kMiB, .thin = false});
  auto page = bytes_of(4096, 1);
  CHECK(region->write(UINT64_MAX - 4095, page)->status == Status::out_of_range);
  CHECK(region->read(UINT64_MAX, page)->status == Status::out_of_range);
  CHECK(region->read(kMiB - 4095, page)->status == Status::out_of_range);
  CHECK(region->read(kMiB - 4096, page)->status == Status::ok);
  CHECK(region->check_read(kMiB, 0)->status == Status::ok);
}

TEST_CASE("a thick region reserves in full, and gives it back") {
  MemoryAccount account(4 * kMiB);
  Status status = Status::ok;
  auto region = make(account, {.id = 1, .bytes = 3 * kMiB + 1, .thin = false});
  CHECK(account.reserved() == 3 * kMiB + 4096);
  CHECK(Region::create({.id = 2, .bytes = kMiB, .thin = false}, account, status) == nullptr);
  CHECK(status == Status::no_space);
  CHECK(region->resize(5 * kMiB) == Status::no_space);
  CHECK(region->resize(kMiB) == Status::ok);
  CHECK(account.reserved() == kMiB);
  region->destroy();
  CHECK(account.reserved() == 0);
  CHECK(region->resize(kMiB) == Status::not_present);
}

TEST_CASE("a thin region counts what is resident, holes and rewrites told apart") {
  MemoryAccount account(64 * 1024);
  auto region = make(account, {.id = 1, .bytes = uint64_t{1} << 40, .thin = true});
  CHECK(account.reserved() == 0);
  CHECK(region->write(100, bytes_of(10, 1))->status == Status::ok);
  CHECK(account.reserved() == 4096);
  CHECK(region->write(1 << 30, bytes_of(60 * 1024, 1))->status == Status::ok);
  CHECK(account.reserved() == 64 * 1024);
  CHECK(region->write(8192, bytes_of(1, 1))->status == Status::no_space);
  CHECK(region->write((1 << 30) + 8192, bytes_of(8192, 2))->status == Status::ok);
  CHECK(region->write((1 << 30) + 56 * 1024, bytes_of(8192, 2))->status == Status::no_space);
  CHECK(account.reserved() == 64 * 1024);
  CHECK(region->punch(1 << 30, 60 * 1024) == Status::ok);
  CHECK(account.reserved() == 4096);
}

TEST_CASE(
    "populating takes memory for a range, keeps what is there, and is refused where memory is counted by writes") {
  MemoryAccount account(16 * kMiB);
  auto region = make(account, {.id = 1, .bytes = 4 * kMiB, .thin = false});
  CHECK(region->write(8192, bytes_of(4096, 7))->status == Status::ok);
  CHECK(region->populate(0, kMiB)->status == Status::ok);
  CHECK(region->resident_bytes() == kMiB);
  std::vector<uint8_t> found(12288);
  CHECK(region->read(4096, found)->status == Status::ok);
  CHECK(std::count(found.begin(), found.end(), 7) == 4096);
  CHECK(std::count(found.begin(), found.end(), 0) == 8192);
  CHECK(region->populate(3 * kMiB, 2 * kMiB)->status == Status::out_of_range);
  CHECK(region->populate(UINT64_MAX - 4095, 8192)->status == Status::out_of_range);
  CHECK(region->info().bytes == 4 * kMiB);
  auto thin = make(account, {.id = 2, .bytes = 4 * kMiB, .thin = true});
  CHECK(thin->populate(0, kMiB)->status == Status::denied);
  CHECK(thin->resident_bytes() == 0);
}

TEST_CASE("revoking moves the bytes, empties the old memfd and leaves holes holes") {
  MemoryAccount account(256 * kMiB);
  auto region = make(account, {.id = 1, .bytes = 200 * kMiB, .thin = false});
  CHECK(region->write(5, bytes_of(10'000, 7))->status == Status::ok);
  CHECK(region->write(190 * kMiB, bytes_of(kMiB, 8))->status == Status::ok);
  auto given = region->hand_over(1, kReadWrite);
  REQUIRE(given->outcome.status == Status::ok);
  const uint32_t epoch = region->info().epoch;
  region->revoke([](uint64_t client, const Grant&) { return client != 1; });
  CHECK(region->info().epoch == epoch);
  const uint64_t resident = region->resident_bytes();
  region->revoke([](uint64_t client, const Grant&) { return client == 1; });
  CHECK(region->info().epoch == epoch + 1);
  CHECK(region->resident_bytes() == resident);
  CHECK(lseek(given->fd.get(), 0, SEEK_END) == 0);
  auto page = bytes_of(4096, 0);
  CHECK(pwrite(given->fd.get(), page.data(), page.size(), 0) < 0);
  CHECK(region->read(5 + 10'000 - 4096, page)->status == Status::ok);
  CHECK(page == bytes_of(4096, 7));
  CHECK(region->read(191 * kMiB - 4096, page)->status == Status::ok);
  CHECK(page == bytes_of(4096, 8));
}

TEST_CASE(
    "what a fenced client had stored through a mapping before is kept, and its mapping is of an empty memfd after") {
  MemoryAccount account(16 * kMiB);
  auto region = make(account, {.id = 1, .bytes = kMiB, .thin = false});
  auto given = region->hand_over(1, kReadWrite);
  auto* kept = static_cast<uint8_t*>(mmap(nullptr, kMiB, PROT_READ | PROT_WRITE, MAP_SHARED, given->fd.get(), 0));
  REQUIRE(kept != MAP_FAILED);
  kept[0] = 1;
  region->revoke([](uint64_t client, const Grant&) { return client == 1; });
  auto byte = bytes_of(1, 0);
  CHECK(region->read(0, byte)->status == Status::ok);
  CHECK(byte[0] == 1);
  CHECK(lseek(given->fd.get(), 0, SEEK_END) == 0);
  munmap(kept, kMiB);
}

TEST_CASE("what is written is known by its chunks, also in what a region has grown by and what was punched") {
  constexpr uint64_t kChunk = protocol::kLendBytes;
  constexpr uint64_t kFar = uint64_t{100} << 30;  // beyond what the first map covers
  MemoryAccount account(uint64_t{1} << 40);
  auto region = make(account, {.id = 1, .bytes = 4 * kChunk, .thin = false});
  using Chunks = std::vector<uint64_t>;
  CHECK(region->take_written() == Chunks{});
  CHECK(region->write(kChunk - 10, bytes_of(20, 1))->status == Status::ok);
  CHECK(region->write(3 * kChunk, bytes_of(1, 1))->status == Status::ok);
  CHECK(region->take_written() == Chunks{0, 1, 3});
  CHECK(region->fetch_add(2 * kChunk, 1)->status == Status::ok);
  CHECK(region->resize(kFar + kChunk) == Status::ok);
  region->mark_written(kFar, 8);
  CHECK(region->take_written() == Chunks{2, kFar / kChunk});
  CHECK(region->punch(kChunk, 2 * kChunk) == Status::ok);
  CHECK(region->take_written() == Chunks{1, 2});
}

TEST_CASE("who stores through the descriptor marks what it stores in the map that comes with it; who reads has none") {
  MemoryAccount account(16 * kMiB);
  auto region = make(account, {.id = 1, .bytes = 4 * kMiB, .thin = false});
  CHECK_FALSE(region->hand_over(1, kReadOnly)->written);
  auto given = region->hand_over(2, kReadWrite);
  REQUIRE(given->written);
  CHECK(ftruncate(given->written.get(), 0) != 0);
  auto map = WrittenMap::open(std::move(given->written));
  REQUIRE(map);
  map->mark(3 * kMiB, 1);
  CHECK(region->take_written() == std::vector<uint64_t>{1});
}

TEST_CASE("a region that a holder has cut is not present, never zeros") {
  MemoryAccount account(16 * kMiB);
  auto region = make(account, {.id = 1, .bytes = kMiB, .thin = false});
  CHECK(region->write(0, bytes_of(4096, 1))->status == Status::ok);
  auto given = region->hand_over(1, kReadWrite);
  REQUIRE(ftruncate(given->fd.get(), 0) == 0);
  auto page = bytes_of(4096, 9);
  CHECK(region->read(0, page)->status == Status::not_present);
  CHECK(region->write(0, page)->status == Status::not_present);
}

TEST_CASE("a region grows in place while nobody holds it, and moves when somebody does") {
  MemoryAccount account(16 * kMiB);
  auto region = make(account, {.id = 1, .bytes = kMiB, .thin = false});
  CHECK(region->write(0, bytes_of(4096, 1))->status == Status::ok);
  CHECK(region->resize(2 * kMiB) == Status::ok);
  auto given = region->hand_over(1, kReadOnly);
  CHECK(write(given->fd.get(), "x", 1) < 0);  // read-only
  CHECK(region->resize(3 * kMiB) == Status::ok);
  CHECK(lseek(given->fd.get(), 0, SEEK_END) == 0);
  auto page = bytes_of(4096, 0);
  CHECK(region->read(0, page)->status == Status::ok);
  CHECK(page == bytes_of(4096, 1));
  CHECK(region->read(3 * kMiB - 4096, page)->status == Status::ok);
  CHECK(page == bytes_of(4096, 0));
}

TEST_CASE("records are bounded in number and in bytes") {
  MemoryAccount account(0);
  auto region = make(account, {.id = 1, .bytes = 4096, .thin = true});
  CHECK(region->put_record(1, bytes_of(protocol::kMaxRecordBytes + 1, 1))->status == Status::bad_request);
  uint64_t kept = 0;
  while (region->put_record(kept, bytes_of(kMiB, 1))->status == Status::ok) ++kept;
  CHECK(kept == 63);
  CHECK(region->put_record(0, bytes_of(10, 1))->status == Status::ok);
  CHECK(region->put_record(1000, bytes_of(kMiB - 96, 1))->status == Status::ok);
  for (uint64_t ino = 0; ino < 64; ++ino) CHECK(region->remove_record(ino)->status == Status::ok);
  std::vector<RecordInfo> records;
  region->append_records(records);
  CHECK(records.size() == 1);
}

TEST_CASE("a newer grant does not keep what was handed over by an older one") {
  MemoryAccount account(16 * kMiB);
  auto region = make(account, {.id = 1, .bytes = kMiB, .thin = false});
  auto older = region->hand_over(1, {.rights = 3, .version = 1});
  auto newer = region->hand_over(1, {.rights = 1, .version = 2});
  region->revise_holders({.region = 1, .version = 2, .keeps = [](uint64_t) { return false; }});
  uint8_t byte = 1;
  CHECK(pwrite(older->fd.get(), &byte, 1, 0) != 1);
  CHECK(pread(newer->fd.get(), &byte, 1, 0) == 0);
  CHECK(region->read(0, {&byte, 1})->status == Status::ok);
}

TEST_CASE("what is done with a region is counted: operations, bytes, the last access, and which chunks are hot") {
  constexpr uint64_t kChunk = protocol::kLendBytes;
  SimulatedTime time{.monotonic_ns = 1, .wall_ns = 1'700'000'000'000'000'000};
  simulated_time.store(&time);
  Usage usage(40 * kChunk + 1);
  CHECK(usage.seen().last_access_ms == 0);
  usage.note_read(40 * kChunk, 1);
  for (int count = 0; count < 8; ++count) usage.note_written(3 * kChunk + 5, 4096);
  usage.note_told(7);
  usage.note_read(1'000 * kChunk, 10);  // what it has grown by: counted, but not how hot it is
  auto seen = usage.seen();
  CHECK(seen.operations == 10);
  CHECK(seen.bytes_read == 11);
  CHECK(seen.bytes_written == 8 * 4096);
  CHECK(seen.told_chunks == 1);
  CHECK(seen.last_access_ms == 1'700'000'000'000);
  REQUIRE(seen.hot.size() == 3);
  CHECK(seen.hot[0].offset == 3 * kChunk);
  CHECK(seen.hot[0].heat == 8);
  time.wall_ns += 2 * Usage::kHalfLifeMs * 1'000'000;
  for (uint64_t chunk = 10; chunk < 10 + Usage::kHottest; ++chunk) {
    for (int count = 0; count < 2; ++count) usage.note_read(chunk * kChunk, 1);
  }
  seen = usage.seen();
  REQUIRE(seen.hot.size() == Usage::kHottest);
  CHECK(std::all_of(seen.hot.begin(), seen.hot.end(), [](auto& one) { return one.heat == 2; }));
  usage.note_read(12 * kChunk, 1);
  CHECK(usage.seen().hot[0].offset == 12 * kChunk);
  simulated_time.store(nullptr);
}
