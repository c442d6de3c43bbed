#include "cache/renewal.h"

#include <errno.h>

#include "base/clock.h"
#include "cache/file_control.h"

namespace extmem::cache {

namespace {

/// Between two looks at a void file. It is void for some milliseconds, once in the life of a mount if at all.
constexpr uint64_t kLookNs = 2'000'000;

/// What the manager had arranged with the client that this mount was.
void forget_turns_locked(File& file) {
  file.paused = file.refused = false;
  file.end.ours = false;
}

}  // namespace

void make_void(File& file) {
  file.lock.lock();
  uint64_t change = file.attributes.change;
  bool unwritten = file.dirty_pages.load() > 0 || file.writing_pages > 0 ||
                   (file.mode.load() == Delegation::write && change != file.committed_change);
  file.mode.store(Delegation::none);
  file.refuses_mapped.store(true);
  forget_turns_locked(file);
  file.committed_change = change;  // settle_void finds out by it whether more was written since
  if (unwritten) file.error_sequence.fetch_add(1);
  file.wake(0, UINT32_MAX);
  file.lock.unlock();
}

Task<int> settle_void(PageCache& cache, Lane& lane, File& file) {
  co_await begin_cut(cache, lane, file, 0, UINT64_MAX);
  file.lock.lock();
  if (file.attributes.change != file.committed_change) file.error_sequence.fetch_add(1);
  file.committed_change = file.attributes.change;
  file.for_each_page(0, UINT32_MAX, [&](uint32_t page, uint32_t frame) { cache.drop_locked(file, page, frame); });
  file.cut = {};
  file.wake(0, UINT32_MAX);
  file.lock.unlock();
  co_return 0;
}

int renew_file(PageCache& cache, File& file, Delegation mode, std::span<const uint8_t> record) {
  extent::FileAttributes attributes;
  extent::ExtentMap extents;
  if (!extent::decode_record(record, cache.directory(), attributes, extents)) return EINVAL;
  file.lock.lock();
  // A read that began before the fence may have found a hole in the extents that were.
  file.for_each_page(0, UINT32_MAX, [&](uint32_t page, uint32_t frame) {
    if (cache.frames()[frame].state == PageState::clean)
      cache.drop_locked(file, page, frame);
    else if (cache.frames()[frame].state == PageState::filling)
      cache.frames()[frame].flags.fetch_or(Frame::kStale);
  });
  set_record_locked(file, attributes, std::move(extents));
  file.read_ahead.reset();
  forget_turns_locked(file);  // one that was being paused while it became void
  file.mode.store(mode);
  file.wake(0, UINT32_MAX);
  file.lock.unlock();
  return 0;
}

void break_handles(File& file, int error) {
  file.broken_errno.store(error);
  file.life.fetch_add(1);
}

Task<int> until_held(PageCache& cache, Lane& lane, const Handle& handle, uint64_t deadline_ns) {
  File& file = *handle.file;
  while (!handle.broken() && is_unsettled(cache, file)) {
    if (monotonic_ns() >= deadline_ns) co_return EIO;
    co_await Sleep(lane.reactor, kLookNs);
  }
  co_return handle.broken() ? file.broken_errno.load() : 0;
}

}  // namespace extmem::cache
