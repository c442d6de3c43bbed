// The backing store: content of regions, kept on a file or a device beyond the life of the appliance. Out of place,
// checksummed, crash-safe: docs/store-format.md has the format and the argument.
//
// What put(), clear(), keep_region() and remove_region() do is seen by read() at once, and survives once a commit()
// after it has answered ok. A loss of power at any moment goes back to the last commit, or to the one that was under
// way; of blocks in between each is one or the other. put() may commit by itself when room gets short.
//
// After an error of the device nothing is written any more (Code::io_error for ever): what the kernel could not write
// it may have dropped. What was committed stays readable, here and at the next start. Code::no_space changes nothing.
//
// Any thread; one changes at a time (write_lock_), and a reader waits for no device but for its own block.
#pragma once

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <vector>

#include "store/block_file.h"
#include "store/codec.h"
#include "store/format.h"
#include "store/space.h"

namespace extmem::store {

class Store {
 public:
  struct Options {
    uint64_t limit_bytes = 0;  ///< it does not grow beyond; 0: as much as there is
    Codec::Options codec{};
  };
  struct RegionInfo {
    uint64_t region, bytes;
    bool thin, exact;
    uint64_t stored_bytes;
  };
  struct Counters {
    uint64_t generation, used_bytes, limit_bytes, bytes_written, commits, damaged_blocks;
  };

  /// Takes up what lies there, or begins a store where there are only zeros.
  static std::unique_ptr<Store> open(std::unique_ptr<BlockFile> file, const Options& options, Verdict& verdict);

  std::vector<RegionInfo> regions() const;
  Counters counters() const;
  /// Why nothing is written any more.
  std::optional<Verdict> broken() const;

  // Changes.
  /// Makes a region known, with that length; blocks beyond it go.
  void keep_region(uint64_t region, uint64_t bytes, bool thin);
  void remove_region(uint64_t region);
  /// Whole blocks (the last one of a region padded with zeros), of a region that is kept.
  Verdict put(uint64_t region, uint64_t first_block, std::span<const uint8_t> data);
  void clear(uint64_t region, uint64_t first_block, uint64_t blocks);
  Verdict put_records(uint64_t region, std::span<const uint8_t> records);
  /// Whether the region is stored as it was last acknowledged.
  void set_exact(uint64_t region, bool exact);
  /// Which life of the memory ended with what is stored, all of it; 0: none did.
  void set_life(uint64_t life);
  uint64_t life() const { return life_.load(); }
  Verdict commit();

  // Reads.
  /// A whole block.
  Verdict read(uint64_t region, uint64_t block, std::span<uint8_t, kBlockBytes> into);
  /// Blocks from `first` up to `end` will be read soon; a hint.
  void start_reading(uint64_t region, uint64_t first, uint64_t end);
  Verdict read_records(uint64_t region, std::vector<uint8_t>& into);
  /// The first block from there on that is not zeros, up to `end`.
  uint64_t next_stored(uint64_t region, uint64_t block, uint64_t end) const;

 private:
  struct Chunk {
    Piece place{};
    std::vector<Entry> entries;  // none: all zeros
    bool changed = false;
  };
  struct Kept {
    uint64_t bytes = 0;
    bool thin = false, exact = false;
    std::vector<Chunk> chunks;
    std::vector<Piece> records;
    uint64_t record_bytes = 0;
    uint64_t stored_bytes = 0;
  };
  /// What a commit under way has replaced, to be put back if it fails.
  struct Replaced {
    Piece* where;
    Piece before;
  };

  /// Blocks on their way to cells that lie side by side.
  struct Batch {
    uint64_t cell = 0;
    std::vector<uint8_t> bytes;
    std::vector<std::pair<uint64_t, Entry>> entries;
  };

  Store(std::unique_ptr<BlockFile> file, const Options& options, uint64_t cells);

  // store_open.cc
  Verdict begin_or_take_up();
  Verdict format();
  bool read_super(uint64_t slot, Superblock& super);
  Verdict take_up(const Superblock& super);
  Verdict read_root(const Superblock& super, std::vector<uint8_t>& root);
  Verdict take_region(std::span<const uint8_t>& root);
  bool take_chunk(Kept& kept, Chunk& chunk);
  bool read_piece(const Piece& piece, std::vector<uint8_t>& into);

  // store_commit.cc
  Verdict write_chunks(std::vector<Replaced>& replaced);
  std::vector<uint8_t> encode_root() const;
  Verdict write_root(std::vector<std::array<Piece, 2>>& pieces, uint64_t& bytes);
  Verdict write_super(uint64_t root_bytes, const std::vector<std::array<Piece, 2>>& pieces);
  Verdict write_piece(std::span<const uint8_t> data, Piece& piece);
  Verdict commit_held();
  void finish_commit(const std::vector<Replaced>& replaced);
  Verdict fail(Verdict verdict);

  Kept& kept_region(uint64_t region);
  Verdict put_block(Kept& kept, const Codec::Place& place, std::span<const uint8_t> block, Batch& batch);
  Verdict flush(Kept& kept, Batch& batch);
  uint64_t take_cells(uint32_t cells, uint64_t reserve);
  Verdict take_room(uint32_t cells, bool replaces, uint64_t& cell);
  uint64_t commit_reserve() const;
  Verdict write_run(uint64_t cell, std::span<const uint8_t> data);
  void set_entry(Kept& kept, uint64_t block, const Entry& entry);
  void drop_records(Kept& kept);
  const Entry* find_entry(uint64_t region, uint64_t block) const;
  std::optional<Entry> copy_entry(uint64_t region, uint64_t block) const;
  static uint32_t cells_of(uint32_t bytes) { return (bytes + kCellBytes - 1) / kCellBytes; }

  const std::unique_ptr<BlockFile> file_;
  Codec codec_;  // encode() under write_lock_

  std::mutex write_lock_;  // changes, and the device's side of them. Taken before state_lock_.
  uint64_t unstarted_at_ = 0, unstarted_bytes_ = 0;
  std::array<uint8_t, 16> store_id_{};
  std::vector<std::array<Piece, 2>> root_;
  bool changed_ = false;      // since the last commit
  bool wipes_freed_ = false;  // content was destroyed since then: what becomes free is wiped

  mutable std::mutex state_lock_;  // short: everything below
  std::map<uint64_t, Kept> regions_;
  Space space_;
  uint64_t changed_chunks_ = 0;
  std::optional<Verdict> broken_;
  std::atomic<uint64_t> life_{0};
  std::atomic<uint64_t> generation_{0}, bytes_written_{0}, commits_{0}, damaged_{0};
};

}  // namespace extmem::store
