// Room for growth: what of it goes back when a file is closed, and when it stays.
#include <doctest/doctest.h>

#include <functional>
#include <memory>
#include <thread>
#include <vector>

#include "cache/file_control.h"
#include "native/cache_cluster.h"

namespace extmem::cache {
namespace {

constexpr uint64_t kNode = 7;
constexpr uint64_t kMiB = 1 << 20;

/// One reactor, two appliances, one file held for writing.
class Bench {
 public:
  Bench() : cluster_(directory_), cache_(options(), directory_, cluster_) {
    cluster_.attach(cache_.slabs());
    fabric_ = fabric::Fabric::create(reactor_, directory_, test_credentials());
    lane_.reset(new Lane{reactor_, *fabric_, nullptr, {}});
    extent::FileAttributes attributes;
    attributes.ino = kNode;
    REQUIRE(install_file(cache_, kNode, Delegation::write, extent::encode_record(attributes, {})) == 0);
    file_ = cache_.find_file(kNode);
    thread_ = std::thread([this] { reactor_.run(); });
  }
  ~Bench() {
    reactor_.stop();
    thread_.join();
    cache_.put_file(*file_);
    fabric_->close();
  }

  int write(uint64_t offset, uint64_t bytes) {
    const std::vector<std::byte> data(bytes, std::byte{1});
    Write write{offset, data};
    return run([&] { return write_file(cache_, *lane_, *file_, write); });
  }
  int reserve(uint64_t offset, uint64_t bytes) {
    return run([&] { return allocate_range(cache_, *lane_, *file_, offset, bytes, true); });
  }
  int sync() {
    return run([&] { return sync_file(cache_, *lane_, *file_, false, 0); });
  }
  /// By the last handle, unless others are open.
  int close(uint32_t handles = 1) {
    file_->handles.store(handles);
    int error = run([&] { return sync_file(cache_, *lane_, *file_, true, 0); });
    file_->handles.store(0);
    return error;
  }
  uint64_t allocated() const { return file_->extents.allocated_bytes(); }
  uint64_t carved() { return cache_.slabs().total_bytes() - cache_.slabs().free_bytes(); }
  File& file() { return *file_; }
  PageCache& cache() { return cache_; }

 private:
  static PageCache::Options options() {
    return {.cache_bytes = 32 << 20, .dirty_bytes = 16 << 20, .appliance_dirty_bytes = 8 << 20, .read_ahead_pages = 0};
  }
  int run(std::function<Task<int>()> work) { return run_on(reactor_, std::move(work)); }

  Reactor reactor_{{}};
  fabric::Directory directory_;
  Cluster cluster_;
  PageCache cache_;
  std::unique_ptr<fabric::Fabric> fabric_;
  std::unique_ptr<Lane> lane_;
  File* file_ = nullptr;
  std::thread thread_;
};

TEST_CASE("a file that was written and closed has its pages and no more; what nobody else knew of is free again") {
  for (uint64_t bytes : {uint64_t{9 * 1024}, uint64_t{300 * 1024}, 5 * kMiB + 1, 12 * kMiB + 5000}) {
    INFO("bytes ", bytes);
    Bench bench;
    for (uint64_t at = 0; at < bytes; at += 128 * 1024) {
      REQUIRE(bench.write(at, std::min<uint64_t>(128 * 1024, bytes - at)) == 0);
    }
    const uint64_t pages = (bytes + kPageBytes - 1) / kPageBytes * kPageBytes;
    CHECK(bench.allocated() > pages);
    REQUIRE(bench.close() == 0);
    CHECK(bench.allocated() == pages);
    CHECK(bench.carved() == pages);
    CHECK(bench.file().attributes.change == bench.file().committed_change);  // by the commit of the close itself
    CHECK(bench.file().size.load() == bytes);
  }
}

TEST_CASE("room that a record elsewhere may name is the manager's to free") {
  Bench bench;
  REQUIRE(bench.write(0, 600 * 1024) == 0);
  REQUIRE(bench.sync() == 0);
  const uint64_t carved = bench.carved();
  CHECK(carved == kMiB);
  REQUIRE(bench.close() == 0);
  CHECK(bench.allocated() == 600 * 1024);
  CHECK(bench.carved() == carved);
}

TEST_CASE("what was reserved stays, and nothing is taken while the file is open elsewhere here") {
  Bench bench;
  REQUIRE(bench.write(0, 9000) == 0);
  REQUIRE(bench.close(2) == 0);
  CHECK(bench.allocated() == 16384);
  REQUIRE(bench.reserve(0, 100'000) == 0);
  REQUIRE(bench.close() == 0);
  CHECK(bench.allocated() >= 100'000);
}

TEST_CASE("whoever appends again and again, opening the file each time, keeps room for growth") {
  Bench bench;
  for (uint64_t at = 0; at < 4 * kMiB; at += 3000) {
    REQUIRE(bench.write(at, 3000) == 0);
    REQUIRE(bench.close() == 0);
  }
  CHECK(bench.file().extents.extents().size() < 30);
}

TEST_CASE("a file that needs no commit is not committed for little") {
  Bench bench;
  REQUIRE(bench.write(0, 9000) == 0);
  REQUIRE(bench.sync() == 0);
  const uint64_t change = bench.file().attributes.change;
  REQUIRE(bench.close() == 0);
  CHECK(bench.file().attributes.change == change);
}

}  // namespace
}  // namespace extmem::cache
