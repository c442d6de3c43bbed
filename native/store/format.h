// What lies on the disk: docs/store-format.md in C++. Little-endian, as it lies in memory.
#pragma once

#include <array>
#include <cstdint>
#include <type_traits>

namespace extmem::store {

inline constexpr uint64_t kMagic = 0x524f54534d545845;  // 'EXTMSTOR'
inline constexpr uint32_t kVersion = 1;
/// What is allocated: one page.
inline constexpr uint32_t kCellBytes = 4096;
/// What is checksummed, and stored as a whole: 16 pages of a region.
inline constexpr uint32_t kBlockBytes = 65536;
inline constexpr uint32_t kBlockCells = kBlockBytes / kCellBytes;
/// Entries of one chunk of a region's map: 16 MiB of the region.
inline constexpr uint32_t kChunkBlocks = 256;
/// Room before everything else: superblocks.
inline constexpr uint64_t kDataStart = 131072;
/// Four slots; those of one parity belong to one generation, so that the one before stays whole.
inline constexpr std::array<uint64_t, 4> kSuperSlots = {0, kCellBytes, 65536, 65536 + kCellBytes};
inline constexpr uint32_t kSuperBytes = kCellBytes;
inline constexpr uint32_t kMaxRootPieces = 100;

#pragma pack(push, 1)

/// A piece of metadata of up to a block: where, how long, and its CRC-32C. cell 0: there is none.
struct Piece {
  uint64_t cell;
  uint32_t bytes;
  uint32_t crc;
};

/// A block of a region. cell 0: all zeros.
struct Entry {
  uint64_t cell;
  uint32_t bytes;  // as stored
  uint32_t crc;    // of what is stored
  uint32_t flags;
  uint32_t reserved;
  std::array<uint8_t, 12> nonce;
  std::array<uint8_t, 16> tag;
};

inline constexpr uint32_t kCompressed = 1;  // zstd
inline constexpr uint32_t kEncrypted = 2;   // AES-256-GCM
inline constexpr uint32_t kLost = 4;        // no cell: its map was damaged

struct Superblock {
  uint64_t magic;
  uint32_t version;
  uint32_t crc;  // of the whole superblock, with this 0
  uint64_t generation;
  std::array<uint8_t, 16> store_id;
  uint32_t encrypted;
  uint32_t root_pieces;
  uint64_t root_bytes;
  uint64_t life;  // of the memory that is stored here, as it ended in order; 0: it went on, or ended otherwise
  std::array<uint8_t, 32> key_check;                      // HMAC-SHA-256(key, store id), when encrypted
  std::array<std::array<Piece, 2>, kMaxRootPieces> root;  // each piece twice
  std::array<uint8_t, kSuperBytes - 96 - 32 * kMaxRootPieces> unused;
};

/// In the root: one for each region, by id; its chunks' and its records' pieces follow.
struct RegionRow {
  uint64_t region;
  uint64_t bytes;
  uint32_t flags;
  uint32_t chunks;
  uint32_t record_pieces;
  uint32_t reserved;
  uint64_t record_bytes;
};

#pragma pack(pop)

/// Nothing was acknowledged that is not stored: the appliance ended in order.
inline constexpr uint32_t kExact = 1;
inline constexpr uint32_t kThin = 2;

static_assert(sizeof(Superblock) == kSuperBytes && std::is_trivially_copyable_v<Superblock>);
static_assert(sizeof(Entry) == 52 && sizeof(Piece) == 16 && sizeof(RegionRow) == 40);
static_assert(sizeof(Entry) * kChunkBlocks <= kBlockBytes);

}  // namespace extmem::store
