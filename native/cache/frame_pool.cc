#include "cache/frame_pool.h"

#include <sys/mman.h>

#include <algorithm>

#include "base/resident.h"

namespace extmem::cache {

namespace {
constexpr uint64_t kHugePageBytes = 2ull << 20;
}

FramePool::FramePool(uint64_t bytes) {
  frame_count_ = static_cast<uint32_t>(std::min<uint64_t>(bytes / kPageBytes, UINT32_MAX - 1)) + 1;
  uint64_t mapped = (frame_count_ * kPageBytes + kHugePageBytes - 1) / kHugePageBytes * kHugePageBytes;
  void* memory = mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  EXTMEM_ASSERT(memory != MAP_FAILED);
  madvise(memory, mapped, MADV_HUGEPAGE);  // a hint; without it frames are 4 KiB pages
  madvise(memory, mapped, MADV_DONTFORK);
  // Write-back frees memory; it must not need memory for its own frames. A hint: it takes a privilege, or room in the
  // limit. Not mlockall: Node gives pages back with MADV_DONTNEED, which locked ones refuse.
  mlock2(memory, mapped, MLOCK_ONFAULT);
  memory_ = static_cast<std::byte*>(memory);
  frames_ = std::make_unique<Frame[]>(frame_count_);
  free_count_ = frame_count_ - 1;
}

FramePool::~FramePool() {
  uint64_t mapped = (frame_count_ * kPageBytes + kHugePageBytes - 1) / kHugePageBytes * kHugePageBytes;
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
  Frame& frame = frames_[index];
  frame.flags.fetch_or(Frame::kListed, std::memory_order_relaxed);
  push(list_of(frame), index, end);
  lock_.unlock();
}

void FramePool::unlist(uint32_t index) {
  lock_.lock();
  Frame& frame = frames_[index];
  if ((frame.flags.fetch_and(static_cast<uint8_t>(~Frame::kListed)) & Frame::kListed) != 0)
    remove(list_of(frame), index);
  lock_.unlock();
}

void FramePool::cool(uint32_t index) {
  lock_.lock();
  if ((frames_[index].flags.load(std::memory_order_relaxed) & (Frame::kListed | Frame::kProtected)) == Frame::kListed) {
    remove(probation_, index);
    push(probation_, index, End::cold);
  }
  lock_.unlock();
}

/// From the cold end of probation; a referenced page moves to the protected segment instead, whose own cold end comes
/// back to probation when it holds more than four fifths of what is listed.
uint32_t FramePool::scan_victim() {
  for (int scanned = 0; scanned < kScanLimit; ++scanned) {
    if (probation_.count == 0 || protected_.count > 4 * probation_.count) {
      uint32_t demoted = protected_.tail;
      if (demoted == 0) return 0;
      remove(protected_, demoted);
      frames_[demoted].flags.fetch_and(static_cast<uint8_t>(~(Frame::kProtected | Frame::kReferenced)));
      push(probation_, demoted, End::hot);
    }
    uint32_t index = probation_.tail;
    Frame& frame = frames_[index];
    bool busy = frame.references.load(std::memory_order_relaxed) != 1;
    if (!busy && (frame.flags.load(std::memory_order_relaxed) & Frame::kReferenced) == 0) return index;
    remove(probation_, index);
    if (busy) {
      push(probation_, index, End::hot);
    } else {
      frame.flags.fetch_and(static_cast<uint8_t>(~Frame::kReferenced));
      frame.flags.fetch_or(Frame::kProtected);
      push(protected_, index, End::hot);
    }
  }
  return 0;
}

void FramePool::push(List& list, uint32_t index, End end) {
  Frame& frame = frames_[index];
  uint32_t& near = end == End::hot ? list.head : list.tail;
  frame.next = end == End::hot ? near : 0;
  frame.previous = end == End::hot ? 0 : near;
  if (near != 0) (end == End::hot ? frames_[near].previous : frames_[near].next) = index;
  near = index;
  if (list.count++ == 0) list.head = list.tail = index;
}

void FramePool::remove(List& list, uint32_t index) {
  Frame& frame = frames_[index];
  (frame.previous != 0 ? frames_[frame.previous].next : list.head) = frame.next;
  (frame.next != 0 ? frames_[frame.next].previous : list.tail) = frame.previous;
  --list.count;
}

}  // namespace extmem::cache
