#include "fabric/peer.h"

#include <algorithm>
#include <utility>

#include "base/clock.h"
#include "base/trace.h"

namespace extmem::fabric {

namespace {

/// Beyond two attempts: what a reconnect takes.
constexpr uint64_t kGraceNs = 500 * kMillisecond;
constexpr uint64_t kFirstBackoffNs = 250 * kMillisecond;
constexpr uint64_t kMaxBackoffNs = 1000 * kMillisecond;
/// Nobody has asked for it in so long: it is probed seldom. Not never: what is down gets no new files, so that nobody
/// would ask.
constexpr uint64_t kProbeInterestNs = 60'000 * kMillisecond;
constexpr uint64_t kIdleBackoffNs = 10'000 * kMillisecond;
/// What an operation weighs beside its bytes, when the less loaded link is looked for.
constexpr uint64_t kOperationWeight = 4096;
constexpr uint64_t kRefusalNs = 1000 * kMillisecond;
constexpr size_t kMaxWaiting = 65536;
constexpr uint8_t kMaxAttempts = 2;

/// Done twice, they would do something else.
bool repeatable(const Operation& operation) {
  return operation.op != Op::fetch_add && operation.op != Op::compare_swap;
}

bool is_lost(const Region& region) { return region.state.load(std::memory_order_acquire) == RegionState::lost; }

}  // namespace

Peer::Peer(Reactor& reactor, Directory& directory, Appliance& appliance, const Fabric::Options& options, uint32_t home)
    : reactor_(reactor),
      directory_(directory),
      appliance_(appliance),
      options_(options),
      attempt_ns_(options.operation_deadline_ms * kMillisecond),
      route_(appliance, home),
      statistics_(&statistics_for(TransportKind::automatic, {})) {
  const auto look = [](void* peer) { static_cast<Peer*>(peer)->look_again(); };
  std::lock_guard guard(appliance_.lock);
  news_ = appliance_.news.emplace_back(std::make_unique<PeerNews>(reactor_, this, look)).get();
}

Peer::~Peer() { close(); }

// ---- operations

void Peer::submit(Operation& operation) {
  const uint64_t now = operation.started_ns;
  const uint64_t longest = now + kMaxAttempts * attempt_ns_ + kGraceNs;
  operation.expires_ns = operation.deadline_ns == 0 ? longest : std::min(operation.deadline_ns, longest);
  last_submit_ns_ = now;
  load_ += operation.bytes + kOperationWeight;
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
      return refuse(operation);
    }
    if (region.incarnation == connection_->incarnation()) {
      const bool at_once = waiting_.empty() && !connection_->full() && !awaits_fence(operation);
      if (at_once) return dispatch(operation, now);
      return awaits_in_vain(operation) ? refuse(operation) : hold(operation);
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
  if (!connection_) return;
  if (found_down() && connection_->doubtful()) return cut();  // over shared memory: this is the first to need an answer
  arm_before(connection_->next_check_ns());
}

void Peer::hold(Operation& operation) {
  if (waiting_.size() >= kMaxWaiting) return finish(operation, Status::timed_out);
  waiting_.push(operation);
  waiting_expires_ns_ = std::min(waiting_expires_ns_, operation.expires_ns);
  arm_before(waiting_expires_ns_);
}

/// A write of another reactor that was given up may land late: on top of this one, if this one did not wait.
bool Peer::awaits_fence(const Operation& operation) const {
  return operation.op != Op::read && appliance_.links_in_doubt.load(std::memory_order_acquire) > 0;
}

/// Who has to get through first does not.
bool Peer::awaits_in_vain(const Operation& operation) const { return found_down() && awaits_fence(operation); }

void Peer::doubt(const WireConnection::Unfinished& unfinished) {
  if (in_doubt_ || !unfinished.sent.any([](const Operation& operation) { return operation.op != Op::read; })) return;
  in_doubt_ = true;
  appliance_.links_in_doubt.fetch_add(1, std::memory_order_acq_rel);
}

void Peer::end_doubt() {
  if (!std::exchange(in_doubt_, false)) return;
  if (appliance_.links_in_doubt.fetch_sub(1, std::memory_order_acq_rel) == 1) appliance_.tell_peers();
}

/// Another reactor's peer has found the appliance down, or the last connection in doubt is fenced.
void Peer::look_again() {
  {
    std::lock_guard guard(appliance_.lock);
    news_->wanted = true;  // first: what is found out from now on is told anew
  }
  if (!ready()) return;
  if (found_down() && connection_->doubtful()) return cut();
  on_room();
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
  refuse(operation);
  return true;
}

void Peer::finish(Operation& operation, Status status) {
  if (status == Status::ok) {
    statistics_->count_done(monotonic_ns() - operation.started_ns);
    if (operation.op == Op::read) statistics_->count_read(operation.bytes);
    if (operation.op == Op::write) statistics_->count_write(operation.bytes);
  } else {
    statistics_->count_failure();
  }
  complete(operation, status);
}

/// It is known to be of no use to try.
void Peer::refuse(Operation& operation) {
  statistics_->count_refused();
  complete(operation, Status::unreachable);
}

void Peer::complete(Operation& operation, Status status) {
  load_ -= operation.bytes + kOperationWeight;
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
    if (awaits_fence(*waiting_.first()) && !found_down()) return;
    Operation& operation = waiting_.pop();
    if (awaits_in_vain(operation)) {
      refuse(operation);
    } else if (is_lost(region)) {
      finish(operation, Status::not_present);
    } else if (other) {
      lose_region(operation);
    } else {
      dispatch(operation, now);
    }
  }
  if (waiting_.empty()) waiting_expires_ns_ = UINT64_MAX;
}

