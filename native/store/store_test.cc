#include "store/store.h"

#include <doctest/doctest.h>
#include <stdlib.h>
#include <unistd.h>

#include <string>

#include "store/testing/device.h"

using namespace extmem::store;

namespace {

constexpr uint64_t kLimit = kDataStart + 64 * kBlockBytes;

std::vector<uint8_t> blocks_of(uint8_t byte, uint64_t count = 1) {
  std::vector<uint8_t> data(count * kBlockBytes, byte);
  for (size_t at = 0; at < data.size(); at += 256) data[at] = static_cast<uint8_t>(byte + at / kBlockBytes);
  return data;
}

std::unique_ptr<Store> open_on(Device& device, Verdict& verdict, Codec::Options codec = {}) {
  return Store::open(std::make_unique<OnDevice>(device), {.limit_bytes = kLimit, .codec = codec}, verdict);
}

std::unique_ptr<Store> open_on(Device& device) {
  Verdict verdict;
  auto store = open_on(device, verdict);
  REQUIRE_MESSAGE(verdict.ok(), verdict.why);
  return store;
}

std::vector<uint8_t> read_block(Store& store, uint64_t region, uint64_t block) {
  std::vector<uint8_t> data(kBlockBytes);
  REQUIRE(store.read(region, block, std::span<uint8_t, kBlockBytes>(data)).ok());
  return data;
}

Verdict read_verdict(Store& store, uint64_t region, uint64_t block) {
  std::vector<uint8_t> data(kBlockBytes);
  return store.read(region, block, std::span<uint8_t, kBlockBytes>(data));
}

}  // namespace

TEST_CASE("what was committed is there for the next who opens it; what was not is not") {
  Device device(kLimit);
  {
    auto store = open_on(device);
    store->keep_region(7, 3 * kBlockBytes, false);
    REQUIRE(store->put(7, 0, blocks_of(1, 2)).ok());
    const std::vector<uint8_t> records = {1, 2, 3};
    REQUIRE(store->put_records(7, records).ok());
    store->set_exact(7, true);
    REQUIRE(store->commit().ok());
    store->keep_region(8, kBlockBytes, true);
    REQUIRE(store->put(7, 0, blocks_of(9)).ok());
  }
  auto store = open_on(device);
  REQUIRE(store->regions().size() == 1);
  CHECK(store->regions()[0].bytes == 3 * kBlockBytes);
  CHECK(store->regions()[0].exact);
  CHECK(store->regions()[0].stored_bytes == 2 * kBlockBytes);
  CHECK(read_block(*store, 7, 0) == blocks_of(1));
  CHECK(read_block(*store, 7, 2) == std::vector<uint8_t>(kBlockBytes, 0));
  std::vector<uint8_t> records;
  CHECK(store->read_records(7, records).ok());
  CHECK(records == std::vector<uint8_t>{1, 2, 3});
  CHECK(store->next_stored(7, 0, 3) == 0);
  CHECK(store->next_stored(7, 2, 3) == 3);
}

TEST_CASE("zeros take no room, and an unchanged store commits nothing") {
  Device device(kLimit);
  auto store = open_on(device);
  store->keep_region(1, 8 * kBlockBytes, false);
  REQUIRE(store->put(1, 0, std::vector<uint8_t>(8 * kBlockBytes, 0)).ok());
  REQUIRE(store->commit().ok());
  CHECK(store->regions()[0].stored_bytes == 0);
  const size_t before = device.operations.size();
  REQUIRE(store->commit().ok());
  CHECK(device.operations.size() == before);
}

