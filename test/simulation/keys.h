// The secrets of the simulated cluster.
#pragma once

#include "base/keys.h"

namespace extmem::simulation {

inline constexpr uint32_t kClientGeneration = 1;

inline Key cluster_key() {
  Key key;
  key.fill(0x5A);
  return key;
}

}  // namespace extmem::simulation
