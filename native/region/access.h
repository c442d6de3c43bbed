// What a client may do with a region, as its capability says, and what changes of the region's access parameters make
// of that (docs/adr/0024-access-parameters.md).
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>

#include "base/clock.h"
#include "base/protocol.h"

namespace extmem::region {

struct Grant {
  uint32_t rights = 0;
  uint32_t version = 0;       ///< of the region's access parameters
  uint64_t not_after_ms = 0;  ///< wall clock; 0: no end

  /// Of both, what is taken back first.
  Grant sooner(const Grant& other) const {
    const auto end = [](const Grant& one) { return one.not_after_ms == 0 ? UINT64_MAX : one.not_after_ms; };
    return {.rights = rights | other.rights,
            .version = std::min(version, other.version),
            .not_after_ms = end(*this) < end(other) ? not_after_ms : other.not_after_ms};
  }
  bool ended(uint64_t now_ms) const { return not_after_ms != 0 && not_after_ms <= now_ms; }
};

/// From now on grants of an older version are void, but for those of the clients that are kept.
struct AccessChange {
  uint64_t region;
  uint32_t version;
  std::function<bool(uint64_t client)> keeps;
};

}  // namespace extmem::region
