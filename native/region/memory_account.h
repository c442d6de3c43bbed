// What the appliance offers and what of it is spoken for. Any thread.
#pragma once

#include <atomic>
#include <cstdint>

namespace extmem::region {

class MemoryAccount {
 public:
  explicit MemoryAccount(uint64_t donated_bytes)
      : offered_(donated_bytes), record_limit_(kRecordBaseBytes + donated_bytes / kRecordShare) {}

  bool reserve(uint64_t bytes) { return add_within(reserved_, bytes, offered()); }
  void release(uint64_t bytes) { reserved_.fetch_sub(bytes, std::memory_order_relaxed); }
  /// What is there already, whatever the limit says.
  void count(uint64_t bytes) { reserved_.fetch_add(bytes, std::memory_order_relaxed); }

  /// Records live beside the donated memory and have a small limit of their own: a full appliance must still be able
  /// to take the record that says what it holds, and a client must not be able to grow us without bound.
  bool reserve_record(uint64_t bytes) { return add_within(records_, bytes, record_limit_); }
  void release_record(uint64_t bytes) { records_.fetch_sub(bytes, std::memory_order_relaxed); }

  /// Less, or again as much as was donated, while the host is short of memory. What is reserved stays, also above it.
  void offer(uint64_t bytes) { offered_.store(bytes, std::memory_order_relaxed); }
  uint64_t offered() const { return offered_.load(std::memory_order_relaxed); }
  uint64_t reserved() const { return reserved_.load(std::memory_order_relaxed); }

 private:
  static constexpr uint64_t kRecordBaseBytes = 64u << 20;
  static constexpr uint64_t kRecordShare = 32;

  static bool add_within(std::atomic<uint64_t>& sum, uint64_t bytes, uint64_t limit) {
    uint64_t now = sum.load(std::memory_order_relaxed);
    do {
      if (now > limit || bytes > limit - now) return false;
    } while (!sum.compare_exchange_weak(now, now + bytes, std::memory_order_relaxed));
    return true;
  }

  std::atomic<uint64_t> offered_;
  const uint64_t record_limit_;
  std::atomic<uint64_t> reserved_{0};
  std::atomic<uint64_t> records_{0};
};

}  // namespace extmem::region
