// What it is worth that an appliance polls, and how long: 4 KiB reads over tcp, one at a time, of one and of two
// appliances in processes of their own, back to back and with a pause between them, on a machine that does nothing else
// and on one that is busy. What the appliances' CPUs did for it, and what they do when nothing comes any more.
// docs/adr/0020-polling-of-appliances.md has the figures. `fabric.polling_bench 5`: five rounds, medians.
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <future>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "base/assert.h"
#include "base/clock.h"
#include "base/task.h"
#include "contract/test_client.h"

using namespace extmem;
using namespace extmem::contract;

namespace {

constexpr uint64_t kRegionBytes = 16u << 20;
constexpr size_t kReads = 600;
constexpr uint64_t kPauseNs = 150'000;
constexpr uint64_t kIdleUs = 200'000;

struct Policy {
  const char* name;
  uint64_t longest_ns, shortest_ns;
};
constexpr Policy kPolicies[] = {{"never", 0, 0},
                                {"60 us", 60'000, 60'000},
                                {"200 us", 200'000, 200'000},
                                {"2 ms", 2'000'000, 2'000'000},
                                {"following", 200'000, PollWindow::kShortestNs}};

/// Takes two CPUs, as a build beside it would.
class Burners {
 public:
  explicit Burners(bool wanted) {
    for (int index = 0; wanted && index < 2; ++index) {
      threads_.emplace_back([this] {
        while (!stop_.load(std::memory_order_relaxed)) {
        }
      });
    }
  }
  ~Burners() {
    stop_ = true;
    for (auto& thread : threads_) thread.join();
  }

 private:
  std::atomic<bool> stop_{false};
  std::vector<std::thread> threads_;
};

struct Figures {
  std::vector<double> p50, p90, cpu, idle;
};

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

class Bench {
 public:
  Bench(const Policy& policy, size_t appliances) {
    for (size_t index = 0; index < appliances; ++index) {
      processes_.push_back(std::make_unique<ApplianceProcess>(
          ApplianceProcess::Options{.poll_ns = policy.longest_ns, .poll_shortest_ns = policy.shortest_ns}));
      const std::string id = std::to_string(10 + index);
      processes_.back()->command("create " + id + " " + std::to_string(kRegionBytes) + " 0");
      auto& appliance = client_.add_appliance(*processes_.back());
      regions_.push_back(&client_.add_region(appliance, 10 + index, kRegionBytes));
    }
    read_all(100, 0);  // connections
  }

  void measure(uint64_t pause_ns, Figures& into) {
    const uint64_t before = cpu_us();
    auto times = read_all(kReads, pause_ns);
    into.cpu.push_back(static_cast<double>(cpu_us() - before) / kReads);
    std::sort(times.begin(), times.end());
    into.p50.push_back(times[times.size() / 2]);
    into.p90.push_back(times[times.size() * 9 / 10]);
    usleep(20'000);
    const uint64_t rest = cpu_us();
    usleep(kIdleUs);
    into.idle.push_back(static_cast<double>(cpu_us() - rest) * 100 / kIdleUs);
  }

 private:
  /// All on the reactor's thread: what is measured is how soon an appliance answers, not how soon this thread wakes up.
  std::vector<double> read_all(size_t count, uint64_t pause_ns) {
    std::vector<double> times;
    std::promise<void> done;
    client_.on_reactor(
        [&](Reactor&, fabric::Fabric& fabric) { read_on_reactor(fabric, count, pause_ns, times, done); });
    done.get_future().get();
    return times;
  }

  Detached read_on_reactor(fabric::Fabric& fabric, size_t count, uint64_t pause_ns, std::vector<double>& times,
                           std::promise<void>& done) {
    std::vector<uint8_t> page(4096);
    iovec segment{.iov_base = page.data(), .iov_len = page.size()};
    for (size_t index = 0; index < count; ++index) {
      // As an application that computes between its faults.
      for (const uint64_t until = monotonic_ns() + pause_ns; monotonic_ns() < until;) {
      }
      Operation operation;
      operation.region = regions_[index % regions_.size()];
      operation.offset = index * 4096 % kRegionBytes;
      operation.segments = &segment;
      operation.segment_count = 1;
      operation.bytes = 4096;
      const uint64_t begin_ns = monotonic_ns();
      fabric::Batch batch(fabric);
      batch.submit(operation);
      co_await batch;
      EXTMEM_ASSERT(operation.status == Status::ok);
      times.push_back(static_cast<double>(monotonic_ns() - begin_ns) / 1e3);
    }
    done.set_value();
  }

  uint64_t cpu_us() {
    uint64_t sum = 0;
    for (auto& process : processes_) sum += std::stoull(process->command("cpu"));
    return sum;
  }

  TestClient client_{{.transport = {"tcp", fabric::TransportKind::tcp, nullptr}}};
  std::vector<std::unique_ptr<ApplianceProcess>> processes_;
  std::vector<fabric::Region*> regions_;
};

}  // namespace

int main(int count, char** words) {
  const int rounds = count > 1 ? std::atoi(words[1]) : 1;
  std::map<std::string, Figures> all;
  std::vector<std::string> order;
  for (int round = 0; round < rounds; ++round) {
    for (bool busy : {false, true}) {
      Burners burners(busy);
      for (size_t appliances : {size_t{1}, size_t{2}}) {
        for (uint64_t pause_ns : {uint64_t{0}, kPauseNs}) {
          for (const Policy& policy : kPolicies) {
            const std::string name = std::string(busy ? "busy" : "idle") + "  " + std::to_string(appliances) +
                                     (pause_ns > 0 ? "  paused  " : "  at once ") + policy.name;
            if (round == 0) order.push_back(name);
            Bench(policy, appliances).measure(pause_ns, all[name]);
          }
        }
      }
    }
  }
  for (const std::string& name : order) {
    const Figures& figures = all[name];
    std::printf("%-32s p50 %7.1f us  p90 %7.1f us  appliances' CPU %6.1f us/read, %5.2f %% when idle\n", name.c_str(),
                median(figures.p50), median(figures.p90), median(figures.cpu), median(figures.idle));
  }
}