TEST_CASE("a full store says so, loses nothing, takes what replaces, and has room again after a removal") {
  Device device(kLimit);
  auto store = open_on(device);
  store->keep_region(1, 100 * kBlockBytes, false);
  uint64_t stored = 0;
  Verdict verdict;
  while ((verdict = store->put(1, stored, blocks_of(static_cast<uint8_t>(stored + 1)))).ok()) ++stored;
  CHECK(verdict.code == Code::no_space);
  CHECK(stored > 30);
  REQUIRE(store->commit().ok());
  for (int round = 0; round < 5; ++round) {
    for (uint64_t block = 0; block < stored; ++block)
      REQUIRE(store->put(1, block, blocks_of(uint8_t(100 + round))).ok());
    REQUIRE(store->commit().ok());
  }
  store = open_on(device);
  for (uint64_t block = 0; block < stored; ++block) CHECK(read_block(*store, 1, block) == blocks_of(104));
  store->remove_region(1);
  REQUIRE(store->commit().ok());
  store->keep_region(2, 30 * kBlockBytes, false);
  CHECK(store->put(2, 0, blocks_of(5, 30)).ok());
  CHECK(store->commit().ok());
}

TEST_CASE("after an error of the device nothing is written any more, and what was committed is there") {
  Device device(kLimit);
  auto store = open_on(device);
  store->keep_region(1, 4 * kBlockBytes, false);
  REQUIRE(store->put(1, 0, blocks_of(1, 4)).ok());
  REQUIRE(store->commit().ok());
  for (int writes = 1; writes <= 6; ++writes) {
    CAPTURE(writes);
    Device failing(kLimit, device.image());
    auto victim = open_on(failing);
    failing.fails_writes_after = writes;
    Verdict verdict = victim->put(1, 1, blocks_of(9));
    if (verdict.ok()) verdict = victim->commit();
    if (verdict.ok()) continue;  // it took fewer writes
    CHECK(verdict.code == Code::io_error);
    CHECK(victim->broken().has_value());
    const size_t operations = failing.operations.size();
    failing.fails = false;
    CHECK(victim->put(1, 2, blocks_of(9)).code == Code::io_error);
    CHECK(victim->commit().code == Code::io_error);
    CHECK(failing.operations.size() == operations);
    auto again = open_on(failing);
    CHECK(read_block(*again, 1, 0) == blocks_of(1));
  }
}

TEST_CASE("a byte flipped anywhere is noticed where it is read, and costs no other block") {
  Device device(kLimit);
  {
    auto store = open_on(device);
    store->keep_region(1, 6 * kBlockBytes, false);
    REQUIRE(store->put(1, 0, blocks_of(1, 6)).ok());
    REQUIRE(store->commit().ok());
    REQUIRE(store->put(1, 3, blocks_of(50)).ok());
    REQUIRE(store->commit().ok());
  }
  uint64_t damaged = 0;
  for (uint64_t at = 100; at < device.image().size(); at += 9001) {
    Device flipped(kLimit, device.image());
    flipped.image()[at] ^= 0x10;
    CAPTURE(at);
    Verdict verdict;
    auto store = open_on(flipped, verdict);
    REQUIRE_MESSAGE(verdict.ok(), verdict.why);
    uint64_t here = 0;
    for (uint64_t block = 0; block < 6; ++block) {
      std::vector<uint8_t> data(kBlockBytes);
      Verdict read = store->read(1, block, std::span<uint8_t, kBlockBytes>(data));
      if (read.ok()) {
        auto expected = blocks_of(1, 6);
        CHECK(data == (block == 3 ? blocks_of(50)
                                  : std::vector(expected.begin() + long(block * kBlockBytes),
                                                expected.begin() + long((block + 1) * kBlockBytes))));
        continue;
      }
      CHECK(read.code == Code::damaged);
      ++here;
    }
    CHECK((here <= 1 || here == 6));  // 6: it was in the map
    CHECK(store->counters().damaged_blocks >= here);
    if (here == 0) continue;
    ++damaged;
    // What is put there anew is good again, also for the next.
    REQUIRE(store->put(1, 0, blocks_of(70, 6)).ok());
    REQUIRE(store->commit().ok());
    store = open_on(flipped);
    for (uint64_t block = 0; block < 6; ++block) CHECK(read_verdict(*store, 1, block).ok());
  }
  CHECK(damaged > 30);
}

