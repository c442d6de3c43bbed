#include "fabric/peer.h"

#include <algorithm>
#include <bit>
#include <utility>

#include "base/clock.h"
#include "base/trace.h"
#include "fabric/shm/shm_connection.h"
#include "fabric/tcp/tcp_connection.h"
#include "fabric/verbs/verbs_connection.h"

namespace extmem::fabric {

namespace {

constexpr uint64_t kMillisecond = 1'000'000;
/// Beyond two attempts: what a reconnect takes.
constexpr uint64_t kGraceNs = 500 * kMillisecond;
constexpr uint64_t kFirstBackoffNs = 250 * kMillisecond;
constexpr uint64_t kMaxBackoffNs = 1000 * kMillisecond;
constexpr uint64_t kProbeTimeoutNs = 1000 * kMillisecond;
/// Nobody has asked for it in so long: it is probed seldom. Not never: what is down gets no new files, so that nobody
/// would ask.
constexpr uint64_t kProbeInterestNs = 60'000 * kMillisecond;
constexpr uint64_t kIdleBackoffNs = 10'000 * kMillisecond;
/// When there is a choice: so long is an RDMA connection given, and so long is it left alone after it could not be
/// made.
constexpr uint64_t kVerbsTryNs = 1000 * kMillisecond;
constexpr uint64_t kVerbsRestNs = 30'000 * kMillisecond;
constexpr uint64_t kRefusalNs = 1000 * kMillisecond;
constexpr size_t kMaxWaiting = 65536;
constexpr uint8_t kMaxAttempts = 2;

/// Done twice, they would do something else.
bool repeatable(const Operation& operation) {
  return operation.op != Op::fetch_add && operation.op != Op::compare_swap;
}

bool is_lost(const Region& region) { return region.state.load(std::memory_order_acquire) == RegionState::lost; }

void add(std::atomic<uint64_t>& counter, uint64_t amount) { counter.fetch_add(amount, std::memory_order_relaxed); }

}  // namespace

Peer::Peer(Reactor& reactor, Directory& directory, Appliance& appliance, const Fabric::Options& options)
    : reactor_(reactor),
      directory_(directory),
      appliance_(appliance),
      options_(options),
      attempt_ns_(options.operation_deadline_ms * kMillisecond) {}

Peer::~Peer() { close(); }

// ---- operations

void Peer::submit(Operation& operation) {
  const uint64_t now = operation.started_ns;
  const uint64_t longest = now + kMaxAttempts * attempt_ns_ + kGraceNs;
  operation.expires_ns = operation.deadline_ns == 0 ? longest : std::min(operation.deadline_ns, longest);
  last_submit_ns_ = now;
  if (closed_) return finish(operation, Status::closed);
  if (operation.expires_ns <= now) return finish(operation, Status::timed_out);
  start(operation, now);
}

void Peer::start(Operation& operation, uint64_t now) {
  const Region& region = *operation.region;
  if (is_lost(region)) return finish(operation, Status::not_present);
  if (region.incarnation == stale_incarnation_ && stale_incarnation_ != 0) return lose_region(operation);
  if (connection_ && connection_->ready()) {
    if (found_down() && connection_->doubtful()) {  // by another reactor, after all its attempts
      cut();
      return finish(operation, Status::unreachable);
    }
    if (region.incarnation == connection_->incarnation()) {
      const bool at_once = waiting_.empty() && !connection_->full() && !awaits_fence(operation);
      return at_once ? dispatch(operation, now) : hold(operation);
    }
    if (!newer_incarnation_known(region)) return lose_region(operation);
    cut();  // the appliance has been restarted, and we were told before the old connection knew
    return hold(operation);
  }
  if (fail_fast(operation, now)) return;
  hold(operation);
  if (!connection_ && !waiting_.empty()) connect(now);
}

void Peer::dispatch(Operation& operation, uint64_t now) {
  connection_->submit(operation, std::min(operation.expires_ns, now + attempt_ns_));
  if (connection_) arm_before(connection_->next_check_ns());
}

void Peer::hold(Operation& operation) {
  if (waiting_.size() >= kMaxWaiting) return finish(operation, Status::timed_out);
  waiting_.push(operation);
  waiting_expires_ns_ = std::min(waiting_expires_ns_, operation.expires_ns);
  arm_before(waiting_expires_ns_);
  if (awaits_fence(operation)) await_fence();
}

/// A write of another reactor that was given up may land late: on top of this one, if this one did not wait.
bool Peer::awaits_fence(const Operation& operation) const {
  return operation.op != Op::read && appliance_.links_in_doubt.load(std::memory_order_acquire) > 0;
}

void Peer::doubt(const WireConnection::Unfinished& unfinished) {
  if (in_doubt_ || !unfinished.sent.any([](const Operation& operation) { return operation.op != Op::read; })) return;
  in_doubt_ = true;
  appliance_.links_in_doubt.fetch_add(1, std::memory_order_acq_rel);
}

void Peer::end_doubt() {
  if (!std::exchange(in_doubt_, false)) return;
  if (appliance_.links_in_doubt.fetch_sub(1, std::memory_order_acq_rel) > 1) return;
  std::lock_guard guard(appliance_.lock);
  for (auto& waiter : appliance_.fence_waiters) {
    if (std::exchange(waiter->enlisted, false)) waiter->reactor.post(*waiter);
  }
}

/// Once the last connection in doubt is fenced, fence_settled() is called.
void Peer::await_fence() {
  if (std::exchange(awaiting_fence_, true)) return;
  std::lock_guard guard(appliance_.lock);
  if (fence_waiter_ == nullptr) {
    fence_waiter_ = appliance_.fence_waiters.emplace_back(std::make_unique<FenceWaiter>(reactor_)).get();
    fence_waiter_->peer = this;
    fence_waiter_->settled = [](void* peer) { static_cast<Peer*>(peer)->fence_settled(); };
  }
  // Whoever ends the doubt looks at this list after that: either it is seen here or we are seen there.
  const bool settled = appliance_.links_in_doubt.load(std::memory_order_acquire) == 0;
  fence_waiter_->enlisted = !settled;
  if (settled) reactor_.post(*fence_waiter_);
}

void Peer::fence_settled() {
  awaiting_fence_ = false;
  if (connection_ && connection_->ready()) on_room();
}

void Peer::lose_region(Operation& operation) {
  operation.region->state.store(RegionState::lost, std::memory_order_release);
  finish(operation, Status::stale_incarnation);
}

bool Peer::newer_incarnation_known(const Region& region) {
  std::lock_guard guard(appliance_.lock);
  return appliance_.incarnation == region.incarnation && appliance_.incarnation != connection_->incarnation();
}

/// Whether it is known already that this cannot succeed.
bool Peer::fail_fast(Operation& operation, uint64_t now) {
  if (refusal_ != Status::ok) {
    if (now < refused_until_ns_) {
      finish(operation, refusal_);
      return true;
    }
    refusal_ = Status::ok;
  }
  if (!found_down()) {
    down_ = down_ && connection_;  // another reactor has got through, or the appliance is said to be new
    return false;
  }
  if (!down_) {  // found by another reactor
    down_ = true;
    backoff_ns_ = kFirstBackoffNs;
    probe_ns_ = now;
  }
  arm_before(probe_ns_);
  finish(operation, Status::unreachable);
  return true;
}

void Peer::finish(Operation& operation, Status status) {
  Statistics& statistics = appliance_.statistics;
  const uint64_t elapsed = monotonic_ns() - operation.started_ns;
  add(statistics.operations, 1);
  if (status == Status::ok) {
    const auto bucket = static_cast<size_t>(std::bit_width(elapsed | 1) - 1);
    add(statistics.latency[std::min(bucket, Statistics::kBuckets - 1)], 1);
    if (operation.op == Op::read) add(statistics.bytes_read, operation.bytes);
    if (operation.op == Op::write) add(statistics.bytes_written, operation.bytes);
  } else {
    add(statistics.failures, 1);
  }
  operation.status = status;
  trace::mark(trace::Point::fabric_complete, operation.offset);
  operation.complete(operation);
}

void Peer::resubmit(Operation& operation) {
  if (closed_) return finish(operation, Status::closed);
  start(operation, monotonic_ns());
}

void Peer::on_room() {
  if (waiting_.empty()) return;
  const uint64_t now = monotonic_ns();
  while (!waiting_.empty() && connection_ && connection_->ready() && !connection_->full()) {
    const Region& region = *waiting_.first()->region;
    const bool other = region.incarnation != connection_->incarnation();
    if (other && newer_incarnation_known(region)) return;  // the connection is about to be replaced
    if (awaits_fence(*waiting_.first())) return await_fence();
    Operation& operation = waiting_.pop();
    if (is_lost(region)) {
      finish(operation, Status::not_present);
    } else if (other) {
      lose_region(operation);
    } else {
      dispatch(operation, now);
    }
  }
  if (waiting_.empty()) waiting_expires_ns_ = UINT64_MAX;
}

// ---- connections

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
  if (options_.transport != TransportKind::automatic || trying_ == TransportKind::tcp) return false;
  if (trying_ == TransportKind::shm) shm_failed_ = true;
  if (trying_ == TransportKind::verbs) verbs_failed_until_ns_ = now + kVerbsRestNs;
  return true;
}

