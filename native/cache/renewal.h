// ② What becomes of files when this mount was fenced: the manager gave them to others, and the mount goes on as another
// client. From then on a file is void (mode none) until the manager says what it is now: what begins on it waits, what
// was under way fails (its regions are lost), what was not written back is gone, once reported per open file.
#pragma once

#include <span>

#include "base/task.h"
#include "cache/page_cache.h"

namespace extmem::cache {

inline bool is_void(const File& file) { return file.mode.load(std::memory_order_relaxed) == Delegation::none; }

/// Something failed that will be known to have been a fence, or is.
inline bool is_unsettled(PageCache& cache, const File& file) {
  return is_void(file) || cache.directory().fenced.load(std::memory_order_acquire);
}

/// Any thread, at once.
void make_void(File& file);

/// After make_void: the operations within end, then the pages go. The file stays void.
Task<int> settle_void(PageCache& cache, Lane& lane, File& file);

/// What the file is now. 0, or EINVAL: the record is not sound, or names unknown regions.
int renew_file(PageCache& cache, File& file, Delegation mode, std::span<const uint8_t> record);

/// Handles opened until now answer `error` from now on: the file is gone, or locks on it were lost.
void break_handles(File& file, int error);

/// For how long a call is kept waiting because its file is void.
inline constexpr uint64_t kVoidPatienceNs = 3'000'000'000;

/// Waits until the handle's file may be read and written, or the time has come. 0: it may; else the call's errno.
Task<int> until_held(PageCache& cache, Lane& lane, const Handle& handle, uint64_t deadline_ns);

}  // namespace extmem::cache
