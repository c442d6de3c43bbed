#include "cache/frame_pool.h"

#include <sys/mman.h>

#include <algorithm>

#include "base/resident.h"
#include "fabric/verbs/local_memory.h"

namespace extmem::cache {

namespace {
constexpr uint64_t kHugePageBytes = 2ull << 20;
}

FramePool::FramePool(uint64_t bytes)
    : frame_count_(static_cast<uint32_t>(std::min<uint64_t>(bytes / kPageBytes, UINT32_MAX - 1)) + 1),
      frames_(std::make_unique<Frame[]>(frame_count_)),
      eviction_(frames_.get()),
      free_count_(frame_count_ - 1) {
  uint64_t mapped = (frame_count_ * kPageBytes + kHugePageBytes - 1) / kHugePageBytes * kHugePageBytes;
  void* memory = mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  EXTMEM_ASSERT(memory != MAP_FAILED);
  madvise(memory, mapped, MADV_HUGEPAGE);  // a hint; without it frames are 4 KiB pages
  madvise(memory, mapped, MADV_DONTFORK);
  // Write-back frees memory; it must not need memory for its own frames. A hint: it takes a privilege, or room in the
  // limit. Not mlockall: Node gives pages back with MADV_DONTNEED, which locked ones refuse.
  mlock2(memory, mapped, MLOCK_ONFAULT);
  memory_ = static_cast<std::byte*>(memory);
  fabric::announce_memory(memory_, mapped);
}

FramePool::~FramePool() {
  uint64_t mapped = (frame_count_ * kPageBytes + kHugePageBytes - 1) / kHugePageBytes * kHugePageBytes;
  fabric::withdraw_memory(memory_);
  munmap(memory_, mapped);
}

uint32_t FramePool::allocate() {
  lock_.lock();
  uint32_t index = free_head_;
  if (index != 0) {
    free_head_ = frames_[index].next;
  } else {
    index = take_untouched();
  }
  lock_.unlock();
  if (index == 0) return 0;
  free_count_.fetch_sub(1, std::memory_order_relaxed);
  Frame& frame = frames_[index];
  frame.state = PageState::absent;
  frame.flags.store(0, std::memory_order_relaxed);
  frame.next = frame.previous = 0;
  frame.references.store(1, std::memory_order_relaxed);
  return index;
}

/// 0: all are in use, or there is no memory for more of them now. Then those that are there must do.
uint32_t FramePool::take_untouched() {
  if (untouched_ == frame_count_) return 0;
  const uint32_t populated = populated_.load(std::memory_order_relaxed);
  if (untouched_ == populated) {
    const uint32_t step = std::min(kPopulateStep, frame_count_ - populated);
    if (!populate(data(populated), step * kPageBytes)) return 0;
    populated_.store(populated + step, std::memory_order_relaxed);
  }
  return untouched_++;
}

void FramePool::release(uint32_t index) {
  // acq_rel: whoever frees it must see every other holder's accesses as done.
  if (frames_[index].references.fetch_sub(1, std::memory_order_acq_rel) != 1) return;
  unpin(index);
  unmark_ahead(index);
  lock_.lock();
  frames_[index].next = free_head_;
  free_head_ = index;
  lock_.unlock();
  free_count_.fetch_add(1, std::memory_order_relaxed);
}

bool FramePool::pin(uint32_t index, uint32_t most) {
  if ((frames_[index].flags.load(std::memory_order_relaxed) & Frame::kPinned) != 0) return true;
  if (pinned_count_.fetch_add(1, std::memory_order_relaxed) >= most) {
    pinned_count_.fetch_sub(1, std::memory_order_relaxed);
    return false;
  }
  frames_[index].flags.fetch_or(Frame::kPinned, std::memory_order_relaxed);
  return true;
}

bool FramePool::unpin(uint32_t index) {
  auto mask = static_cast<uint8_t>(~Frame::kPinned);
  if ((frames_[index].flags.load(std::memory_order_relaxed) & Frame::kPinned) == 0) return false;
  frames_[index].flags.fetch_and(mask, std::memory_order_relaxed);
  pinned_count_.fetch_sub(1, std::memory_order_relaxed);
  return true;
}

void FramePool::mark_ahead(uint32_t index) {
  frames_[index].flags.fetch_or(Frame::kAhead, std::memory_order_relaxed);
  ahead_count_.fetch_add(1, std::memory_order_relaxed);
}

bool FramePool::unmark_ahead(uint32_t index) {
  auto& flags = frames_[index].flags;
  if ((flags.load(std::memory_order_relaxed) & Frame::kAhead) == 0) return false;
  // Two readers may ask for it at once.
  if ((flags.fetch_and(static_cast<uint8_t>(~Frame::kAhead), std::memory_order_relaxed) & Frame::kAhead) == 0)
    return false;
  ahead_count_.fetch_sub(1, std::memory_order_relaxed);
  return true;
}

void FramePool::list(uint32_t index, End end) {
  lock_.lock();
  eviction_.insert(index, end);
  lock_.unlock();
}

void FramePool::unlist(uint32_t index) {
  lock_.lock();
  eviction_.remove(index);
  lock_.unlock();
}

void FramePool::cool(uint32_t index) {
  lock_.lock();
  eviction_.cool(index);
  lock_.unlock();
}

}  // namespace extmem::cache
