// One event loop, owned by one thread: file descriptors, timers, messages from other threads and suspended
// coroutines. While operations are outstanding the loop polls (bounded), because a wake-up of an idle CPU costs
// several times what a reply does; then it sleeps in one wait for everything: epoll_wait, or another one that includes
// the reactor's epoll (an io_uring).
//
// Everything here belongs to the reactor's thread, except post().
#pragma once

#include <sys/epoll.h>

#include <array>
#include <atomic>
#include <coroutine>
#include <cstdint>
#include <vector>

#include "base/poll_governor.h"
#include "base/poll_window.h"

namespace extmem {

/// Told when its descriptor is ready. Outlives its registration.
class ReadyHandler {
 public:
  virtual void on_ready(uint32_t epoll_events) = 0;

 protected:
  ~ReadyHandler() = default;
};

/// An intrusive timer; fires once on the reactor's thread. Must be cancelled before it is destroyed.
class Timer {
 public:
  virtual void on_timer() = 0;
  bool armed() const { return slot_ != kIdle; }

 protected:
  ~Timer() = default;

 private:
  friend class Reactor;
  static constexpr size_t kIdle = SIZE_MAX;
  uint64_t due_ns_ = 0;
  size_t slot_ = kIdle;
};

/// An intrusive message: run() is called once on the target reactor's thread. The sender keeps it alive until then.
class Message {
 public:
  virtual void run() = 0;

 protected:
  ~Message() = default;

 private:
  friend class Reactor;
  Message* next_ = nullptr;
};

/// Asked on every turn of the loop while the reactor polls; answers whether it made progress.
class Poller {
 public:
  virtual bool poll() = 0;
  /// The reactor is about to sleep: what would not wake it by itself is told to. Answers whether it made progress
  /// instead.
  virtual bool prepare_sleep() { return false; }

 protected:
  ~Poller() = default;
};

/// What a reactor waits in instead of epoll_wait. It must also wake for Reactor::epoll_fd(), then call collect(), and
/// for Reactor::wake_fd(), which it need not read.
class Waiter {
 public:
  /// Waits for at most timeout_ms (0: only looks; negative: for ever) and serves what came. Answers whether anything
  /// did.
  virtual bool wait(int timeout_ms) = 0;

 protected:
  ~Waiter() = default;
};

class Reactor {
 public:
  struct Options {
    unsigned index = 0;
    int cpu = -1;  ///< pinned to it, unless negative
    uint64_t poll_budget_ns =
        200'000;  ///< how long to poll at most after the last progress while operations are outstanding
  };

  explicit Reactor(Options options);
  ~Reactor();
  Reactor(const Reactor&) = delete;
  Reactor& operator=(const Reactor&) = delete;

  /// Runs until stop(). Call it on the thread that is to own the reactor.
  void run();
  /// Any thread.
  void stop();
  /// Instead of run(), for whoever makes time pass: one turn on the caller's thread, which never sleeps, and looks at
  /// no descriptors. Answers whether there was anything to do; then another turn may find more.
  bool turn();
  /// When the next timer is due; UINT64_MAX: none is armed.
  uint64_t next_due_ns() const { return timers_.empty() ? UINT64_MAX : timers_.front()->due_ns_; }

  void watch(int fd, uint32_t epoll_events, ReadyHandler& handler);
  void rewatch(int fd, uint32_t epoll_events, ReadyHandler& handler);
  /// After this the handler is not called any more, not even for an event already fetched, and may be destroyed.
  void unwatch(int fd, const ReadyHandler& handler);
  /// From now on waits in this; nullptr: in epoll_wait again. On the reactor's thread.
  void wait_in(Waiter* waiter);
  int epoll_fd() const { return epoll_fd_; }
  int wake_fd() const { return wake_fd_; }
  /// For the Waiter: serves descriptors that are ready, up to a bound; answers whether any was.
  bool collect(int timeout_ms = 0);

  void add_poller(Poller& poller);
  void remove_poller(Poller& poller);

  /// Arms (or re-arms) a timer at a monotonic time.
  void arm(Timer& timer, uint64_t due_ns);
  void cancel(Timer& timer);

  /// Resumes the coroutine on this thread, soon, not from within the caller.
  void schedule(std::coroutine_handle<> handle) { ready_.push_back(handle); }

  /// Any thread: hands a message over and wakes the reactor if it sleeps.
  void post(Message& message);

  /// Operations in flight that are worth waiting for actively: while there are any, the loop polls before it sleeps.
  void begin_operation() { ++outstanding_; }
  void end_operation() { --outstanding_; }

  unsigned index() const { return options_.index; }
  bool on_own_thread() const { return current() == this; }
  static Reactor* current();

 private:
  void run_turn();
  bool serve();
  bool run_pollers();
  bool prepare_sleep();
  bool run_messages();
  bool run_ready();
  bool run_timers();
  bool wait(int timeout_ms) { return waiter_ != nullptr ? waiter_->wait(timeout_ms) : collect(timeout_ms); }
  void watch_own_wake_ups();
  int sleep_timeout_ms() const;
  void heap_up(size_t slot);
  void heap_down(size_t slot);
  void heap_place(Timer* timer, size_t slot);

  Options options_;
  int epoll_fd_;
  int wake_fd_;
  Waiter* waiter_ = nullptr;
  std::atomic<bool> stopping_{false};
  std::atomic<bool> sleeping_{false};
  std::atomic<Message*> inbox_{nullptr};
  std::array<epoll_event, 64> events_;  // of the current wait
  int event_count_ = 0;
  std::vector<std::coroutine_handle<>> ready_;
  std::vector<std::coroutine_handle<>> running_;
  std::vector<Timer*> timers_;  // binary heap by due_ns_
  std::vector<Poller*> pollers_;
  uint64_t outstanding_ = 0;
  uint64_t last_progress_ns_ = 0;
  PollWindow window_{options_.poll_budget_ns};
  PollGovernor governor_;
};

/// co_await reactor sleep: resumes after a time on the reactor it was awaited on.
class Sleep final : public Timer {
 public:
  Sleep(Reactor& reactor, uint64_t duration_ns) : reactor_(reactor), duration_ns_(duration_ns) {}
  bool await_ready() const noexcept { return duration_ns_ == 0; }
  void await_suspend(std::coroutine_handle<> handle);
  void await_resume() const noexcept {}
  void on_timer() override { handle_.resume(); }

 private:
  Reactor& reactor_;
  uint64_t duration_ns_;
  std::coroutine_handle<> handle_;
};

}  // namespace extmem
