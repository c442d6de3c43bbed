// A region's side of the backing store: what of it has changed, what is taken out of it to be put there, what comes
// home, and what memory is given back because the store has what was in it.
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstring>

#include "region/region_hold.h"

namespace extmem::region {

Region::Changes Region::begin_persist(uint64_t first, uint64_t end) {
  // While nobody is in the middle of a write: whoever writes afterwards leaves a new mark.
  Exclusive exclusive(*this);
  Changes changes{.blocks = {}, .unseen = unseen_.load(), .chunks = {}, .bytes = destroyed_ ? 0 : bytes_};
  end = std::min(end, blocks_->blocks());
  blocks_->take_changed(first, end, changes.blocks);
  uint64_t first_chunk = first / BlockState::kPerChunk,
           end_chunk = (end + BlockState::kPerChunk - 1) / BlockState::kPerChunk;
  if (!changes.unseen) {
    // Only blocks are looked at: a chunk that they are but a part of is still marked when clients write by themselves.
    first_chunk = (first + BlockState::kPerChunk - 1) / BlockState::kPerChunk;
    if (end < blocks_->blocks()) end_chunk = end / BlockState::kPerChunk;
  }
  append_lent(changes.chunks, first_chunk, end_chunk);  // first: a loan that ends now leaves its mark
  const size_t lent = changes.chunks.size();
  written_.load(std::memory_order_acquire)->take(changes.chunks, first_chunk, end_chunk);
  // Messages mark blocks as well: where no block is marked, a client wrote by itself.
  for (uint64_t chunk : std::span(changes.chunks).subspan(lent)) {
    const auto block = std::lower_bound(changes.blocks.begin(), changes.blocks.end(), chunk * BlockState::kPerChunk);
    if (block == changes.blocks.end() || *block / BlockState::kPerChunk != chunk) changes.told.push_back(chunk);
  }
  changes.first = first_chunk * BlockState::kPerChunk;
  changes.end = std::min(end_chunk * BlockState::kPerChunk, blocks_->blocks());
  std::sort(changes.chunks.begin(), changes.chunks.end());
  changes.chunks.erase(std::unique(changes.chunks.begin(), changes.chunks.end()), changes.chunks.end());
  return changes;
}

ssize_t Region::copy_once(uint64_t block, std::span<uint8_t> into) const {
  const uint64_t offset = block * BlockState::kBytes;
  if (destroyed_ || offset >= bytes_) return -1;
  const size_t bytes = std::min<uint64_t>(into.size(), bytes_ - offset);
  const ssize_t got = pread(fd_.get(), into.data(), bytes, static_cast<off_t>(offset));
  if (got != static_cast<ssize_t>(bytes)) return -1;
  std::fill(into.begin() + got, into.end(), 0);
  return got;
}

bool Region::copy_block(uint64_t block, std::span<uint8_t> into) {
  constexpr int kTries = 4;
  std::array<uint8_t, BlockState::kBytes> again;
  for (int tries = 0; tries < kTries; ++tries) {
    std::shared_lock shared(hold_);
    if (copy_once(block, into) < 0) return false;
    // A page that was being written while it was read may be half of each. Who writes by messages has left a mark;
    // who writes the memory itself is found by a second look.
    if (blocks_->changed(block)) break;
    if (!unseen_.load()) return true;
    if (copy_once(block, again) < 0) return false;
    if (std::memcmp(again.data(), into.data(), into.size()) == 0) return true;
  }
  // Under writes without end: those by messages come again in the time of a copy.
  Exclusive exclusive(*this);
  return copy_once(block, into) >= 0;
}

uint64_t Region::next_with_memory(uint64_t block) const {
  std::shared_lock shared(hold_);
  if (destroyed_) return UINT64_MAX;
  const off_t data = lseek(fd_.get(), static_cast<off_t>(block * BlockState::kBytes), SEEK_DATA);
  return data < 0 ? UINT64_MAX : static_cast<uint64_t>(data) / BlockState::kBytes;
}

void Region::end_writing() {
  Exclusive exclusive(*this);
  if (destroyed_) return;
  end_lending(0, bytes_);
  fcntl(fd_.get(), F_ADD_SEALS, F_SEAL_FUTURE_WRITE);
}

std::optional<Status> Region::fill(uint64_t block, std::span<const uint8_t> data, uint64_t drops) {
  std::shared_lock shared(hold_);
  const uint64_t offset = block * BlockState::kBytes;
  if (destroyed_ || offset >= bytes_) return Status::ok;
  if (drops_.load() != drops) return std::nullopt;
  std::lock_guard guard(thin_lock_);  // of two who bring it, the later one finds it here, perhaps written to since
  if (!blocks_->absent(block)) return Status::ok;
  data = data.first(std::min<uint64_t>(data.size(), bytes_ - offset));
  if (data.empty()) blocks_->mark_damaged(block);
  const Status status = data.empty() ? Status::ok : write_memory(offset, data);
  if (thin_) recount_thin();
  if (status == Status::ok) blocks_->make_present(block);
  return status;
}

// ---- giving memory back

std::optional<uint64_t> Region::unshared() {
  Exclusive exclusive(*this);
  if (destroyed_ || thin_ || is_held()) return std::nullopt;
  // What is sealed could not come home, and what was cut off must not come back as it was before.
  const int seals = fcntl(fd_.get(), F_GET_SEALS);
  if (seals < 0 || (seals & (F_SEAL_WRITE | F_SEAL_FUTURE_WRITE)) != 0) return std::nullopt;
  struct stat found {};
  if (fstat(fd_.get(), &found) != 0 || static_cast<uint64_t>(found.st_size) < bytes_) return std::nullopt;
  return given_.load();
}

std::optional<uint64_t> Region::drop(uint64_t first, uint64_t end, uint64_t given,
                                     const std::function<bool(uint64_t block)>& is_stored) {
  // Nobody is in the middle of a write, and who wrote since the block was put has left a mark.
  Exclusive exclusive(*this);
  if (destroyed_) return 0;
  if (given_.load() != given) return std::nullopt;
  drops_.fetch_add(1);
  const uint64_t before = resident_bytes();
  constexpr int kMode = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
  end = std::min(end, (bytes_ + BlockState::kBytes - 1) / BlockState::kBytes);
  for (uint64_t block = first; block < end; ++block) {
    if (!is_droppable(block, is_stored)) continue;
    const bool stored = is_stored(block);
    if (stored) blocks_->make_absent(block);
    const auto offset = static_cast<off_t>(block * BlockState::kBytes);
    if (fallocate(fd_.get(), kMode, offset, BlockState::kBytes) != 0 && stored) blocks_->make_present(block);
  }
  return before - std::min(before, resident_bytes());
}

uint64_t Region::resident_within(uint64_t first, uint64_t end) const {
  std::shared_lock shared(hold_);
  if (destroyed_) return 0;
  const uint64_t offset = first * BlockState::kBytes, stop = std::min(end * BlockState::kBytes, bytes_);
  if (offset >= stop) return 0;
  return stop - offset - std::min(stop - offset, missing_bytes(offset, stop - offset));
}

bool Region::is_droppable(uint64_t block, const std::function<bool(uint64_t block)>& is_stored) {
  if (blocks_->changed(block) || blocks_->absent(block) || blocks_->damaged(block)) return false;
  if (is_stored(block)) return true;
  // The store has nothing of zeros.
  std::array<uint8_t, BlockState::kBytes> data;
  return copy_once(block, data) >= 0 && std::all_of(data.begin(), data.end(), [](uint8_t byte) { return byte == 0; });
}

}  // namespace extmem::region
