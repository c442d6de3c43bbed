// ③ Where a file's bytes are: allocation offset → (region, offset). Extents are sorted, do not overlap, and may leave
// holes, which read as zeros. A map has no lock of its own: its owner (cache::File) guards it.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "base/protocol.h"
#include "fabric/transport.h"

namespace extmem::extent {

using protocol::LayoutKind;

/// A piece of a region; how long it is, the extent says.
struct Member {
  fabric::Region* region = nullptr;
  uint64_t offset = 0;
  bool missing = false;   ///< it missed a write, or its appliance lost it: neither read nor written
  bool unsynced = false;  ///< may differ from the other copies: read only when no copy without flags answers
};

/// How an extent's members lie: those of one column, `copies` of them, beside each other. Byte b lives in column
/// (b / unit) mod columns, at offset (b / unit / columns) * unit + b mod unit of each of its members.
struct Shape {
  uint32_t unit;  ///< of no meaning with one column: b lies at b
  uint8_t copies = 1;
};

struct Extent {
  uint64_t file_offset;
  uint64_t length;
  Shape shape;
  uint16_t member_count;
  uint32_t first_member;  // in the map's member table

  uint64_t end() const { return file_offset + length; }
  uint16_t columns() const { return member_count / shape.copies; }
  LayoutKind kind() const;
  /// What it occupies of each member: whole units.
  uint64_t member_bytes() const;
};

/// The longest contiguous stretch at a file offset: where each copy of it begins, or a hole.
struct Piece {
  uint64_t length;
  uint8_t copy_count = 0;
  std::array<Member, protocol::kMaxCopies> copies{};

  bool is_hole() const { return copy_count == 0; }
  std::span<const Member> all() const { return std::span(copies).first(copy_count); }
};

class ExtentMap {
 public:
  /// At most max_length bytes from file_offset on.
  Piece resolve(uint64_t file_offset, uint64_t max_length) const;
  /// Takes a place that is a hole now.
  void insert(uint64_t file_offset, uint64_t length, Shape shape, std::span<const Member> members);
  /// Takes back what insert() put at this offset.
  void erase(uint64_t file_offset);
  /// Takes away everything from this offset on (whole pages); answers the pieces that it was in.
  struct Freed {
    uint64_t region;
    uint64_t offset;
    uint64_t bytes;
  };
  std::vector<Freed> trim(uint64_t file_offset);
  void clear();
  /// Of members that both have at the same place: what `other` knows of them.
  void adopt_marks(const ExtentMap& other);

  /// First byte at or after offset that is in a hole / in an extent; nullopt: there is none.
  uint64_t next_hole(uint64_t offset) const;
  std::optional<uint64_t> next_data(uint64_t offset) const;

  uint64_t allocated_bytes() const { return allocated_bytes_; }
  /// End of the last extent; 0 when there is none.
  uint64_t end() const { return extents_.empty() ? 0 : extents_.back().end(); }
  std::span<const Extent> extents() const { return extents_; }
  std::span<const Member> members(const Extent& extent) const {
    return std::span(members_).subspan(extent.first_member, extent.member_count);
  }

 private:
  size_t find(uint64_t file_offset) const;  // index of the first extent that ends after file_offset

  std::vector<Extent> extents_;
  std::vector<Member> members_;
  uint64_t allocated_bytes_ = 0;
};

/// One column, with as many copies as there are members.
Shape one_column(uint64_t length, size_t members);

}  // namespace extmem::extent
