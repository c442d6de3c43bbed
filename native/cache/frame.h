// What is known of a page frame, 24 bytes of it. A frame's state, file and page belong to the lock of its File; its
// links to the lock of the pool; references and flags are atomic.
#pragma once

#include <atomic>
#include <cstdint>

#include "base/protocol.h"
#include "cache/page_state.h"

namespace extmem::cache {

inline constexpr uint64_t kPageBytes = protocol::kPageBytes;

struct Frame {
  static constexpr uint8_t kReferenced = 1;  ///< asked for again since it was filled: survives one round of eviction
  static constexpr uint8_t kProtected = 2;   ///< in the protected segment
  static constexpr uint8_t kAhead = 4;       ///< read ahead and not yet asked for
  static constexpr uint8_t kListed = 8;      ///< in one of the LRU lists
  static constexpr uint8_t kStale = 16;      ///< overtaken by a write while it was being filled: not to be believed
  static constexpr uint8_t kReported = 32;   ///< this content failed to be written back before, and errseq has it
  static constexpr uint8_t kPinned = 64;     ///< when clean, it is in no list: nothing evicts it

  uint32_t file = 0;  // PageCache's file index
  uint32_t page = 0;
  uint32_t next = 0;
  uint32_t previous = 0;
  std::atomic<uint16_t> references{0};
  uint16_t appliance = 0;  // that it is dirty for
  PageState state = PageState::absent;
  std::atomic<uint8_t> flags{0};
};
static_assert(sizeof(Frame) <= 24);

}  // namespace extmem::cache
