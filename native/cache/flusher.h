// ② Write-back: adjacent dirty pages leave as one write of up to 1 MiB; by age in the background, on demand for fsync,
// and by the writer itself when too much is dirty. A failed write-back keeps the pages and is reported once per open
// file (errseq).
#pragma once

#include <vector>

#include "base/task.h"
#include "cache/page_cache.h"

namespace extmem::cache {

/// Writes back what is dirty now (failed pages are tried again) and waits for it. 0 or EIO.
Task<int> flush_file(PageCache& cache, Lane& lane, File& file);

/// flush_file, once no cached write is in progress any more: after it nothing of the file is dirty unless somebody
/// writes anew.
Task<int> flush_settled(PageCache& cache, Lane& lane, File& file);

/// Called before `bytes` more become dirty: waits (by writing back) while the limits are exceeded. EIO when the
/// appliance of that range is down and its share of the dirty limit is used up.
Task<int> throttle(PageCache& cache, Lane& lane, File& file, uint64_t offset, uint32_t bytes);

/// No frame is free because everything is dirty: writes something back.
Task<int> make_room(PageCache& cache, Lane& lane, File& file);

/// The file became dirty through this lane: its background flusher takes care of it.
void note_dirty(PageCache& cache, Lane& lane, File& file);

/// Errors since this handle last asked: EIO once, then 0 until the next one.
int take_error(Handle& handle);

/// One per reactor: writes files back once they have been dirty for a while. Its timer runs only while there are some.
class BackgroundFlusher final : public Timer {
 public:
  BackgroundFlusher(PageCache& cache, Lane& lane) : cache_(cache), lane_(lane) {}
  ~BackgroundFlusher();
  void add(File& file);
  void on_timer() override;
  void stop();

 private:
  Detached flush(File& file);
  PageCache& cache_;
  Lane& lane_;
  std::vector<File*> files_;  // each with a reference; the reactor's thread only
};

}  // namespace extmem::cache
