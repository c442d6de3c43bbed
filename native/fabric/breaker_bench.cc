// What an appliance that is dead, or slow, costs those who use another: 4 KiB reads of a healthy one by one reactor,
// while the same reactor asks the other for something every millisecond. `make -C native bench`
//
// Rounds alternate between the states, so that what the machine does besides falls on all of them.
#include <signal.h>
#include <time.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdio>
#include <thread>
#include <vector>

#include "base/clock.h"
#include "contract/test_client.h"

using namespace extmem;
using namespace extmem::contract;

namespace {

constexpr uint64_t kRegionBytes = 4u << 20;
constexpr int kSlices = 25;
constexpr uint64_t kSliceNs = 30'000'000;
constexpr uint64_t kAskEveryNs = 1'000'000;
/// Long enough for every attempt and the breaker.
constexpr uint64_t kSettleNs = 5'000'000'000;
constexpr int kRounds = 7;

void sleep_ns(uint64_t ns) {
  timespec nap{.tv_sec = static_cast<time_t>(ns / 1'000'000'000), .tv_nsec = static_cast<long>(ns % 1'000'000'000)};
  nanosleep(&nap, nullptr);
}

/// One read after the other, each submitted from the completion of the one before; or every so often.
class Reader final : public Timer {
 public:
  Reader(TestClient& client, fabric::Region& region, uint64_t every_ns) : client_(client), every_ns_(every_ns) {
    operation_.region = &region;
    operation_.segments = &segment_;
    operation_.segment_count = 1;
    operation_.bytes = protocol::kPageBytes;
    operation_.context = this;
    operation_.complete = [](Operation& done) { static_cast<Reader*>(done.context)->next(done); };
    times_ns_.reserve(1 << 20);
  }
  void start() {
    stopping_ = stopped_ = false;
    client_.on_reactor([this](Reactor& reactor, fabric::Fabric& fabric) {
      reactor_ = &reactor;
      fabric_ = &fabric;
      times_ns_.clear();
      submit();
    });
  }
  void stop() {
    stopping_ = true;
    while (!stopped_) sleep_ns(1'000'000);
  }
  double p99_us() {
    std::sort(times_ns_.begin(), times_ns_.end());
    return static_cast<double>(times_ns_[times_ns_.size() * 99 / 100]) / 1e3;
  }

 private:
  void on_timer() override { submit(); }
  void submit() {
    operation_.offset = (operation_.offset + protocol::kPageBytes) % kRegionBytes;
    begin_ns_ = monotonic_ns();
    fabric_->submit(operation_);
  }
  void next(Operation&) {
    const uint64_t now = monotonic_ns();
    times_ns_.push_back(now - begin_ns_);
    if (stopping_) {
      stopped_ = true;
    } else if (every_ns_ == 0) {
      submit();
    } else {
      reactor_->arm(*this, now + every_ns_);
    }
  }

  TestClient& client_;
  const uint64_t every_ns_;
  std::array<uint8_t, protocol::kPageBytes> page_{};
  iovec segment_{page_.data(), page_.size()};
  Operation operation_;
  Reactor* reactor_ = nullptr;
  fabric::Fabric* fabric_ = nullptr;
  uint64_t begin_ns_ = 0;
  std::vector<uint64_t> times_ns_;
  std::atomic<bool> stopping_{false}, stopped_{false};
};

/// It runs for a tenth of the time.
class Slowness {
 public:
  explicit Slowness(ApplianceProcess& process)
      : process_(process), thread_([this] {
          while (!over_) {
            process_.signal(SIGSTOP);
            sleep_ns(18'000'000);
            process_.signal(SIGCONT);
            sleep_ns(2'000'000);
          }
        }) {}
  ~Slowness() {
    over_ = true;
    thread_.join();
  }

 private:
  ApplianceProcess& process_;
  std::atomic<bool> over_{false};
  std::thread thread_;
};

struct Spread {
  double median, least, most;
};

Spread spread_of(std::vector<double> rounds) {
  std::sort(rounds.begin(), rounds.end());
  return {.median = rounds[rounds.size() / 2], .least = rounds.front(), .most = rounds.back()};
}

/// The median of short slices: one that the machine took the CPU away from counts once.
double measure(Reader& reader) {
  std::vector<double> slices;
  for (int slice = 0; slice < kSlices; ++slice) {
    reader.start();
    sleep_ns(kSliceNs);
    reader.stop();
    slices.push_back(reader.p99_us());
  }
  return spread_of(std::move(slices)).median;
}

/// Each round is compared with what was before in the same round.
void report(const char* what, const std::vector<double>& rounds, const std::vector<double>& before) {
  std::vector<double> ratios(rounds.size());
  for (size_t round = 0; round < rounds.size(); ++round) ratios[round] = rounds[round] / before[round];
  const Spread p99 = spread_of(rounds), ratio = spread_of(std::move(ratios));
  std::printf("%-30s p99 %8.1f us (%.1f to %.1f), %.2f of before (%.2f to %.2f)\n", what, p99.median, p99.least,
              p99.most, ratio.median, ratio.least, ratio.most);
}

}  // namespace

int main() {
  ApplianceProcess healthy, other;
  healthy.command("create 10 4194304 0");
  other.command("create 20 4194304 0");
  TestClient client({});
  Reader reader(client, client.add_region(client.add_appliance(healthy), 10, kRegionBytes), 0);
  Reader asker(client, client.add_region(client.add_appliance(other), 20, kRegionBytes), kAskEveryNs);
  std::vector<double> alone, well, slow, dying, dead;
  for (int round = 0; round < kRounds; ++round) {
    alone.push_back(measure(reader));
    asker.start();
    well.push_back(measure(reader));
    {
      Slowness slowness(other);
      slow.push_back(measure(reader));
    }
    other.signal(SIGSTOP);
    dying.push_back(measure(reader));
    sleep_ns(kSettleNs);
    dead.push_back(measure(reader));
    other.signal(SIGCONT);
    sleep_ns(2'000'000'000);
    asker.stop();
  }
  report("nobody asks the other", alone, alone);
  report("the other is well", well, alone);
  report("the other is slow", slow, alone);
  report("the other has just stopped", dying, alone);
  report("the other is known to be dead", dead, alone);
}
