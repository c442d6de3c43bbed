// ② Writing: room for the bytes is made first (ENOSPC belongs to the write that did not fit), then the pages take them.
#pragma once

#include "base/task.h"
#include "cache/page_cache.h"

namespace extmem::cache {

/// Whoever writes, grows or allocates is a writer from here on, until it leaves; waits while a cut is under way, or the
/// writers are paused. 0, or EIO: the manager is away, and what it did to the file is not known.
Task<int> enter_writer(Lane& lane, File& file);
void leave_writer(File& file);

/// Leaves at the end of the scope.
class Writing {
 public:
  explicit Writing(File& file) : file_(file) {}
  Writing(const Writing&) = delete;
  Writing& operator=(const Writing&) = delete;
  ~Writing() { leave_writer(file_); }

 private:
  File& file_;
};

/// Extents for every byte of [offset, end): carved from this mount's slabs, or with more room from the manager. 0,
/// ENOSPC or EIO.
Task<int> ensure_room(PageCache& cache, Lane& lane, File& file, uint64_t offset, uint64_t end);

/// Into the cache; dirty until flushed. Grows the file. 0 or an errno, and then nothing of it is written. The caller is
/// a writer.
Task<int> write_cached(PageCache& cache, Lane& lane, File& file, uint64_t offset, const std::byte* data,
                       uint32_t bytes);

/// Zeroes a range inside the file that lies within one page; size and times stay. For the edges of cuts and of old ends
/// of file.
Task<int> zero_in_page(PageCache& cache, Lane& lane, File& file, uint64_t offset, uint32_t bytes);

/// The size becomes at least new_size; what lies between the old end and there reads as zeros.
Task<int> extend_size(PageCache& cache, Lane& lane, File& file, uint64_t new_size);

/// Data changed just now: times and the change counter. Under the file's lock.
void touch_locked(File& file);

}  // namespace extmem::cache
