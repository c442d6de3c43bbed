#include "cache/reference_log.h"

#include <doctest/doctest.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstring>
#include <thread>
#include <vector>

namespace extmem::cache {
namespace {

std::vector<Reference> records_of(int fd) {
  off_t bytes = lseek(fd, 0, SEEK_END);
  REQUIRE(bytes >= static_cast<off_t>(sizeof(Reference)));
  std::vector<char> content(static_cast<size_t>(bytes));
  REQUIRE(pread(fd, content.data(), content.size(), 0) == bytes);
  CHECK(std::memcmp(content.data(), kReferenceLogHead.data(), kReferenceLogHead.size()) == 0);
  std::vector<Reference> records(content.size() / sizeof(Reference) - 1);
  std::memcpy(records.data(), content.data() + sizeof(Reference), records.size() * sizeof(Reference));
  return records;
}

TEST_CASE("requests of several threads are in the log or counted as lost, those of one in their order") {
  constexpr uint32_t kEach = 100'000;
  constexpr uint64_t kThreads = 3;
  int fd = memfd_create("references", 0);
  uint64_t lost;
  {
    ReferenceLog log(dup(fd));
    std::vector<std::thread> threads;
    for (uint64_t node = 1; node <= kThreads; ++node) {
      threads.emplace_back([&log, node] {
        for (uint32_t page = 0; page < kEach; ++page) log.note(Reference::Kind::direct_read, node, page, node);
      });
    }
    for (auto& thread : threads) thread.join();
    log.flush();
    lost = log.lost();
  }
  auto records = records_of(fd);
  close(fd);
  CHECK(records.size() + lost == kThreads * kEach);
  std::vector<int64_t> last(kThreads + 1, -1);
  for (const Reference& record : records) {
    REQUIRE(uint32_t{record.kind} == static_cast<uint8_t>(Reference::Kind::direct_read));
    REQUIRE(uint32_t{record.count} == record.node);
    REQUIRE(int64_t{record.page} > last[record.node]);
    last[record.node] = record.page;
  }
}

TEST_CASE("more pages than a record can count are all to the end") {
  int fd = memfd_create("references", 0);
  ReferenceLog(dup(fd)).note(Reference::Kind::drop, 7, 3, uint64_t{1} << 32);
  auto records = records_of(fd);
  close(fd);
  REQUIRE(records.size() == 1);
  CHECK(records[0].node == 7);
  CHECK(records[0].page == 3);
  CHECK(uint32_t{records[0].count} == Reference::kToTheEnd);
}

TEST_CASE("on a full disk everything is lost, and nothing else happens") {
  ReferenceLog log(open("/dev/full", O_WRONLY));
  for (uint32_t page = 0; page < 100; ++page) log.note(Reference::Kind::read, 1, page, 1);
  log.flush();
  CHECK(log.lost() == 100);
}

}  // namespace
}  // namespace extmem::cache
