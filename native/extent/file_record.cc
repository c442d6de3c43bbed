#include "extent/file_record.h"

#include <algorithm>
#include <cstring>

namespace extmem::extent {

namespace {

using protocol::ExtentHeader;
using protocol::ExtentMember;
using protocol::RecordHeader;

constexpr auto kMissing = static_cast<uint64_t>(protocol::MemberFlag::missing);
constexpr auto kUnsynced = static_cast<uint64_t>(protocol::MemberFlag::unsynced);

/// CRC-32 (IEEE 802.3, reflected), as zlib's crc32().
uint32_t crc32(std::span<const uint8_t> bytes) {
  static const auto table = [] {
    std::array<uint32_t, 256> entries{};
    for (uint32_t index = 0; index < 256; ++index) {
      uint32_t value = index;
      for (int bit = 0; bit < 8; ++bit) value = (value >> 1) ^ ((value & 1) != 0 ? 0xEDB88320u : 0u);
      entries[index] = value;
    }
    return entries;
  }();
  uint32_t crc = ~0u;
  for (uint8_t byte : bytes) crc = table[(crc ^ byte) & 0xFF] ^ (crc >> 8);
  return ~crc;
}

template <typename Struct>
void append(std::vector<uint8_t>& bytes, const Struct& value) {
  const auto* raw = reinterpret_cast<const uint8_t*>(&value);
  bytes.insert(bytes.end(), raw, raw + sizeof value);
}

template <typename Struct>
bool take(std::span<const uint8_t>& bytes, Struct& value) {
  if (bytes.size() < sizeof value) return false;
  std::memcpy(&value, bytes.data(), sizeof value);
  bytes = bytes.subspan(sizeof value);
  return true;
}

bool take_extent(std::span<const uint8_t>& bytes, fabric::Directory& directory, ExtentMap& extents) {
  ExtentHeader header;
  if (!take(bytes, header)) return false;
  const Shape shape{header.unit, std::max<uint8_t>(header.copies, 1)};
  bool sound = header.length > 0 && header.member_count > 0 && header.member_count <= protocol::kMaxLayoutMembers &&
               shape.copies <= protocol::kMaxCopies && header.member_count % shape.copies == 0 &&
               header.file_offset >= extents.end() && header.file_offset + header.length > header.file_offset &&
               (header.member_count == shape.copies || header.unit > 0);
  if (!sound) return false;
  const Extent extent{header.file_offset, header.length, shape, header.member_count, 0};
  if (static_cast<uint8_t>(extent.kind()) != header.kind) return false;
  std::array<Member, protocol::kMaxLayoutMembers> members;
  const uint64_t needed = extent.member_bytes();
  for (unsigned index = 0; index < header.member_count; ++index) {
    ExtentMember member;
    if (!take(bytes, member)) return false;
    fabric::Region* region = directory.find_region(member.region);
    const uint64_t flags = member.offset % protocol::kPageBytes;
    const uint64_t offset = member.offset - flags;
    if (flags > (kMissing | kUnsynced)) return false;
    if (region == nullptr && shape.copies > 1) region = &directory.unknown_region(member.region);
    if (region == nullptr || offset > region->bytes || needed > region->bytes - offset) return false;
    members[index] = {region, offset, (flags & kMissing) != 0, (flags & kUnsynced) != 0};
  }
  extents.insert(header.file_offset, header.length, shape, std::span(members).first(header.member_count));
  return true;
}

bool is_lost(const Member& member) {
  return member.region->state.load(std::memory_order_acquire) == fabric::RegionState::lost;
}

/// The copies of a column. What this mount has seen lost is told as missing, where another copy is left: whoever has
/// the record later may find a region of that name again, with what it held before.
void append_column(std::vector<uint8_t>& bytes, std::span<const Member> copies) {
  const bool one_is_left =
      std::ranges::any_of(copies, [](const Member& copy) { return !copy.missing && !copy.unsynced && !is_lost(copy); });
  for (const Member& copy : copies) {
    const bool missing = copy.missing || (one_is_left && is_lost(copy));
    const uint64_t flags = (missing ? kMissing : 0) + (copy.unsynced ? kUnsynced : 0);
    append(bytes, ExtentMember{copy.region->id, copy.offset + flags});
  }
}

}  // namespace

std::vector<uint8_t> encode_record(const FileAttributes& attributes, const ExtentMap& extents) {
  std::vector<uint8_t> bytes;
  RecordHeader header{.magic = protocol::kRecordMagic,
                      .version = protocol::kRecordVersion,
                      .layout = static_cast<uint8_t>(attributes.layout),
                      .copies = static_cast<uint8_t>(attributes.copies | static_cast<uint8_t>(attributes.across) << 4),
                      .ino = attributes.ino,
                      .size = attributes.size,
                      .mtime_ns = attributes.mtime_ns,
                      .ctime_ns = attributes.ctime_ns,
                      .change = attributes.change,
                      .stripe_unit = attributes.stripe_unit,
                      .extent_count = static_cast<uint32_t>(extents.extents().size()),
                      .crc = 0,
                      .epoch = attributes.epoch};
  append(bytes, header);
  for (const Extent& extent : extents.extents()) {
    append(bytes, ExtentHeader{extent.file_offset, extent.length, extent.shape.unit,
                               static_cast<uint8_t>(extent.kind()), extent.shape.copies, extent.member_count});
    const auto members = extents.members(extent);
    for (size_t at = 0; at < members.size(); at += extent.shape.copies)
      append_column(bytes, members.subspan(at, extent.shape.copies));
  }
  header.crc = crc32(bytes);
  std::memcpy(bytes.data(), &header, sizeof header);
  return bytes;
}

bool decode_record(std::span<const uint8_t> bytes, fabric::Directory& directory, FileAttributes& attributes,
                   ExtentMap& extents) {
  std::vector<uint8_t> copy(bytes.begin(), bytes.end());
  RecordHeader header;
  std::span<const uint8_t> rest = bytes;
  if (!take(rest, header) || header.magic != protocol::kRecordMagic || header.version != protocol::kRecordVersion) {
    return false;
  }
  uint32_t crc = header.crc;
  header.crc = 0;
  std::memcpy(copy.data(), &header, sizeof header);
  if (crc32(copy) != crc) return false;
  attributes = {.ino = header.ino,
                .size = header.size,
                .mtime_ns = header.mtime_ns,
                .ctime_ns = header.ctime_ns,
                .change = header.change,
                .layout = static_cast<LayoutKind>(header.layout),
                .copies = std::clamp<uint8_t>(header.copies & 0xF, 1, protocol::kMaxCopies),
                .across = static_cast<Across>(header.copies >> 4),
                .stripe_unit = header.stripe_unit,
                .epoch = header.epoch};
  extents.clear();
  for (uint32_t index = 0; index < header.extent_count; ++index) {
    if (!take_extent(rest, directory, extents)) return false;
  }
  return rest.empty();
}

}  // namespace extmem::extent
