#include "cache/direct_io.h"

#include <algorithm>
#include <cstring>

#include "cache/transfer.h"

namespace extmem::cache {

namespace {

bool on_this_host(const fabric::Region& region) {
  return region.appliance->transport.load(std::memory_order_relaxed) == fabric::TransportKind::shm &&
         region.appliance->state.load(std::memory_order_relaxed) == fabric::PeerState::up;
}

/// What is read may come from any copy that is sure to be as the others; what is written goes to all.
enum class Access : uint8_t { read, write };

bool is_here(const extent::Piece& piece, Access access) {
  bool any = piece.is_hole();
  bool all = true;
  for (const extent::Member& copy : piece.all()) {
    if (copy.missing) continue;
    const bool here = on_this_host(*copy.region);
    any |= here && !copy.unsynced;
    all &= here;
  }
  return any && (all || access == Access::read);
}

bool range_is_here_locked(const File& file, uint64_t offset, uint32_t bytes, Access access) {
  for (uint64_t at = offset; at < offset + bytes;) {
    auto piece = file.extents.resolve(at, offset + bytes - at);
    if (!is_here(piece, access)) return false;
    at += piece.length;
  }
  return true;
}

/// Calls visit(page, frame) for what is cached of the range.
template <typename Visit>
void for_each_cached_locked(File& file, uint64_t offset, uint32_t bytes, Visit visit) {
  if (file.cached_pages > 0) file.for_each_page(page_of(offset), page_of(offset + bytes - 1), visit);
}

bool may_write_direct(PageCache& cache, File& file, uint64_t offset, uint32_t bytes) {
  file.lock.lock();
  bool may = range_is_here_locked(file, offset, bytes, Access::write);
  for_each_cached_locked(file, offset, bytes, [&](uint32_t, uint32_t frame) {
    PageState state = cache.frames()[frame].state;
    may &= state == PageState::clean || state == PageState::filling;
  });
  file.lock.unlock();
  return may;
}

}  // namespace

bool may_read_direct(PageCache&, File& file, uint64_t offset, uint32_t bytes) {
  bool cached = false;
  file.lock.lock();
  for_each_cached_locked(file, offset, bytes, [&](uint32_t, uint32_t) { cached = true; });
  bool may = !cached && !file.cut.active && range_is_here_locked(file, offset, bytes, Access::read);
  file.lock.unlock();
  return may;
}

Task<bool> read_direct(PageCache& cache, Lane& lane, File& file, uint64_t offset, std::byte* data, uint32_t bytes) {
  ReadInFlight reading(file);
  if (!may_read_direct(cache, file, offset, bytes)) co_return false;  // a cut began meanwhile
  lane.counters.add(lane.counters.direct_reads);
  co_return co_await read_range(lane, file, offset, data, bytes) == 0;
}

Task<bool> write_direct(PageCache& cache, Lane& lane, File& file, uint64_t offset, const std::byte* data,
                        uint32_t bytes) {
  if (!may_write_direct(cache, file, offset, bytes)) co_return false;
  int error = co_await write_range(cache, lane, file, offset, data, bytes);
  file.lock.lock();
  for_each_cached_locked(file, offset, bytes, [&](uint32_t page, uint32_t frame) {
    if (cache.frames()[frame].state == PageState::clean)
      cache.drop_locked(file, page, frame);
    else if (cache.frames()[frame].state == PageState::filling)
      cache.frames()[frame].flags.fetch_or(Frame::kStale);
  });
  file.lock.unlock();
  lane.counters.add(lane.counters.direct_writes);
  co_return error == 0;
}

}  // namespace extmem::cache
