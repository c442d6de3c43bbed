#include "cache/reader.h"

#include <errno.h>

#include <algorithm>
#include <cstring>

#include "base/clock.h"
#include "cache/copies.h"

namespace extmem::cache {

namespace {

constexpr uint32_t kOperationsPerRound = 12;

/// The pages that one call has taken upon itself to fill, and the operations that do it.
struct FillPlan {
  uint32_t page_count = 0;
  std::array<uint32_t, kRequestPages> pages;
  std::array<uint32_t, kRequestPages> frames;
  std::array<bool, kRequestPages> failed{};
  bool others_are_filling = false;
  bool in_cut = false;
};

/// Marks the absent pages of the range as being filled by us, `ahead` of anybody's asking. `spare` frames are consumed
/// from the front.
void claim_pages_locked(PageCache& cache, File& file, uint32_t first, uint32_t count, bool ahead,
                        std::array<uint32_t, kRequestPages>& spare, uint32_t& spare_count, FillPlan& plan) {
  for (uint32_t page = first; page < first + count; ++page) {
    uint32_t frame = file.frame_at(page);
    if (frame != 0) {
      plan.others_are_filling |= cache.frames()[frame].state == PageState::filling;
      continue;
    }
    if (spare_count == 0) continue;
    frame = spare[--spare_count];
    cache.set_state_locked(file, page, frame, PageState::filling);
    if (ahead) cache.frames().mark_ahead(frame);
    cache.frames()[frame].references.fetch_add(1, std::memory_order_relaxed);  // the filler's own
    file.set_frame(page, frame);
    plan.pages[plan.page_count] = page;
    plan.frames[plan.page_count++] = frame;
  }
}

/// One read for as many of the plan's pages from `at` on as lie together in one piece. Returns how many pages; the
/// frames of a hole are zeroed here.
uint32_t plan_read(PageCache& cache, File& file, const FillPlan& plan, uint32_t at, PieceRead& read, iovec* segments) {
  uint32_t run = 1;
  while (at + run < plan.page_count && plan.pages[at + run] == plan.pages[at] + run && run < kRequestPages - 1) ++run;
  file.lock.lock();
  read.piece = file.extents.resolve(plan.pages[at] * kPageBytes, run * kPageBytes);
  file.lock.unlock();
  read.file_offset = plan.pages[at] * kPageBytes;
  run = std::min<uint32_t>(run, std::max<uint64_t>(read.piece.length / kPageBytes, 1));
  trace::mark(trace::Point::extent_resolve, plan.pages[at] * kPageBytes);
  if (read.piece.is_hole()) {
    for (uint32_t index = 0; index < run; ++index)
      std::memset(cache.frames().data(plan.frames[at + index]), 0, kPageBytes);
    return run;
  }
  for (uint32_t index = 0; index < run; ++index) {
    segments[index] = {cache.frames().data(plan.frames[at + index]), kPageBytes};
  }
  read.operation.segments = segments;
  read.operation.segment_count = run;
  read.operation.bytes = static_cast<uint32_t>(run * kPageBytes);
  return run;
}

/// Bytes beyond the end of the file are zeros, whatever the region holds there (an earlier, longer life of the file).
void clear_beyond_end_locked(PageCache& cache, const File& file, uint32_t page, uint32_t frame) {
  uint64_t size = file.size.load(std::memory_order_relaxed);
  uint64_t start = page * kPageBytes;
  if (start + kPageBytes <= size) return;
  uint64_t keep = size > start ? size - start : 0;
  std::memset(cache.frames().data(frame) + keep, 0, kPageBytes - keep);
}

/// False: the page is absent again (it failed, or a direct write overtook the fill).
bool finish_page_locked(PageCache& cache, File& file, uint32_t page, uint32_t frame, bool failed, bool cold) {
  FramePool& frames = cache.frames();
  if (failed || (frames[frame].flags.load() & Frame::kStale) != 0) {
    cache.set_state_locked(file, page, frame, PageState::absent);
    file.set_frame(page, 0);
    frames.release(frame);
    return false;
  }
  clear_beyond_end_locked(cache, file, page, frame);
  cache.set_state_locked(file, page, frame, PageState::clean);
  cache.list_clean_locked(file, frame, cold ? FramePool::End::cold : FramePool::End::hot);
  return true;
}

/// Frames for the range, outside the file's lock because taking them may evict pages of any file.
uint32_t take_spare_frames(PageCache& cache, Lane& lane, File& file, uint32_t first, uint32_t count,
                           std::array<uint32_t, kRequestPages>& spare) {
  uint32_t wanted = 0;
  file.lock.lock();
  for (uint32_t page = first; page < first + count; ++page) wanted += file.frame_at(page) == 0 ? 1 : 0;
  file.lock.unlock();
  uint32_t taken = 0;
  while (taken < wanted) {
    uint32_t frame = cache.take_frame(lane);
    if (frame == 0) break;
    spare[taken++] = frame;
  }
  return taken;
}

Task<int> run_fill(PageCache& cache, Lane& lane, File& file, FillPlan& plan) {
  ReadInFlight reading(file);
  int error = 0;
  std::array<iovec, kRequestPages> segments;
  for (uint32_t at = 0; at < plan.page_count;) {
    std::array<PieceRead, kOperationsPerRound> reads{};
    std::array<uint32_t, kOperationsPerRound> starts;
    std::array<uint32_t, kOperationsPerRound> runs;
    uint32_t round = 0;
    for (; round < kOperationsPerRound && at < plan.page_count; ++round) {
      starts[round] = at;
      runs[round] = plan_read(cache, file, plan, at, reads[round], &segments[at]);
      at += runs[round];
    }
    if (int failed = co_await read_pieces(lane, std::span(reads).first(round)); failed != 0) error = failed;
    for (uint32_t index = 0; index < round; ++index) {
      if (!reads[index].failed()) continue;
      for (uint32_t page = 0; page < runs[index]; ++page) plan.failed[starts[index] + page] = true;
    }
  }
  co_return error;
}

Detached fetch_ahead(PageCache& cache, Lane& lane, File& file, uint32_t first, uint32_t count) {
  PinnedPages pins(cache.frames());
  co_await fill_pages(cache, lane, file, first, count, Reuse::ahead, pins);
  pins.release();
  cache.put_file(file);
}

/// Whether the page was read ahead, and is asked for now.
bool first_asked(PageCache& cache, Lane& lane, uint32_t frame, Reuse reuse) {
  if (!cache.frames().unmark_ahead(frame)) return false;
  lane.counters.add(lane.counters.ahead_used);
  if (reuse == Reuse::kernel_keeps) cache.frames().cool(frame);
  return true;
}

}  // namespace

bool read_hit(PageCache& cache, Lane& lane, File& file, uint64_t offset, uint32_t bytes, Reuse reuse,
              PinnedPages& pins) {
  uint32_t first = page_of(offset);
  uint32_t count = pages_spanned(offset, bytes);
  file.lock.lock();
  bool hit = cache.pin_locked(file, first, count, pins);
  file.lock.unlock();
  if (!hit) return false;
  for (uint32_t index = 0; index < count; ++index) {
    if (first_asked(cache, lane, pins[index], reuse)) continue;
    auto& flags = cache.frames()[pins[index]].flags;
    if ((flags.load(std::memory_order_relaxed) & Frame::kReferenced) == 0)
      flags.fetch_or(Frame::kReferenced, std::memory_order_relaxed);
  }
  lane.counters.add(lane.counters.hits, count);
  trace::mark(trace::Point::cache_hit, offset);
  return true;
}

Task<int> read_pages(PageCache& cache, Lane& lane, File& file, uint64_t offset, uint32_t bytes, Reuse reuse,
                     PinnedPages& pins) {
  uint32_t first = page_of(offset);
  uint32_t count = pages_spanned(offset, bytes);
  trace::mark(trace::Point::cache_miss, offset);
  lane.counters.add(lane.counters.misses, count);
  // A page may be cut between fill and pin, and all frames may be in use for a while: not for ever.
  constexpr uint64_t kPatienceNs = 4'500'000'000;
  uint64_t started = 0;
  do {
    // What is here must not be evicted to make room for the rest: that would never end.
    PinnedPages here(cache.frames());
    file.lock.lock();
    cache.pin_present_locked(file, first, count, here);
    file.lock.unlock();
    PinnedPages filled(cache.frames());
    int error = co_await fill_pages(cache, lane, file, first, count, reuse, filled);
    if (error != 0) co_return error;
    file.lock.lock();
    bool here_now = cache.pin_locked(file, first, count, pins);
    file.lock.unlock();
    if (here_now) {
      for (uint32_t index = 0; index < count; ++index) first_asked(cache, lane, pins[index], reuse);
      co_return 0;
    }
    if (started == 0) started = monotonic_ns();
  } while (monotonic_ns() - started < kPatienceNs);
  co_return EIO;
}

Task<int> fill_pages(PageCache& cache, Lane& lane, File& file, uint32_t first, uint32_t count, Reuse reuse,
                     PinnedPages& pins) {
  const bool wait = reuse != Reuse::ahead;
  FillPlan plan;
  std::array<uint32_t, kRequestPages> spare;
  uint32_t spare_count = take_spare_frames(cache, lane, file, first, count, spare);
  PageWaiter waiter(lane.reactor, first, first + count - 1);
  file.lock.lock();
  plan.in_cut = file.cut.overlaps(first * kPageBytes, (uint64_t{first} + count) * kPageBytes);
  if (!plan.in_cut) {
    claim_pages_locked(cache, file, first, count, !wait, spare, spare_count, plan);
  } else if (wait) {
    file.enlist(waiter);
  }
  file.lock.unlock();
  while (spare_count > 0) cache.frames().release(spare[--spare_count]);
  if (plan.in_cut) {
    if (wait) co_await waiter;
    co_return 0;
  }
  if (plan.page_count == 0 && !plan.others_are_filling) {
    // No frame to be had: everything is dirty. Let write-back go on, then try again.
    if (wait) co_await Sleep(lane.reactor, 1'000'000);
    co_return 0;
  }

  lane.counters.add(lane.counters.fills, plan.page_count);
  if (!wait) lane.counters.add(lane.counters.read_ahead, plan.page_count);
  int error = co_await run_fill(cache, lane, file, plan);
  file.lock.lock();
  for (uint32_t index = 0; index < plan.page_count; ++index) {
    bool cold = reuse == Reuse::kernel_keeps;
    if (finish_page_locked(cache, file, plan.pages[index], plan.frames[index], plan.failed[index], cold)) {
      pins.add(plan.frames[index]);
    } else {
      cache.frames().release(plan.frames[index]);
    }
  }
  file.wake(first, first + count - 1);
  if (error == 0 && wait && plan.others_are_filling) {
    bool still = false;
    for (uint32_t page = first; page < first + count; ++page) {
      uint32_t frame = file.frame_at(page);
      still |= frame != 0 && cache.frames()[frame].state == PageState::filling;
    }
    if (still) file.enlist(waiter);
    file.lock.unlock();
    if (still) co_await waiter;
    co_return 0;
  }
  file.lock.unlock();
  co_return error;
}

Task<int> warm_range(PageCache& cache, Lane& lane, File& file, uint64_t offset, uint64_t bytes) {
  uint64_t end = std::min(offset + bytes, file.size.load());
  constexpr uint64_t kStep = uint64_t{kRequestPages - 1} * kPageBytes;
  int error = 0;
  for (uint64_t at = offset / kPageBytes * kPageBytes; at < end && error == 0; at += kStep) {
    auto step = static_cast<uint32_t>(std::min(kStep, end - at));
    PinnedPages pins(cache.frames());
    if (file.mode.load() == Delegation::shared) co_return EBUSY;  // nothing of it is cached
    if (!read_hit(cache, lane, file, at, step, Reuse::ours, pins))
      error = co_await read_pages(cache, lane, file, at, step, Reuse::ours, pins);
  }
  co_return error;
}

void read_ahead(PageCache& cache, Lane& lane, File& file, uint64_t offset, uint32_t bytes) {
  uint64_t size_pages = (file.size.load(std::memory_order_relaxed) + kPageBytes - 1) / kPageBytes;
  uint32_t bound = cache.frames().frame_count() / 4;
  uint32_t room = bound - std::min(bound, cache.frames().ahead_count());
  file.lock.lock();
  auto window = file.read_ahead.advise(page_of(offset), pages_spanned(offset, bytes),
                                       std::min(cache.options().read_ahead_pages, room));
  file.lock.unlock();
  for (uint32_t index = 0; index < window.count; ++index) {
    auto first = static_cast<uint64_t>(int64_t{window.first} + int64_t{window.stride} * index);
    uint64_t end = std::min(first + window.length, size_pages);
    while (first < end) {
      auto count = static_cast<uint32_t>(std::min<uint64_t>(end - first, kRequestPages - 1));
      file.references.fetch_add(1);
      fetch_ahead(cache, lane, file, static_cast<uint32_t>(first), count);
      first += count;
    }
  }
}

}  // namespace extmem::cache
