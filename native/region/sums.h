// ⑤ What a region holds, told by hashes: copies are compared without being sent (C14).
#pragma once

#include <cstdint>
#include <vector>

#include "base/protocol.h"

namespace extmem::region {

class Region;

/// RegionServer::sum().
protocol::Status sum_region(Region& region, uint64_t offset, uint64_t bytes, std::vector<uint64_t>& sums);

}  // namespace extmem::region
