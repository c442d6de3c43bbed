// ② Whose turn it is at a shared file: while the manager changes its extents nobody here writes, what was freed is used
// again only when nobody reads there any more, and only one writer of all mounts makes the file longer at a time.
#pragma once

#include "base/task.h"
#include "cache/page_cache.h"

namespace extmem::cache {

/// Shared mode: the file has become at least so long, by a write of ours or somebody else's. It becomes shorter by a
/// record of another epoch only.
void grow_shared_size(File& file, uint64_t size);

/// Settles when nobody writes, or when the pause has been ended meanwhile; nobody begins before resume_writers. Reads
/// go on.
Task<int> pause_writers(Lane& lane, File& file);
/// The file is as the manager says.
void resume_writers(File& file);
/// While paused the manager was lost: what it did to the file is not known. Writers fail until resume_writers.
void refuse_writers(File& file);

/// Settles when every read from regions has ended that began before.
Task<int> reads_settled(Lane& lane, File& file);

/// The end of the file is another mount's from here on: after whoever uses it here, before whoever is next.
Task<int> yield_end(Lane& lane, File& file);

/// One writer at the end of a shared file, until the end of the scope. claim() asks the manager unless the end is this
/// mount's already; then `size` is the size, and stays so. To be claimed before enter_writer: the manager may have to
/// pause the writers before it can give the end.
class AtEnd {
 public:
  explicit AtEnd(File& file) : file_(file) {}
  AtEnd(const AtEnd&) = delete;
  AtEnd& operator=(const AtEnd&) = delete;
  ~AtEnd();
  /// 0, or EIO. holds_pages: as ControlCall's.
  Task<int> claim(PageCache& cache, Lane& lane, bool holds_pages);
  /// No more after a fence came in between.
  bool claimed() const;

 private:
  File& file_;
  bool claimed_ = false;
};

/// What was written behind the end was not told, or not wholly written: the manager is to clear it away before anybody
/// makes the file longer.
Task<int> give_up_end(PageCache& cache, Lane& lane, File& file);

}  // namespace extmem::cache