// ---- losing a connection

/// What another reactor has found out stays until somebody gets through. Of several links one is enough.
void Peer::note_state(PeerState state) {
  const bool others = appliance_.connections.load(std::memory_order_acquire) > 0;
  if (others && appliance_.link_count.load(std::memory_order_acquire) > 1) return;
  PeerState before = appliance_.state.load(std::memory_order_acquire);
  while (before != PeerState::down && !appliance_.state.compare_exchange_weak(before, state)) {
  }
}

WireConnection::Unfinished Peer::retire() {
  auto lost = std::move(connection_);
  if (lost->ready()) {
    appliance_.connections.fetch_sub(1, std::memory_order_acq_rel);
    statistics_->count_disconnected();
  }
  lost->close();
  auto unfinished = lost->release();
  retired_.push_back(std::move(lost));
  if (!closed_) wake();
  return unfinished;
}

void Peer::on_lost(Status status, const std::string& reason) {
  const bool was_ready = connection_->ready();
  reason_ = reason;
  if (was_ready) {
    statistics_->count_lost();
    connection_->disown();
  }
  auto unfinished = retire();
  doubt(unfinished);
  switch (status) {
    case Status::denied:
    case Status::bad_version:
    case Status::bad_request:
      // Nobody has proved to be the appliance: a stranger may have that address, and the appliance another.
      if (!was_ready && route_.going_home()) return settle_outage(status, false, std::move(unfinished));
      if (!was_ready && route_.try_another()) return connect(monotonic_ns());
      [[fallthrough]];
    case Status::fenced:
      return settle_refusal(status, std::move(unfinished));
    case Status::stale_incarnation:
      return settle_stale(std::move(unfinished));
    default:
      break;
  }
  const uint64_t now = monotonic_ns();
  if (!was_ready && try_another(now)) return connect(now);
  if (was_ready) note_lost_way(status, now);
  settle_outage(status, was_ready, std::move(unfinished));
}

void Peer::settle_refusal(Status status, WireConnection::Unfinished unfinished) {
  begin_round();
  if (status ==
      Status::fenced) {  // told by who has proved to be the appliance: it takes nothing of this client any more
    end_doubt();
    directory_.fenced.store(true, std::memory_order_release);
  }
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
  if (in_doubt_) arm_before(refused_until_ns_);
}

/// The appliance has been restarted since we were told of it: what we had there is gone.
void Peer::settle_stale(WireConnection::Unfinished unfinished) {
  begin_round();
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
  const bool was_going_home = route_.going_home();
  begin_round();
  if (was_going_home && !was_ready) return stay_away(monotonic_ns());
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
    // Also with nothing to send: whether it is still there is known before somebody has to wait for that.
    if (!waiting_.empty() || in_doubt_ || was_ready) connect(monotonic_ns());
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
      statistics_->count_retry();
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
  probe_ns_ = now + (used_lately(now) ? backoff_ns_ : kIdleBackoffNs);
  route_.forget_home();  // a probe tries every address
  if (appliance_.state.exchange(PeerState::down, std::memory_order_acq_rel) != PeerState::down) {
    appliance_.breaker_openings.fetch_add(1, std::memory_order_relaxed);
    appliance_.tell_peers();
  }
  while (!waiting_.empty()) {
    Operation& operation = waiting_.pop();
    operation.status = status;
    failed.push(operation);
  }
  waiting_expires_ns_ = UINT64_MAX;
  arm_before(probe_ns_);
}

bool Peer::used_lately(uint64_t now) const { return now - last_submit_ns_ < kProbeInterestNs; }

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
  {
    std::lock_guard guard(appliance_.lock);
    news_->wanted = false;
  }
  news_->peer = nullptr;
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
  const bool probes = down_ && now >= probe_ns_;
  const bool fences = !down_ && in_doubt_ && now >= refused_until_ns_;
  if (!connection_ && (probes || fences)) connect(now);
  if (now >= route_.home_ns()) go_home(now);
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
  uint64_t due = std::min(waiting_expires_ns_, route_.home_ns());
  if (connection_) due = std::min(due, connection_->next_check_ns());
  if (down_ && !connection_) due = std::min(due, std::max(probe_ns_, now));
  if (!down_ && !connection_ && in_doubt_) due = std::min(due, std::max(refused_until_ns_, now));
  if (due != UINT64_MAX) arm_before(due);
}

}  // namespace extmem::fabric
