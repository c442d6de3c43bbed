#include "fabric/links.h"

namespace extmem::fabric {

namespace {

/// Up to here an operation stays on the link that was used last, if nothing is under way there: both ends poll it.
constexpr uint32_t kStayBytes = 16 * 1024;

}  // namespace

Links::Links(Reactor& reactor, Directory& directory, Appliance& appliance, const Fabric::Options& options)
    : reactor_(reactor), directory_(directory), appliance_(appliance), options_(options) {
  peers_[0] = std::make_unique<Peer>(reactor, directory, appliance, options, 0);
}

Peer& Links::pick(const Operation& operation) {
  const uint32_t count = appliance_.link_count.load(std::memory_order_acquire);
  if (count == 1 || peers_[0]->is_local()) {
    last_ = 0;
    return *peers_[0];
  }
  return pick_among(count, operation);
}

Peer& Links::pick_among(uint32_t count, const Operation& operation) {
  // What the first link finds out (that both are on one host, say) decides whether there is use for others.
  if (!peers_[1] && !peers_[0]->ready()) return *peers_[0];
  Peer* best = nullptr;
  const size_t first = operation.bytes <= kStayBytes ? last_ : last_ + 1;
  for (uint32_t step = 0; step < count; ++step) {
    const auto index = static_cast<uint32_t>((first + step) % count);
    auto& peer = peers_[index];
    if (!peer) peer = std::make_unique<Peer>(reactor_, directory_, appliance_, options_, index);
    if (!peer->at_home()) {
      peer->prepare();
    } else if (best == nullptr || peer->load() < best->load()) {
      best = peer.get();
      last_ = index;
    }
  }
  return best != nullptr ? *best : pick_stray(count);
}

/// Not one is at home.
Peer& Links::pick_stray(uint32_t count) {
  for (uint32_t index = 0; index < count; ++index) {
    if (!peers_[index]->ready()) continue;
    last_ = index;
    return *peers_[index];
  }
  return *peers_[last_];
}

std::string Links::reason() const {
  for (auto& peer : peers_) {
    if (peer && !peer->reason().empty()) return peer->reason();
  }
  return {};
}

void Links::rejoin() {
  for (auto& peer : peers_) {
    if (peer) peer->rejoin();
  }
}

void Links::close() {
  for (auto& peer : peers_) {
    if (peer) peer->close();
  }
}

}  // namespace extmem::fabric
