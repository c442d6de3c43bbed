// Page frames: one anonymous mapping (huge pages where the kernel has them), 24 bytes of metadata each, and the order
// in which the clean ones go (eviction.h). Frame 0 is the zero page and is never handed out.
//
// Lock order: File::lock before the pool's own. References: the slot that shows the frame holds one, every reader and
// writer of it another. New references are taken under the File's lock only, so a frame with one reference, seen under
// that lock, is idle.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>

#include "base/spin_lock.h"
#include "cache/eviction.h"
#include "cache/frame.h"

namespace extmem::cache {

class FramePool {
 public:
  explicit FramePool(uint64_t bytes);
  ~FramePool();
  FramePool(const FramePool&) = delete;
  FramePool& operator=(const FramePool&) = delete;

  Frame& operator[](uint32_t index) { return frames_[index]; }
  std::byte* data(uint32_t index) { return memory_ + index * kPageBytes; }
  uint32_t frame_count() const { return frame_count_; }
  uint32_t free_count() const { return free_count_.load(std::memory_order_relaxed); }
  /// Those that have memory: once given, it stays ours.
  uint32_t resident_count() const { return populated_.load(std::memory_order_relaxed) - 1; }
  uint32_t pinned_count() const { return pinned_count_.load(std::memory_order_relaxed); }
  /// Read ahead, and not asked for yet.
  uint32_t ahead_count() const { return ahead_count_.load(std::memory_order_relaxed); }

  /// With one reference; 0 when none is free.
  uint32_t allocate();
  /// Drops a reference; the last one frees the frame (which must be in no list).
  void release(uint32_t index);

  /// A frame that is in no list is not to be evicted from now on, unless so many are pinned already. Under its File's
  /// lock, as unpin().
  bool pin(uint32_t index, uint32_t most);
  /// Answers whether it was pinned.
  bool unpin(uint32_t index);

  /// It is being read ahead. Under its File's lock.
  void mark_ahead(uint32_t index);
  /// It was asked for, or goes. Answers whether it was read ahead, once.
  bool unmark_ahead(uint32_t index);

  using End = Eviction::End;
  void list(uint32_t index, End end);
  void unlist(uint32_t index);
  /// It goes next, if it is listed and was not asked for twice.
  void cool(uint32_t index);

  /// The next clean frame that should go, and whose it is; 0 when there is none. Only a hint: check it under the File's
  /// lock. keep() is called under the pool's lock, so that the file cannot go away meanwhile.
  struct Victim {
    uint32_t frame, file, page;
  };
  template <typename Keep>
  Victim pick_victim(Keep keep);

 private:
  /// So many frames get their memory at once.
  static constexpr uint32_t kPopulateStep = 64;
  uint32_t take_untouched();

  std::byte* memory_;
  uint32_t frame_count_;
  std::unique_ptr<Frame[]> frames_;
  SpinLock lock_;  // guards the three below
  Eviction eviction_;
  uint32_t free_head_ = 0;
  uint32_t untouched_ = 1;              // frames from here on were never used
  std::atomic<uint32_t> populated_{1};  // frames from here on have no memory yet; written under the lock
  std::atomic<uint32_t> free_count_;
  std::atomic<uint32_t> pinned_count_{0};
  std::atomic<uint32_t> ahead_count_{0};
};

template <typename Keep>
FramePool::Victim FramePool::pick_victim(Keep keep) {
  lock_.lock();
  uint32_t index = eviction_.victim();
  Victim victim{index, 0, 0};
  if (index != 0) {
    victim.file = frames_[index].file;
    victim.page = frames_[index].page;
    keep(victim.file);
  }
  lock_.unlock();
  return victim;
}

}  // namespace extmem::cache