void Peer::connect(uint64_t now) {
  Place place;
  {
    std::lock_guard guard(appliance_.lock);
    place = {.address = appliance_.address,
             .port = appliance_.port,
             .link_name = appliance_.link_name,
             .host_id = appliance_.host_id,
             .incarnation = appliance_.incarnation,
             .serves_verbs = appliance_.serves_verbs};
  }
  note_state(PeerState::connecting);
  do {
    trying_ = choose(place, now);
    if (open(place, now)) return arm_before(connection_->next_check_ns());
  } while (try_another(now));
  settle_outage(Status::unreachable, false, {});
}

bool Peer::open(const Place& place, uint64_t now) {
  const ClientHandshake::Link link{
      .index = reactor_.index(), .generation = next_link_generation(), .incarnation = place.incarnation};
  uint64_t longest = down_ ? std::min(kProbeTimeoutNs, attempt_ns_) : attempt_ns_;
  const bool optional = trying_ == TransportKind::verbs && options_.transport == TransportKind::automatic;
  if (optional) longest = std::min(longest, kVerbsTryNs);
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
  if (kind == TransportKind::shm) {
    auto fresh = std::make_unique<ShmConnection>(reactor_, *this, options_.credentials, link);
    failure = fresh->open(place.link_name, deadline);
    connection_ = std::move(fresh);
  } else if (kind == TransportKind::verbs) {
    auto fresh = std::make_unique<VerbsConnection>(reactor_, *this, options_.credentials, link);
    failure = fresh->open({.address = place.address, .port = place.port}, deadline);
    connection_ = std::move(fresh);
  } else {
    auto fresh = std::make_unique<TcpConnection>(reactor_, *this, options_.credentials, link);
    failure = fresh->open({.address = place.address, .port = place.port}, deadline);
    connection_ = std::move(fresh);
  }
  return failure;
}

