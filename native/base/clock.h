// Time, as the data path sees it: nanoseconds, one function for deadlines and one for file times.
#pragma once

#include <time.h>

#include <atomic>
#include <cstdint>

namespace extmem {

inline constexpr uint64_t kMillisecond = 1'000'000;  ///< in ns

inline uint64_t read_clock_ns(clockid_t clock) {
  timespec now{};
  clock_gettime(clock, &now);
  return static_cast<uint64_t>(now.tv_sec) * 1'000'000'000u + static_cast<uint64_t>(now.tv_nsec);
}

/// Time that somebody else makes pass (test/simulation): the same binaries run by it. One at a time in a process, set
/// while no thread asks for the time.
struct SimulatedTime {
  uint64_t monotonic_ns;
  uint64_t wall_ns;
};
inline std::atomic<const SimulatedTime*> simulated_time{nullptr};

/// Monotonic; for deadlines and intervals.
inline uint64_t monotonic_ns() {
  const SimulatedTime* simulated = simulated_time.load(std::memory_order_relaxed);
  return simulated == nullptr ? read_clock_ns(CLOCK_MONOTONIC) : simulated->monotonic_ns;
}

/// Since the epoch; for file times.
inline uint64_t wall_ns() {
  const SimulatedTime* simulated = simulated_time.load(std::memory_order_relaxed);
  return simulated == nullptr ? read_clock_ns(CLOCK_REALTIME) : simulated->wall_ns;
}

inline uint64_t wall_ms() { return wall_ns() / kMillisecond; }

}  // namespace extmem
