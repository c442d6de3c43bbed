// The connecting half of Peer: by which transport and which address.
#include <algorithm>
#include <utility>

#include "base/clock.h"
#include "fabric/peer.h"
#include "fabric/shm/shm_connection.h"
#include "fabric/sim/sim_connection.h"
#include "fabric/tcp/tcp_connection.h"
#include "fabric/verbs/verbs_connection.h"

namespace extmem::fabric {

namespace {

constexpr uint64_t kProbeTimeoutNs = 1000 * kMillisecond;
/// When there is a choice: so long is an RDMA connection given, and so long is it left alone after it could not be
/// made.
constexpr uint64_t kVerbsTryNs = 1000 * kMillisecond;
constexpr uint64_t kVerbsRestNs = 30'000 * kMillisecond;
/// Where there are several addresses: so long is one given to be reached by, before the next is tried.
constexpr uint64_t kEndpointTryNs = 700 * kMillisecond;
/// A link that is not idle when it is time to go home looks again after this.
constexpr uint64_t kBusyStrayNs = 50 * kMillisecond;

std::string describe(const Endpoint& endpoint) {
  const bool v6 = endpoint.address.find(':') != std::string::npos;
  return (v6 ? "[" + endpoint.address + "]" : endpoint.address) + ":" + std::to_string(endpoint.port);
}

}  // namespace

bool Peer::may_use_shm(const Place& place) const {
  if (options_.transport == TransportKind::shm) return true;
  return options_.transport == TransportKind::automatic && !place.link_name.empty() && !place.host_id.empty() &&
         place.host_id == options_.host_id;
}

TransportKind Peer::choose(const Place& place, uint64_t now) const {
  if (!shm_failed_ && may_use_shm(place)) return TransportKind::shm;
  if (options_.transport != TransportKind::automatic) return options_.transport;
  const bool verbs = place.serves_verbs && now >= verbs_failed_until_ns_ && VerbsConnection::possible();
  return verbs ? TransportKind::verbs : TransportKind::tcp;
}

/// What was being tried is impossible; answers whether there is something else to try.
bool Peer::try_another(uint64_t now) {
  const bool choice = options_.transport == TransportKind::automatic && trying_ != TransportKind::tcp;
  if (!choice) return trying_ != TransportKind::shm && route_.try_another();
  if (trying_ == TransportKind::shm) shm_failed_ = true;
  if (trying_ == TransportKind::verbs) verbs_failed_until_ns_ = now + kVerbsRestNs;
  return true;
}

void Peer::connect(uint64_t now) {
  Place place;
  {
    std::lock_guard guard(appliance_.lock);
    place = {.endpoints = appliance_.endpoints,
             .link_name = appliance_.link_name,
             .host_id = appliance_.host_id,
             .incarnation = appliance_.incarnation,
             .serves_verbs = appliance_.serves_verbs};
  }
  note_state(PeerState::connecting);
  do {
    trying_ = choose(place, now);
    route_.choose(place.endpoints.size());
    if (open(place, now)) return arm_before(connection_->next_check_ns());
  } while (try_another(now));
  settle_outage(Status::unreachable, false, {});
}

uint64_t Peer::longest_try(size_t endpoint_count) const {
  uint64_t longest = down_ ? std::min(kProbeTimeoutNs, attempt_ns_) : attempt_ns_;
  const bool optional = trying_ == TransportKind::verbs && options_.transport == TransportKind::automatic;
  if (optional) longest = std::min(longest, kVerbsTryNs);
  return endpoint_count > 1 ? std::min(longest, kEndpointTryNs) : longest;
}

bool Peer::open(const Place& place, uint64_t now) {
  const auto links = static_cast<uint32_t>(Appliance::kMaxLinks);
  const ClientHandshake::Link link{.index = reactor_.index() * links + route_.home(),
                                   .generation = next_link_generation(),
                                   .incarnation = place.incarnation};
  const uint64_t longest = longest_try(place.endpoints.size());
  std::string failure = open_as(trying_, place, link, now + longest);
  if (failure.empty()) return true;
  connection_.reset();
  reason_ = std::move(failure);
  return false;
}

/// Empty, or why it is impossible.
std::string Peer::open_as(TransportKind kind, const Place& place, const ClientHandshake::Link& link,
                          uint64_t deadline) {
  std::string failure;
  const auto& [address, port] = place.endpoints[route_.endpoint()];
  if (kind == TransportKind::shm) {
    auto fresh = std::make_unique<ShmConnection>(reactor_, *this, options_.credentials, link);
    failure = fresh->open(place.link_name, deadline);
    connection_ = std::move(fresh);
  } else if (kind == TransportKind::verbs) {
    auto fresh = std::make_unique<VerbsConnection>(reactor_, *this, options_.credentials, link);
    failure = fresh->open({.address = address, .port = port}, deadline);
    connection_ = std::move(fresh);
  } else if (kind == TransportKind::sim) {
    auto fresh = std::make_unique<SimConnection>(reactor_, *this, options_.credentials, link);
    fresh->open(*options_.network, {.from = options_.sim_host, .address = address}, deadline);
    connection_ = std::move(fresh);
  } else {
    auto fresh = std::make_unique<TcpConnection>(reactor_, *this, options_.credentials, link);
    failure = fresh->open({.address = address, .port = port}, deadline);
    connection_ = std::move(fresh);
  }
  return failure;
}

void Peer::on_connected() {
  note_connected();
  end_doubt();
  down_ = false;
  begin_round();
  timeouts_ = 0;
  refusal_ = Status::ok;
  reason_.clear();
  appliance_.transport.store(connection_->kind(), std::memory_order_release);
  appliance_.state.store(PeerState::up, std::memory_order_release);
  on_room();
}

void Peer::note_connected() {
  const TransportKind kind = connection_->kind();
  std::string address;
  if (kind != TransportKind::shm) {
    std::lock_guard guard(appliance_.lock);
    if (route_.endpoint() < appliance_.endpoints.size()) address = describe(appliance_.endpoints[route_.endpoint()]);
  }
  statistics_ = &statistics_for(kind, address);
  statistics_->count_connected();
  appliance_.connections.fetch_add(1, std::memory_order_acq_rel);
  if (kind == TransportKind::shm) return;
  const uint64_t now = monotonic_ns();
  route_.note_connected(now, used_lately(now));
  arm_before(route_.home_ns());
}

/// Everything may be tried again.
void Peer::begin_round() {
  shm_failed_ = false;
  route_.begin_round();
}

void Peer::prepare() {
  const bool in_vain = found_down() || refusal_ != Status::ok || route_.home_ns() != UINT64_MAX;
  if (!closed_ && !connection_ && !in_vain) connect(monotonic_ns());
}

/// Home has failed: it is tried again after a while.
void Peer::stay_away(uint64_t now) {
  route_.stay_away(now, used_lately(now));
  arm_before(route_.home_ns());
  if (!connection_ && !waiting_.empty()) connect(now);
}

/// Nothing is under way, so that the connection which is given up for it need not be fenced.
void Peer::go_home(uint64_t now) {
  if (load_ > 0 || in_doubt_ || (connection_ && !connection_->ready())) return route_.stay_until(now + kBusyStrayNs);
  route_.forget_home();
  if (down_ || at_home() || !route_.has_home()) return;
  if (connection_) retire();
  route_.set_out();
  connect(now);
}

LinkStatistics& Peer::statistics_for(TransportKind transport, const std::string& address) {
  for (LinkStatistics* one : all_statistics_) {
    if (one->is(transport, address)) return *one;
  }
  auto fresh = std::make_unique<LinkStatistics>(transport, address);
  all_statistics_.push_back(fresh.get());
  std::lock_guard guard(appliance_.lock);
  appliance_.statistics.push_back(std::move(fresh));
  return *all_statistics_.back();
}

/// The next connection goes another way, where there is one.
void Peer::note_lost_way(Status status, uint64_t now) {
  if (trying_ == TransportKind::shm) return;
  route_.note_lost();
  // It connects and carries nothing (a network without jumbo frames, say): where there is a choice, not over RDMA then.
  const bool choice = options_.transport == TransportKind::automatic && trying_ == TransportKind::verbs;
  if (choice && status == Status::timed_out) verbs_failed_until_ns_ = now + kVerbsRestNs;
}

}  // namespace extmem::fabric
