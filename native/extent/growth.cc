#include "extent/growth.h"

#include <algorithm>
#include <bit>
#include <vector>

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
  bool carve(std::span<fabric::Appliance* const> appliances, uint64_t bytes) {
    bytes_ = bytes;
    for (const auto* appliance : appliances) {
      auto member = slabs_.allocate(*appliance, bytes);
      if (!member) return false;
      members_.push_back(*member);
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
      : map_(map), attributes_(attributes), growth_(growth), slabs_(slabs), appliances_(slabs.appliances()) {
    if (appliances_.size() > protocol::kMaxLayoutMembers) appliances_.resize(protocol::kMaxLayoutMembers);
    // Files start on different appliances, so that many small ones spread.
    if (!appliances_.empty()) {
      auto start = appliances_.begin() + static_cast<ptrdiff_t>(attributes.ino % appliances_.size());
      std::rotate(appliances_.begin(), start, appliances_.end());
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
    if (at_end && at >= kUnit && attributes_.layout == LayoutKind::stripe && add_rows(at)) return true;
    return add_single(at, std::min(room, wanted_single(at, at_end)));
  }

  /// Rows over all appliances; deeper the larger the file is (an eighth of it), less deep when room is short.
  bool add_rows(uint64_t at) {
    size_t count = appliances_.size();
    if (count < 2) return false;
    uint64_t units = std::max(at / 8 / (kUnit * count), (growth_.end - at + kUnit * count - 1) / (kUnit * count));
    units = std::bit_floor(std::clamp<uint64_t>(units, 1, kMaxMemberBytes / kUnit));
    for (; units > 0; units /= 2) {
      Carving carving(slabs_);
      if (!carving.carve(appliances_, units * kUnit)) continue;
      insert(at, units * kUnit * count, {kUnit}, carving);
      return true;
    }
    return false;
  }

  uint64_t wanted_single(uint64_t at, bool at_end) const {
    uint64_t needed = growth_.end - at;
    if (attributes_.layout == LayoutKind::concat && at >= kUnit && at_end) {
      return std::clamp(std::bit_ceil(std::max(needed, at / 8)), kUnit, kMaxMemberBytes);
    }
    uint64_t to_boundary = kUnit - at % kUnit;
    if (at < kUnit && at_end) return std::min(to_boundary, std::bit_ceil(growth_.end) - at);
    return to_boundary;
  }

  /// One piece, on the appliance whose turn it is, else on any; smaller when there is no such piece.
  bool add_single(uint64_t at, uint64_t length) {
    uint64_t needed = std::min(length, growth_.end - at);
    uint64_t least = growth_.scraps ? kPage : std::min(needed, kUnit);
    size_t turn = attributes_.layout == LayoutKind::stripe ? at / kUnit : 0;
    for (; length >= least; length = length / 2 / kPage * kPage) {
      for (size_t index = 0; index < appliances_.size(); ++index) {
        fabric::Appliance* appliance = appliances_[(turn + index) % appliances_.size()];
        Carving carving(slabs_);
        if (!carving.carve({&appliance, 1}, length)) continue;
        insert(at, length, one_column(length, 1), carving);
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
  std::vector<fabric::Appliance*> appliances_;
  std::vector<uint64_t> added_;
};

}  // namespace

bool grow(ExtentMap& map, const FileAttributes& attributes, const Growth& growth, SlabAllocator& slabs) {
  return Grower(map, attributes, growth, slabs).run();
}

}  // namespace extmem::extent
