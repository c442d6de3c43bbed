#include "cache/file_control.h"

#include <errno.h>

#include <algorithm>

#include "cache/flusher.h"
#include "cache/renewal.h"
#include "cache/shared_io.h"
#include "cache/shared_turns.h"
#include "cache/writer.h"

namespace extmem::cache {

void set_record_locked(File& file, const extent::FileAttributes& attributes, extent::ExtentMap extents) {
  file.extents = std::move(extents);
  file.attributes = attributes;
  file.size.store(attributes.size);
  file.committed_change = attributes.change;
  file.surplus = {.from = file.extents.end(), .known = file.extents.end()};
}

namespace {

/// offset itself when it is page-aligned.
uint64_t end_of_page(uint64_t offset) { return (offset + kPageBytes - 1) / kPageBytes * kPageBytes; }

/// For less than this a file that is committed already is not committed once more.
constexpr uint64_t kSurplusWorthACommit = 64 * 1024;

/// At the last close of a file that has grown: room that was carved for growth goes back, once in a while that the file
/// is held here (whoever appends again and again keeps it, or the file would come to be in scraps). The record that the
/// close commits is without it. What others may have a record of the manager frees, the rest nobody but us knows.
void trim_surplus(PageCache& cache, File& file) {
  file.lock.lock();
  auto& surplus = file.surplus;
  const uint64_t size = file.size.load();
  const uint64_t end = std::max(end_of_page(size), surplus.from);
  const uint64_t extra = file.extents.end() - std::min(end, file.extents.end());
  const bool quiet = file.handles.load() == 1 && file.active_writers.load() == 0 && !file.cut.pending;
  const bool known_or_unknown = surplus.known <= end || surplus.known == file.extents.end();
  const bool is_committed = file.attributes.change == file.committed_change;
  const bool may =
      file.mode.load() == Delegation::write && quiet && known_or_unknown && !surplus.trimmed && !surplus.soiled;
  if (may && extra > 0 && (!is_committed || extra >= kSurplusWorthACommit)) {
    auto freed = file.extents.trim(end);
    surplus.trimmed = true;
    ++file.attributes.change;
    if (surplus.known <= end) {
      for (auto& piece : freed) cache.slabs().free(piece.region, piece.offset, piece.bytes);
    }
  }
  file.lock.unlock();
}

/// The file is as the record says, from one moment to the next. first() runs in that moment, under the lock.
template <typename First>
bool apply_record(PageCache& cache, File& file, std::span<const uint8_t> record, First first) {
  extent::FileAttributes attributes;
  extent::ExtentMap extents;
  if (!extent::decode_record(record, cache.directory(), attributes, extents)) return false;
  file.lock.lock();
  first();
  // Shared, it shrinks by cuts only, which are of another epoch: growth is told before the manager's record has it.
  bool grows_only = file.mode.load() == Delegation::shared && file.attributes.epoch == attributes.epoch;
  if (grows_only) attributes.size = std::max(file.size.load(), attributes.size);
  set_record_locked(file, attributes, std::move(extents));  // the size is read without the lock: it changes once
  file.lock.unlock();
  return true;
}

/// The record on its way to every copy of the file's first piece.
struct Beside {
  std::vector<uint8_t> record;
  iovec segment{};
  std::array<fabric::Operation, protocol::kMaxCopies> operations{};
  unsigned count = 0;