void Peer::on_connected() {
  if (connected_before_) add(appliance_.statistics.reconnects, 1);
  connected_before_ = true;
  end_doubt();
  down_ = shm_failed_ = false;
  timeouts_ = 0;
  refusal_ = Status::ok;
  reason_.clear();
  appliance_.transport.store(connection_->kind(), std::memory_order_release);
  appliance_.state.store(PeerState::up, std::memory_order_release);
  on_room();
}

/// What another reactor has found out stays until somebody gets through.
void Peer::note_state(PeerState state) {
  PeerState before = appliance_.state.load(std::memory_order_acquire);
  while (before != PeerState::down && !appliance_.state.compare_exchange_weak(before, state)) {
  }
}

WireConnection::Unfinished Peer::retire() {
  auto lost = std::move(connection_);
  lost->close();
  auto unfinished = lost->release();
  retired_.push_back(std::move(lost));
  if (!closed_) wake();
  return unfinished;
}

void Peer::on_lost(Status status, const std::string& reason) {
  const bool was_ready = connection_->ready();
  reason_ = reason;
  if (was_ready) connection_->disown();
  auto unfinished = retire();
  doubt(unfinished);
  switch (status) {
    case Status::denied:
    case Status::fenced:
    case Status::bad_version:
    case Status::bad_request:
      return settle_refusal(status, std::move(unfinished));
    case Status::stale_incarnation:
      return settle_stale(std::move(unfinished));
    default:
      break;
  }
  const uint64_t now = monotonic_ns();
  // It connects and carries nothing (a network without jumbo frames, say): where there is a choice, not over RDMA then.
  if (was_ready && status == Status::timed_out && trying_ == TransportKind::verbs) try_another(now);
  if (!was_ready && try_another(now)) return connect(now);
  settle_outage(status, was_ready, std::move(unfinished));
}

