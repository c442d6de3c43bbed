#include "cache/operation_watch.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <thread>
#include <vector>

#include "base/protocol.h"

using namespace extmem;
using namespace extmem::cache;

namespace {

constexpr uint64_t kChunk = protocol::kStripeUnitBytes;

}  // namespace

TEST_CASE("operations are told by file, once, and only while somebody watches") {
  OperationWatch watch;
  std::vector<FileOperations> told;
  watch.note_read(7, 0, 4096, true);
  CHECK(watch.take(told) == 0);
  CHECK(told.empty());
  watch.begin();
  watch.note_read(7, 0, 4096, true);
  watch.note_read(7, 5 * kChunk, 8192, false);
  watch.note_write(7, 5 * kChunk + 1, 100, true);
  watch.note_write(9, 0, 1, false);
  CHECK(watch.take(told) == 0);
  REQUIRE(told.size() == 2);
  const FileOperations& file = told[0].node == 7 ? told[0] : told[1];
  CHECK(file.reads == 2);
  CHECK(file.read_bytes == 12288);
  CHECK(file.hits == 1);
  CHECK(file.writes == 1);
  CHECK(file.written_bytes == 100);
  CHECK(file.mapped_writes == 1);
  CHECK(file.hot[0].operations + file.hot[1].operations == 3);
  told.clear();
  watch.take(told);
  CHECK(told.empty());
  watch.note_read(7, 0, 4096, true);
  watch.end();
  watch.note_read(7, 0, 4096, true);
  watch.begin();  // anew: what was noted before is nobody's
  watch.take(told);
  CHECK(told.empty());
}

TEST_CASE("more files than there is room for are counted without their names") {
  OperationWatch watch;
  watch.begin();
  constexpr uint64_t kMany = 10 * OperationWatch::kFiles;
  for (uint64_t node = 1; node <= kMany; ++node) watch.note_read(node, 0, 1, true);
  std::vector<FileOperations> told;
  const uint64_t others = watch.take(told);
  CHECK(told.size() <= OperationWatch::kFiles);
  CHECK(told.size() > OperationWatch::kFiles / 2);
  CHECK(told.size() + others == kMany);
}

TEST_CASE("a chunk that is used more than the others is among the hot ones, however many there are") {
  OperationWatch watch;
  watch.begin();
  for (uint64_t turn = 0; turn < 1000; ++turn) {
    watch.note_read(1, turn * kChunk, 1, true);
    watch.note_read(1, 3 * kChunk, 1, true);
  }
  std::vector<FileOperations> told;
  watch.take(told);
  REQUIRE(told.size() == 1);
  uint64_t most = 0, chunk = 0;
  for (auto& hot : told[0].hot) {
    if (hot.operations > most) chunk = hot.chunk;
    most = std::max(most, hot.operations);
  }
  CHECK(chunk == 3);
  CHECK(most >= 1000);
}

TEST_CASE("of what reactors note while somebody looks, nothing is lost or told twice") {
  OperationWatch one, two;
  one.begin();
  two.begin();
  constexpr uint64_t kEach = 20000;
  auto work = [](OperationWatch& watch) {
    for (uint64_t turn = 0; turn < kEach; ++turn) watch.note_write(1 + turn % 5, turn * 4096, 10, false);
  };
  std::thread first([&] { work(one); }), second([&] { work(two); });
  std::vector<FileOperations> told;
  for (int looks = 0; looks < 1000; ++looks) {
    one.take(told);
    two.take(told);
  }
  first.join();
  second.join();
  one.take(told);
  two.take(told);
  CHECK(told.size() == 5);
  uint64_t writes = 0, bytes = 0;
  for (auto& file : told) {
    writes += file.writes;
    bytes += file.written_bytes;
  }
  CHECK(writes == 2 * kEach);
  CHECK(bytes == 20 * kEach);
}
