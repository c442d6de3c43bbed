// Which clean page goes next: a segmented LRU in which a hit costs no lock, only a flag that is looked at when the
// page's turn has come (docs/adr/0015-eviction.md has the figures and what else was tried).
//
// Pages come into probation: at its hot end, or, where the kernel's page cache keeps what it was given, at its cold
// end, so that of what both would hold we hold what we have. At their turn those asked for again go on to the protected
// segment, from whose cold end they come back unless they were asked for meanwhile. A fifth of all is probation at
// least as soon as pages have to go: no crowd of new pages, scanned or read ahead, pushes out what is protected.
//
// Everything under the frame pool's lock.
#pragma once

#include <cstdint>

#include "cache/frame.h"

namespace extmem::cache {

class Eviction {
 public:
  enum class End : uint8_t { cold, hot };

  explicit Eviction(Frame* frames) : frames_(frames) {}

  void insert(uint32_t index, End end);
  /// Does nothing when it is in no list.
  void remove(uint32_t index);
  /// Read ahead, and now the kernel has it: at the cold end, as what was not read ahead. Does nothing when it is in no
  /// list.
  void cool(uint32_t index);
  /// The idle one that should go next; it stays listed. 0: there is none.
  uint32_t victim();

 private:
  struct List {
    uint32_t head = 0;  // hot
    uint32_t tail = 0;  // cold
    uint32_t count = 0;
  };
  static constexpr uint32_t kProtectedShare = 4;  // times as much as probation, at most
  /// So many pages in a row are spared for having been asked for again: then the next one goes all the same. Nobody
  /// waits under a lock until all of a large cache has been looked at.
  static constexpr uint32_t kMostSpared = 128;
  /// Beside those spared, pages that are in use.
  static constexpr uint32_t kMostLookedAt = 1024;

  bool take_referenced(uint32_t index);
  bool make_probation(uint32_t& spared);
  void push(List& list, uint32_t index, End end);
  void take(List& list, uint32_t index);
  List& list_of(const Frame& frame) {
    return (frame.flags.load(std::memory_order_relaxed) & Frame::kProtected) != 0 ? protected_ : probation_;
  }

  Frame* frames_;
  List probation_;
  List protected_;
};

}  // namespace extmem::cache
