#include "cache/file.h"

#include <algorithm>
#include <bit>
#include <cstring>

namespace extmem::cache {

void Leaf::put(uint32_t index, uint32_t frame) {
  if (index >= capacity) {
    uint32_t grown = std::min(std::max(std::bit_ceil(index + 1), 8u), kLeafPages);
    auto larger = std::make_unique<uint32_t[]>(grown);
    if (capacity > 0) std::memcpy(larger.get(), frames.get(), capacity * sizeof(uint32_t));
    frames = std::move(larger);
    capacity = grown;
  }
  frames[index] = frame;
}

Leaf* File::leaf_at(uint32_t leaf) const {
  uint32_t branch = leaf / kFan;
  if (branch >= branches_.size() || branches_[branch] == nullptr) return nullptr;
  return (*branches_[branch])[leaf % kFan].get();
}

Leaf& File::make_leaf(uint32_t leaf) {
  uint32_t branch = leaf / kFan;
  if (branch >= branches_.size()) branches_.resize(branch + 1);
  if (branches_[branch] == nullptr) branches_[branch] = std::make_unique<Branch>();
  auto& place = (*branches_[branch])[leaf % kFan];
  if (place == nullptr) place = std::make_unique<Leaf>();
  return *place;
}

uint32_t File::frame_at(uint32_t page) const {
  const Leaf* leaf = leaf_at(page / kLeafPages);
  return leaf == nullptr ? 0 : leaf->get(page % kLeafPages);
}

void File::set_frame(uint32_t page, uint32_t frame) {
  uint32_t before = frame_at(page);
  if (before == frame) return;
  cached_pages += frame != 0 && before == 0 ? 1 : 0;
  cached_pages -= frame == 0 && before != 0 ? 1 : 0;
  make_leaf(page / kLeafPages).put(page % kLeafPages, frame);
}

void File::mark_dirty(uint32_t page) {
  Leaf& leaf = make_leaf(page / kLeafPages);
  leaf.dirty[page % kLeafPages / 64] |= 1ull << (page % 64);
  dirty_leaves.insert(page / kLeafPages);
}

void File::unmark_dirty(uint32_t page) {
  Leaf* leaf = leaf_at(page / kLeafPages);
  leaf->dirty[page % kLeafPages / 64] &= ~(1ull << (page % 64));
  if (std::all_of(leaf->dirty.begin(), leaf->dirty.end(), [](uint64_t word) { return word == 0; })) {
    dirty_leaves.erase(page / kLeafPages);
  }
}

uint32_t File::next_dirty(uint32_t page) const {
  for (auto leaf_index = dirty_leaves.lower_bound(page / kLeafPages); leaf_index != dirty_leaves.end(); ++leaf_index) {
    const Leaf* leaf = leaf_at(*leaf_index);
    uint32_t start = *leaf_index == page / kLeafPages ? page % kLeafPages : 0;
    for (uint32_t word = start / 64; word < leaf->dirty.size(); ++word) {
      uint64_t bits = leaf->dirty[word];
      if (word == start / 64) bits &= ~0ull << (start % 64);
      if (bits != 0) return *leaf_index * kLeafPages + word * 64 + static_cast<uint32_t>(std::countr_zero(bits));
    }
  }
  return UINT32_MAX;
}

void File::wake(uint32_t first, uint32_t last) {
  PageWaiter** link = &waiters_;
  while (*link != nullptr) {
    PageWaiter* waiter = *link;
    if (waiter->first <= last && first <= waiter->last) {
      *link = waiter->next;
      waiter->reactor.post(*waiter);
    } else {
      link = &waiter->next;
    }
  }
}

ReadInFlight::ReadInFlight(File& file) : file_(file) {
  file_.lock.lock();
  phase_ = file_.read_phase;
  ++file_.reads_in_flight[phase_];
  file_.lock.unlock();
}

ReadInFlight::~ReadInFlight() {
  file_.lock.lock();
  bool last = --file_.reads_in_flight[phase_] == 0;
  if (last && phase_ != file_.read_phase) file_.wake(0, UINT32_MAX);
  file_.lock.unlock();
}

}  // namespace extmem::cache
