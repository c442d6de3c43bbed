#include "cache/flusher.h"

#include <errno.h>

#include <algorithm>
#include <memory>

#include "base/clock.h"
#include "cache/copies.h"
#include "cache/renewal.h"

namespace extmem::cache {

namespace {

constexpr uint32_t kRunsPerRound = 8;
constexpr uint32_t kRunPages = protocol::kMaxIoBytes / protocol::kPageBytes;
constexpr uint64_t kThrottlePatienceNs = 4'000'000'000;
/// Before it is looked again whether there is something to send: the reactor has other work meanwhile.
constexpr uint64_t kNothingToSendNs = 1'000'000;

/// Adjacent pages of one piece on their way out.
struct Run {
  uint32_t first = 0;
  uint32_t count = 0;
  std::array<uint32_t, kRunPages> frames;
  std::array<iovec, kRunPages> segments;
};

/// Some 50 KiB, so not in the coroutine's frame; each thread keeps a few.
struct Round {
  std::array<Run, kRunsPerRound> runs;
  std::array<PieceWrite, kRunsPerRound> writes;  // of the run at the same place
};
class RoundPool {
 public:
  static std::unique_ptr<Round> take() {
    if (idle().empty()) return std::make_unique<Round>();
    auto round = std::move(idle().back());
    idle().pop_back();
    return round;
  }
  static void give(std::unique_ptr<Round> round) {
    if (idle().size() < 4) idle().push_back(std::move(round));
  }

