// Taking up what an earlier process left: the newest superblock that is whole names a root, the root names maps, and
// what they name is in use. What of it is damaged is told where it is read, and costs nothing else.
#include <sys/random.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "base/assert.h"
#include "store/crc32c.h"
#include "store/store.h"

namespace extmem::store {

namespace {

/// An entry without a cell: what was there is lost.
constexpr Entry kLostEntry{.cell = 0, .bytes = 0, .crc = 0, .flags = kLost, .reserved = 0, .nonce = {}, .tag = {}};

template <typename T>
bool take(std::span<const uint8_t>& from, T& value) {
  if (from.size() < sizeof value) return false;
  std::memcpy(&value, from.data(), sizeof value);
  from = from.subspan(sizeof value);
  return true;
}

Verdict broken_root() { return {Code::damaged, "the store's root is damaged"}; }

}  // namespace

std::unique_ptr<Store> Store::open(std::unique_ptr<BlockFile> file, const Options& options, Verdict& verdict) {
  const uint64_t most = file->grows() ? UINT64_MAX / 2 : file->bytes();
  const uint64_t limit = options.limit_bytes == 0 ? most : std::min(options.limit_bytes, most);
  constexpr uint64_t kLeast = kDataStart + uint64_t{32} * kBlockBytes;
  if (limit < kLeast) {
    verdict = {Code::no_space, "a store needs at least " + std::to_string(kLeast) + " bytes"};
    return nullptr;
  }
  // What lies there stays, whatever the limit says now.
  const uint64_t cells = std::max(limit, std::min(file->bytes(), most)) / kCellBytes;
  std::unique_ptr<Store> store(new Store(std::move(file), options, cells));
  verdict = store->begin_or_take_up();
  return verdict.ok() ? std::move(store) : nullptr;
}

Verdict Store::begin_or_take_up() {
  space_.grow(file_->bytes() / kCellBytes);
  std::array<Superblock, kSuperSlots.size()> supers{};
  const Superblock* newest = nullptr;
  for (size_t slot = 0; slot < supers.size(); ++slot) {
    if (!read_super(slot, supers[slot])) continue;
    if (newest == nullptr || supers[slot].generation > newest->generation) newest = &supers[slot];
  }
  if (newest != nullptr) return take_up(*newest);
  std::vector<uint8_t> head(kDataStart);
  if (Verdict verdict = file_->read(0, head); !verdict.ok()) return verdict;
  if (std::any_of(supers.begin(), supers.end(), [](auto& super) { return super.magic == kMagic; }))
    return {Code::damaged, "all superblocks of the store are damaged"};
  if (std::any_of(head.begin(), head.end(), [](uint8_t byte) { return byte != 0; }))
    return {Code::not_a_store, "something else lies where the store should be: it is not overwritten"};
  return format();
}

bool Store::read_super(uint64_t slot, Superblock& super) {
  std::span<uint8_t> bytes(reinterpret_cast<uint8_t*>(&super), sizeof super);
  if (!file_->read(kSuperSlots[slot], bytes).ok() || super.magic != kMagic) return false;
  const uint32_t crc = std::exchange(super.crc, 0);
  return crc32c(bytes) == crc;
}

Verdict Store::format() {
  if (getrandom(store_id_.data(), store_id_.size(), 0) != static_cast<ssize_t>(store_id_.size()))
    return {Code::io_error, "no random bytes are to be had"};
  changed_ = true;
  return commit_held();
}

Verdict Store::take_up(const Superblock& super) {
  if (super.version != kVersion)
    return {Code::bad_version, "the store is of version " + std::to_string(super.version) + ", this program reads " +
                                   std::to_string(kVersion)};
  store_id_ = super.store_id;
  if ((super.encrypted != 0) != codec_.encrypts())
    return {Code::bad_key, super.encrypted != 0 ? "the store is encrypted: it needs its key"
                                                : "the store is not encrypted: it takes no key"};
  if (codec_.encrypts() && codec_.key_check(store_id_) != super.key_check)
    return {Code::bad_key, "the key is not that of the store"};
  generation_.store(super.generation);
  life_.store(super.life);
  std::vector<uint8_t> bytes;
  if (Verdict verdict = read_root(super, bytes); !verdict.ok()) return verdict;
  std::span<const uint8_t> root(bytes);
  uint64_t regions = 0;
  if (!take(root, regions)) return broken_root();
  for (; regions > 0; --regions) {
    if (Verdict verdict = take_region(root); !verdict.ok()) return verdict;
  }
  return {};
}

Verdict Store::read_root(const Superblock& super, std::vector<uint8_t>& root) {
  std::vector<uint8_t> part;
  for (uint32_t index = 0; index < super.root_pieces; ++index) {
    const auto& copies = super.root[index];
    for (const Piece& piece : copies) {
      if (!space_.claim(piece.cell, cells_of(piece.bytes))) return broken_root();
    }
    if (!read_piece(copies[0], part) && !read_piece(copies[1], part)) return broken_root();
    root.insert(root.end(), part.begin(), part.end());
    root_.push_back(copies);
  }
  return root.size() == super.root_bytes ? Verdict{} : broken_root();
}

bool Store::read_piece(const Piece& piece, std::vector<uint8_t>& into) {
  into.resize(piece.bytes);
  return file_->read(piece.cell * kCellBytes, into).ok() && crc32c(into) == piece.crc;
}

Verdict Store::take_region(std::span<const uint8_t>& root) {
  RegionRow row{};
  if (!take(root, row)) return broken_root();
  Kept& kept = regions_[row.region];
  kept.bytes = row.bytes;
  kept.exact = (row.flags & kExact) != 0;
  kept.thin = (row.flags & kThin) != 0;
  kept.record_bytes = row.record_bytes;
  kept.chunks.resize(row.chunks);
  kept.records.resize(row.record_pieces);
  for (Chunk& chunk : kept.chunks) {
    if (!take(root, chunk.place)) return broken_root();
    if (chunk.place.cell == 0) continue;
    if (!take_chunk(kept, chunk)) {
      damaged_.fetch_add(1, std::memory_order_relaxed);
      chunk.place = {};
      chunk.entries.assign(kChunkBlocks, kLostEntry);
      chunk.changed = true;
      ++changed_chunks_;
    }
  }
  for (Piece& piece : kept.records) {
    if (!take(root, piece) || !space_.claim(piece.cell, cells_of(piece.bytes))) return broken_root();
  }
  return {};
}

/// False: the map of these blocks is damaged. Then its own cells stay unclaimed, and so do theirs: nobody names them.
bool Store::take_chunk(Kept& kept, Chunk& chunk) {
  std::vector<uint8_t> bytes;
  if (chunk.place.bytes != kChunkBlocks * sizeof(Entry) || !read_piece(chunk.place, bytes)) return false;
  if (!space_.claim(chunk.place.cell, cells_of(chunk.place.bytes))) return false;
  chunk.entries.resize(kChunkBlocks);
  std::memcpy(chunk.entries.data(), bytes.data(), bytes.size());
  for (Entry& entry : chunk.entries) {
    if (entry.cell == 0) continue;
    if (entry.bytes == 0 || entry.bytes > kBlockBytes || !space_.claim(entry.cell, cells_of(entry.bytes))) {
      entry = kLostEntry;
      continue;
    }
    kept.stored_bytes += entry.bytes;
  }
  return true;
}

}  // namespace extmem::store
