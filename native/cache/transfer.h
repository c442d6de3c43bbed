// Bytes straight between memory of ours and a file's regions, past the page cache.
#pragma once

#include "base/task.h"
#include "cache/page_cache.h"

namespace extmem::cache {

/// Piece by piece, several at once. A hole reads as zeros; writing into one is EIO. 0 or an errno.
Task<int> read_range(Lane& lane, File& file, uint64_t offset, std::byte* data, uint32_t bytes);
Task<int> write_range(PageCache& cache, Lane& lane, File& file, uint64_t offset, const std::byte* data, uint32_t bytes);

}  // namespace extmem::cache
