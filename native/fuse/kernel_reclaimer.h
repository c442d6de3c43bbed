// ① Holds the local limit (C10): our frames and the kernel's pages of our files together. When there are too many, the
// kernel is told to drop the ranges that it was given first, down to a low mark; what is dirty there it writes back
// first. The notices have a thread of their own, apart from those that coherence waits for.
//
// Who gives pages looks at must_wait(): over the limit, givers are to hold back, unless the notice that is under way
// waits for them: the kernel keeps a page locked until the request that fills or writes it is answered.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>

#include "base/spin_lock.h"
#include "cache/frame_pool.h"
#include "cache/kernel_pages.h"
#include "fuse/notifier.h"

namespace extmem::fuse {

class KernelReclaimer {
 public:
  /// limit_bytes 0: the kernel's pages are counted, and the kernel's own affair.
  KernelReclaimer(int fd, cache::KernelPages& pages, const cache::FramePool& frames, uint64_t limit_bytes);
  ~KernelReclaimer();
  void stop();

  /// Any thread: after pages were given.
  void look() {
    if (limit_pages_ != 0 && pages_.pages() > high()) begin();
  }
  bool must_wait() const { return limit_pages_ != 0 && pages_.pages() > allowed(); }
  /// Whether the notice under way is about some of these pages.
  bool waits_for(uint64_t node, uint32_t first, uint32_t count);
  uint64_t dropped_pages() const { return dropped_pages_.load(std::memory_order_relaxed); }

 private:
  /// What the frames leave of the limit. Marks below it: notices take time, and the kernel reads on meanwhile.
  uint64_t allowed() const;
  uint64_t high() const { return allowed() / 8 * 7; }
  uint64_t low() const { return allowed() / 8 * 6; }
  void begin();
  void next();

  cache::KernelPages& pages_;
  const cache::FramePool& frames_;
  const uint64_t limit_pages_;
  std::atomic<bool> running_{false};
  SpinLock lock_;  // guards the one below
  cache::KernelPages::Taken under_way_;
  std::atomic<uint64_t> dropped_pages_{0};
  std::unique_ptr<Notifier> notifier_;  // its thread ends before what it uses goes
};

}  // namespace extmem::fuse
