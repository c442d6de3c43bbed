// An io_uring of one thread, straight from the kernel's interface: entries of 128 bytes (a driver's commands need
// them), completions taken only when that thread asks for them (DEFER_TASKRUN), so that nothing happens behind its
// back.
//
// create() may be called on any thread; whoever calls start() owns the ring from then on.
#pragma once

#include <linux/io_uring.h>

#include <cstddef>
#include <cstdint>
#include <memory>

namespace extmem {

class IoRing {
 public:
  struct Sizes {
    unsigned submissions;
    unsigned completions;  ///< both are rounded up to powers of two
  };
  /// nullptr with an errno: EPERM where io_uring is forbidden, ENOSYS where there is none.
  static std::unique_ptr<IoRing> create(const Sizes& sizes, int& error);
  ~IoRing();
  IoRing(const IoRing&) = delete;
  IoRing& operator=(const IoRing&) = delete;

  /// The calling thread becomes the owner. `file` gets index 0 among the ring's fixed files. 0 or an errno.
  int start(int file);

  /// A zeroed entry, which goes out with the next enter(); submits by itself when there is no room. What is queued on a
  /// ring that cannot be used goes nowhere.
  io_uring_sqe& next();
  /// Queues a poll that reports every time the descriptor becomes ready, as long as its completions carry
  /// IORING_CQE_F_MORE. Told by edges: what was not taken is not told again.
  void poll_always(int fd, uint64_t user_data);

  /// Submits what is queued, and waits until a completion is there; timeout_ms 0: does not wait, negative: for ever.
  /// 0, also after a signal or when the time is over; or the errno of a ring that cannot be used any more (a sandbox
  /// may allow a ring, but not to enter it).
  int enter(int timeout_ms);
  /// Whether enter() without waiting could bring anything.
  bool has_work() const { return queued_tail_ != submitted_tail_ || completion_waits() || deferred_work(); }
  bool take(io_uring_cqe& completion);

 private:
  IoRing() = default;
  bool map(const io_uring_params& parameters);
  bool completion_waits() const;
  bool deferred_work() const;

  int fd_ = -1;
  int enter_fd_ = -1;
  unsigned enter_flags_ = 0;
  std::byte* rings_ = nullptr;
  size_t rings_bytes_ = 0;
  std::byte* entries_ = nullptr;
  size_t entries_bytes_ = 0;
  unsigned* submission_head_ = nullptr;  // the kernel's
  unsigned* submission_tail_ = nullptr;
  unsigned* submission_flags_ = nullptr;  // the kernel's
  unsigned submission_mask_ = 0;
  unsigned* completion_head_ = nullptr;
  unsigned* completion_tail_ = nullptr;  // the kernel's
  unsigned completion_mask_ = 0;
  io_uring_cqe* completions_ = nullptr;
  unsigned queued_tail_ = 0;
  unsigned submitted_tail_ = 0;
  int broken_ = 0;
};

}  // namespace extmem
