// Trace points of the path ①-⑤, for the test that asserts its order and for people who study latency. Off unless
// switched on; then a lock-free ring that keeps the newest entries.
#pragma once

#include <unistd.h>

#include <array>
#include <atomic>
#include <cstdint>
#include <vector>

#include "base/clock.h"

namespace extmem::trace {

enum class Point : uint8_t {
  fuse_request,
  cache_hit,
  cache_miss,
  extent_resolve,
  fabric_submit,
  fabric_complete,
  region_serve,
  fuse_reply,
  control_upcall,
  page_state,
};

inline constexpr const char* kPointNames[] = {"fuse.request",   "cache.hit",       "cache.miss",   "extent.resolve",
                                              "fabric.submit",  "fabric.complete", "region.serve", "fuse.reply",
                                              "control.upcall", "cache.state"};

struct Entry {
  Point point;
  uint32_t thread;
  uint64_t detail;  // request id, file offset or region offset, by point
  uint64_t ns;
};

inline constexpr size_t kRingEntries = 1 << 14;
inline std::atomic<bool> enabled{false};
inline std::atomic<uint64_t> next_entry{0};
inline std::array<Entry, kRingEntries> ring;

inline void mark(Point point, uint64_t detail) {
  if (!enabled.load(std::memory_order_relaxed)) [[likely]]
    return;
  uint64_t at = next_entry.fetch_add(1, std::memory_order_relaxed);
  ring[at % kRingEntries] = {point, static_cast<uint32_t>(gettid()), detail, monotonic_ns()};
}

/// Everything since the last call, oldest first. Entries being written at this moment may be garbled: quiesce first.
inline std::vector<Entry> take() {
  uint64_t count = next_entry.exchange(0, std::memory_order_relaxed);
  std::vector<Entry> entries;
  for (uint64_t at = count > kRingEntries ? count - kRingEntries : 0; at < count; ++at)
    entries.push_back(ring[at % kRingEntries]);
  return entries;
}

}  // namespace extmem::trace