  bool kept() const {
    const auto sent = std::span(operations).first(count);
    return count > 0 && std::ranges::all_of(sent, [](auto& one) { return one.status == fabric::Status::ok; });
  }
};

void plan_put_record(File& file, Beside& beside) {
  file.lock.lock();
  beside.record = encode_record_locked(file);
  const auto extents = file.extents.extents();
  const auto piece = extents.empty() ? extent::Piece{} : file.extents.resolve(extents.front().file_offset, 1);
  file.lock.unlock();
  if (beside.record.size() > protocol::kMaxRecordBytes) return;
  beside.segment = {beside.record.data(), beside.record.size()};
  for (const extent::Member& copy : piece.all()) {
    if (copy.missing) continue;
    fabric::Operation& operation = beside.operations[beside.count++];
    operation.op = fabric::Op::put_record;
    operation.region = copy.region;
    operation.operand = file.node;
    operation.segments = &beside.segment;
    operation.segment_count = 1;
    operation.bytes = static_cast<uint32_t>(beside.record.size());
  }
}

/// Zeroes [offset, end), which lies within one page; nothing when it is empty or a hole.
Task<int> zero_edge(PageCache& cache, Lane& lane, File& file, uint64_t offset, uint64_t end) {
  if (offset >= end) co_return 0;
  auto bytes = static_cast<uint32_t>(end - offset);
  if (file.mode.load() == Delegation::shared) co_return co_await zero_through(cache, lane, file, offset, bytes);
  co_return co_await zero_in_page(cache, lane, file, offset, bytes);
}

}  // namespace

int install_file(PageCache& cache, uint64_t node, Delegation mode, std::span<const uint8_t> record) {
  File& file = cache.make_file(node);
  file.lock.lock();
  uint64_t change_before = file.attributes.change;
  Delegation mode_before = file.mode.load();
  file.lock.unlock();
  bool sound = record.empty() ? mode_before != Delegation::none : apply_record(cache, file, record, [] {});
  if (sound) {
    file.lock.lock();
    file.mode.store(mode);
    if (mode != Delegation::shared) file.end.ours = false;
    file.lock.unlock();
    bool others_wrote =
        mode_before == Delegation::shared || (!record.empty() && file.attributes.change != change_before);
    if (others_wrote) cache.drop_clean(file, 0, UINT32_MAX);
  }
  cache.put_file(file);
  if (!sound && mode_before == Delegation::none) cache.forget_file(node);
  return sound ? 0 : EINVAL;
}

std::vector<uint8_t> encode_record_locked(File& file) {
  file.surplus.known = std::max(file.surplus.known, file.extents.end());
  extent::FileAttributes attributes = file.attributes;
  attributes.ino = file.node;
  attributes.size = file.size.load();
  return extent::encode_record(attributes, file.extents);
}

std::vector<uint8_t> record_of(File& file) {
  file.lock.lock();
  auto record = encode_record_locked(file);
  file.lock.unlock();
  return record;
}

void adopt_marks(PageCache& cache, File& file, std::span<const uint8_t> record) {
  extent::FileAttributes attributes;
  extent::ExtentMap extents;
  if (!extent::decode_record(record, cache.directory(), attributes, extents)) return;
  file.lock.lock();
  if (attributes.epoch >= file.attributes.epoch) {
    file.extents.adopt_marks(extents);
    file.attributes.epoch = attributes.epoch;
    // Newer than the manager's, whatever was written meanwhile: else a record that has it would count as known.
    file.attributes.change = std::max(file.attributes.change, attributes.change) + 1;
  }
  file.lock.unlock();
}

Task<int> sync_file(PageCache& cache, Lane& lane, File& file, bool closing, uint64_t owner) {
  // Also with failed pages: then what did reach the appliances still gets its record.
  int unwritten = 0;
  if (file.dirty_pages.load() > 0 || file.writing_pages > 0) unwritten = co_await flush_file(cache, lane, file);
  if (closing) trim_surplus(cache, file);
  bool must_ask = closing ? file.locked.load() : file.unannounced.load();
  // Before the record is made: one of a client that we no longer are is not to go out in our name.
  extent::ControlCall call(cache.control_plane(), lane.reactor);
  file.lock.lock();
  uint64_t change = file.attributes.change;
  bool changed = change != file.committed_change && file.mode.load() == Delegation::write;
  file.lock.unlock();
  if (!changed && !must_ask) co_return unwritten;

  call.kind = extent::ControlCall::Kind::commit;
  call.node = file.node;
  call.closing = closing;
  call.lock_owner = owner;
  Beside beside;
  fabric::Batch batch(lane.fabric);
  if (changed) {
    plan_put_record(file, beside);
    call.record = beside.record;
    for (unsigned index = 0; index < beside.count; ++index) batch.submit(beside.operations[index]);
  }
  int error = co_await call;
  co_await batch;
  if (error == 0 && changed) {
    file.lock.lock();
    file.committed_change = std::max(file.committed_change, change);
    file.lock.unlock();
  }
  if (error == ENOTCONN && beside.kept()) co_return unwritten;
  co_return error == 0 ? unwritten : EIO;
}

Task<int> begin_cut(PageCache& cache, Lane& lane, File& file, uint64_t offset, uint64_t end) {
  uint64_t first = (offset + kPageBytes - 1) / kPageBytes;
  uint64_t last = std::max(first, end == UINT64_MAX ? UINT32_MAX : end / kPageBytes);  // exclusive
  bool ours = false;
  for (;;) {
    PageWaiter waiter(lane.reactor, 0, UINT32_MAX);
    file.lock.lock();
    bool busy = file.cut.pending && !ours;  // another cut of this file: one at a time
    if (!busy) {
      ours = file.cut.pending = true;
      busy = file.active_writers.load() > 0;
    }
    if (!busy) {
      file.cut = {true, true, first * kPageBytes, last * kPageBytes, offset, end};
      if (first < last) {
        file.for_each_page(
            static_cast<uint32_t>(first), static_cast<uint32_t>(last - 1), [&](uint32_t, uint32_t frame) {
              PageState state = cache.frames()[frame].state;
              busy |= state == PageState::filling || state == PageState::writing || state == PageState::redirtied;
            });
      }
    }
    if (busy) file.enlist(waiter);
    file.lock.unlock();
    if (!busy) co_return co_await reads_settled(lane, file);
    co_await waiter;
  }
}

Task<int> end_cut(PageCache& cache, Lane& lane, File& file, std::span<const uint8_t> record, bool edges_zeroed) {
  uint64_t old_size = file.size.load();
  Cut cut = file.cut;  // ours until it is cleared below
  auto drop_range = [&] {
    if (cut.offset >= cut.end) return;
    cache.note(Reference::Kind::drop, file, page_of(cut.offset), (cut.end - cut.offset) / kPageBytes);
    file.for_each_page(page_of(cut.offset), page_of(cut.end - 1),
                       [&](uint32_t page, uint32_t frame) { cache.drop_locked(file, page, frame); });
  };
  bool sound = record.empty() || apply_record(cache, file, record, drop_range);
  file.lock.lock();
  file.cut = {};
  file.read_ahead.reset();
  file.wake(0, UINT32_MAX);
  uint64_t new_size = file.size.load();
  file.lock.unlock();
  if (record.empty() || !sound) co_return sound ? 0 : EIO;
  if (cut.asked_end == UINT64_MAX) {
    // A truncation leaves part of a page: from there on it must read as zeros if the file grows again, and if it has
    // grown.
    uint64_t edge = std::min(old_size, new_size);
    if (edges_zeroed && new_size <= old_size) co_return 0;
    co_return co_await zero_edge(cache, lane, file, edge, end_of_page(edge));
  }
  if (edges_zeroed) co_return 0;
  uint64_t end = std::min(cut.asked_end, new_size);
  int error = co_await zero_edge(cache, lane, file, cut.asked_offset, std::min(end_of_page(cut.asked_offset), end));
  if (error == 0 && cut.end >= end_of_page(cut.asked_offset))
    error = co_await zero_edge(cache, lane, file, cut.end, end);
  co_return error;
}

namespace {

/// A positive errno. Of what goes through its own cache the kernel sees to this itself.
Task<int> drop_privileges(PageCache& cache, Lane& lane, File& file) {
  extent::ControlCall call(cache.control_plane(), lane.reactor);
  call.kind = extent::ControlCall::Kind::drop_privileges;
  call.node = file.node;
  co_return co_await call;
}

bool grows_shared(const File& file, const Write& write) {
  return file.mode.load() == Delegation::shared && write.origin == Origin::application &&
         (write.appends || write.offset + write.data.size() > file.size.load());
}

/// By a writer, which has the end of the file if it needs that.
Task<int> write_entered(PageCache& cache, Lane& lane, File& file, Write& write) {
  // Since this writer came a fence may have come and gone: what was looked at before is looked at again.
  if (is_void(file)) co_return EIO;
  if (write.handle != nullptr && write.handle->broken()) co_return EIO;
  if (write.origin == Origin::mapping && file.refuses_mapped.load()) co_return EIO;
  if (write.appends) write.offset = file.size.load();
  if (write.offset > kMaxFileBytes - write.data.size()) co_return EFBIG;
  auto data = write.data;
  if (write.origin == Origin::mapping) {
    uint64_t size = file.size.load();
    data = data.first(std::min<uint64_t>(data.size(), size > write.offset ? size - write.offset : 0));
  }
  if (data.empty()) co_return 0;
  auto bytes = static_cast<uint32_t>(data.size());
  if (file.mode.load() != Delegation::shared) {
    int error = co_await write_cached(cache, lane, file, write.offset, data.data(), bytes);
    if (error != 0) {
      file.lock.lock();
      file.surplus.soiled = true;
      file.lock.unlock();
    }
    co_return error;
  }
  write.told = write.appends;
  co_return co_await write_through(cache, lane, file, {write.offset, data.data(), bytes, write.holds_pages});
}

}  // namespace

Task<int> write_file(PageCache& cache, Lane& lane, File& file, Write& write) {
  if (write.drops_privileges && file.privileged.load()) {
    int refused = co_await drop_privileges(cache, lane, file);
    if (refused != 0) co_return refused;
  }
  for (;;) {
    AtEnd at_end(file);
    int error = 0;
    if (grows_shared(file, write)) error = co_await at_end.claim(cache, lane, write.holds_pages);
    if (error == 0) error = co_await enter_writer(lane, file);
    if (error != 0) co_return error;
    Writing writing(file);  // before the mode is looked at: whoever takes it away waits for the writers within
    if (grows_shared(file, write) && !at_end.claimed()) continue;  // shared, or cut, meanwhile
    co_return co_await write_entered(cache, lane, file, write);
  }
}

Task<int> allocate_range(PageCache& cache, Lane& lane, File& file, uint64_t offset, uint64_t bytes, bool keep_size) {
  uint64_t end = offset + bytes;
  auto grows = [&] { return !keep_size && end > file.size.load(); };
  for (;;) {
    AtEnd at_end(file);
    int error = 0;
    if (grows() && file.mode.load() == Delegation::shared) error = co_await at_end.claim(cache, lane, false);
    if (error == 0) error = co_await enter_writer(lane, file);
    if (error != 0) co_return error;
    Writing writing(file);
    if (is_void(file)) co_return EIO;
    bool shared = file.mode.load() == Delegation::shared;
    if (shared && grows() && !at_end.claimed()) continue;
    file.lock.lock();
    file.surplus.from = std::max(file.surplus.from, end_of_page(end));
    file.lock.unlock();
    error = co_await ensure_room(cache, lane, file, offset, end);
    if (error != 0) co_return error;
    if (grows()) {
      error = shared ? co_await extend_through(cache, lane, file, end) : co_await extend_size(cache, lane, file, end);
    }
    file.lock.lock();
    touch_locked(file);
    file.lock.unlock();
    co_return error;
  }
}

}  // namespace extmem::cache
