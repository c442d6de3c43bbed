#include "cache/shared_io.h"

#include <errno.h>

#include <algorithm>

#include "cache/flusher.h"
#include "cache/shared_turns.h"
#include "cache/transfer.h"
#include "cache/writer.h"

namespace extmem::cache {

namespace {

alignas(kPageBytes) const std::byte kZeroPage[kPageBytes]{};

/// What was dirty here when the file became shared must be out, and there, before anything goes past it.
Task<int> settle(PageCache& cache, Lane& lane, File& file) {
  file.lock.lock();
  bool unwritten = file.dirty_pages.load() > 0 || file.writing_pages > 0;
  file.lock.unlock();
  if (unwritten) {
    int error = co_await flush_file(cache, lane, file);
    if (error != 0) co_return error;
  }
  cache.drop_clean(file, 0, UINT32_MAX);
  co_return 0;
}

/// The manager learns that a range was written, and has told the other holders when this is answered. Then the file is
/// longer, not before.
Task<int> tell_written(PageCache& cache, Lane& lane, File& file, uint64_t offset, uint64_t bytes, bool holds_pages) {
  file.lock.lock();
  touch_locked(file);
  uint64_t mtime = file.attributes.mtime_ns;
  file.lock.unlock();
  extent::ControlCall call(cache.control_plane(), lane.reactor);
  call.kind = extent::ControlCall::Kind::wrote;
  call.node = file.node;
  call.offset = offset;
  call.bytes = bytes;
  call.mtime_ns = mtime;
  call.holds_pages = holds_pages;
  int error = co_await call;
  if (error == 0) grow_shared_size(file, offset + bytes);
  co_return error;
}

/// Beyond the end a page may hold bytes of an earlier, longer life of the file: zeroes them, up to `end`. Nobody else
/// makes the file longer meanwhile, so that they are nobody's.
Task<int> zero_beyond_end(PageCache& cache, Lane& lane, File& file, uint64_t end) {
  uint64_t size = file.size.load();
  if (end <= size || size % kPageBytes == 0) co_return 0;
  auto gap = static_cast<uint32_t>(std::min<uint64_t>(end - size, kPageBytes - size % kPageBytes));
  co_return co_await zero_through(cache, lane, file, size, gap);
}

}  // namespace

Task<int> read_through(PageCache& cache, Lane& lane, File& file, uint64_t offset, std::byte* data, uint32_t bytes) {
  lane.counters.add(lane.counters.shared_reads);
  int error = co_await settle(cache, lane, file);
  if (error != 0) co_return error;
  ReadInFlight reading(file);
  co_return co_await read_range(lane, file, offset, data, bytes);
}

Task<int> zero_through(PageCache& cache, Lane& lane, File& file, uint64_t offset, uint32_t bytes) {
  file.lock.lock();
  bool data_there = !file.extents.resolve(offset, bytes).is_hole();
  file.lock.unlock();
  if (!data_there) co_return 0;
  co_return co_await write_range(cache, lane, file, offset, kZeroPage, bytes);
}

Task<int> write_through(PageCache& cache, Lane& lane, File& file, ThroughWrite write) {
  lane.counters.add(lane.counters.shared_writes);
  auto [offset, data, bytes, holds_pages] = write;
  bool grows = offset + bytes > file.size.load();
  int error = co_await settle(cache, lane, file);
  if (error == 0) error = co_await ensure_room(cache, lane, file, offset, offset + bytes);
  if (error != 0) co_return error;
  if (grows) error = co_await zero_beyond_end(cache, lane, file, offset);
  if (error == 0) error = co_await write_range(cache, lane, file, offset, data, bytes);
  if (error == 0) error = co_await tell_written(cache, lane, file, offset, bytes, holds_pages);
  if (error != 0 && grows) co_await give_up_end(cache, lane, file);
  co_return error;
}

Task<int> extend_through(PageCache& cache, Lane& lane, File& file, uint64_t new_size) {
  uint64_t size = file.size.load();
  if (new_size <= size) co_return 0;
  int error = co_await settle(cache, lane, file);
  if (error == 0) error = co_await zero_beyond_end(cache, lane, file, new_size);
  if (error != 0) co_return error;
  error = co_await tell_written(cache, lane, file, size, new_size - size, false);
  if (error != 0) co_await give_up_end(cache, lane, file);
  co_return error;
}

}  // namespace extmem::cache
