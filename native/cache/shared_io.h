// ② Files that several clients have open while one writes: nothing is cached beyond an operation. Reads and writes go
// through to the appliances byte-exactly, and a write is answered when the manager has told the other holders
// (coherence.md).
#pragma once

#include "base/task.h"
#include "cache/page_cache.h"

namespace extmem::cache {

/// Fills data with [offset, offset+bytes), which lies within the file's size. 0 or an errno.
Task<int> read_through(PageCache& cache, Lane& lane, File& file, uint64_t offset, std::byte* data, uint32_t bytes);

struct ThroughWrite {
  uint64_t offset;
  const std::byte* data;
  uint32_t bytes;
  bool holds_pages;  ///< as Write's
};

/// Writes, grows the file, and lets the others drop what they cached of the range. 0 or an errno. The caller is a
/// writer, and has the end of the file (AtEnd) if this makes it longer.
Task<int> write_through(PageCache& cache, Lane& lane, File& file, ThroughWrite write);

/// fallocate beyond the end: the file grows, and the others learn of it. 0 or an errno. The caller is a writer and has
/// the end of the file.
Task<int> extend_through(PageCache& cache, Lane& lane, File& file, uint64_t new_size);

/// Zeroes a range within one page on its appliance, unless it is a hole. 0 or an errno.
Task<int> zero_through(PageCache& cache, Lane& lane, File& file, uint64_t offset, uint32_t bytes);

}  // namespace extmem::cache
