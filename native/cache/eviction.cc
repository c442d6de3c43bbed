#include "cache/eviction.h"

namespace extmem::cache {

void Eviction::insert(uint32_t index, End end) {
  Frame& frame = frames_[index];
  frame.flags.fetch_or(Frame::kListed, std::memory_order_relaxed);
  push(list_of(frame), index, end);
}

void Eviction::remove(uint32_t index) {
  Frame& frame = frames_[index];
  if ((frame.flags.fetch_and(static_cast<uint8_t>(~Frame::kListed)) & Frame::kListed) != 0) take(list_of(frame), index);
}

void Eviction::cool(uint32_t index) {
  Frame& frame = frames_[index];
  uint8_t flags = frame.flags.load(std::memory_order_relaxed);
  if ((flags & Frame::kListed) == 0 || (flags & Frame::kProtected) != 0) return;
  take(probation_, index);
  push(probation_, index, End::cold);
}

uint32_t Eviction::victim() {
  uint32_t spared = 0;
  for (uint32_t looked_at = 0; looked_at < kMostLookedAt; ++looked_at) {
    if (!make_probation(spared)) return 0;
    uint32_t index = probation_.tail;
    bool busy = frames_[index].references.load(std::memory_order_relaxed) != 1;
    bool again = !busy && spared < kMostSpared && take_referenced(index);
    if (!busy && !again) return index;
    take(probation_, index);
    if (busy) {
      push(probation_, index, End::hot);
    } else {
      ++spared;
      frames_[index].flags.fetch_or(Frame::kProtected);
      push(protected_, index, End::hot);
    }
  }
  return 0;
}

/// Whether it was asked for again since it was last asked about.
bool Eviction::take_referenced(uint32_t index) {
  auto& flags = frames_[index].flags;
  if ((flags.load(std::memory_order_relaxed) & Frame::kReferenced) == 0) return false;
  flags.fetch_and(static_cast<uint8_t>(~Frame::kReferenced));
  return true;
}

/// Brings a page back from the protected segment if that is too large. False: there is nothing at all.
bool Eviction::make_probation(uint32_t& spared) {
  while (probation_.count == 0 || protected_.count > kProtectedShare * probation_.count) {
    uint32_t index = protected_.tail;
    if (index == 0) return false;
    take(protected_, index);
    if (take_referenced(index) && spared < kMostSpared) {
      ++spared;
      push(protected_, index, End::hot);
    } else {
      frames_[index].flags.fetch_and(static_cast<uint8_t>(~Frame::kProtected));
      push(probation_, index, End::hot);
      return true;
    }
  }
  return true;
}

void Eviction::push(List& list, uint32_t index, End end) {
  Frame& frame = frames_[index];
  uint32_t& near = end == End::hot ? list.head : list.tail;
  frame.next = end == End::hot ? near : 0;
  frame.previous = end == End::hot ? 0 : near;
  if (near != 0) (end == End::hot ? frames_[near].previous : frames_[near].next) = index;
  near = index;
  if (list.count++ == 0) list.head = list.tail = index;
}

void Eviction::take(List& list, uint32_t index) {
  Frame& frame = frames_[index];
  (frame.previous != 0 ? frames_[frame.previous].next : list.head) = frame.next;
  (frame.next != 0 ? frames_[frame.next].previous : list.tail) = frame.previous;
  --list.count;
}

}  // namespace extmem::cache