 private:
  static std::vector<std::unique_ptr<Round>>& idle() {
    thread_local std::vector<std::unique_ptr<Round>> rounds;
    return rounds;
  }
};

enum class Which : uint8_t { all, reachable };

/// How a pass over the dirty pages went. `redirtied`: a page was passed over whose older content is still being sent.
struct Pass {
  int error = 0;
  bool redirtied = false;
  uint32_t sent = 0;  // runs
};

/// Whether it can be written to at least one copy, as far as is known.
bool is_reachable_locked(PageCache& cache, const File& file, uint32_t page, uint32_t frame) {
  auto& appliance = cache.directory().appliance(cache.frames()[frame].appliance);
  if (appliance.state.load() != fabric::PeerState::down) return true;
  const auto piece = file.extents.resolve(page * kPageBytes, kPageBytes);
  return piece.copy_count > 1 && !standing_of(piece).down;
}

/// The next run of dirty pages from `page` on; 0 pages when there is none. `page` moves behind what was looked at.
void collect_run_locked(PageCache& cache, File& file, uint32_t& page, Which which, Run& run, PieceWrite& write,
                        Pass& pass) {
  run.count = 0;
  while ((page = file.next_dirty(page)) != UINT32_MAX) {
    uint32_t frame = file.frame_at(page);
    pass.redirtied |= cache.frames()[frame].state == PageState::redirtied;
    bool ready = cache.frames()[frame].state == PageState::dirty &&
                 !file.cut.overlaps(page * kPageBytes, (uint64_t{page} + 1) * kPageBytes);
    if (ready && (which == Which::all || is_reachable_locked(cache, file, page, frame))) break;
    ++page;
  }
  if (page == UINT32_MAX) return;
  auto piece = file.extents.resolve(page * kPageBytes, kRunPages * kPageBytes);
  if (piece.is_hole()) {
    // The file was given anew without what this page was written to (its client was thought dead): it cannot arrive.
    pass.error = EIO;
    file.error_sequence.fetch_add(1);
    ++page;
    return;
  }
  auto limit = static_cast<uint32_t>(std::max<uint64_t>(piece.length / kPageBytes, 1));
  run.first = page;
  while (run.count < limit) {
    uint32_t frame = file.frame_at(page);
    if (frame == 0 || cache.frames()[frame].state != PageState::dirty) break;
    if (file.cut.overlaps(page * kPageBytes, (uint64_t{page} + 1) * kPageBytes)) break;
    cache.begin_writing_locked(file, page, frame);
    run.frames[run.count] = frame;
    run.segments[run.count++] = {cache.frames().data(frame), kPageBytes};
    ++page;
  }
  write.piece = piece;
  write.file_offset = run.first * kPageBytes;
  write.bytes = static_cast<uint32_t>(run.count * kPageBytes);
}

/// What its appliance no longer has can never be written: to keep such pages would take their place from others for
/// good.
PageCache::WriteBack outcome_of(fabric::Status status) {
  switch (status) {
    case fabric::Status::ok:
      return PageCache::WriteBack::done;
    case fabric::Status::not_present:
    case fabric::Status::stale_incarnation:
      return PageCache::WriteBack::lost;
    default:
      return PageCache::WriteBack::failed;
  }
}

bool has_failed_locked(PageCache& cache, File& file) {
  for (uint32_t page = file.next_dirty(0); page != UINT32_MAX; page = file.next_dirty(page + 1)) {
    if (cache.frames()[file.frame_at(page)].state == PageState::failed) return true;
  }
  return false;
}

void retry_failed_locked(PageCache& cache, File& file) {
  for (uint32_t page = file.next_dirty(0); page != UINT32_MAX; page = file.next_dirty(page + 1)) {
    uint32_t frame = file.frame_at(page);
    if (cache.frames()[frame].state == PageState::failed) cache.set_state_locked(file, page, frame, PageState::dirty);
  }
}

/// One pass over the dirty pages, in order of offset; what becomes dirty behind the cursor is left for the next.
Task<Pass> flush_pass(PageCache& cache, Lane& lane, File& file, Which which, uint32_t max_rounds) {
  Pass pass;
  uint32_t cursor = 0;
  auto round = RoundPool::take();
  while (cursor != UINT32_MAX && max_rounds-- > 0) {
    uint32_t count = 0;
    file.lock.lock();
    while (count < kRunsPerRound && cursor != UINT32_MAX) {
      collect_run_locked(cache, file, cursor, which, round->runs[count], round->writes[count], pass);
      if (round->runs[count].count > 0) ++count;
    }
    file.lock.unlock();
    if (count == 0) break;
    pass.sent += count;
    fabric::Batch batch(lane.fabric);
    for (uint32_t index = 0; index < count; ++index) {
      Run& run = round->runs[index];
      submit_write(batch, round->writes[index], std::span(run.segments).first(run.count));
    }
    co_await batch;
    co_await settle_writes(cache, lane, file, std::span(round->writes).first(count));
    bool is_news = false;
    file.lock.lock();
    for (uint32_t index = 0; index < count; ++index) {
      Run& run = round->runs[index];
      PageCache::WriteBack outcome = outcome_of(round->writes[index].status);
      bool failed = outcome != PageCache::WriteBack::done;
      if (failed) pass.error = round->writes[index].status == fabric::Status::forbidden ? EACCES : EIO;
      if (failed) lane.counters.add(lane.counters.failed_pages, run.count);
      lane.counters.add(lane.counters.writebacks);
      lane.counters.add(lane.counters.written_back_pages, run.count);
      for (uint32_t page = 0; page < run.count; ++page) {
        is_news |= cache.end_writing_locked(file, run.first + page, run.frames[page], outcome);
      }
      file.wake(run.first, run.first + run.count - 1);
    }
    if (is_news && !is_void(file)) file.error_sequence.fetch_add(1);  // of a void file all is told already
    file.lock.unlock();
  }
  RoundPool::give(std::move(round));
  co_return pass;
}

/// Waits until nothing of the file is on its way: what others (the background flusher, another fsync) took must be
/// there too.
Task<int> written_back(Lane& lane, File& file) {
  for (;;) {
    PageWaiter waiter(lane.reactor, 0, UINT32_MAX);
    file.lock.lock();
    bool waiting = file.writing_pages > 0;
    if (waiting) file.enlist(waiter);
    file.lock.unlock();
    if (!waiting) co_return 0;
    co_await waiter;
  }
}

}  // namespace

Task<int> flush_file(PageCache& cache, Lane& lane, File& file) {
  file.lock.lock();
  retry_failed_locked(cache, file);
  uint32_t errors_before = file.error_sequence.load();
  file.lock.unlock();
  // A page that was redirtied before we came is dirty once its older content has arrived: the second pass takes it.
  Pass pass{.error = 0, .redirtied = true, .sent = 0};
  for (int round = 0; round < 2 && pass.redirtied && pass.error == 0; ++round) {
    pass = co_await flush_pass(cache, lane, file, Which::all, UINT32_MAX);
    co_await written_back(lane, file);
  }
  file.lock.lock();
  bool failed = pass.error != 0 || file.error_sequence.load() != errors_before || has_failed_locked(cache, file);
  file.lock.unlock();
  co_return failed ? (pass.error == EACCES ? EACCES : EIO) : 0;
}

Task<int> flush_settled(PageCache& cache, Lane& lane, File& file) {
  while (file.active_writers.load() > 0) co_await Sleep(lane.reactor, 200'000);
  co_return co_await flush_file(cache, lane, file);
}

namespace {

/// The appliances of a range: a request spans two stripe units at most, more only where a file is in scraps.
struct RangeAppliances {
  std::array<fabric::Appliance*, 4> list{};
  uint32_t count = 0;
  bool lost = false;      ///< part of the range is gone for good
  bool redundant = true;  ///< every part has a copy elsewhere: whoever is away is soon dropped, or answers
};

RangeAppliances appliances_of(File& file, uint64_t offset, uint32_t bytes) {
  RangeAppliances found;
  file.lock.lock();
  for (uint64_t at = offset; at < offset + bytes;) {
    auto piece = file.extents.resolve(at, offset + bytes - at);
    at += piece.length;
    if (piece.is_hole()) continue;
    const Standing standing = standing_of(piece);
    found.lost |= standing.lost;
    found.redundant &= piece.copy_count > 1 && !standing.down;
    fabric::Appliance* home = home_of(piece).appliance;
    auto end = found.list.begin() + found.count;
    if (found.count < found.list.size() && std::find(found.list.begin(), end, home) == end) {
      found.list[found.count++] = home;
    }
  }
  file.lock.unlock();
  return found;
}

}  // namespace

namespace {

/// Whether that much more would be too much. What is larger than a quarter of the limit counts as that: a large write
/// must get its turn among many small ones, and fit at all where the limit is small.
bool is_full(uint64_t dirty_bytes, uint64_t bytes, uint64_t limit_bytes) {
  return dirty_bytes + std::min(bytes, limit_bytes / 4) > limit_bytes;
}

}  // namespace

Task<int> throttle(PageCache& cache, Lane& lane, File& file, uint64_t offset, uint32_t bytes) {
  auto appliances = appliances_of(file, offset, bytes);
  if (appliances.lost) co_return EIO;
  uint64_t started = monotonic_ns();
  bool counted = false;
  for (;;) {
    bool own_share = false;
    bool silent = false;
    for (uint32_t index = 0; index < appliances.count; ++index) {
      fabric::Appliance& appliance = *appliances.list[index];
      if (!is_full(appliance.dirty_bytes.load(), bytes, cache.options().appliance_dirty_bytes)) continue;
      auto state = appliance.state.load();
      if (state == fabric::PeerState::down && !appliances.redundant) co_return EIO;
      silent |= state != fabric::PeerState::up;
      own_share = true;
    }
    if (!own_share && !is_full(cache.dirty_bytes(), bytes, cache.options().dirty_bytes)) co_return 0;
    if (!counted) lane.counters.add(lane.counters.throttled);
    counted = true;
    // One that answers is only slow, or others are faster than this writer.
    if (monotonic_ns() - started > kThrottlePatienceNs) co_return silent && !appliances.redundant ? EIO : 0;
    if (file.dirty_pages.load() > 0) {
      file.lock.lock();
      retry_failed_locked(cache, file);
      file.lock.unlock();
      const Pass pass = co_await flush_pass(cache, lane, file, Which::reachable, 4);
      if (pass.sent > 0 && pass.error == 0) continue;
    }
    // What is dirty is others' pages, whose flushers are at it, or on its way, or its appliance is away or refuses it:
    // at once, so that this would go round without end.
    co_await Sleep(lane.reactor, kNothingToSendNs);
  }
}

Task<int> make_room(PageCache& cache, Lane& lane, File& file) {
  if (file.dirty_pages.load() > 0) {
    Pass pass = co_await flush_pass(cache, lane, file, Which::reachable, 1);
    if (pass.sent > 0) co_return pass.error;
  }
  co_await Sleep(lane.reactor, kNothingToSendNs);
  co_return 0;
}

void note_dirty(PageCache&, Lane& lane, File& file) {
  if (file.dirty_pages.load(std::memory_order_relaxed) == 0) return;
  file.lock.lock();
  bool add = !file.in_dirty_list;
  file.in_dirty_list = true;
  if (add) file.dirty_since_ns = monotonic_ns();
  file.lock.unlock();
  if (add && lane.flusher != nullptr) lane.flusher->add(file);
}

int take_error(Handle& handle) {
  uint32_t now = handle.file->error_sequence.load();
  if (now == handle.seen_errors) return 0;
  handle.seen_errors = now;
  return EIO;
}

BackgroundFlusher::~BackgroundFlusher() { stop(); }

void BackgroundFlusher::stop() {
  lane_.reactor.cancel(*this);
  for (File* file : files_) cache_.put_file(*file);
  files_.clear();
}

void BackgroundFlusher::add(File& file) {
  file.references.fetch_add(1);
  files_.push_back(&file);
  if (!armed()) lane_.reactor.arm(*this, monotonic_ns() + cache_.options().flush_age_ns);
}

void BackgroundFlusher::on_timer() {
  uint64_t now = monotonic_ns();
  bool pressed = cache_.dirty_bytes() > cache_.options().dirty_bytes / 4;
  std::vector<File*> due;
  std::erase_if(files_, [&](File* file) {
    bool old = pressed || now - file->dirty_since_ns >= cache_.options().flush_age_ns;
    if (old) due.push_back(file);
    return old;
  });
  for (File* file : due) flush(*file);
  if (!files_.empty() && !armed()) lane_.reactor.arm(*this, now + cache_.options().flush_age_ns / 2);
}

Detached BackgroundFlusher::flush(File& file) {
  // Failed pages wait here too, until their appliance is reachable again.
  file.lock.lock();
  retry_failed_locked(cache_, file);
  file.lock.unlock();
  co_await flush_pass(cache_, lane_, file, Which::reachable, UINT32_MAX);
  file.lock.lock();
  bool again = file.dirty_pages.load() > 0;
  if (again) file.dirty_since_ns = monotonic_ns();
  file.in_dirty_list = again;
  file.lock.unlock();
  if (again) add(file);
  cache_.put_file(file);
}

}  // namespace extmem::cache
