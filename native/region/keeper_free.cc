// Persist and free: what is in the store as it is in memory gives that memory back, and comes home when it is asked
// for.
//
// The order is what loses nothing. Only where no client holds the memory itself, everything is put (of what clients
// stored earlier, no mark is believed) and committed, and then blocks that nobody has written to since are dropped,
// unless the memory was given to a client meanwhile.
#include "region/keeper.h"

namespace extmem::region {

namespace {

/// So many are dropped while clients of the region wait.
constexpr uint64_t kDropBlocks = 16;

}  // namespace

/// After a commit: the store has what was put, and marks are of what came later. Also of what others have put while
/// they went first.
void Keeper::give_memory_back(const Chosen& chosen, Pass& pass) {
  Freed& freed = *pass.job.freed;
  for (const Meant& meant : chosen) {
    Region& region = *meant.region;
    const auto in_store = [&](uint64_t block) { return store_->next_stored(region.id(), block, block + 1) == block; };
    if (meant.given) leave_in_store(region);
    for (const auto& [first, end] : meant.ranges) {
      const uint64_t last = std::min(end, region.blocks()->blocks());
      for (uint64_t block = region.next_with_memory(first); block < last; block = region.next_with_memory(block)) {
        if (others_go_first(false)) {
          none_urgent_.wait(pass.guard, [this] { return !others_go_first(false); });
          if (!store_->commit().ok()) return;
        }
        if (!is_stored(region.id())) break;
        const uint64_t stop = std::min(block + kDropBlocks, last);
        const auto dropped = meant.given ? region.drop(block, stop, *meant.given, in_store) : std::nullopt;
        if (dropped) {
          freed.freed_bytes += *dropped;
        } else {
          freed.held_bytes += region.resident_within(block, stop);
        }
        block = stop;
      }
    }
  }
}

/// What is left to come home of it comes only when it is asked for.
void Keeper::leave_in_store(const Region& region) {
  std::lock_guard guard(wanted_lock_);
  std::erase_if(left_, [&](auto& left) { return left.region.get() == &region; });
}

}  // namespace extmem::region
