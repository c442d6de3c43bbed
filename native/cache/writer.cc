#include "cache/writer.h"

#include <errno.h>

#include <algorithm>
#include <cstring>

#include "base/clock.h"
#include "cache/copies.h"
#include "cache/direct_io.h"
#include "cache/flusher.h"
#include "cache/reader.h"
#include "cache/renewal.h"
#include "extent/growth.h"

namespace extmem::cache {

namespace {

constexpr uint64_t kLowWaterBytes = 2ull * protocol::kSlabRegionBytes / 4;

uint64_t round_down(uint64_t offset) { return offset / kPageBytes * kPageBytes; }
uint64_t round_up(uint64_t offset) { return (offset + kPageBytes - 1) / kPageBytes * kPageBytes; }

/// Asks for more room before it is needed; one request at a time.
Detached refill_slabs(PageCache& cache, Lane& lane) {
  extent::ControlCall call(cache.control_plane(), lane.reactor);
  call.kind = extent::ControlCall::Kind::provision;
  call.bytes = protocol::kSlabRegionBytes;
  co_await call;
  cache.provisioning.store(false);
}

void keep_reserve(PageCache& cache, Lane& lane) {
  if (cache.slabs().free_bytes() >= kLowWaterBytes) return;
  if (!cache.provisioning.exchange(true)) refill_slabs(cache, lane);
}

bool try_grow(PageCache& cache, File& file, uint64_t begin, uint64_t end, bool scraps) {
  file.lock.lock();
  bool grown = !is_void(file) && extent::grow(file.extents, file.attributes, {begin, end, scraps}, cache.slabs());
  if (grown) ++file.attributes.change;
  file.lock.unlock();
  return grown;
}

/// Shared by several clients: extents are proposed, and those of whoever came first count. In regions of its own: the
/// manager fills the holes.
Task<int> agree_on_room(PageCache& cache, Lane& lane, File& file, uint64_t begin, uint64_t end) {
  extent::ControlCall call(cache.control_plane(), lane.reactor);
  call.kind = extent::ControlCall::Kind::extend;
  call.node = file.node;
  {
    file.lock.lock();
    extent::ExtentMap proposal = file.extents;
    extent::FileAttributes attributes = file.attributes;
    attributes.size = file.size.load();
    file.lock.unlock();
    if (file.own_regions.load()) {
      call.offset = begin;
      call.bytes = end - begin;
    } else if (!extent::grow(proposal, attributes, {begin, end, true}, cache.slabs())) {
      co_return ENOSPC;
    }
    call.record = extent::encode_record(attributes, proposal);
  }
  int error = co_await call;
  if (error != 0) co_return error;
  extent::FileAttributes attributes;
  extent::ExtentMap agreed;
  if (!extent::decode_record(call.record, cache.directory(), attributes, agreed)) co_return EIO;
  file.lock.lock();
  // What the manager told meanwhile is newer: without what was cut since (the epoch), with what others added.
  bool newest = attributes.epoch == file.attributes.epoch ? agreed.allocated_bytes() >= file.extents.allocated_bytes()
                                                          : attributes.epoch > file.attributes.epoch;
  if (newest) {
    file.extents = std::move(agreed);
    if (file.mode.load() == Delegation::write) {
      ++file.attributes.change;  // what it is beside that, nobody knows better
    } else {
      file.attributes = attributes;
    }
    file.surplus.from = file.surplus.known = file.extents.end();
  }
  file.lock.unlock();
  co_return 0;
}

enum class PageWrite : uint8_t { done, needs_frame, needs_fill, busy, no_extent };

struct PageBytes {
  uint32_t page;
  uint32_t at;  // in the page
  uint32_t bytes;
  const std::byte* data;  // null: zeros
  bool fresh;             // nothing of the page exists yet: what is not written is zero
};

void put_bytes(std::byte* frame, const PageBytes& write) {
  if (write.data == nullptr) {
    std::memset(frame + write.at, 0, write.bytes);
  } else {
    std::memcpy(frame + write.at, write.data, write.bytes);
  }
}

/// One page takes its bytes, if it can without waiting. `spare` is consumed (set to 0) when a frame was needed.
PageWrite write_page_locked(PageCache& cache, File& file, const PageBytes& write, uint32_t& spare) {
  FramePool& frames = cache.frames();
  uint32_t frame = file.frame_at(write.page);
  PageState state = frame == 0 ? PageState::absent : frames[frame].state;
  if (state == PageState::filling) return PageWrite::busy;
  bool whole = write.bytes == kPageBytes;
  if (state == PageState::absent && !whole && !write.fresh) return PageWrite::needs_fill;
  bool needs_frame = state == PageState::absent || state == PageState::writing;
  if (needs_frame && spare == 0) return PageWrite::needs_frame;

  auto piece = file.extents.resolve(write.page * kPageBytes, kPageBytes);
  if (piece.is_hole()) return PageWrite::no_extent;  // the file was cut or given anew under us
  if (state == PageState::absent) {
    frame = std::exchange(spare, 0);
    if (!whole) std::memset(frames.data(frame), 0, kPageBytes);
    file.set_frame(write.page, frame);
  } else if (state == PageState::writing) {
    // What is being sent must stay as it is: the page is its old or its new content, never a mixture.
    uint32_t sent = frame;
    frame = std::exchange(spare, 0);
    if (!whole) std::memcpy(frames.data(frame), frames.data(sent), kPageBytes);
    frames[frame].state = PageState::writing;
    frames[frame].appliance = frames[sent].appliance;
    cache.set_state_locked(file, write.page, frame, PageState::redirtied);
    file.set_frame(write.page, frame);
    cache.redirtied_locked(file, write.page, frame);
    frames.release(sent);
    put_bytes(frames.data(frame), write);
    return PageWrite::done;
  }
  put_bytes(frames.data(frame), write);
  cache.dirty_locked(file, write.page, frame, home_of(piece));
  return PageWrite::done;
}

/// One page takes its bytes, waiting as long as it must. 0 or an errno.
Task<int> write_page(PageCache& cache, Lane& lane, File& file, PageBytes write) {
  uint32_t spare = 0;
  int error = 0;
  for (;;) {
    PinnedPages filled(cache.frames());
    PageWaiter waiter(lane.reactor, write.page, write.page);
    file.lock.lock();
    PageWrite outcome = write_page_locked(cache, file, write, spare);
    if (outcome == PageWrite::busy) file.enlist(waiter);
    file.lock.unlock();
    if (outcome == PageWrite::no_extent) error = EIO;
    if (outcome == PageWrite::done || error != 0) break;
    if (outcome == PageWrite::busy) {
      co_await waiter;
    } else if (outcome == PageWrite::needs_fill) {
      error = co_await fill_pages(cache, lane, file, write.page, 1, Reuse::ours, filled);
      if (error != 0) break;
    } else {
      spare = cache.take_frame(lane);
      if (spare == 0) co_await make_room(cache, lane, file);
    }
    // The pins of a fill go here, after the page was looked at again: it cannot be evicted in between.
  }
  if (spare != 0) cache.frames().release(spare);
  co_return error;
}

}  // namespace

Task<int> enter_writer(Lane& lane, File& file) {
  for (;;) {
    PageWaiter waiter(lane.reactor, 0, UINT32_MAX);
    file.lock.lock();
    bool refused = file.refused;
    bool wait = !refused && (file.cut.pending || file.paused);
    if (wait) {
      file.enlist(waiter);
    } else if (!refused) {
      file.active_writers.fetch_add(1);
    }
    file.lock.unlock();
    if (!wait) co_return refused ? EIO : 0;
    co_await waiter;
  }
}

void leave_writer(File& file) {
  file.lock.lock();
  bool last = file.active_writers.fetch_sub(1) == 1;
  if (last && (file.cut.pending || file.paused)) file.wake(0, UINT32_MAX);
  file.lock.unlock();
}

void touch_locked(File& file) {
  uint64_t now = wall_ns();
  file.attributes.mtime_ns = now;
  file.attributes.ctime_ns = now;
  ++file.attributes.change;
}

Task<int> ensure_room(PageCache& cache, Lane& lane, File& file, uint64_t offset, uint64_t end) {
  uint64_t begin = round_down(offset);
  uint64_t limit = round_up(end);
  auto is_there = [&file, begin, limit] {
    file.lock.lock();
    bool there = file.extents.next_hole(begin) >= limit;
    file.lock.unlock();
    return there;
  };
  if (is_there()) co_return 0;
  bool shared = file.mode.load() == Delegation::shared || file.own_regions.load();
  for (int attempt = 0; attempt < 3; ++attempt) {
    if (shared) {
      int error = co_await agree_on_room(cache, lane, file, begin, limit);
      if (error == 0 && !is_there()) continue;  // cut again meanwhile
      if (error == EAGAIN) continue;            // its regions are to be its own since a moment ago
      if (error != ENOSPC || file.own_regions.load()) co_return error;
    } else if (try_grow(cache, file, begin, limit, false)) {
      keep_reserve(cache, lane);
      co_return 0;
    }
    extent::ControlCall call(cache.control_plane(), lane.reactor);
    call.kind = extent::ControlCall::Kind::provision;
    call.bytes = std::max<uint64_t>(limit - begin, protocol::kStripeUnitBytes) * file.attributes.copies;
    int error = co_await call;
    if (error == 0) continue;
    if (!shared && try_grow(cache, file, begin, limit, true)) co_return 0;
    co_return ENOSPC;
  }
  if (!shared && try_grow(cache, file, begin, limit, true)) co_return 0;
  co_return ENOSPC;
}

Task<int> zero_in_page(PageCache& cache, Lane& lane, File& file, uint64_t offset, uint32_t bytes) {
  file.lock.lock();
  bool data = !file.extents.resolve(round_down(offset), kPageBytes).is_hole();
  file.lock.unlock();
  if (!data) co_return 0;  // a hole is zero
  co_return co_await write_page(cache, lane, file,
                                {page_of(offset), static_cast<uint32_t>(offset % kPageBytes), bytes, nullptr, false});
}

Task<int> extend_size(PageCache& cache, Lane& lane, File& file, uint64_t new_size) {
  uint64_t old_size = file.size.load();
  if (new_size <= old_size) co_return 0;
  // Beyond the old end a page of the region may hold bytes of an earlier, longer life of the file.
  uint64_t page_end = round_up(old_size);
  if (old_size < page_end && new_size > old_size) {
    int error = co_await zero_in_page(cache, lane, file, old_size, static_cast<uint32_t>(page_end - old_size));
    if (error != 0) co_return error;
  }
  file.lock.lock();
  if (new_size > file.size.load()) file.size.store(new_size);
  file.lock.unlock();
  co_return 0;
}

Task<int> write_cached(PageCache& cache, Lane& lane, File& file, uint64_t offset, const std::byte* data,
                       uint32_t bytes) {
  uint64_t end = offset + bytes;
  int error = co_await ensure_room(cache, lane, file, offset, end);
  if (error != 0) co_return error;
  uint64_t old_size = file.size.load();
  if (offset > old_size && round_down(offset) > round_down(old_size)) {
    error = co_await extend_size(cache, lane, file, offset);
    if (error != 0) co_return error;
  }
  bool whole_pages = offset % kPageBytes == 0 && bytes % kPageBytes == 0;
  if (whole_pages && co_await write_direct(cache, lane, file, offset, data, bytes)) {
    file.lock.lock();
    if (end > file.size.load()) file.size.store(end);
    touch_locked(file);
    file.lock.unlock();
    co_return 0;
  }
  error = co_await throttle(cache, lane, file, offset, bytes);
  if (error != 0) co_return error;
  uint64_t fresh_from = round_up(old_size);
  for (uint64_t at = offset; at < end;) {
    auto in_page = static_cast<uint32_t>(at % kPageBytes);
    auto length = static_cast<uint32_t>(std::min<uint64_t>(kPageBytes - in_page, end - at));
    PageBytes write{page_of(at), in_page, length, data + (at - offset), round_down(at) >= fresh_from};
    uint32_t spare = cache.take_frame(lane);
    file.lock.lock();
    PageWrite outcome = write_page_locked(cache, file, write, spare);
    file.lock.unlock();
    if (spare != 0) cache.frames().release(spare);
    if (outcome != PageWrite::done) {
      error = co_await write_page(cache, lane, file, write);
      if (error != 0) co_return error;
    }
    at += length;
  }
  file.lock.lock();
  if (end > file.size.load()) file.size.store(end);
  touch_locked(file);
  file.lock.unlock();
  note_dirty(cache, lane, file);
  co_return 0;
}

}  // namespace extmem::cache