void Peer::settle_refusal(Status status, WireConnection::Unfinished unfinished) {
  end_doubt();  // nothing of this client is taken there any more
  if (status == Status::fenced) directory_.fenced.store(true, std::memory_order_release);
  refusal_ = status;
  refused_until_ns_ = monotonic_ns() + kRefusalNs;
  appliance_.state.store(PeerState::idle, std::memory_order_release);
  down_ = false;
  OperationList failed;
  for (OperationList* list : {&unfinished.sent, &unfinished.untouched, &waiting_}) {
    while (!list->empty()) {
      Operation& operation = list->pop();
      operation.status = status;
      failed.push(operation);
    }
  }
  fail_all(failed);
}

/// The appliance has been restarted since we were told of it: what we had there is gone.
void Peer::settle_stale(WireConnection::Unfinished unfinished) {
  end_doubt();
  stale_incarnation_ = retired_.back()->incarnation();
  appliance_.state.store(PeerState::idle, std::memory_order_release);
  down_ = false;
  OperationList again;
  for (OperationList* list : {&unfinished.sent, &unfinished.untouched, &waiting_}) {
    while (!list->empty()) again.push(list->pop());
  }
  while (!again.empty()) resubmit(again.pop());  // each finds out whether it is one of those
}

void Peer::settle_outage(Status status, bool was_ready, WireConnection::Unfinished unfinished) {
  shm_failed_ = false;
  OperationList failed;
  retry_or_fail(unfinished.sent, status, true, failed);
  retry_or_fail(unfinished.untouched, status, false, failed);
  timeouts_ = status == Status::timed_out ? timeouts_ + 1 : timeouts_;
  if (!was_ready) {
    OperationList waited = waiting_.take();
    retry_or_fail(waited, status, false, failed);
    // Nobody listens there: no second try. Silence may have been a lost packet.
    if (down_ || status == Status::unreachable || timeouts_ >= kMaxAttempts) open_breaker(status, failed);
  }
  if (!down_ && found_down()) open_breaker(status, failed);  // by another reactor, after all its attempts
  if (!down_) {
    note_state(PeerState::idle);
    if (!waiting_.empty() || in_doubt_) connect(monotonic_ns());
  }
  fail_all(failed);
}

