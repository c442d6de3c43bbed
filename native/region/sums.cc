#include "region/sums.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <algorithm>
#include <chrono>
#include <thread>

#include "base/clock.h"
#include "region/region.h"

namespace extmem::region {

namespace {

constexpr uint64_t kPatienceNs = 2'000'000'000;
constexpr auto kBusy = std::chrono::milliseconds(1);

/// Waits while the region is being moved, or the bytes are brought home.
Status read_settled(Region& region, uint64_t offset, std::span<uint8_t> into) {
  const uint64_t end = monotonic_ns() + kPatienceNs;
  for (;;) {
    if (const auto outcome = region.read(offset, into)) return outcome->status;
    if (monotonic_ns() > end) return Status::timed_out;
    std::this_thread::sleep_for(kBusy);
  }
}

}  // namespace

Status sum_region(Region& region, uint64_t offset, uint64_t bytes, std::vector<uint64_t>& sums) {
  std::vector<uint8_t> block(protocol::kSumBytes);
  for (uint64_t at = 0; at < bytes; at += block.size()) {
    const std::span piece = std::span(block).first(std::min<uint64_t>(block.size(), bytes - at));
    if (const Status status = read_settled(region, offset + at, piece); status != Status::ok) return status;
    sums.push_back(XXH3_64bits(piece.data(), piece.size()));
  }
  return Status::ok;
}

}  // namespace extmem::region
