#include "extent/extent_map.h"

#include <algorithm>

#include "base/assert.h"

namespace extmem::extent {

Shape one_column(uint64_t length, size_t members) {
  return {static_cast<uint32_t>(std::min<uint64_t>(length, UINT32_MAX)), static_cast<uint8_t>(members)};
}

LayoutKind Extent::kind() const {
  if (shape.copies > 1) return LayoutKind::mirror;
  return member_count > 1 ? LayoutKind::stripe : LayoutKind::concat;
}

uint64_t Extent::member_bytes() const {
  if (columns() == 1) return length;
  const uint64_t row = uint64_t{shape.unit} * columns();
  return (length + row - 1) / row * shape.unit;
}

size_t ExtentMap::find(uint64_t file_offset) const {
  auto after = std::upper_bound(extents_.begin(), extents_.end(), file_offset,
                                [](uint64_t offset, const Extent& extent) { return offset < extent.end(); });
  return static_cast<size_t>(after - extents_.begin());
}

Piece ExtentMap::resolve(uint64_t file_offset, uint64_t max_length) const {
  size_t index = find(file_offset);
  if (index == extents_.size()) return {.length = max_length};
  const Extent& extent = extents_[index];
  if (file_offset < extent.file_offset) return {.length = std::min(max_length, extent.file_offset - file_offset)};
  uint64_t at = file_offset - extent.file_offset;
  uint64_t left = std::min(max_length, extent.length - at);
  const Shape shape = extent.shape;
  const uint16_t columns = extent.columns();
  const uint64_t unit_index = columns == 1 ? 0 : at / shape.unit;
  const uint64_t in_unit = columns == 1 ? at : at % shape.unit;
  const uint64_t in_member = unit_index / columns * shape.unit + in_unit;
  const size_t first = extent.first_member + unit_index % columns * shape.copies;
  Piece piece{.length = columns == 1 ? left : std::min(left, shape.unit - in_unit), .copy_count = shape.copies};
  for (size_t copy = 0; copy < shape.copies; ++copy) {
    piece.copies[copy] = members_[first + copy];
    piece.copies[copy].offset += in_member;
  }
  return piece;
}

void ExtentMap::insert(uint64_t file_offset, uint64_t length, Shape shape, std::span<const Member> members) {
  EXTMEM_ASSERT(length > 0 && !members.empty() && shape.copies > 0 && shape.copies <= protocol::kMaxCopies);
  EXTMEM_ASSERT(members.size() % shape.copies == 0 && (members.size() == shape.copies || shape.unit > 0));
  size_t index = find(file_offset);
  EXTMEM_ASSERT(index == extents_.size() || file_offset + length <= extents_[index].file_offset);
  Extent extent{file_offset, length, shape, static_cast<uint16_t>(members.size()),
                static_cast<uint32_t>(members_.size())};
  members_.insert(members_.end(), members.begin(), members.end());
  extents_.insert(extents_.begin() + static_cast<ptrdiff_t>(index), extent);
  allocated_bytes_ += length * shape.copies;
}

void ExtentMap::erase(uint64_t file_offset) {
  size_t index = find(file_offset);
  EXTMEM_ASSERT(index < extents_.size() && extents_[index].file_offset == file_offset);
  allocated_bytes_ -= extents_[index].length * extents_[index].shape.copies;
  extents_.erase(extents_.begin() + static_cast<ptrdiff_t>(index));
}

std::vector<ExtentMap::Freed> ExtentMap::trim(uint64_t file_offset) {
  std::vector<Freed> freed;
  const size_t first = find(file_offset);
  const std::vector<Extent> cut(extents_.begin() + static_cast<ptrdiff_t>(first), extents_.end());
  const std::vector<Member> members = members_;
  for (const Extent& extent : cut) erase(extent.file_offset);
  for (const Extent& extent : cut) {
    const uint16_t columns = extent.columns();
    const uint64_t row = uint64_t{extent.shape.unit} * columns;
    const uint64_t kept = file_offset > extent.file_offset ? file_offset - extent.file_offset : 0;
    // Of a stripe, whole rows stay one, and each unit of the row in which the end lies becomes an extent of its own.
    const uint64_t rows_kept = columns == 1 ? kept : kept / row * row;
    const auto own = std::span(members).subspan(extent.first_member, extent.member_count);
    const uint64_t bytes = extent.member_bytes();
    if (rows_kept > 0) {
      insert(extent.file_offset, rows_kept, columns == 1 ? one_column(kept, own.size()) : extent.shape, own);
    }
    for (uint16_t index = 0; index < columns; ++index) {
      const auto column = own.subspan(size_t{index} * extent.shape.copies, extent.shape.copies);
      uint64_t used = rows_kept / columns;
      const uint64_t at = rows_kept + uint64_t{extent.shape.unit} * index;
      if (columns > 1 && at < kept) {
        const uint64_t rest = std::min<uint64_t>(kept - at, extent.shape.unit);
        std::vector<Member> pieces(column.begin(), column.end());
        for (Member& piece : pieces) piece.offset += used;
        insert(extent.file_offset + at, rest, one_column(rest, pieces.size()), pieces);
        used += rest;
      }
      if (used == bytes) continue;
      for (const Member& copy : column) freed.push_back({copy.region->id, copy.offset + used, bytes - used});
    }
  }
  return freed;
}

void ExtentMap::clear() {
  extents_.clear();
  members_.clear();
  allocated_bytes_ = 0;
}

void ExtentMap::adopt_marks(const ExtentMap& other) {
  for (const Extent& extent : extents_) {
    for (uint16_t column = 0; column < extent.columns(); ++column) {
      const uint64_t at = uint64_t{extent.shape.unit} * column;
      if (column > 0 && at >= extent.length) break;
      const Piece there = other.resolve(extent.file_offset + at, 1);
      for (size_t copy = 0; copy < extent.shape.copies; ++copy) {
        Member& member = members_[extent.first_member + size_t{column} * extent.shape.copies + copy];
        for (const Member& its : there.all()) {
          if (its.region != member.region || its.offset != member.offset) continue;
          member.missing = its.missing;
          member.unsynced = its.unsynced;
        }
      }
    }
  }
}

uint64_t ExtentMap::next_hole(uint64_t offset) const {
  for (size_t index = find(offset); index < extents_.size() && extents_[index].file_offset <= offset; ++index) {
    offset = extents_[index].end();
  }
  return offset;
}

std::optional<uint64_t> ExtentMap::next_data(uint64_t offset) const {
  size_t index = find(offset);
  if (index == extents_.size()) return std::nullopt;
  return std::max(offset, extents_[index].file_offset);
}

}  // namespace extmem::extent