void Peer::retry_or_fail(OperationList& operations, Status status, bool sent, OperationList& failed) {
  const uint64_t now = monotonic_ns();
  while (!operations.empty()) {
    Operation& operation = operations.pop();
    const bool again = ++operation.attempts < kMaxAttempts && now < operation.expires_ns &&
                       (!sent || repeatable(operation)) && waiting_.size() < kMaxWaiting;
    if (again) {
      add(appliance_.statistics.retries, 1);
      waiting_.push(operation);
      waiting_expires_ns_ = std::min(waiting_expires_ns_, operation.expires_ns);
    } else {
      operation.status = status;
      failed.push(operation);
    }
  }
}

void Peer::open_breaker(Status status, OperationList& failed) {
  const uint64_t now = monotonic_ns();
  backoff_ns_ = down_ ? std::min(backoff_ns_ * 2, kMaxBackoffNs) : kFirstBackoffNs;
  down_ = true;
  probe_ns_ = now + (now - last_submit_ns_ < kProbeInterestNs ? backoff_ns_ : kIdleBackoffNs);
  appliance_.state.store(PeerState::down, std::memory_order_release);
  while (!waiting_.empty()) {
    Operation& operation = waiting_.pop();
    operation.status = status;
    failed.push(operation);
  }
  waiting_expires_ns_ = UINT64_MAX;
  arm_before(probe_ns_);
}

/// Their status is set.
void Peer::fail_all(OperationList operations) {
  while (!operations.empty()) {
    Operation& operation = operations.pop();
    finish(operation, operation.status);
  }
}

void Peer::cut() {
  if (connection_) connection_->sever("the connection was cut");
}

OperationList Peer::give_up() {
  end_doubt();
  OperationList given_up = waiting_.take();
  waiting_expires_ns_ = UINT64_MAX;
  if (!connection_) return given_up;
  auto unfinished = retire();
  for (OperationList* list : {&unfinished.sent, &unfinished.untouched}) {
    while (!list->empty()) given_up.push(list->pop());
  }
  return given_up;
}

void Peer::rejoin() {
  if (closed_) return;
  if (connection_) connection_->disown();
  OperationList failed = give_up();
  refusal_ = Status::ok;
  while (!failed.empty()) finish(failed.pop(), Status::fenced);
}

void Peer::close() {
  if (closed_) return;
  closed_ = true;
  OperationList failed = give_up();
  if (fence_waiter_ != nullptr) fence_waiter_->settled = nullptr;
  reactor_.cancel(*this);
  while (!failed.empty()) finish(failed.pop(), Status::closed);
}

// ---- time

void Peer::wake() { arm_before(0); }

void Peer::arm_before(uint64_t due_ns) {
  if (closed_ || due_ns >= armed_ns_) return;
  armed_ns_ = due_ns;
  reactor_.arm(*this, due_ns);
}

void Peer::on_timer() {
  armed_ns_ = UINT64_MAX;
  retired_.clear();
  const uint64_t now = monotonic_ns();
  if (connection_) connection_->check(now);
  if (now >= waiting_expires_ns_) expire_waiting(now);
  if (down_ && !connection_ && now >= probe_ns_) connect(now);
  if (connection_ && connection_->ready()) on_room();
  arm_next(now);
}

void Peer::expire_waiting(uint64_t now) {
  OperationList before = waiting_.take(), expired;
  waiting_expires_ns_ = UINT64_MAX;
  while (!before.empty()) {
    Operation& operation = before.pop();
    if (operation.expires_ns <= now) {
      operation.status = Status::timed_out;
      expired.push(operation);
    } else {
      hold(operation);
    }
  }
  fail_all(expired);
}

void Peer::arm_next(uint64_t now) {
  if (closed_) return;
  uint64_t due = waiting_expires_ns_;
  if (connection_) due = std::min(due, connection_->next_check_ns());
  if (down_ && !connection_) due = std::min(due, std::max(probe_ns_, now));
  if (due != UINT64_MAX) arm_before(due);
}

}  // namespace extmem::fabric
