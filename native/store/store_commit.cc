// How changes become durable: maps and root out of place, a barrier, the superblock, a barrier.
#include <algorithm>
#include <cstring>
#include <utility>

#include "base/assert.h"
#include "store/crc32c.h"
#include "store/store.h"

namespace extmem::store {

namespace {

template <typename T>
void append(std::vector<uint8_t>& to, const T& value) {
  const auto* bytes = reinterpret_cast<const uint8_t*>(&value);
  to.insert(to.end(), bytes, bytes + sizeof value);
}

}  // namespace

/// write_lock_ is held.
Verdict Store::commit_held() {
  if (auto broken = this->broken()) return *broken;
  if (!changed_) return {};
  std::vector<Replaced> replaced;
  std::vector<std::array<Piece, 2>> root;
  uint64_t root_bytes = 0;
  Verdict verdict = write_chunks(replaced);
  if (verdict.ok()) verdict = write_root(root, root_bytes);
  if (verdict.ok() && unstarted_bytes_ > 0) file_->start_writing(unstarted_at_, std::exchange(unstarted_bytes_, 0));
  if (verdict.ok()) verdict = fail(file_->sync());
  if (!verdict.ok()) {
    std::lock_guard guard(state_lock_);
    auto give_back = [this](const Piece& piece) {
      if (piece.cell != 0) space_.give_back(piece.cell, cells_of(piece.bytes));
    };
    for (auto& [where, before] : replaced) give_back(std::exchange(*where, before));
    for (auto& copies : root) std::for_each(copies.begin(), copies.end(), give_back);
    return verdict;
  }
  // From here on the new state may be the one that a loss of power goes back to: it is never undone.
  verdict = write_super(root_bytes, root);
  if (!verdict.ok()) return fail({Code::io_error, verdict.why});
  std::swap(root_, root);
  finish_commit(replaced);
  for (auto& copies : root) {
    std::lock_guard guard(state_lock_);
    for (const Piece& piece : copies) space_.give_back(piece.cell, cells_of(piece.bytes));
  }
  return {};
}

void Store::finish_commit(const std::vector<Replaced>& replaced) {
  std::vector<Space::Run> freed;
  {
    std::lock_guard guard(state_lock_);
    for (auto& [where, before] : replaced) {
      if (before.cell != 0) space_.release(before.cell, cells_of(before.bytes));
    }
    for (auto& [id, kept] : regions_) {
      for (Chunk& chunk : kept.chunks) {
        if (!std::exchange(chunk.changed, false)) continue;
        if (chunk.place.cell == 0) chunk.entries.clear();
      }
    }
    changed_chunks_ = 0;
    freed = space_.committed();
  }
  changed_ = false;
  commits_.fetch_add(1, std::memory_order_relaxed);
  if (!std::exchange(wipes_freed_, false)) return;
  for (const Space::Run& run : freed) file_->discard(run.cell * kCellBytes, uint64_t{run.cells} * kCellBytes);
}

Verdict Store::write_chunks(std::vector<Replaced>& replaced) {
  // Regions and chunks stay where they are: whoever changes them holds write_lock_.
  for (auto& [id, kept] : regions_) {
    for (Chunk& chunk : kept.chunks) {
      if (!chunk.changed) continue;
      const bool empty = std::all_of(chunk.entries.begin(), chunk.entries.end(),
                                     [](const Entry& entry) { return entry.cell == 0 && entry.flags == 0; });
      Piece fresh{};
      if (!empty) {
        const auto* bytes = reinterpret_cast<const uint8_t*>(chunk.entries.data());
        if (Verdict verdict = write_piece({bytes, chunk.entries.size() * sizeof(Entry)}, fresh); !verdict.ok())
          return verdict;
      }
      std::lock_guard guard(state_lock_);
      replaced.push_back({&chunk.place, std::exchange(chunk.place, fresh)});
    }
  }
  return {};
}

std::vector<uint8_t> Store::encode_root() const {
  std::vector<uint8_t> root;
  append(root, static_cast<uint64_t>(regions_.size()));
  for (auto& [id, kept] : regions_) {
    append(root, RegionRow{.region = id,
                           .bytes = kept.bytes,
                           .flags = (kept.exact ? kExact : 0) | (kept.thin ? kThin : 0),
                           .chunks = static_cast<uint32_t>(kept.chunks.size()),
                           .record_pieces = static_cast<uint32_t>(kept.records.size()),
                           .reserved = 0,
                           .record_bytes = kept.record_bytes});
    for (const Chunk& chunk : kept.chunks) append(root, chunk.place);
    for (const Piece& piece : kept.records) append(root, piece);
  }
  return root;
}

Verdict Store::write_root(std::vector<std::array<Piece, 2>>& pieces, uint64_t& bytes) {
  const std::vector<uint8_t> root = encode_root();
  bytes = root.size();
  if (root.size() > uint64_t{kMaxRootPieces} * kBlockBytes)
    return {Code::no_space, "the store holds more regions than its format can name"};
  for (size_t at = 0; at < root.size(); at += kBlockBytes) {
    const auto part = std::span(root).subspan(at, std::min<size_t>(kBlockBytes, root.size() - at));
    auto& copies = pieces.emplace_back();
    for (Piece& piece : copies) {
      if (Verdict verdict = write_piece(part, piece); !verdict.ok()) return verdict;
    }
  }
  return {};
}

Verdict Store::write_piece(std::span<const uint8_t> data, Piece& piece) {
  const auto bytes = static_cast<uint32_t>(data.size());
  const uint64_t cell = take_cells(cells_of(bytes), 0);
  if (cell == 0) return {Code::no_space, "the store has no room for its map"};
  piece = {.cell = cell, .bytes = bytes, .crc = crc32c(data)};
  Verdict verdict = write_run(cell, data);
  if (verdict.ok()) return verdict;
  std::lock_guard guard(state_lock_);
  space_.give_back(cell, cells_of(bytes));
  piece = {};
  return verdict;
}

Verdict Store::write_super(uint64_t root_bytes, const std::vector<std::array<Piece, 2>>& pieces) {
  Superblock super{};
  super.magic = kMagic;
  super.version = kVersion;
  super.generation = generation_.load() + 1;
  super.store_id = store_id_;
  super.encrypted = codec_.encrypts() ? 1 : 0;
  super.key_check = codec_.key_check(store_id_);
  super.root_pieces = static_cast<uint32_t>(pieces.size());
  super.root_bytes = root_bytes;
  super.life = life_.load();
  std::copy(pieces.begin(), pieces.end(), super.root.begin());
  const std::span<const uint8_t> bytes(reinterpret_cast<const uint8_t*>(&super), sizeof super);
  super.crc = crc32c(bytes);
  for (uint64_t slot = super.generation % 2; slot < kSuperSlots.size(); slot += 2) {
    if (Verdict verdict = file_->write(kSuperSlots[slot], bytes); !verdict.ok()) return verdict;
  }
  if (Verdict verdict = file_->sync(); !verdict.ok()) return verdict;
  generation_.store(super.generation);
  return {};
}

}  // namespace extmem::store
