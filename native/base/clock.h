// Time, as the data path sees it: nanoseconds, one function for deadlines and one for file times.
#pragma once

#include <time.h>

#include <cstdint>

namespace extmem {

inline uint64_t read_clock_ns(clockid_t clock) {
  timespec now{};
  clock_gettime(clock, &now);
  return static_cast<uint64_t>(now.tv_sec) * 1'000'000'000u + static_cast<uint64_t>(now.tv_nsec);
}

/// Monotonic; for deadlines and intervals.
inline uint64_t monotonic_ns() { return read_clock_ns(CLOCK_MONOTONIC); }

/// Since the epoch; for file times.
inline uint64_t wall_ns() { return read_clock_ns(CLOCK_REALTIME); }

}  // namespace extmem