TEST_CASE("superblocks: one copy is enough; none is told") {
  Device device(kLimit);
  { open_on(device); }
  for (uint64_t slot : {kSuperSlots[1], kSuperSlots[3]}) {
    Device half(kLimit, device.image());
    half.image()[slot + 20] ^= 1;
    Verdict verdict;
    CHECK(open_on(half, verdict) != nullptr);
  }
  for (uint64_t slot : kSuperSlots) device.image()[slot + 20] ^= 1;
  Verdict verdict;
  CHECK(open_on(device, verdict) == nullptr);
  CHECK(verdict.code == Code::damaged);
}

TEST_CASE("somebody else's data is not overwritten, and another version is refused") {
  Device foreign(kLimit, std::vector<uint8_t>(1 << 20, 0));
  foreign.image()[5000] = 1;
  const auto before = foreign.image();
  Verdict verdict;
  CHECK(open_on(foreign, verdict) == nullptr);
  CHECK(verdict.code == Code::not_a_store);
  CHECK(foreign.image() == before);
}

TEST_CASE("encrypted: nothing of it is readable, its key opens it, another does not") {
  Codec::Key key, other;
  key.fill(1);
  other.fill(2);
  Device device(kLimit);
  std::vector<uint8_t> secret(kBlockBytes);
  for (size_t at = 0; at < secret.size(); ++at) secret[at] = static_cast<uint8_t>("the secret words "[at % 17]);
  Verdict verdict;
  {
    auto store = open_on(device, verdict, {.compress = false, .key = key});
    REQUIRE(verdict.ok());
    store->keep_region(1, kBlockBytes, false);
    REQUIRE(store->put(1, 0, secret).ok());
    REQUIRE(store->commit().ok());
  }
  const std::string words = "the secret words";
  auto& image = device.image();
  CHECK(std::search(image.begin(), image.end(), words.begin(), words.end()) == image.end());
  CHECK(open_on(device, verdict, {.compress = false, .key = other}) == nullptr);
  CHECK(verdict.code == Code::bad_key);
  CHECK(open_on(device, verdict) == nullptr);
  CHECK(verdict.code == Code::bad_key);
  auto store = open_on(device, verdict, {.compress = true, .key = key});
  REQUIRE(verdict.ok());
  CHECK(read_block(*store, 1, 0) == secret);
}

TEST_CASE("compressed: it takes less room, and is read without being told so") {
  Device device(kLimit);
  Verdict verdict;
  auto store = open_on(device, verdict, {.compress = true, .key = {}});
  store->keep_region(1, 16 * kBlockBytes, false);
  REQUIRE(store->put(1, 0, blocks_of(3, 16)).ok());
  REQUIRE(store->commit().ok());
  CHECK(store->regions()[0].stored_bytes < kBlockBytes);
  store = open_on(device);
  CHECK(read_block(*store, 1, 0) == blocks_of(3));
}

TEST_CASE("on a file: it grows, is one appliance's at a time, and keeps to its limit") {
  char folder[] = "/tmp/extmem-store-XXXXXX";
  REQUIRE(mkdtemp(folder) != nullptr);
  Verdict verdict;
  auto file = open_block_file(folder, verdict);
  REQUIRE(verdict.ok());
  CHECK(open_block_file(folder, verdict) == nullptr);
  CHECK(verdict.code == Code::in_use);
  auto store = Store::open(std::move(file), {.limit_bytes = kLimit, .codec = {}}, verdict);
  REQUIRE(verdict.ok());
  store->keep_region(1, 1000 * kBlockBytes, false);
  uint64_t stored = 0;
  while (store->put(1, stored, blocks_of(1)).ok()) ++stored;
  REQUIRE(store->commit().ok());
  CHECK(store->counters().used_bytes <= kLimit);
  store.reset();
  store = Store::open(open_block_file(folder, verdict), {.limit_bytes = 0, .codec = {}}, verdict);
  REQUIRE(verdict.ok());
  CHECK(read_block(*store, 1, stored - 1) == blocks_of(1));
  CHECK(store->put(1, stored, blocks_of(1, 100)).ok());
  store.reset();
  unlink((std::string(folder) + "/extmem.store").c_str());
  rmdir(folder);
}
