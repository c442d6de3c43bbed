#include "region/service_thread.h"

#include <pthread.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>

#include "base/assert.h"
#include "base/clock.h"

namespace extmem::region {

namespace {

constexpr uint64_t kHandshakeNs = protocol::kHandshakeTimeoutMs * kMillisecond;
/// A parked connection's wait: a region that moves takes from a millisecond to a second.
constexpr int kParkedMs = 1;
constexpr int kTickMs = 100;
/// Whoever has vanished is given up so long later at most, and what retransmission takes (queue_pair.cc).
constexpr int kProbeMs = 2000;
constexpr unsigned kHotTurns = 16;
constexpr int kMaxAccepts = 16;
constexpr size_t kMaxConnections = 4096;
constexpr size_t kMaxStrangers = 256;

}  // namespace

ServiceThread::ServiceThread(Service& service, const PollWindow& window)
    : service_(service),
      epoll_fd_(epoll_create1(EPOLL_CLOEXEC)),
      wake_fd_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)),
      window_(window) {
  EXTMEM_ASSERT(epoll_fd_ && wake_fd_);
  epoll_event event{.events = EPOLLIN, .data = {.ptr = this}};
  EXTMEM_ASSERT(epoll_ctl(epoll_fd_.get(), EPOLL_CTL_ADD, wake_fd_.get(), &event) == 0);
}

ServiceThread::~ServiceThread() { stop(); }

void ServiceThread::listen(std::unique_ptr<Acceptor> acceptor, Distribute distribute) {
  distribute_ = std::move(distribute);
  epoll_event event{.events = EPOLLIN, .data = {.ptr = acceptor.get()}};
  EXTMEM_ASSERT(epoll_ctl(epoll_fd_.get(), EPOLL_CTL_ADD, acceptor->fd(), &event) == 0);
  acceptors_.push_back({.acceptor = std::move(acceptor)});
}

