#include "extent/growth.h"

#include <algorithm>
#include <bit>
#include <vector>

#include "extent/domains.h"

namespace extmem::extent {

namespace {

constexpr uint64_t kUnit = protocol::kStripeUnitBytes;
constexpr uint64_t kPage = protocol::kPageBytes;
constexpr uint64_t kMaxMemberBytes = 64ull << 20;

/// A row of pieces for one extent, given back unless kept.
class Carving {
 public:
  explicit Carving(SlabAllocator& slabs) : slabs_(slabs) {}
  ~Carving() {
    for (const Member& member : members_) slabs_.free(member.region->id, member.offset, bytes_);
  }
  bool carve(std::span<const Column> columns, uint64_t bytes) {
    bytes_ = bytes;
    for (const Column& column : columns) {
      for (const auto* appliance : column) {
        auto member = slabs_.allocate(*appliance, bytes);
        if (!member) return false;
        members_.push_back(*member);
      }
    }
    return true;
  }
  std::span<const Member> members() const { return members_; }
  void keep() { members_.clear(); }

 private:
  SlabAllocator& slabs_;
  uint64_t bytes_ = 0;
  std::vector<Member> members_;
};

class Grower {
 public:
  Grower(ExtentMap& map, const FileAttributes& attributes, const Growth& growth, SlabAllocator& slabs)
      : map_(map),
        attributes_(attributes),
        growth_(growth),
        slabs_(slabs),
        stripes_(attributes.layout == LayoutKind::stripe || attributes.layout == LayoutKind::raid10),
        columns_(form_columns(slabs.appliances(), attributes.copies, attributes.across)) {
    // Files start on different appliances, so that many small ones spread.
    if (!columns_.empty()) {
      auto start = columns_.begin() + static_cast<ptrdiff_t>(attributes.ino % columns_.size());
      std::rotate(columns_.begin(), start, columns_.end());
    }
  }

  bool run() {
    for (uint64_t at = map_.next_hole(growth_.offset); at < growth_.end; at = map_.next_hole(at)) {
      if (!fill_hole(at)) {
        undo();
        return false;
      }
    }
    return true;
  }

 private:
  bool fill_hole(uint64_t at) {
    auto next = map_.next_data(at);
    bool at_end = !next.has_value();
    uint64_t room = at_end ? UINT64_MAX : *next - at;
    if (at_end && at >= kUnit && stripes_ && add_rows(at)) return true;
    return add_single(at, std::min(room, wanted_single(at, at_end)));
  }

  /// Rows over all columns; deeper the larger the file is (an eighth of it), less deep when room is short.
  bool add_rows(uint64_t at) {
    size_t count = columns_.size();
    if (count < 2) return false;
    uint64_t units = std::max(at / 8 / (kUnit * count), (growth_.end - at + kUnit * count - 1) / (kUnit * count));
    units = std::bit_floor(std::clamp<uint64_t>(units, 1, kMaxMemberBytes / kUnit));
    for (; units > 0; units /= 2) {
      Carving carving(slabs_);
      if (!carving.carve(columns_, units * kUnit)) continue;
      insert(at, units * kUnit * count, {kUnit, attributes_.copies}, carving);
      return true;
    }
    return false;
  }

  uint64_t wanted_single(uint64_t at, bool at_end) const {
    uint64_t needed = growth_.end - at;
    if (!stripes_ && at >= kUnit && at_end) {
      return std::clamp(std::bit_ceil(std::max(needed, at / 8)), kUnit, kMaxMemberBytes);
    }
    uint64_t to_boundary = kUnit - at % kUnit;
    if (at < kUnit && at_end) return std::min(to_boundary, std::bit_ceil(growth_.end) - at);
    return to_boundary;
  }

  /// One column, that whose turn it is, else any; smaller when there are no such pieces.
  bool add_single(uint64_t at, uint64_t length) {
    uint64_t needed = std::min(length, growth_.end - at);
    uint64_t least = growth_.scraps ? kPage : std::min(needed, kUnit);
    size_t turn = stripes_ ? at / kUnit : 0;
    for (; length >= least; length = length / 2 / kPage * kPage) {
      for (size_t index = 0; index < columns_.size(); ++index) {
        Carving carving(slabs_);
        if (!carving.carve({&columns_[(turn + index) % columns_.size()], 1}, length)) continue;
        insert(at, length, one_column(length, attributes_.copies), carving);
        return true;
      }
      if (length > needed && length / 2 < needed) length = needed * 2;  // the next round asks for just what is needed
    }
    return false;
  }

  void insert(uint64_t at, uint64_t length, Shape shape, Carving& carving) {
    map_.insert(at, length, shape, carving.members());
    carving.keep();
    added_.push_back(at);
  }

  void undo() {
    for (uint64_t at : added_) {
      for (const Extent& extent : map_.extents()) {
        if (extent.file_offset != at) continue;
        uint64_t bytes = extent.member_bytes();
        for (const Member& member : map_.members(extent)) slabs_.free(member.region->id, member.offset, bytes);
        break;
      }
      map_.erase(at);
    }
  }

  ExtentMap& map_;
  const FileAttributes& attributes_;
  const Growth& growth_;
  SlabAllocator& slabs_;
  const bool stripes_;
  std::vector<Column> columns_;
  std::vector<uint64_t> added_;
};

}  // namespace

bool grow(ExtentMap& map, const FileAttributes& attributes, const Growth& growth, SlabAllocator& slabs) {
  return Grower(map, attributes, growth, slabs).run();
}

}  // namespace extmem::extent
