// ② Past the page cache, where it would only cost a copy: on the same host (shm) a region is as near as a frame of
// ours. Whole pages that are not cached are read and written straight between the request's buffer and the region.
//
// What makes this safe beside the cache: a page that is dirty or in flight here keeps its range on the cached way; a
// fill that a direct write overtook is not believed (Frame::kStale). The kernel lets no two requests at one page of a
// file, unless it is O_DIRECT.
#pragma once

#include "base/task.h"
#include "cache/page_cache.h"

namespace extmem::cache {

/// Whether the range can be read past the cache now: nothing of it is cached, and it lies in holes and in regions of
/// this host.
bool may_read_direct(PageCache& cache, File& file, uint64_t offset, uint32_t bytes);

/// [offset, offset+bytes) lies within the file's size. False: it could not be read this way; take the cached one.
Task<bool> read_direct(PageCache& cache, Lane& lane, File& file, uint64_t offset, std::byte* data, uint32_t bytes);

/// Whole pages whose extents exist. False: it could not be written this way (or not wholly); take the cached one.
Task<bool> write_direct(PageCache& cache, Lane& lane, File& file, uint64_t offset, const std::byte* data,
                        uint32_t bytes);

}  // namespace extmem::cache