void ServiceThread::start() {
  // Signals are the process's main thread's; and sendfile(2) to a closed socket would raise SIGPIPE here.
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  thread_ = std::thread([this] { run(); });
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

void ServiceThread::stop() {
  stopping_.store(true, std::memory_order_release);
  uint64_t one = 1;
  [[maybe_unused]] auto written = write(wake_fd_.get(), &one, sizeof one);
  if (thread_.joinable()) thread_.join();
  connections_.clear();
  strangers_.clear();
  parked_.clear();
  ended_.clear();
  hot_ = nullptr;
  acceptors_.clear();
  std::lock_guard guard(adopted_lock_);
  adopted_.clear();
}

void ServiceThread::adopt(std::unique_ptr<Wire> wire) {
  auto connection = std::make_shared<Connection>(std::move(wire), service_);
  {
    std::lock_guard guard(adopted_lock_);
    adopted_.push_back(std::move(connection));
  }
  uint64_t one = 1;
  [[maybe_unused]] auto written = write(wake_fd_.get(), &one, sizeof one);
}

void ServiceThread::run() {
  for (unsigned turn = 0; !stopping_.load(std::memory_order_acquire); ++turn) {
    const uint64_t now = monotonic_ns();
    const int timeout = timeout_ms(now);
    const bool operated = timeout == 0 && advance_hot();
    if (operated) governor_.interrupt(true);
    // All of the window was polled for nothing: who is waited for may be queued behind us.
    if (timeout != 0) governor_.in_vain(now);
    // While one connection keeps us busy, the others are looked at now and then; an idle turn looks at all.
    if (operated && turn % kHotTurns != 0) continue;
    if (wait(timeout)) governor_.interrupt(true);
    if (!parked_.empty()) retry_parked();
    if (!ended_.empty()) settle_ended();
    if (!strangers_.empty()) drop_overdue(monotonic_ns());
    if (paused_ > 0) resume_accepting(monotonic_ns());
    if (probed_ > 0) probe_peers(monotonic_ns());
  }
}

/// Asks the connection that was served last without going through epoll; whether it had something.
bool ServiceThread::advance_hot() {
  if (hot_ == nullptr) return false;
  Connection& connection = *hot_;
  const auto kept = connections_.find(&connection)->second.connection;
  advance(connection);
  return kept->progressed();
}

bool ServiceThread::wait(int timeout) {
  std::array<epoll_event, 64> events;
  const int count = epoll_wait(epoll_fd_.get(), events.data(), static_cast<int>(events.size()), timeout);
  if (count <= 0) return false;
  const uint64_t now = monotonic_ns();
  for (int index = 0; index < count; ++index) handle(events[static_cast<size_t>(index)].data.ptr, now);
  return true;
}

int ServiceThread::timeout_ms(uint64_t now) {
  if (now - last_operation_ns_ < window_.ns() && governor_.may_poll(now)) return 0;
  if (!ended_.empty()) return 0;
  if (!parked_.empty()) return kParkedMs;
  if (!strangers_.empty() || paused_ > 0) return kTickMs;
  return probed_ > 0 ? kProbeMs : -1;
}

void ServiceThread::handle(void* target, uint64_t now) {
  if (target == this) {
    uint64_t wakes;
    [[maybe_unused]] auto got = read(wake_fd_.get(), &wakes, sizeof wakes);
    return take_adopted();
  }
  for (auto& [acceptor, again_ns] : acceptors_) {
    if (target == acceptor.get()) return accept_all(*acceptor, now);
  }
  auto* connection = static_cast<Connection*>(target);
  if (connections_.contains(connection)) advance(*connection);
}

void ServiceThread::accept_all(Acceptor& acceptor, uint64_t now) {
  // Whoever waits beyond these keeps the acceptor ready: those who are served have their turn first.
  for (int turn = 0; turn < kMaxAccepts; ++turn) {
    if (auto wire = acceptor.accept()) {
      distribute_(std::move(wire));
      continue;
    }
    if (errno == EINTR || errno == ECONNABORTED) continue;
    if (errno != EAGAIN) pause_accepting(acceptor, now);
    return;
  }
}

/// Out of descriptors or memory: the pending connection stays ready, and asking again at once would spin. The others go
/// on: what ails an RDMA device need not ail sockets.
void ServiceThread::pause_accepting(Acceptor& acceptor, uint64_t now) {
  for (auto& listening : acceptors_) {
    if (listening.acceptor.get() != &acceptor || listening.again_ns != 0) continue;
    listening.again_ns = now + kTickMs * kMillisecond;
    ++paused_;
    epoll_event event{.events = 0, .data = {.ptr = &acceptor}};
    epoll_ctl(epoll_fd_.get(), EPOLL_CTL_MOD, acceptor.fd(), &event);
  }
}

void ServiceThread::resume_accepting(uint64_t now) {
  for (auto& [acceptor, again_ns] : acceptors_) {
    if (again_ns == 0 || now < again_ns) continue;
    again_ns = 0;
    --paused_;
    epoll_event event{.events = EPOLLIN, .data = {.ptr = acceptor.get()}};
    epoll_ctl(epoll_fd_.get(), EPOLL_CTL_MOD, acceptor->fd(), &event);
  }
}

/// What a probe finds makes the connection's descriptor ready.
void ServiceThread::probe_peers(uint64_t now) {
  if (now < probe_ns_) return;
  probe_ns_ = now + kProbeMs * kMillisecond;
  for (auto& [connection, entry] : connections_) {
    if (connection->needs_probes()) connection->probe();
  }
}

/// A few of each, so that those who are served wait for a few only.
void ServiceThread::settle_ended() {
  std::erase_if(ended_, [](const std::shared_ptr<Connection>& one) { return one->settle(); });
}

void ServiceThread::take_adopted() {
  std::vector<std::shared_ptr<Connection>> fresh;
  {
    std::lock_guard guard(adopted_lock_);
    fresh.swap(adopted_);
  }
  for (auto& connection : fresh) {
    if (connections_.size() >= kMaxConnections) continue;
    Connection& taken = *connection;
    epoll_event event{.events = EPOLLIN, .data = {.ptr = &taken}};
    if (epoll_ctl(epoll_fd_.get(), EPOLL_CTL_ADD, taken.fd(), &event) != 0) continue;
    probed_ += taken.needs_probes() ? 1 : 0;
    connections_.emplace(&taken, Entry{.connection = std::move(connection), .events = EPOLLIN});
    strangers_.push_back(&taken);
  }
}

void ServiceThread::advance(Connection& connection) {
  if (hot_ == &connection) hot_ = nullptr;
  const Connection::Wants wants = connection.advance();
  if (connection.progressed()) note_operation(connection.worth_polling());
  switch (wants) {
    case Connection::Wants::read:
      hot_ = &connection;
      return watch(connection, EPOLLIN);
    case Connection::Wants::write:
      return watch(connection, EPOLLOUT);
    case Connection::Wants::retry:
      watch(connection, 0);
      if (std::find(parked_.begin(), parked_.end(), &connection) == parked_.end()) parked_.push_back(&connection);
      return;
    case Connection::Wants::close:
      return remove(connection);
  }
}

void ServiceThread::note_operation(bool worth_polling) {
  const uint64_t now = monotonic_ns();
  window_.note(now - last_operation_ns_);
  last_operation_ns_ = worth_polling ? now : 0;
}

void ServiceThread::watch(Connection& connection, uint32_t wanted) {
  if (wanted == EPOLLOUT && !connection.tells_output()) wanted = EPOLLIN;
  Entry& entry = connections_.at(&connection);
  if (entry.events == wanted) return;
  entry.events = wanted;
  epoll_event event{.events = wanted, .data = {.ptr = &connection}};
  epoll_ctl(epoll_fd_.get(), EPOLL_CTL_MOD, connection.fd(), &event);
}

void ServiceThread::remove(Connection& connection) {
  if (hot_ == &connection) hot_ = nullptr;
  std::erase(strangers_, &connection);
  std::erase(parked_, &connection);
  epoll_ctl(epoll_fd_.get(), EPOLL_CTL_DEL, connection.fd(), nullptr);
  connection.end();
  probed_ -= connection.needs_probes() ? 1 : 0;
  const auto entry = connections_.find(&connection);
  if (!connection.settle()) ended_.push_back(std::move(entry->second.connection));
  connections_.erase(entry);
}

void ServiceThread::retry_parked() {
  std::vector<Connection*> parked;
  parked.swap(parked_);
  for (Connection* connection : parked) {
    if (connections_.contains(connection)) advance(*connection);
  }
}

void ServiceThread::drop_overdue(uint64_t now) {
  std::erase_if(strangers_, [](Connection* one) { return one->authenticated(); });
  while (!strangers_.empty() &&
         (strangers_.size() > kMaxStrangers || now - strangers_.front()->accepted_ns() > kHandshakeNs)) {
    strangers_.front()->report_slow_handshake();
    remove(*strangers_.front());
  }
}

}  // namespace extmem::region
