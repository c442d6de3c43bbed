// This side's memory, as the RDMA devices may reach it: ranges that their owners have announced (the page cache's
// frames) are registered once per device, block by block as they are first used, and serve all reactors. Whatever lies
// elsewhere is copied through a connection's own buffer.
//
// A registration pins its block, so a range is announced only if it never gives memory back.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "base/verbs/protection_domain.h"

namespace extmem::fabric {

/// Any thread. A range is withdrawn after everything that used it has ended, and before its memory goes.
void announce_memory(std::byte* begin, size_t bytes);
void withdraw_memory(std::byte* begin);

/// One device's protection domain and what is registered in it. Any thread.
class LocalMemory {
 public:
  static constexpr size_t kBlockBytes = 2u << 20;
  static constexpr uint64_t kRestNs = 5'000'000'000;

  /// The one of that device; null when it has no protection domain left.
  static LocalMemory* of(ibv_context* device);
  static std::shared_ptr<verbs::ProtectionDomain> domain_of(ibv_context* device);
  explicit LocalMemory(std::shared_ptr<verbs::ProtectionDomain> domain) : domain_(std::move(domain)) {}

  /// The key of what begins there, and in `bytes` (at most what it was) how much of it that key is for. False: not
  /// registered. No lock once a block has been used. A block that could not be registered is tried again after kRestNs:
  /// the limit of locked memory may have been raised, or others have given some back.
  bool find_key(const std::byte* begin, size_t& bytes, uint32_t& key);

 private:
  friend void announce_memory(std::byte* begin, size_t bytes);
  friend void withdraw_memory(std::byte* begin);
  static constexpr size_t kMaxRanges = 8;
  struct Block {
    std::atomic<uint64_t> key{0};  // kKnown | the key, once registered; kRefused | when, in units of kRestNs
    std::unique_ptr<verbs::Registration> registration;
  };
  struct Range {
    std::atomic<std::byte*> begin{nullptr};
    std::atomic<size_t> bytes{0};
    std::vector<Block> blocks;
  };
  static constexpr uint64_t kKnown = uint64_t{1} << 32;
  static constexpr uint64_t kRefused = uint64_t{1} << 33;

  void add(std::byte* begin, size_t bytes);
  void remove(std::byte* begin);
  static bool may_register(uint64_t key);
  uint64_t register_block(Range& range, size_t index);

  const std::shared_ptr<verbs::ProtectionDomain> domain_;
  std::mutex lock_;  // registrations, and the ranges' coming and going
  std::array<Range, kMaxRanges> ranges_;
};

}  // namespace extmem::fabric
