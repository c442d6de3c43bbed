#include "fuse/kernel_reclaimer.h"

#include <errno.h>

namespace extmem::fuse {

KernelReclaimer::KernelReclaimer(int fd, cache::KernelPages& pages, const cache::FramePool& frames,
                                 uint64_t limit_bytes)
    : pages_(pages), frames_(frames), limit_pages_(limit_bytes / cache::kPageBytes) {
  if (limit_pages_ != 0) notifier_ = std::make_unique<Notifier>(fd);
}

KernelReclaimer::~KernelReclaimer() { stop(); }

void KernelReclaimer::stop() {
  if (notifier_ != nullptr) notifier_->stop();
}

uint64_t KernelReclaimer::allowed() const {
  uint64_t frames = frames_.resident_count();
  return limit_pages_ > frames ? limit_pages_ - frames : 0;
}

bool KernelReclaimer::waits_for(uint64_t node, uint32_t first, uint32_t count) {
  lock_.lock();
  auto [busy_node, busy_first, busy_span, pages] = under_way_;
  lock_.unlock();
  return node == busy_node && first < busy_first + busy_span && busy_first < first + count;
}

void KernelReclaimer::begin() {
  if (!running_.exchange(true)) next();
}

/// One notice after the other, each sent when the one before is done.
void KernelReclaimer::next() {
  auto taken = pages_.pages() > low() ? pages_.take_oldest() : std::nullopt;
  if (!taken) {
    running_.exchange(false);  // reads what they set, who gave meanwhile and saw us running
    // Too many, and none marked: others are having them dropped. There is nothing to look for until more is given.
    if (pages_.any_marked()) look();
    return;
  }
  lock_.lock();
  under_way_ = *taken;
  lock_.unlock();
  auto offset = static_cast<int64_t>(taken->first * cache::kPageBytes);
  auto length = static_cast<int64_t>(taken->span * cache::kPageBytes);
  notifier_->invalidate_inode(taken->node, offset, length, [this, taken = *taken](int error) {
    pages_.settle(taken);
    dropped_pages_.fetch_add(taken.pages, std::memory_order_relaxed);
    if (error == ENODEV || error == ENOTCONN) return;  // unmounted: nothing is left to hold a limit for
    next();
  });
}

}  // namespace extmem::fuse
