#include "store/store.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "base/assert.h"
#include "store/crc32c.h"

namespace extmem::store {

namespace {

/// The file grows by so much at a time.
constexpr uint64_t kGrowthCells = (uint64_t{64} << 20) / kCellBytes;
/// In a full store, so many blocks at least are replaced between two commits.
constexpr uint64_t kReplacingGroups = 16;
/// So much is collected before the device is told to begin with it.
constexpr uint64_t kStartBytes = uint64_t{8} << 20;

bool is_zero(std::span<const uint8_t> data) {
  return data[0] == 0 && std::memcmp(data.data(), data.data() + 1, data.size() - 1) == 0;
}

bool same(const Entry& one, const Entry& other) { return std::memcmp(&one, &other, sizeof one) == 0; }

}  // namespace

Store::Store(std::unique_ptr<BlockFile> file, const Options& options, uint64_t cells)
    : file_(std::move(file)), codec_(options.codec), space_(kDataStart / kCellBytes, cells) {}

std::vector<Store::RegionInfo> Store::regions() const {
  std::lock_guard guard(state_lock_);
  std::vector<RegionInfo> result;
  for (auto& [id, kept] : regions_) result.push_back({id, kept.bytes, kept.thin, kept.exact, kept.stored_bytes});
  return result;
}

Store::Counters Store::counters() const {
  std::lock_guard guard(state_lock_);
  return {.generation = generation_.load(),
          .used_bytes = kDataStart + space_.used_cells() * kCellBytes,
          .limit_bytes = space_.limit() * kCellBytes,
          .bytes_written = bytes_written_.load(),
          .commits = commits_.load(),
          .damaged_blocks = damaged_.load()};
}

std::optional<Verdict> Store::broken() const {
  std::lock_guard guard(state_lock_);
  return broken_;
}

Verdict Store::fail(Verdict verdict) {
  std::lock_guard guard(state_lock_);
  if (verdict.code == Code::io_error && !broken_) broken_ = verdict;
  return verdict;
}

// ---- changes

void Store::keep_region(uint64_t region, uint64_t bytes, bool thin) {
  std::lock_guard writing(write_lock_);
  std::lock_guard guard(state_lock_);
  Kept& kept = regions_[region];
  if (kept.bytes == bytes && kept.thin == thin) return;
  const uint64_t blocks = (bytes + kBlockBytes - 1) / kBlockBytes;
  const uint64_t before = (kept.bytes + kBlockBytes - 1) / kBlockBytes;
  for (uint64_t block = blocks; block < before; ++block) set_entry(kept, block, {});
  const uint64_t chunks = (blocks + kChunkBlocks - 1) / kChunkBlocks;
  for (uint64_t index = chunks; index < kept.chunks.size(); ++index) {
    const auto& [place, entries, changed] = kept.chunks[index];
    if (place.cell != 0) space_.release(place.cell, cells_of(place.bytes));
    if (changed) --changed_chunks_;
  }
  kept.chunks.resize(chunks);
  kept.bytes = bytes;
  kept.thin = thin;
  kept.exact = false;
  changed_ = true;
}

void Store::remove_region(uint64_t region) {
  std::lock_guard writing(write_lock_);
  std::lock_guard guard(state_lock_);
  auto found = regions_.find(region);
  if (found == regions_.end()) return;
  for (Chunk& chunk : found->second.chunks) {
    for (const Entry& entry : chunk.entries) {
      if (entry.cell != 0) space_.release(entry.cell, cells_of(entry.bytes));
    }
    if (chunk.place.cell != 0) space_.release(chunk.place.cell, cells_of(chunk.place.bytes));
    if (chunk.changed) --changed_chunks_;
  }
  drop_records(found->second);
  regions_.erase(found);
  changed_ = wipes_freed_ = true;
}

void Store::drop_records(Kept& kept) {
  for (const Piece& piece : kept.records) space_.release(piece.cell, cells_of(piece.bytes));
  kept.records.clear();
  kept.record_bytes = 0;
}

void Store::set_exact(uint64_t region, bool exact) {
  std::lock_guard writing(write_lock_);
  std::lock_guard guard(state_lock_);
  auto found = regions_.find(region);
  if (found == regions_.end() || found->second.exact == exact) return;
  found->second.exact = exact;
  changed_ = true;
}

void Store::clear(uint64_t region, uint64_t first_block, uint64_t blocks) {
  std::lock_guard writing(write_lock_);
  std::lock_guard guard(state_lock_);
  auto found = regions_.find(region);
  if (found == regions_.end()) return;
  Kept& kept = found->second;
  const uint64_t end = std::min<uint64_t>(first_block + blocks, kept.chunks.size() * kChunkBlocks);
  for (uint64_t block = first_block; block < end; ++block) {
    if (kept.chunks[block / kChunkBlocks].entries.empty()) {
      block = (block / kChunkBlocks + 1) * kChunkBlocks - 1;
      continue;
    }
    set_entry(kept, block, {});
  }
}

/// Both locks are held.
void Store::set_entry(Kept& kept, uint64_t block, const Entry& entry) {
  Chunk& chunk = kept.chunks[block / kChunkBlocks];
  if (chunk.entries.empty()) {
    if (entry.cell == 0 && entry.flags == 0) return;
    chunk.entries.resize(kChunkBlocks);
  }
  Entry& place = chunk.entries[block % kChunkBlocks];
  if (same(place, entry)) return;
  if (place.cell != 0) {
    space_.release(place.cell, cells_of(place.bytes));
    kept.stored_bytes -= place.bytes;
    if (entry.cell == 0) wipes_freed_ = true;
  }
  kept.stored_bytes += entry.bytes;
  place = entry;
  if (!chunk.changed) ++changed_chunks_;
  chunk.changed = changed_ = true;
}

Verdict Store::put(uint64_t region, uint64_t first_block, std::span<const uint8_t> data) {
  EXTMEM_ASSERT(data.size() % kBlockBytes == 0);
  std::lock_guard writing(write_lock_);
  if (auto broken = this->broken()) return *broken;
  Kept& kept = kept_region(region);
  Batch batch;
  for (uint64_t index = 0; index < data.size() / kBlockBytes; ++index) {
    if (Verdict verdict = put_block(kept, {.region = region, .block = first_block + index},
                                    data.subspan(index * kBlockBytes, kBlockBytes), batch);
        !verdict.ok()) {
      flush(kept, batch);
      return verdict;
    }
  }
  return flush(kept, batch);
}

Verdict Store::put_block(Kept& kept, const Codec::Place& place, std::span<const uint8_t> block, Batch& batch) {
  if (is_zero(block)) {
    std::lock_guard guard(state_lock_);
    set_entry(kept, place.block, {});
    return {};
  }
  Entry entry{};
  const auto stored = codec_.encode(place, block, entry);
  entry.bytes = static_cast<uint32_t>(stored.size());
  entry.crc = crc32c(stored);
  const auto before = copy_entry(place.region, place.block);
  const bool replaces = before && before->cell != 0;
  if (Verdict verdict = take_room(cells_of(entry.bytes), replaces, entry.cell); !verdict.ok()) return verdict;
  // What comes to lie side by side leaves as one write.
  if (!batch.entries.empty() && entry.cell * kCellBytes != batch.cell * kCellBytes + batch.bytes.size()) {
    if (Verdict verdict = flush(kept, batch); !verdict.ok()) {
      std::lock_guard guard(state_lock_);
      space_.give_back(entry.cell, cells_of(entry.bytes));
      return verdict;
    }
  }
  if (batch.entries.empty()) batch.cell = entry.cell;
  batch.bytes.insert(batch.bytes.end(), stored.begin(), stored.end());
  batch.bytes.resize((batch.bytes.size() + kCellBytes - 1) / kCellBytes * kCellBytes);
  batch.entries.emplace_back(place.block, entry);
  return {};
}

Verdict Store::flush(Kept& kept, Batch& batch) {
  if (batch.entries.empty()) return {};
  Verdict verdict = write_run(batch.cell, batch.bytes);
  std::lock_guard guard(state_lock_);
  for (auto& [block, entry] : batch.entries) {
    if (verdict.ok())
      set_entry(kept, block, entry);
    else
      space_.give_back(entry.cell, cells_of(entry.bytes));
  }
  batch = {};
  return verdict;
}

Verdict Store::put_records(uint64_t region, std::span<const uint8_t> records) {
  std::lock_guard writing(write_lock_);
  if (auto broken = this->broken()) return *broken;
  std::vector<Piece> pieces;
  Verdict verdict;
  for (size_t at = 0; at < records.size() && verdict.ok(); at += kBlockBytes) {
    const auto data = records.subspan(at, std::min<size_t>(kBlockBytes, records.size() - at));
    Piece piece{.cell = 0, .bytes = static_cast<uint32_t>(data.size()), .crc = crc32c(data)};
    verdict = take_room(cells_of(piece.bytes), true, piece.cell);
    if (!verdict.ok()) break;
    pieces.push_back(piece);
    verdict = write_run(piece.cell, data);
  }
  Kept& kept = kept_region(region);
  std::lock_guard guard(state_lock_);
  if (!verdict.ok()) {
    for (const Piece& piece : pieces) space_.give_back(piece.cell, cells_of(piece.bytes));
    return verdict;
  }
  drop_records(kept);
  kept.records = std::move(pieces);
  kept.record_bytes = records.size();
  changed_ = true;
  return {};
}

void Store::set_life(uint64_t life) {
  std::lock_guard writing(write_lock_);
  if (life_.exchange(life) != life) changed_ = true;
}

Verdict Store::commit() {
  std::lock_guard writing(write_lock_);
  return commit_held();
}

/// Regions come and go under write_lock_, which is held.
Store::Kept& Store::kept_region(uint64_t region) {
  std::lock_guard guard(state_lock_);
  auto found = regions_.find(region);
  EXTMEM_ASSERT(found != regions_.end());
  return found->second;
}

// ---- room

/// For data: what a commit needs is left, and of what is new also room to replace what is there. Where there is no
/// more, a commit frees what has been replaced.
Verdict Store::take_room(uint32_t cells, bool replaces, uint64_t& cell) {
  const uint64_t spare = replaces ? 0 : kReplacingGroups;
  cell = take_cells(cells, commit_reserve() + spare);
  if (cell != 0) return {};
  bool awaits;
  {
    std::lock_guard guard(state_lock_);
    awaits = space_.awaits_commit();
  }
  if (awaits) {
    if (Verdict verdict = commit_held(); !verdict.ok()) return verdict;
    cell = take_cells(cells, commit_reserve() + spare);
    if (cell != 0) return {};
  }
  return {Code::no_space, "the store is full"};
}

uint64_t Store::take_cells(uint32_t cells, uint64_t reserve) {
  std::lock_guard guard(state_lock_);
  if (uint64_t cell = space_.take(cells, reserve); cell != 0) return cell;
  for (uint64_t step = kGrowthCells; step >= kBlockCells; step /= 8) {
    const uint64_t end = std::min(space_.end() + step, space_.limit());
    if (end <= space_.end() || !file_->reserve(end * kCellBytes).ok()) continue;
    space_.grow(end);
    if (uint64_t cell = space_.take(cells, reserve); cell != 0) return cell;
  }
  return 0;
}

/// Whole blocks that the next commit may need for the maps that have changed, and the root twice.
uint64_t Store::commit_reserve() const {
  std::lock_guard guard(state_lock_);
  return changed_chunks_ / 4 + 2 * (root_.size() + 1) + 4;
}

Verdict Store::write_run(uint64_t cell, std::span<const uint8_t> data) {
  const uint64_t offset = cell * kCellBytes;
  Verdict verdict = file_->write(offset, data);
  if (!verdict.ok()) return fail(std::move(verdict));
  bytes_written_.fetch_add(data.size(), std::memory_order_relaxed);
  if (offset != unstarted_at_ + unstarted_bytes_ || unstarted_bytes_ >= kStartBytes) {
    if (unstarted_bytes_ > 0) file_->start_writing(unstarted_at_, unstarted_bytes_);
    unstarted_at_ = offset;
    unstarted_bytes_ = 0;
  }
  unstarted_bytes_ += data.size();
  return {};
}

// ---- reads

const Entry* Store::find_entry(uint64_t region, uint64_t block) const {
  static constexpr Entry kHole{};
  auto found = regions_.find(region);
  if (found == regions_.end() || block / kChunkBlocks >= found->second.chunks.size()) return nullptr;
  const Chunk& chunk = found->second.chunks[block / kChunkBlocks];
  return chunk.entries.empty() ? &kHole : &chunk.entries[block % kChunkBlocks];
}

std::optional<Entry> Store::copy_entry(uint64_t region, uint64_t block) const {
  std::lock_guard guard(state_lock_);
  const Entry* entry = find_entry(region, block);
  return entry == nullptr ? std::nullopt : std::optional(*entry);
}

uint64_t Store::next_stored(uint64_t region, uint64_t block, uint64_t end) const {
  std::lock_guard guard(state_lock_);
  auto found = regions_.find(region);
  if (found == regions_.end()) return end;
  for (; block < end && block / kChunkBlocks < found->second.chunks.size(); ++block) {
    const Chunk& chunk = found->second.chunks[block / kChunkBlocks];
    if (chunk.entries.empty()) {
      block = (block / kChunkBlocks + 1) * kChunkBlocks - 1;
      continue;
    }
    const Entry& entry = chunk.entries[block % kChunkBlocks];
    if (entry.cell != 0 || entry.flags != 0) return block;
  }
  return end;
}

Verdict Store::read(uint64_t region, uint64_t block, std::span<uint8_t, kBlockBytes> into) {
  const Verdict damaged{Code::damaged, "block " + std::to_string(block) + " of region " + std::to_string(region) +
                                           " is not what was stored"};
  std::vector<uint8_t> stored;
  auto entry = copy_entry(region, block);
  for (;;) {
    if (!entry) return {Code::damaged, "region " + std::to_string(region) + " is not in the store"};
    if (entry->cell == 0 && entry->flags == 0) {
      std::fill(into.begin(), into.end(), 0);
      return {};
    }
    if (entry->cell != 0) {
      stored.resize(entry->bytes);
      if (Verdict verdict = file_->read(entry->cell * kCellBytes, stored); !verdict.ok()) return verdict;
      if (crc32c(stored) == entry->crc && codec_.decode({.region = region, .block = block}, *entry, stored, into))
        return {};
    }
    // Replaced meanwhile, and its place used again?
    auto now = copy_entry(region, block);
    if (now && same(*now, *entry)) break;
    entry = now;
  }
  damaged_.fetch_add(1, std::memory_order_relaxed);
  return damaged;
}

void Store::start_reading(uint64_t region, uint64_t first, uint64_t end) {
  uint64_t at = 0, bytes = 0;  // what lies side by side is read as one
  for (uint64_t block = next_stored(region, first, end); block < end; block = next_stored(region, block + 1, end)) {
    const auto entry = copy_entry(region, block);
    if (!entry || entry->cell == 0) continue;
    if (entry->cell * kCellBytes != at + bytes) {
      if (bytes > 0) file_->start_reading(at, bytes);
      at = entry->cell * kCellBytes;
      bytes = 0;
    }
    bytes += cells_of(entry->bytes) * kCellBytes;
  }
  if (bytes > 0) file_->start_reading(at, bytes);
}

Verdict Store::read_records(uint64_t region, std::vector<uint8_t>& into) {
  into.clear();
  std::vector<Piece> pieces;
  {
    std::lock_guard guard(state_lock_);
    auto found = regions_.find(region);
    if (found != regions_.end()) pieces = found->second.records;
  }
  std::vector<uint8_t> part;
  for (const Piece& piece : pieces) {
    if (!read_piece(piece, part)) {
      damaged_.fetch_add(1, std::memory_order_relaxed);
      into.clear();
      return {Code::damaged, "the file records of region " + std::to_string(region) + " are not what was stored"};
    }
    into.insert(into.end(), part.begin(), part.end());
  }
  return {};
}

}  // namespace extmem::store
