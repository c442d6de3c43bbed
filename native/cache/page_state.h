// The life of a cached page (docs/semantics.md). A transition that is not in the table is a bug, and stops the process.
#pragma once

#include <cstdint>

#include "base/assert.h"

namespace extmem::cache {

enum class PageState : uint8_t {
  absent,     ///< no frame
  filling,    ///< being read from its appliance; others wait
  clean,      ///< as on the appliance; may be evicted
  dirty,      ///< newer than on the appliance
  writing,    ///< being written back; content as sent
  redirtied,  ///< written again while the older content is being sent (in another frame)
  failed,     ///< dirty, and the last write-back failed; kept for retry
};

constexpr bool may_become(PageState from, PageState to) {
  using enum PageState;
  switch (from) {
    case absent:
      return to == filling || to == dirty;
    case filling:
      return to == clean || to == absent;
    case clean:
      return to == dirty || to == absent;
    case dirty:
      return to == writing || to == absent;
    case writing:
      return to == clean || to == failed || to == redirtied || to == absent;
    case redirtied:
      return to == dirty;
    case failed:
      return to == dirty || to == absent;
  }
  return false;
}

}  // namespace extmem::cache
