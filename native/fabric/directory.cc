#include <unistd.h>

#include <algorithm>
#include <utility>

#include "base/assert.h"
#include "base/keys.h"
#include "fabric/transport.h"

namespace extmem::fabric {

Directory::~Directory() {
  auto close_descriptor = [](Region& region) {
    if (int fd = region.shm_fd.exchange(-1); fd >= 0) close(fd);
  };
  for (auto& [id, region] : regions_) close_descriptor(*region);
  for (auto& region : former_) close_descriptor(*region);
}

void Appliance::tell_peers() {
  std::lock_guard guard(lock);
  for (auto& one : news) {
    if (std::exchange(one->wanted, false)) one->reactor.post(*one);
  }
}

std::vector<LinkTotals> Appliance::sum_statistics() {
  std::lock_guard guard(lock);
  std::vector<LinkTotals> result;
  for (auto& one : statistics) {
    auto same = std::find_if(result.begin(), result.end(),
                             [&](const LinkTotals& totals) { return one->is(totals.transport, totals.address); });
    if (same == result.end()) {
      LinkTotals fresh;
      fresh.transport = one->transport();
      fresh.address = one->address();
      same = result.insert(same, std::move(fresh));
    }
    one->add_to(*same);
  }
  return result;
}

Appliance& Directory::put_appliance(const std::string& id, const std::string& host_id, const std::string& address,
                                    uint16_t port, const std::string& link_name, uint64_t incarnation,
                                    bool serves_verbs, const std::vector<Endpoint>& more, const std::string& rack) {
  std::lock_guard guard(lock_);
  auto known = std::find_if(appliances_.begin(), appliances_.end(), [&](auto& one) { return one->id == id; });
  if (known == appliances_.end()) {
    auto fresh = std::make_unique<Appliance>();
    fresh->id = id;
    fresh->index = static_cast<uint32_t>(appliances_.size());
    EXTMEM_ASSERT(fresh->index < kMaxAppliances);
    by_index_[fresh->index].store(fresh.get(), std::memory_order_release);
    appliances_.push_back(std::move(fresh));
    known = std::prev(appliances_.end());
  }
  Appliance& appliance = **known;
  bool restarted, moved;
  {
    std::lock_guard appliance_guard(appliance.lock);
    restarted = appliance.incarnation != 0 && appliance.incarnation != incarnation;
    appliance.host_id = host_id;
    appliance.rack = rack;
    std::vector<Endpoint> endpoints{{.address = address, .port = port}};
    endpoints.insert(endpoints.end(), more.begin(), more.end());
    if (endpoints.size() > Appliance::kMaxLinks) endpoints.resize(Appliance::kMaxLinks);
    moved = endpoints != appliance.endpoints || appliance.link_name != link_name;
    if (moved) {
      for (auto& failed : appliance.failed) failed.store(false, std::memory_order_release);
    }
    appliance.endpoints = std::move(endpoints);
    appliance.link_count.store(static_cast<uint32_t>(appliance.endpoints.size()), std::memory_order_release);
    appliance.link_name = link_name;
    appliance.incarnation = incarnation;
    appliance.serves_verbs = serves_verbs;
  }
  if (restarted) {
    for (auto& [region_id, region] : regions_) {
      if (region->appliance == &appliance) region->state.store(RegionState::lost, std::memory_order_release);
    }
  }
  // Told by somebody who knows: it is worth trying at once. Moved, it goes on with what it has.
  if (restarted || moved) appliance.state.store(PeerState::idle, std::memory_order_release);
  return appliance;
}

Region& Directory::put_region(uint64_t id, uint64_t bytes, Appliance& appliance,
                              const protocol::Capability& capability) {
  std::lock_guard guard(lock_);
  std::lock_guard appliance_guard(appliance.lock);
  auto& place = regions_[id];
  if (place && place->appliance == &appliance && place->incarnation == appliance.incarnation &&
      place->state.load(std::memory_order_acquire) == RegionState::live) {
    if (!macs_equal(place->capability.mac, capability.mac)) place->grant.fetch_add(1, std::memory_order_acq_rel);
    place->capability = capability;
    // Reactors look at the size without a lock.
    std::atomic_ref(place->bytes).store(bytes, std::memory_order_relaxed);
    return *place;
  }
  if (place) {
    place->state.store(RegionState::lost, std::memory_order_release);
    former_.push_back(std::move(place));
  }
  place = std::make_unique<Region>();
  place->id = id;
  place->bytes = bytes;
  place->appliance = &appliance;
  place->incarnation = appliance.incarnation;
  place->capability = capability;
  return *place;
}

void Directory::lose_region(uint64_t id) {
  if (Region* region = find_region(id)) region->state.store(RegionState::lost, std::memory_order_release);
}

void Directory::lose_all_regions() {
  std::lock_guard guard(lock_);
  for (auto& [id, region] : regions_) region->state.store(RegionState::lost, std::memory_order_release);
}

void Directory::close_lost_descriptors() {
  std::lock_guard guard(lock_);
  auto close_lost = [](Region& region) {
    if (region.state.load(std::memory_order_acquire) != RegionState::lost) return;
    if (int fd = region.shm_fd.exchange(-1); fd >= 0) close(fd);
  };
  for (auto& [id, region] : regions_) close_lost(*region);
  for (auto& region : former_) close_lost(*region);
}

Region* Directory::find_region(uint64_t id) {
  std::lock_guard guard(lock_);
  auto found = regions_.find(id);
  return found == regions_.end() ? nullptr : found->second.get();
}

Region& Directory::unknown_region(uint64_t id) {
  std::lock_guard guard(lock_);
  auto& place = unknown_[id];
  if (!place) {
    place = std::make_unique<Region>();
    place->id = id;
    place->bytes = UINT64_MAX;
    place->appliance = &nowhere_;
    place->state.store(RegionState::lost, std::memory_order_release);
  }
  return *place;
}

Appliance* Directory::find_appliance(const std::string& id) {
  std::lock_guard guard(lock_);
  for (auto& appliance : appliances_) {
    if (appliance->id == id) return appliance.get();
  }
  return nullptr;
}

std::vector<Appliance*> Directory::appliances() {
  std::lock_guard guard(lock_);
  std::vector<Appliance*> result;
  for (auto& appliance : appliances_) result.push_back(appliance.get());
  return result;
}

}  // namespace extmem::fabric
