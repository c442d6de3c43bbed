#include "base/reactor.h"

#include <pthread.h>
#include <sched.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <utility>

#include "base/assert.h"
#include "base/clock.h"

namespace extmem {

namespace {
thread_local Reactor* current_reactor = nullptr;
}  // namespace

Reactor* Reactor::current() { return current_reactor; }

Reactor::Reactor(Options options)
    : options_(options), epoll_fd_(epoll_create1(EPOLL_CLOEXEC)), wake_fd_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
  EXTMEM_ASSERT(epoll_fd_ >= 0 && wake_fd_ >= 0);
  watch_own_wake_ups();
}

Reactor::~Reactor() {
  close(wake_fd_);
  close(epoll_fd_);
}

void Reactor::run() {
  current_reactor = this;
  if (options_.cpu >= 0) {
    cpu_set_t cpus;
    CPU_ZERO(&cpus);
    CPU_SET(options_.cpu, &cpus);
    pthread_setaffinity_np(pthread_self(), sizeof cpus, &cpus);  // a hint: a forbidden CPU is no error
  }
  while (!stopping_.load(std::memory_order_acquire)) run_turn();
  current_reactor = nullptr;
}

void Reactor::stop() {
  stopping_.store(true, std::memory_order_release);
  uint64_t one = 1;
  [[maybe_unused]] auto written = write(wake_fd_, &one, sizeof one);
}

bool Reactor::turn() {
  Reactor* const before = std::exchange(current_reactor, this);
  const bool progress = serve() || prepare_sleep();
  current_reactor = before;
  return progress;
}

bool Reactor::serve() {
  bool progress = run_pollers();
  if (progress) window_.note(monotonic_ns() - last_progress_ns_);
  progress |= run_messages();
  progress |= run_timers();
  progress |= run_ready();
  return progress;
}

void Reactor::run_turn() {
  bool progress = serve();
  if (progress || outstanding_ > 0) {
    progress |= wait(0);
    progress |= run_ready();
  }
  if (progress) {
    last_progress_ns_ = monotonic_ns();
    governor_.interrupt(true);
    return;
  }
  if (outstanding_ > 0) {
    uint64_t now = monotonic_ns();
    if (now - last_progress_ns_ >= window_.ns()) {
      governor_.in_vain(now);
    } else if (governor_.may_poll(now)) {
      return;
    }
  }
  if (prepare_sleep()) {
    last_progress_ns_ = monotonic_ns();
    return;
  }
  // Announce the sleep before the last look at the inbox: a sender either sees the flag or is seen here.
  sleeping_.store(true, std::memory_order_seq_cst);
  if (inbox_.load(std::memory_order_seq_cst) == nullptr && !stopping_.load(std::memory_order_acquire)) {
    if (wait(sleep_timeout_ms())) last_progress_ns_ = monotonic_ns();
  }
  sleeping_.store(false, std::memory_order_relaxed);
}

bool Reactor::run_pollers() {
  bool progress = false;
  for (size_t index = 0; index < pollers_.size(); ++index) progress |= pollers_[index]->poll();
  return progress;
}

bool Reactor::prepare_sleep() {
  bool progress = false;
  for (size_t index = 0; index < pollers_.size(); ++index) progress |= pollers_[index]->prepare_sleep();
  return progress;
}

bool Reactor::run_messages() {
  Message* stack = inbox_.exchange(nullptr, std::memory_order_acquire);
  if (stack == nullptr) return false;
  Message* in_order = nullptr;
  while (stack != nullptr) {
    Message* next = stack->next_;
    stack->next_ = in_order;
    in_order = stack;
    stack = next;
  }
  while (in_order != nullptr) {
    Message* message = std::exchange(in_order, in_order->next_);
    message->next_ = nullptr;
    message->run();
  }
  return true;
}

bool Reactor::run_ready() {
  if (ready_.empty()) return false;
  running_.swap(ready_);
  for (auto handle : running_) handle.resume();
  running_.clear();
  return true;
}

bool Reactor::run_timers() {
  if (timers_.empty()) return false;
  uint64_t now = monotonic_ns();
  bool fired = false;
  while (!timers_.empty() && timers_.front()->due_ns_ <= now) {
    Timer* timer = timers_.front();
    cancel(*timer);
    timer->on_timer();
    fired = true;
  }
  return fired;
}

void Reactor::watch_own_wake_ups() {
  epoll_event event{.events = EPOLLIN, .data = {.ptr = this}};
  EXTMEM_ASSERT(epoll_ctl(epoll_fd_, EPOLL_CTL_ADD, wake_fd_, &event) == 0);
}

