// Which cells of the store are in use. Cells that the last commit does not need any more stay taken until the next one
// is durable: until then a loss of power goes back to a state that names them.
//
// Runs shorter than a block are put together into blocks of their own, so that whole blocks stay to be had.
//
// Owner: the store, under its lock.
#pragma once

#include <cstdint>
#include <set>
#include <vector>

#include "store/format.h"

namespace extmem::store {

class Space {
 public:
  /// Cells from `first` on, up to a limit in cells.
  Space(uint64_t first, uint64_t limit);

  /// So many cells lie below the store's end now.
  void grow(uint64_t cells);
  uint64_t end() const { return end_; }
  uint64_t limit() const { return limit_; }
  /// A run of up to a block, leaving `reserve` whole blocks alone; 0: none.
  uint64_t take(uint32_t cells, uint64_t reserve);
  /// At open: in use. False: outside, or in use already.
  bool claim(uint64_t cell, uint32_t cells);
  /// Taken since the last commit, and not needed: free at once.
  void give_back(uint64_t cell, uint32_t cells);
  /// Free once the next commit is durable.
  void release(uint64_t cell, uint32_t cells);
  bool awaits_commit() const { return !released_.empty(); }
  /// Answers the runs that have become free.
  struct Run {
    uint64_t cell;
    uint32_t cells;
  };
  std::vector<Run> committed();

  uint64_t free_groups() const { return free_groups_; }
  uint64_t used_cells() const { return used_cells_; }

 private:
  static constexpr uint32_t kFull = 0xffff;
  void set(uint64_t cell, uint32_t cells, bool used);
  uint64_t take_from(uint64_t group, uint32_t cells);

  const uint64_t first_;
  const uint64_t limit_;
  uint64_t end_;
  std::vector<uint16_t> groups_;  // a bit for each cell of a block
  std::set<uint64_t> partial_;    // groups of which some cells are free
  std::vector<Run> released_;
  uint64_t free_groups_ = 0;
  uint64_t used_cells_ = 0;
  uint64_t cursor_ = 0;
};

}  // namespace extmem::store
