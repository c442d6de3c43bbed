// What the data path asks of TypeScript, rarely, as awaitables: room, and that the manager learns something.
#pragma once

#include <atomic>
#include <coroutine>
#include <cstdint>
#include <string>
#include <vector>

#include "base/reactor.h"

namespace extmem::extent {

/// One question; `co_await call` resumes on the same reactor when it was answered. Lives in the asker's frame.
struct ControlCall final : Message {
  /// claim_end: nobody else may make the shared file longer; give_up_end: what was written behind its end does not
  /// count; drop_privileges: whoever writes may not leave it set-user-ID or set-group-ID; drop_copies: those at
  /// `places` did not take a write that others took, and count no more.
  enum class Kind : uint8_t { commit, provision, extend, wrote, claim_end, give_up_end, drop_privileges, drop_copies };
  struct Place {
    uint64_t region;
    uint64_t offset;
  };

  Kind kind = Kind::commit;
  uint64_t node = 0;
  uint64_t offset = 0;          ///< wrote
  uint64_t bytes = 0;           ///< wrote, provision
  uint64_t mtime_ns = 0;        ///< wrote
  uint64_t lock_owner = 0;      ///< commit at close: whose POSIX locks go
  bool closing = false;         ///< commit at close
  bool holds_pages = false;     ///< wrote, claim_end: the kernel may hold pages locked until the write is answered
  std::vector<uint8_t> record;  ///< commit, extend, drop_copies: ours; when answered, of the last two the manager's
  std::vector<Place> places;    ///< drop_copies

  int error = 0;  ///< the answer, a positive errno

  ControlCall(class ControlPlane& plane, Reactor& reactor);
  bool await_ready() const noexcept { return false; }
  void await_suspend(std::coroutine_handle<> handle);
  int await_resume() const noexcept { return error; }
  void run() override { handle_.resume(); }
  /// Any thread, once.
  void answered() { reactor_.post(*this); }
  /// Of the client that this mount was when the call was made: what it carries may be asked in no other's name.
  uint32_t life() const { return life_; }

 private:
  ControlPlane& plane_;
  Reactor& reactor_;
  const uint32_t life_;
  std::coroutine_handle<> handle_;
};

class ControlPlane {
 public:
  /// Any reactor. The answer comes by ControlCall::answered(); always, also when everything is being shut down.
  virtual void ask(ControlCall& call) = 0;
  /// Grows when this mount becomes another client (it was fenced).
  uint32_t life() const { return life_.load(std::memory_order_acquire); }

 protected:
  ~ControlPlane() = default;
  std::atomic<uint32_t> life_{0};
};

inline ControlCall::ControlCall(ControlPlane& plane, Reactor& reactor)
    : plane_(plane), reactor_(reactor), life_(plane.life()) {}

inline void ControlCall::await_suspend(std::coroutine_handle<> handle) {
  handle_ = handle;
  plane_.ask(*this);
}

}  // namespace extmem::extent