void Reactor::wait_in(Waiter* waiter) {
  if ((waiter == nullptr) == (waiter_ == nullptr)) return;
  // A waiter does not read the wake-ups, so in the epoll they would be ready for ever.
  if (waiter != nullptr) epoll_ctl(epoll_fd_, EPOLL_CTL_DEL, wake_fd_, nullptr);
  waiter_ = waiter;
  if (waiter == nullptr) watch_own_wake_ups();
}

bool Reactor::collect(int timeout_ms) {
  event_count_ = epoll_wait(epoll_fd_, events_.data(), static_cast<int>(events_.size()), timeout_ms);
  bool any = event_count_ > 0;
  for (int index = 0; index < event_count_; ++index) {
    void* target = events_[index].data.ptr;
    if (target == this) {
      uint64_t wakes;
      [[maybe_unused]] auto bytes = read(wake_fd_, &wakes, sizeof wakes);
    } else if (target != nullptr) {
      static_cast<ReadyHandler*>(target)->on_ready(events_[index].events);
    }
  }
  event_count_ = 0;
  return any;
}

int Reactor::sleep_timeout_ms() const {
  if (!ready_.empty()) return 0;
  if (timers_.empty()) return -1;
  uint64_t now = monotonic_ns();
  uint64_t due = timers_.front()->due_ns_;
  if (due <= now) return 0;
  return static_cast<int>(std::min<uint64_t>((due - now + 999'999) / 1'000'000, 60'000));
}

void Reactor::watch(int fd, uint32_t epoll_events, ReadyHandler& handler) {
  epoll_event event{.events = epoll_events, .data = {.ptr = &handler}};
  EXTMEM_ASSERT(epoll_ctl(epoll_fd_, EPOLL_CTL_ADD, fd, &event) == 0);
}

void Reactor::rewatch(int fd, uint32_t epoll_events, ReadyHandler& handler) {
  epoll_event event{.events = epoll_events, .data = {.ptr = &handler}};
  EXTMEM_ASSERT(epoll_ctl(epoll_fd_, EPOLL_CTL_MOD, fd, &event) == 0);
}

void Reactor::unwatch(int fd, const ReadyHandler& handler) {
  epoll_ctl(epoll_fd_, EPOLL_CTL_DEL, fd, nullptr);
  for (int index = 0; index < event_count_; ++index) {
    if (events_[index].data.ptr == &handler) events_[index].data.ptr = nullptr;
  }
}

void Reactor::add_poller(Poller& poller) { pollers_.push_back(&poller); }

void Reactor::remove_poller(Poller& poller) { std::erase(pollers_, &poller); }

void Reactor::post(Message& message) {
  Message* head = inbox_.load(std::memory_order_relaxed);
  do {
    message.next_ = head;
  } while (!inbox_.compare_exchange_weak(head, &message, std::memory_order_seq_cst));
  if (sleeping_.load(std::memory_order_seq_cst)) {
    uint64_t one = 1;
    [[maybe_unused]] auto written = write(wake_fd_, &one, sizeof one);
  }
}

void Reactor::arm(Timer& timer, uint64_t due_ns) {
  cancel(timer);
  timer.due_ns_ = due_ns;
  timers_.push_back(&timer);
  heap_place(&timer, timers_.size() - 1);
  heap_up(timer.slot_);
}

void Reactor::cancel(Timer& timer) {
  if (!timer.armed()) return;
  size_t slot = std::exchange(timer.slot_, Timer::kIdle);
  Timer* last = timers_.back();
  timers_.pop_back();
  if (last == &timer) return;
  heap_place(last, slot);
  heap_up(slot);
  heap_down(last->slot_);
}

void Reactor::heap_place(Timer* timer, size_t slot) {
  timers_[slot] = timer;
  timer->slot_ = slot;
}

void Reactor::heap_up(size_t slot) {
  Timer* timer = timers_[slot];
  while (slot > 0 && timer->due_ns_ < timers_[(slot - 1) / 2]->due_ns_) {
    heap_place(timers_[(slot - 1) / 2], slot);
    slot = (slot - 1) / 2;
  }
  heap_place(timer, slot);
}

void Reactor::heap_down(size_t slot) {
  Timer* timer = timers_[slot];
  for (size_t child = 2 * slot + 1; child < timers_.size(); child = 2 * slot + 1) {
    if (child + 1 < timers_.size() && timers_[child + 1]->due_ns_ < timers_[child]->due_ns_) ++child;
    if (timer->due_ns_ <= timers_[child]->due_ns_) break;
    heap_place(timers_[child], slot);
    slot = child;
  }
  heap_place(timer, slot);
}

void Sleep::await_suspend(std::coroutine_handle<> handle) {
  handle_ = handle;
  reactor_.arm(*this, monotonic_ns() + duration_ns_);
}

}  // namespace extmem
