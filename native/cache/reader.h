// ② Reading: pages are pinned when they are here; else filled from their appliances, each once however many wait for
// it, and what read-ahead predicts is fetched beside them.
#pragma once

#include "base/task.h"
#include "cache/page_cache.h"

namespace extmem::cache {

/// Where a page stands in the LRU that was read. Through the kernel's page cache: at the cold end, for the kernel keeps
/// what it was just given. Read ahead: it waits for whoever will ask for it.
enum class Reuse : uint8_t { kernel_keeps, ours, ahead };

/// Without waiting: true when every page of the range was here and is now pinned.
bool read_hit(PageCache& cache, Lane& lane, File& file, uint64_t offset, uint32_t bytes, Reuse reuse,
              PinnedPages& pins);

/// Pins the pages of [offset, offset+bytes), which lies within the file's size. Answers 0 or an errno; at most 257
/// pages.
Task<int> read_pages(PageCache& cache, Lane& lane, File& file, uint64_t offset, uint32_t bytes, Reuse reuse,
                     PinnedPages& pins);

/// Brings [offset, offset+bytes) of a file into our frames, as far as it lies within the file. 0 or an errno; EBUSY:
/// the file is shared, and nothing of it is cached.
Task<int> warm_range(PageCache& cache, Lane& lane, File& file, uint64_t offset, uint64_t bytes);

/// Fetches what is predicted after this request (cache/read_ahead.h); runs on by itself. What was read ahead and not
/// yet asked for is never more than a quarter of the frames.
void read_ahead(PageCache& cache, Lane& lane, File& file, uint64_t offset, uint32_t bytes);

/// Fills the absent pages of [first, first+count) and pins what was filled by this call (so that it cannot be evicted
/// before it is used). Waits for pages that others are filling, unless it reads ahead. 0, or the errno of a page that
/// could not be read.
Task<int> fill_pages(PageCache& cache, Lane& lane, File& file, uint32_t first, uint32_t count, Reuse reuse,
                     PinnedPages& pins);

}  // namespace extmem::cache
