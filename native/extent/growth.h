// How a file grows into its holes: which pieces are carved, how large, on which appliances. Small files take powers of
// two on one column (an appliance, or as many as there are copies), so that a file of 4 KiB costs 4 KiB per copy; from
// one stripe unit on, what is striped takes whole rows over all columns, which get deeper as the file grows, so that a
// record stays short. What is not striped stays on one column while there is room.
#pragma once

#include <cstdint>

#include "extent/extent_map.h"
#include "extent/file_record.h"
#include "extent/slab_allocator.h"

namespace extmem::extent {

struct Growth {
  uint64_t offset;  ///< page-aligned
  uint64_t end;     ///< page-aligned; every hole in [offset, end) is filled
  bool scraps;      ///< the pool is nearly empty: take pieces of any size, down to a page
};

/// All or nothing. False: no room (the map is as it was).
bool grow(ExtentMap& map, const FileAttributes& attributes, const Growth& growth, SlabAllocator& slabs);

}  // namespace extmem::extent
