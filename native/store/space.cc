#include "store/space.h"

#include <algorithm>
#include <bit>

#include "base/assert.h"

namespace extmem::store {

static_assert(kBlockCells == 16, "a group's cells are the bits of a uint16_t");

Space::Space(uint64_t first, uint64_t limit) : first_(first), limit_(limit), end_(first) {
  EXTMEM_ASSERT(first % kBlockCells == 0);
}

void Space::grow(uint64_t cells) {
  const uint64_t end = std::min(cells, limit_) / kBlockCells * kBlockCells;
  if (end <= end_) return;
  free_groups_ += (end - end_) / kBlockCells;
  groups_.resize((end - first_) / kBlockCells, 0);
  end_ = end;
}

uint64_t Space::take(uint32_t cells, uint64_t reserve) {
  EXTMEM_ASSERT(cells > 0 && cells <= kBlockCells);
  if (cells < kBlockCells) {
    constexpr size_t kLooks = 64;  // a crowd of nearly full groups must not be searched each time
    size_t looks = 0;
    for (auto group = partial_.begin(); group != partial_.end() && looks < kLooks; ++group, ++looks) {
      if (uint64_t cell = take_from(*group, cells); cell != 0) return cell;
    }
  }
  if (free_groups_ <= reserve) return 0;
  for (size_t looked = 0; looked < groups_.size(); ++looked) {
    if (cursor_ >= groups_.size()) cursor_ = 0;
    const uint64_t group = cursor_++;
    if (groups_[group] == 0) return take_from(group, cells);
  }
  return 0;
}

uint64_t Space::take_from(uint64_t group, uint32_t cells) {
  const uint32_t wanted = (uint32_t{1} << cells) - 1;
  for (uint32_t at = 0; at + cells <= kBlockCells; ++at) {
    if ((groups_[group] & wanted << at) != 0) continue;
    const uint64_t cell = first_ + group * kBlockCells + at;
    set(cell, cells, true);
    return cell;
  }
  return 0;
}

bool Space::claim(uint64_t cell, uint32_t cells) {
  if (cell < first_ || cells == 0 || cells > kBlockCells || cell + cells > end_) return false;
  if (cell % kBlockCells + cells > kBlockCells) return false;
  const uint32_t bits = ((uint32_t{1} << cells) - 1) << cell % kBlockCells;
  if ((groups_[(cell - first_) / kBlockCells] & bits) != 0) return false;
  set(cell, cells, true);
  return true;
}

void Space::set(uint64_t cell, uint32_t cells, bool used) {
  const uint64_t index = (cell - first_) / kBlockCells;
  uint16_t& group = groups_[index];
  const auto bits = static_cast<uint16_t>(((uint32_t{1} << cells) - 1) << cell % kBlockCells);
  EXTMEM_ASSERT((group & bits) == (used ? 0 : bits));
  if (group == 0) --free_groups_;
  group ^= bits;
  if (group == 0) ++free_groups_;
  if (group != 0 && group != kFull)
    partial_.insert(index);
  else
    partial_.erase(index);
  used_cells_ = used ? used_cells_ + cells : used_cells_ - cells;
}

void Space::give_back(uint64_t cell, uint32_t cells) { set(cell, cells, false); }

void Space::release(uint64_t cell, uint32_t cells) { released_.push_back({cell, cells}); }

std::vector<Space::Run> Space::committed() {
  std::vector<Run> free = std::move(released_);
  released_.clear();
  for (const Run& run : free) set(run.cell, run.cells, false);
  return free;
}

}  // namespace extmem::store
