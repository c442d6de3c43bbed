// A file's record (protocol RecordHeader and its extents) to and from bytes: what the manager keeps, and what lies
// beside the file's first region.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "extent/extent_map.h"

namespace extmem::extent {

using protocol::Across;

struct FileAttributes {
  uint64_t ino = 0;
  uint64_t size = 0;
  uint64_t mtime_ns = 0;
  uint64_t ctime_ns = 0;
  uint64_t change = 0;
  LayoutKind layout = LayoutKind::stripe;
  uint8_t copies = 1;              ///< of each byte, in extents that are yet to come
  Across across = Across::widest;  ///< what these must not share
  uint32_t stripe_unit = protocol::kStripeUnitBytes;
  uint32_t epoch = 0;
};

std::vector<uint8_t> encode_record(const FileAttributes& attributes, const ExtentMap& extents);

/// False when the bytes are no sound record, or name a region that the directory does not know: of what has copies one
/// may be unknown, which is lost then.
bool decode_record(std::span<const uint8_t> bytes, fabric::Directory& directory, FileAttributes& attributes,
                   ExtentMap& extents);

}  // namespace extmem::extent
