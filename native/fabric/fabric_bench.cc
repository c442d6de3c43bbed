// The fabric's figures: one client reactor against one appliance in another process on the same machine.
// `make -C native bench`
#include <algorithm>
#include <cstdio>
#include <vector>

#include "base/clock.h"
#include "contract/test_client.h"

using namespace extmem;
using namespace extmem::contract;

namespace {

constexpr uint64_t kRegionBytes = 64u << 20;

struct Load {
  Op op;
  uint32_t bytes;
  size_t depth;
  size_t count;
};

/// `depth` operations in flight, each submitted from the completion of the one before.
class Driver {
 public:
  Driver(fabric::Region& region, const Load& load) : load_(load), buffer_(load.depth * load.bytes, 1) {
    lanes_.resize(load.depth);
    for (size_t index = 0; index < load.depth; ++index) {
      Lane& lane = lanes_[index];
      lane.driver = this;
      lane.segment = {.iov_base = buffer_.data() + index * load.bytes, .iov_len = load.bytes};
      lane.operation.op = load.op;
      lane.operation.region = &region;
      lane.operation.segments = &lane.segment;
      lane.operation.segment_count = 1;
      lane.operation.bytes = load.bytes;
      lane.operation.context = &lane;
      lane.operation.complete = [](Operation& done) { static_cast<Lane*>(done.context)->driver->next(done); };
    }
  }
  void run(TestClient& client) {
    times_ns_.reserve(load_.count + load_.depth);
    begin_ns_ = monotonic_ns();
    client.on_reactor([&](Reactor&, fabric::Fabric& fabric) {
      fabric_ = &fabric;
      for (Lane& lane : lanes_) submit(lane.operation);
    });
    while (!finished_.load()) sched_yield_a_while();
  }
  void report(const char* transport) {
    std::sort(times_ns_.begin(), times_ns_.end());
    const double seconds = static_cast<double>(end_ns_ - begin_ns_) / 1e9;
    const auto done = static_cast<double>(times_ns_.size());
    std::printf("%-4s %-5s %7u B  depth %2zu  p50 %7.1f us  p99 %7.1f us  %9.0f op/s  %7.0f MB/s%s\n", transport,
                load_.op == Op::read ? "read" : "write", load_.bytes, load_.depth,
                static_cast<double>(times_ns_[times_ns_.size() / 2]) / 1e3,
                static_cast<double>(times_ns_[times_ns_.size() * 99 / 100]) / 1e3, done / seconds,
                done * load_.bytes / seconds / 1e6, failed_ ? "  FAILED" : "");
  }

 private:
  struct Lane {
    Driver* driver;
    iovec segment;
    Operation operation;
    uint64_t begin_ns = 0;
  };
  static void sched_yield_a_while() {
    timespec nap{.tv_sec = 0, .tv_nsec = 5'000'000};
    nanosleep(&nap, nullptr);
  }
  void submit(Operation& operation) {
    ++submitted_;
    position_ = (position_ + load_.bytes) % (kRegionBytes - load_.bytes + 1) / 4096 * 4096;
    operation.offset = position_;
    static_cast<Lane*>(operation.context)->begin_ns = monotonic_ns();
    fabric_->submit(operation);
  }
  void next(Operation& done) {
    const uint64_t now = monotonic_ns();
    times_ns_.push_back(now - static_cast<Lane*>(done.context)->begin_ns);
    failed_ |= done.status != Status::ok;
    if (submitted_ < load_.count) return submit(done);
    if (times_ns_.size() < submitted_) return;
    end_ns_ = now;
    finished_ = true;
  }

  const Load load_;
  std::vector<uint8_t> buffer_;
  std::vector<Lane> lanes_;
  fabric::Fabric* fabric_ = nullptr;
  size_t submitted_ = 0;
  uint64_t position_ = 0, begin_ns_ = 0, end_ns_ = 0;
  std::vector<uint64_t> times_ns_;
  std::atomic<bool> finished_{false};
  bool failed_ = false;
};

}  // namespace

int main() {
  for (const Transport& transport : all_transports()) {
    if (transport.faults != nullptr) continue;
    ApplianceProcess process;
    process.command("create 10 " + std::to_string(kRegionBytes) + " 0");
    TestClient client({.transport = transport});
    fabric::Region& region = client.add_region(client.add_appliance(process), 10, kRegionBytes);
    const Load loads[] = {{Op::write, 1u << 20, 1, 500},  {Op::read, 4096, 1, 50'000},
                          {Op::write, 4096, 1, 50'000},   {Op::read, 4096, 16, 200'000},
                          {Op::read, 65536, 1, 10'000},   {Op::read, 1u << 20, 1, 3'000},
                          {Op::read, 1u << 20, 4, 3'000}, {Op::write, 1u << 20, 4, 3'000}};
    for (const Load& load : loads) {
      Driver driver(region, load);
      driver.run(client);
      driver.report(transport.name);
    }
  }
}
