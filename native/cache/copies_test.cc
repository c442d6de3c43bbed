// Files with copies: reads go on from another, writes are done when the manager has dropped the copy that missed them.
#include "cache/copies.h"

#include <doctest/doctest.h>
#include <errno.h>

#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include "cache/file_control.h"
#include "cache/flusher.h"
#include "cache/reader.h"
#include "cache/transfer.h"
#include "native/cache_cluster.h"

namespace extmem::cache {
namespace {

constexpr uint64_t kNode = 7;
constexpr uint32_t kBytes = 40 * kPageBytes;

/// One reactor, two appliances, one mirrored file held for writing.
class Bench {
 public:
  explicit Bench(uint64_t fault_seed = 0, const std::string& fault_plan = "")
      : cluster_(directory_), cache_(options(), directory_, cluster_) {
    cluster_.attach(cache_.slabs());
    auto fabric_options = test_credentials();
    fabric_options.operation_deadline_ms = 300;
    fabric_options.fault_seed = fault_seed;
    fabric_options.fault_plan = fault_plan;
    fabric_ = fabric::Fabric::create(reactor_, directory_, fabric_options);
    lane_.reset(new Lane{reactor_, *fabric_, nullptr, {}});
    extent::FileAttributes attributes;
    attributes.ino = kNode;
    attributes.layout = extent::LayoutKind::mirror;
    attributes.copies = 2;
    attributes.epoch = 1;
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

  int write(uint64_t offset, const std::vector<std::byte>& data) {
    Write write{offset, data};
    return run([&] { return write_file(cache_, *lane_, *file_, write); });
  }
  int write_through(uint64_t offset, const std::vector<std::byte>& data) {
    const auto bytes = static_cast<uint32_t>(data.size());
    return run([&] { return write_range(cache_, *lane_, *file_, offset, data.data(), bytes); });
  }
  int flush() {
    return run([&] { return flush_file(cache_, *lane_, *file_); });
  }
  int sync() {
    return run([&] { return sync_file(cache_, *lane_, *file_, false, 0); });
  }
  /// From the appliances: nothing clean stays here.
  int read(std::vector<std::byte>& data) {
    cache_.drop_clean(*file_, 0, UINT32_MAX);
    PinnedPages pins(cache_.frames());
    const auto bytes = static_cast<uint32_t>(data.size());
    int error = run([&] { return read_pages(cache_, *lane_, *file_, 0, bytes, Reuse::ours, pins); });
    for (uint32_t index = 0; error == 0 && index < pins.count(); ++index)
      std::memcpy(data.data() + index * kPageBytes, cache_.frames().data(pins[index]), kPageBytes);
    return error;
  }
  unsigned missing() {
    unsigned count = 0;
    file_->lock.lock();
    for (const auto& one : file_->extents.extents())
      for (const auto& member : file_->extents.members(one)) count += member.missing ? 1 : 0;
    file_->lock.unlock();
    return count;
  }
  Cluster& cluster() { return cluster_; }
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

std::vector<std::byte> bytes_of(unsigned seed, size_t count = kBytes) {
  std::mt19937 random(seed);
  std::vector<std::byte> data(count);
  for (auto& one : data) one = static_cast<std::byte>(random());
  return data;
}

TEST_CASE("what is written is on both appliances, and either can be read alone, without the manager") {
  for (unsigned gone : {0u, 1u}) {
    Bench bench;
    const auto data = bytes_of(gone);
    REQUIRE(bench.write(0, data) == 0);
    REQUIRE(bench.flush() == 0);
    bench.cluster().kill(gone);
    std::vector<std::byte> read(kBytes);
    REQUIRE(bench.read(read) == 0);
    CHECK(read == data);
    CHECK(bench.cluster().drops == 0);
  }
}

TEST_CASE("a copy that did not take a write is dropped, once, and not asked any more") {
  Bench bench;
  REQUIRE(bench.write(0, bytes_of(1)) == 0);
  REQUIRE(bench.flush() == 0);
  const auto epoch = bench.file().attributes.epoch;
  bench.cluster().kill(0);
  const auto data = bytes_of(2);
  REQUIRE(bench.write(0, data) == 0);
  CHECK(bench.flush() == 0);
  CHECK(bench.cluster().drops == 1);
  CHECK(bench.missing() == bench.file().extents.extents().size());
  CHECK(bench.file().attributes.epoch == epoch + 1);
  CHECK(bench.file().attributes.change > bench.file().committed_change);  // what the manager knows is older
  REQUIRE(bench.write(0, data) == 0);
  CHECK(bench.flush() == 0);
  CHECK(bench.cluster().drops == 1);
  CHECK(bench.sync() == 0);
  std::vector<std::byte> read(kBytes);
  REQUIRE(bench.read(read) == 0);
  CHECK(read == data);
}

TEST_CASE("a manager that does not drop the copy leaves the pages dirty; they go out when it does") {
  Bench bench;
  REQUIRE(bench.write(0, bytes_of(1)) == 0);
  REQUIRE(bench.flush() == 0);
  bench.cluster().kill(1);
  bench.cluster().refuses_to_drop = true;
  const auto data = bytes_of(2);
  REQUIRE(bench.write(0, data) == 0);
  CHECK(bench.flush() == EIO);
  CHECK(bench.file().dirty_pages.load() == kBytes / kPageBytes);
  CHECK(bench.missing() == 0);
  CHECK(bench.write_through(0, data) == EIO);
  bench.cluster().refuses_to_drop = false;
  CHECK(bench.flush() == 0);
  CHECK(bench.file().dirty_pages.load() == 0);
  CHECK(bench.write_through(0, data) == 0);
  std::vector<std::byte> read(kBytes);
  REQUIRE(bench.read(read) == 0);
  CHECK(read == data);
}

TEST_CASE("no copy left is EIO, and what is dirty stays") {
  Bench bench;
  REQUIRE(bench.write(0, bytes_of(1)) == 0);
  REQUIRE(bench.flush() == 0);
  bench.cluster().kill(0);
  bench.cluster().kill(1);
  std::vector<std::byte> read(kBytes);
  CHECK(bench.read(read) == EIO);
  bench.write(0, bytes_of(2));
  CHECK(bench.flush() == EIO);
  CHECK(bench.cluster().drops == 0);
}

TEST_CASE("whatever the fabric fails to do, what flush promised is what is read") {
  const char* given = std::getenv("EXTMEM_SEED");
  const auto seed = given == nullptr ? std::random_device{}() : static_cast<unsigned>(std::strtoul(given, nullptr, 10));
  MESSAGE("EXTMEM_SEED=", seed);
  for (const char* plan : {"error=0.2:timed_out", "lost=0.2:timed_out,reorder=0.1", "cut=0.1,error=0.05:unreachable"}) {
    INFO("plan ", plan);
    Bench bench(seed, plan);
    std::mt19937 random(seed);
    auto model = bytes_of(seed);
    REQUIRE(bench.write(0, model) == 0);
    for (int round = 0; round < 30; ++round) {
      const uint64_t offset = random() % (kBytes / kPageBytes) * kPageBytes;
      const auto piece = bytes_of(random(), std::min<uint64_t>(3 * kPageBytes, kBytes - offset));
      std::copy(piece.begin(), piece.end(), model.begin() + static_cast<ptrdiff_t>(offset));
      while (bench.write(offset, piece) != 0) {
      }
      while (bench.flush() != 0) {
      }
      std::vector<std::byte> read(kBytes);
      while (bench.read(read) != 0) {
      }
      REQUIRE(read == model);
    }
  }
}

}  // namespace
}  // namespace extmem::cache
