// Room to carve files from: regions that this mount was provisioned with, cut into pieces of whole pages with no word
// to manager or appliance on the way (B12, C5). A free piece is always zero: it was never written, or the appliance
// punched it before it was given back.
#pragma once

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <utility>
#include <vector>

#include "extent/extent_map.h"

namespace extmem::extent {

class SlabAllocator {
 public:
  /// used: sorted or not, may overlap; everything else of the region is free.
  void add_region(fabric::Region& region, std::span<const std::pair<uint64_t, uint64_t>> used);
  /// Its free pieces are not handed out any more (the appliance is gone).
  void remove_region(uint64_t region_id);
  /// Nothing is ours any more.
  void clear();
  /// A piece of exactly bytes (whole pages) in some region of that appliance; the tightest that fits.
  std::optional<Member> allocate(const fabric::Appliance& appliance, uint64_t bytes);
  /// Pieces of regions that are not ours (any more) are ignored.
  void free(uint64_t region_id, uint64_t offset, uint64_t bytes);

  uint64_t free_bytes() const { return free_bytes_.load(std::memory_order_relaxed); }
  uint64_t total_bytes() const { return total_bytes_.load(std::memory_order_relaxed); }
  /// Appliances on which there is room, in a stable order: those that answer, or all when none does.
  std::vector<fabric::Appliance*> appliances() const;

 private:
  struct Provision {
    fabric::Region* region;
    std::map<uint64_t, uint64_t> by_offset;            // offset → bytes
    std::set<std::pair<uint64_t, uint64_t>> by_bytes;  // (bytes, offset)
  };
  void add_free(Provision& provision, uint64_t offset, uint64_t bytes);
  void take(Provision& provision, uint64_t offset, uint64_t bytes);

  mutable std::mutex lock_;  // control path and misses of growth only; never on a hit
  std::map<uint64_t, Provision> provisions_;
  std::atomic<uint64_t> free_bytes_{0};
  std::atomic<uint64_t> total_bytes_{0};
};

}  // namespace extmem::extent
