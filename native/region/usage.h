// What is done with a region, as far as its appliance sees it: everything that comes as a message, and which chunks
// clients say that they have written themselves. Reads by those who were given the memory (a descriptor, a loan) leave
// no trace here.
//
// Any thread, lock-free; figures that belong together may be of moments that lie a little apart.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "base/clock.h"
#include "base/protocol.h"

namespace extmem::region {

struct RegionUsage {
  /// Of a chunk (kLendBytes): `heat` is how often it was used, in which a use counts half as much after kHalfLifeMs.
  struct Hot {
    uint64_t offset;
    double heat;
  };
  uint64_t operations = 0, bytes_read = 0, bytes_written = 0;
  uint64_t told_chunks = 0;     ///< chunks that clients have written themselves, each time that it was found out
  uint64_t last_access_ms = 0;  ///< since the epoch; 0: never
  std::vector<Hot> hot{};       ///< the hottest, hottest first
};

class Usage {
 public:
  static constexpr uint64_t kHalfLifeMs = 60'000;
  static constexpr size_t kHottest = 16;

  explicit Usage(uint64_t region_bytes)
      : chunks_(std::min((region_bytes + protocol::kLendBytes - 1) / protocol::kLendBytes, kMaxChunks)),
        heat_(std::make_unique<std::atomic<uint64_t>[]>(chunks_)) {}

  void note_read(uint64_t offset, uint64_t bytes) {
    bytes_read_.fetch_add(bytes, std::memory_order_relaxed);
    note(offset);
  }
  void note_written(uint64_t offset, uint64_t bytes) {
    bytes_written_.fetch_add(bytes, std::memory_order_relaxed);
    note(offset);
  }
  /// A client has written there itself, some time ago.
  void note_told(uint64_t chunk) {
    told_chunks_.fetch_add(1, std::memory_order_relaxed);
    warm(chunk, touch());
  }

  RegionUsage seen() const {
    RegionUsage usage{.operations = operations_.load(std::memory_order_relaxed),
                      .bytes_read = bytes_read_.load(std::memory_order_relaxed),
                      .bytes_written = bytes_written_.load(std::memory_order_relaxed),
                      .told_chunks = told_chunks_.load(std::memory_order_relaxed),
                      .last_access_ms = last_access_ms_.load(std::memory_order_relaxed)};
    const uint64_t now = wall_ms();
    for (uint64_t chunk = 0; chunk < chunks_; ++chunk) {
      const uint64_t heat = cooled(heat_[chunk].load(std::memory_order_relaxed), age_of(now));
      if (heat > 0) usage.hot.push_back({chunk * protocol::kLendBytes, static_cast<double>(heat) / kUse});
    }
    const auto hotter = [](auto& one, auto& other) { return one.heat > other.heat; };
    const auto end = usage.hot.begin() + static_cast<ptrdiff_t>(std::min(usage.hot.size(), kHottest));
    std::partial_sort(usage.hot.begin(), end, usage.hot.end(), hotter);
    usage.hot.erase(end, usage.hot.end());
    return usage;
  }

 private:
  /// 512 KiB of counters, for 128 GiB: of what lies beyond, heat is not known.
  static constexpr uint64_t kMaxChunks = 1 << 16;
  /// A use, so that what has cooled down can still be told apart.
  static constexpr uint64_t kUse = 256;
  static constexpr unsigned kAgeBits = 24;
  static constexpr uint64_t kMaxHeat = (uint64_t{1} << (64 - kAgeBits)) - 1;

  // A word holds the heat, and in its lowest bits at which half-life (counted since the epoch) that was true.
  static uint64_t age_of(uint64_t now_ms) { return now_ms / kHalfLifeMs & ((1 << kAgeBits) - 1); }
  static uint64_t cooled(uint64_t word, uint64_t age) {
    const uint64_t then = word & ((1 << kAgeBits) - 1), heat = word >> kAgeBits;
    if (then >= age) return heat;  // the clock was put back
    return age - then >= 64 ? 0 : heat >> (age - then);
  }

  void note(uint64_t offset) {
    operations_.fetch_add(1, std::memory_order_relaxed);
    warm(offset / protocol::kLendBytes, touch());
  }
  uint64_t touch() {
    const uint64_t now = wall_ms();
    last_access_ms_.store(now, std::memory_order_relaxed);
    return now;
  }
  void warm(uint64_t chunk, uint64_t now_ms) {
    if (chunk >= chunks_) return;
    auto& word = heat_[chunk];
    const uint64_t age = age_of(now_ms);
    for (uint64_t before = word.load(std::memory_order_relaxed);;) {
      const uint64_t heat = std::min(cooled(before, age) + kUse, kMaxHeat);
      if (word.compare_exchange_weak(before, heat << kAgeBits | age, std::memory_order_relaxed)) return;
    }
  }

  const uint64_t chunks_;
  const std::unique_ptr<std::atomic<uint64_t>[]> heat_;
  std::atomic<uint64_t> operations_{0}, bytes_read_{0}, bytes_written_{0}, told_chunks_{0}, last_access_ms_{0};
};

}  // namespace extmem::region
