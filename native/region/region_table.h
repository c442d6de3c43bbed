// The regions of an appliance by id. Any thread; regions outlive their place in the table for those who hold them.
#pragma once

#include <algorithm>
#include <memory>
#include <shared_mutex>
#include <unordered_map>
#include <vector>

#include "region/region.h"

namespace extmem::region {

class RegionTable {
 public:
  bool insert(std::shared_ptr<Region> region) {
    std::unique_lock guard(lock_);
    return regions_.emplace(region->id(), region).second;
  }
  std::shared_ptr<Region> find(uint64_t id) const {
    std::shared_lock guard(lock_);
    auto found = regions_.find(id);
    return found == regions_.end() ? nullptr : found->second;
  }
  std::shared_ptr<Region> remove(uint64_t id) {
    std::unique_lock guard(lock_);
    auto found = regions_.find(id);
    if (found == regions_.end()) return nullptr;
    auto region = std::move(found->second);
    regions_.erase(found);
    return region;
  }
  /// Sorted by id.
  std::vector<std::shared_ptr<Region>> all() const {
    std::vector<std::shared_ptr<Region>> result;
    {
      std::shared_lock guard(lock_);
      for (auto& [id, region] : regions_) result.push_back(region);
    }
    std::sort(result.begin(), result.end(), [](auto& one, auto& other) { return one->id() < other->id(); });
    return result;
  }

 private:
  mutable std::shared_mutex lock_;
  std::unordered_map<uint64_t, std::shared_ptr<Region>> regions_;
};

}  // namespace extmem::region
