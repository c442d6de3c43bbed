#include "cache/copies.h"

#include <algorithm>

#include "base/clock.h"
#include "cache/file_control.h"

namespace extmem::cache {

namespace {

/// All copies together: what is asked of the last one must end in time for EIO within 5 s.
constexpr uint64_t kReadPatienceNs = 4'250'000'000;
/// Stretches of a file that are read from one copy; the next is read from the next, so that both give their bandwidth.
constexpr uint64_t kTurnBytes = protocol::kMaxIoBytes;

bool is_lost(const extent::Member& copy) {
  return copy.region->state.load(std::memory_order_acquire) == fabric::RegionState::lost;
}

bool is_down(const extent::Member& copy) {
  return copy.region->appliance->state.load(std::memory_order_acquire) == fabric::PeerState::down;
}

bool is_near(const extent::Member& copy) {
  const fabric::Appliance& appliance = *copy.region->appliance;
  return appliance.transport.load(std::memory_order_relaxed) == fabric::TransportKind::shm &&
         appliance.state.load(std::memory_order_relaxed) == fabric::PeerState::up;
}

/// The lower the better: one that may differ is read when nothing else can be, one that is away is asked last.
unsigned rank(const extent::Member& copy) {
  return (copy.unsynced ? 4 : 0) + (is_lost(copy) || is_down(copy) ? 2 : 0) + (is_near(copy) ? 0 : 1);
}

/// Which copy to ask next; -1: all were asked.
int choose(const PieceRead& read) {
  const unsigned count = read.piece.copy_count;
  const auto turn = static_cast<unsigned>(read.file_offset / kTurnBytes % count);
  int best = -1;
  unsigned best_rank = UINT32_MAX;
  for (unsigned step = 0; step < count; ++step) {
    const unsigned index = (turn + step) % count;
    const extent::Member& copy = read.piece.copies[index];
    if (copy.missing || (read.tried >> index & 1) != 0) continue;
    if (const unsigned its = rank(copy); its < best_rank) {
      best = static_cast<int>(index);
      best_rank = its;
    }
  }
  return best;
}

/// Copies that are left share the time that is left.
uint64_t deadline_of(const PieceRead& read, uint64_t started) {
  unsigned left = 0;
  for (unsigned index = 0; index < read.piece.copy_count; ++index) {
    left += !read.piece.copies[index].missing && (read.tried >> index & 1) == 0 ? 1 : 0;
  }
  if (left == 1 && read.tried == 0) return 0;
  const uint64_t now = monotonic_ns();
  const uint64_t end = std::max(started + kReadPatienceNs, now);
  return now + (end - now) / left;
}

/// Sends it to the next copy. False: none is left, and the last one's status stands.
bool submit_read(fabric::Batch& batch, PieceRead& read, uint64_t started) {
  const int index = choose(read);
  if (index < 0) {
    if (read.tried == 0) read.operation.status = fabric::Status::not_present;
    return false;
  }
  const extent::Member& copy = read.piece.copies[static_cast<size_t>(index)];
  read.operation.deadline_ns = deadline_of(read, started);
  read.tried |= 1u << index;
  read.operation.op = fabric::Op::read;
  read.operation.region = copy.region;
  read.operation.offset = copy.offset;
  batch.submit(read.operation);
  return true;
}

/// Not where we are what is wrong.
bool another_may_answer(fabric::Status status) {
  return status != fabric::Status::ok && status != fabric::Status::fenced && status != fabric::Status::closed &&
         status != fabric::Status::bad_request;
}

bool took(const PieceWrite& write, const extent::Member& copy) {
  for (unsigned index = 0; index < write.piece.copy_count; ++index) {
    const extent::Member& sent = write.piece.copies[index];
    const bool is_it = sent.region == copy.region && sent.offset == copy.offset && !sent.missing;
    if (is_it && write.operations[index].status == fabric::Status::ok) return true;
  }
  return false;
}

/// Of the copies that were written to, whether any, and whether all took it.
struct Taken {
  bool any = false;
  bool all = true;
};
Taken taken(const PieceWrite& write) {
  Taken result;
  for (unsigned index = 0; index < write.piece.copy_count; ++index) {
    if (write.piece.copies[index].missing) continue;
    const bool ok = write.operations[index].status == fabric::Status::ok;
    result.any |= ok;
    result.all &= ok;
  }
  return result;
}

/// Whether every copy that counts now has it.
bool has_landed_locked(const File& file, const PieceWrite& write) {
  const auto now = file.extents.resolve(write.file_offset, write.bytes);
  if (now.is_hole() || now.length < write.bytes) return false;
  bool any = false;
  for (const extent::Member& copy : now.all()) {
    if (copy.missing) continue;
    if (!took(write, copy)) return false;
    any = true;
  }
  return any;
}

/// What became of it where not all took it: the status of a copy that did not, one that may come back rather than one
/// that is lost.
fabric::Status failure_of(const PieceWrite& write) {
  fabric::Status status = fabric::Status::not_present;
  for (unsigned index = 0; index < write.piece.copy_count; ++index) {
    const fabric::Status its = write.operations[index].status;
    if (write.piece.copies[index].missing || its == fabric::Status::ok) continue;
    const bool is_final = its == fabric::Status::not_present || its == fabric::Status::stale_incarnation;
    if (!is_final) return its;
  }
  return taken(write).any ? fabric::Status::unreachable : status;
}

/// The copies that did not take what others took.
std::vector<extent::ControlCall::Place> find_behind_locked(const File& file, std::span<PieceWrite> writes) {
  std::vector<extent::ControlCall::Place> behind;
  for (PieceWrite& write : writes) {
    const Taken result = taken(write);
    if (result.all || !result.any || has_landed_locked(file, write)) continue;
    for (unsigned index = 0; index < write.piece.copy_count; ++index) {
      const extent::Member& copy = write.piece.copies[index];
      if (!copy.missing && write.operations[index].status != fabric::Status::ok)
        behind.push_back({copy.region->id, copy.offset});
    }
  }
  return behind;
}

}  // namespace

Task<int> read_pieces(Lane& lane, std::span<PieceRead> reads) {
  const uint64_t started = monotonic_ns();
  for (PieceRead& read : reads) read.open = !read.piece.is_hole();
  for (bool again = true; again;) {
    again = false;
    fabric::Batch batch(lane.fabric);
    for (PieceRead& read : reads) {
      const bool is_first = read.tried == 0;
      read.open = read.open && submit_read(batch, read, started);
      if (read.open && !is_first) lane.counters.add(lane.counters.copies_retried);
    }
    co_await batch;
    for (PieceRead& read : reads) {
      read.open = read.open && another_may_answer(read.operation.status);
      again |= read.open;
    }
  }
  for (PieceRead& read : reads) {
    if (read.failed()) co_return errno_of(read.operation.status);
  }
  co_return 0;
}

void submit_write(fabric::Batch& batch, PieceWrite& write, std::span<const iovec> segments) {
  for (unsigned index = 0; index < write.piece.copy_count; ++index) {
    const extent::Member& copy = write.piece.copies[index];
    fabric::Operation& operation = write.operations[index];
    operation = {};
    if (copy.missing) continue;
    operation.op = fabric::Op::write;
    operation.region = copy.region;
    operation.offset = copy.offset;
    operation.segments = segments.data();
    operation.segment_count = static_cast<uint32_t>(segments.size());
    operation.bytes = write.bytes;
    batch.submit(operation);
  }
}

Task<int> settle_writes(PageCache& cache, Lane& lane, File& file, std::span<PieceWrite> writes) {
  bool whole = true;
  for (PieceWrite& write : writes) {
    const Taken result = taken(write);
    write.status = result.all && result.any ? fabric::Status::ok : failure_of(write);
    whole &= write.status == fabric::Status::ok;
  }
  if (whole) co_return 0;
  // Before the record is made: one of a client that we no longer are is not to go out in our name.
  extent::ControlCall call(cache.control_plane(), lane.reactor);
  call.kind = extent::ControlCall::Kind::drop_copies;
  call.node = file.node;
  file.lock.lock();
  call.places = find_behind_locked(file, writes);
  if (!call.places.empty()) call.record = encode_record_locked(file);
  file.lock.unlock();
  if (!call.places.empty()) {
    lane.counters.add(lane.counters.copies_dropped, call.places.size());
    if (co_await call == 0) adopt_marks(cache, file, call.record);
  }
  int error = 0;
  file.lock.lock();
  for (PieceWrite& write : writes) {
    if (write.status != fabric::Status::ok && taken(write).any && has_landed_locked(file, write))
      write.status = fabric::Status::ok;
    if (write.status != fabric::Status::ok) error = errno_of(write.status);
  }
  file.lock.unlock();
  co_return error;
}

const fabric::Region& home_of(const extent::Piece& piece) {
  const extent::Member* home = nullptr;
  for (const extent::Member& copy : piece.all()) {
    if (copy.missing) continue;
    if (home == nullptr) home = &copy;
    if (is_lost(copy) || is_down(copy)) continue;
    home = &copy;
    break;
  }
  return *(home == nullptr ? piece.copies[0] : *home).region;
}

Standing standing_of(const extent::Piece& piece) {
  Standing standing;
  for (const extent::Member& copy : piece.all()) {
    if (copy.missing || is_lost(copy)) continue;
    standing.lost = false;
    standing.down &= is_down(copy);
  }
  return standing;
}

}  // namespace extmem::cache
