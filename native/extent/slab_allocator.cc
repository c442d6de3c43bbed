#include "extent/slab_allocator.h"

#include <algorithm>

#include "base/assert.h"

namespace extmem::extent {

void SlabAllocator::add_region(fabric::Region& region, std::span<const std::pair<uint64_t, uint64_t>> used) {
  std::lock_guard guard(lock_);
  auto [place, added] = provisions_.try_emplace(region.id, Provision{&region, {}, {}});
  if (!added) return;
  std::vector<std::pair<uint64_t, uint64_t>> taken(used.begin(), used.end());
  std::sort(taken.begin(), taken.end());
  uint64_t at = 0;
  for (auto [offset, bytes] : taken) {
    if (offset > at) add_free(place->second, at, offset - at);
    at = std::max(at, offset + bytes);
  }
  if (at < region.bytes) add_free(place->second, at, region.bytes - at);
  total_bytes_ += region.bytes;
}

void SlabAllocator::remove_region(uint64_t region_id) {
  std::lock_guard guard(lock_);
  auto place = provisions_.find(region_id);
  if (place == provisions_.end()) return;
  for (auto [offset, bytes] : place->second.by_offset) free_bytes_ -= bytes;
  total_bytes_ -= place->second.region->bytes;
  provisions_.erase(place);
}

void SlabAllocator::clear() {
  std::lock_guard guard(lock_);
  provisions_.clear();
  free_bytes_ = total_bytes_ = 0;
}

std::optional<Member> SlabAllocator::allocate(const fabric::Appliance& appliance, uint64_t bytes) {
  std::lock_guard guard(lock_);
  Provision* best = nullptr;
  std::pair<uint64_t, uint64_t> tightest{UINT64_MAX, 0};
  for (auto& [id, provision] : provisions_) {
    if (provision.region->appliance != &appliance) continue;
    if (provision.region->state.load(std::memory_order_relaxed) != fabric::RegionState::live) continue;
    auto fit = provision.by_bytes.lower_bound({bytes, 0});
    if (fit != provision.by_bytes.end() && *fit < tightest) {
      tightest = *fit;
      best = &provision;
    }
  }
  if (best == nullptr) return std::nullopt;
  take(*best, tightest.second, bytes);
  return Member{best->region, tightest.second};
}

void SlabAllocator::free(uint64_t region_id, uint64_t offset, uint64_t bytes) {
  std::lock_guard guard(lock_);
  auto place = provisions_.find(region_id);
  if (place != provisions_.end()) add_free(place->second, offset, bytes);
}

std::vector<fabric::Appliance*> SlabAllocator::appliances() const {
  std::lock_guard guard(lock_);
  std::vector<fabric::Appliance*> found, down;
  for (const auto& [id, provision] : provisions_) {
    fabric::Appliance* appliance = provision.region->appliance;
    bool live = provision.region->state.load(std::memory_order_relaxed) == fabric::RegionState::live;
    if (!live || provision.by_bytes.empty()) continue;
    bool answers = appliance->state.load(std::memory_order_relaxed) != fabric::PeerState::down;
    (answers ? found : down).push_back(appliance);
  }
  // Room where nobody answers is better than none: that it cannot be written to is told as EIO, and ends.
  if (found.empty()) found = std::move(down);
  std::sort(found.begin(), found.end(), [](auto* left, auto* right) { return left->index < right->index; });
  found.erase(std::unique(found.begin(), found.end()), found.end());
  return found;
}

void SlabAllocator::add_free(Provision& provision, uint64_t offset, uint64_t bytes) {
  EXTMEM_ASSERT(bytes > 0 && offset + bytes <= provision.region->bytes);
  free_bytes_ += bytes;
  auto after = provision.by_offset.lower_bound(offset);
  EXTMEM_ASSERT(after == provision.by_offset.end() || offset + bytes <= after->first);  // else freed twice
  if (after != provision.by_offset.begin()) {
    auto before = std::prev(after);
    EXTMEM_ASSERT(before->first + before->second <= offset);
    if (before->first + before->second == offset) {
      offset = before->first;
      bytes += before->second;
      provision.by_bytes.erase({before->second, before->first});
      provision.by_offset.erase(before);
    }
  }
  if (after != provision.by_offset.end() && offset + bytes == after->first) {
    bytes += after->second;
    provision.by_bytes.erase({after->second, after->first});
    provision.by_offset.erase(after);
  }
  provision.by_offset.emplace(offset, bytes);
  provision.by_bytes.emplace(bytes, offset);
}

void SlabAllocator::take(Provision& provision, uint64_t offset, uint64_t bytes) {
  auto place = provision.by_offset.find(offset);
  EXTMEM_ASSERT(place != provision.by_offset.end() && place->second >= bytes);
  uint64_t rest = place->second - bytes;
  provision.by_bytes.erase({place->second, offset});
  provision.by_offset.erase(place);
  if (rest > 0) {
    provision.by_offset.emplace(offset + bytes, rest);
    provision.by_bytes.emplace(rest, offset + bytes);
  }
  free_bytes_ -= bytes;
}

}  // namespace extmem::extent
