#include "extent/extent_map.h"

#include <algorithm>

#include "base/assert.h"

namespace extmem::extent {

uint64_t member_bytes(uint64_t length, uint32_t unit, uint16_t member_count) {
  if (member_count == 1) return length;
  uint64_t rows = (length + uint64_t{unit} * member_count - 1) / (uint64_t{unit} * member_count);
  return rows * unit;
}

size_t ExtentMap::find(uint64_t file_offset) const {
  auto after = std::upper_bound(extents_.begin(), extents_.end(), file_offset,
                                [](uint64_t offset, const Extent& extent) { return offset < extent.end(); });
  return static_cast<size_t>(after - extents_.begin());
}

Piece ExtentMap::resolve(uint64_t file_offset, uint64_t max_length) const {
  size_t index = find(file_offset);
  if (index == extents_.size()) return {nullptr, 0, max_length};
  const Extent& extent = extents_[index];
  if (file_offset < extent.file_offset) return {nullptr, 0, std::min(max_length, extent.file_offset - file_offset)};
  uint64_t at = file_offset - extent.file_offset;
  uint64_t left = std::min(max_length, extent.length - at);
  if (extent.member_count == 1) {
    const Member& member = members_[extent.first_member];
    return {member.region, member.offset + at, left};
  }
  uint64_t unit_index = at / extent.unit;
  uint64_t in_unit = at % extent.unit;
  const Member& member = members_[extent.first_member + unit_index % extent.member_count];
  uint64_t region_offset = member.offset + unit_index / extent.member_count * extent.unit + in_unit;
  return {member.region, region_offset, std::min(left, extent.unit - in_unit)};
}

void ExtentMap::insert(uint64_t file_offset, uint64_t length, uint32_t unit, LayoutKind kind,
                       std::span<const Member> members) {
  EXTMEM_ASSERT(length > 0 && !members.empty() && (members.size() == 1 || unit > 0));
  size_t index = find(file_offset);
  EXTMEM_ASSERT(index == extents_.size() || file_offset + length <= extents_[index].file_offset);
  Extent extent{
      file_offset, length, unit, kind, static_cast<uint16_t>(members.size()), static_cast<uint32_t>(members_.size())};
  members_.insert(members_.end(), members.begin(), members.end());
  extents_.insert(extents_.begin() + static_cast<ptrdiff_t>(index), extent);
  allocated_bytes_ += length;
}

void ExtentMap::erase(uint64_t file_offset) {
  size_t index = find(file_offset);
  EXTMEM_ASSERT(index < extents_.size() && extents_[index].file_offset == file_offset);
  allocated_bytes_ -= extents_[index].length;
  extents_.erase(extents_.begin() + static_cast<ptrdiff_t>(index));
}

std::vector<ExtentMap::Freed> ExtentMap::trim(uint64_t file_offset) {
  std::vector<Freed> freed;
  const size_t first = find(file_offset);
  const std::vector<Extent> cut(extents_.begin() + static_cast<ptrdiff_t>(first), extents_.end());
  const std::vector<Member> members = members_;
  for (const Extent& extent : cut) erase(extent.file_offset);
  for (const Extent& extent : cut) {
    const uint64_t row = uint64_t{extent.unit} * extent.member_count;
    const uint64_t kept = file_offset > extent.file_offset ? file_offset - extent.file_offset : 0;
    // Of a stripe, whole rows stay one, and each unit of the row in which the end lies becomes an extent of its own.
    const uint64_t rows_kept = extent.member_count == 1 ? kept : kept / row * row;
    const auto own = std::span(members).subspan(extent.first_member, extent.member_count);
    const uint64_t bytes = member_bytes(extent.length, extent.unit, extent.member_count);
    if (rows_kept > 0) {
      const auto unit =
          extent.member_count == 1 ? static_cast<uint32_t>(std::min<uint64_t>(kept, UINT32_MAX)) : extent.unit;
      insert(extent.file_offset, rows_kept, unit, extent.kind, own);
    }
    for (uint16_t index = 0; index < extent.member_count; ++index) {
      uint64_t used = rows_kept / extent.member_count;
      const uint64_t at = rows_kept + uint64_t{extent.unit} * index;
      if (extent.member_count > 1 && at < kept) {
        const auto rest = static_cast<uint32_t>(std::min<uint64_t>(kept - at, extent.unit));
        const Member piece{own[index].region, own[index].offset + used};
        insert(extent.file_offset + at, rest, rest, LayoutKind::concat, {&piece, 1});
        used += rest;
      }
      if (used < bytes) freed.push_back({own[index].region->id, own[index].offset + used, bytes - used});
    }
  }
  return freed;
}

void ExtentMap::clear() {
  extents_.clear();
  members_.clear();
  allocated_bytes_ = 0;
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
