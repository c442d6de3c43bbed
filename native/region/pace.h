// How fast somebody may go: so many bytes a second, with a little that may be taken at once after a rest. Whoever takes
// is told how long to wait before going on. One thread at a time; time is the caller's.
#pragma once

#include <algorithm>
#include <cstdint>

namespace extmem::region {

class Pace {
 public:
  /// 0: without a limit.
  explicit Pace(uint64_t bytes_per_second) : bytes_per_second_(bytes_per_second) {}

  uint64_t bytes_per_second() const { return bytes_per_second_; }
  uint64_t take(uint64_t bytes, uint64_t now_ns) {
    if (bytes_per_second_ == 0) return 0;
    paid_ns_ = std::max(paid_ns_, now_ns - std::min(now_ns, kSavedNs)) + bytes * kSecondNs / bytes_per_second_;
    return paid_ns_ - std::min(paid_ns_, now_ns);
  }

 private:
  static constexpr uint64_t kSecondNs = 1'000'000'000;
  /// Of the time of a rest, what counts.
  static constexpr uint64_t kSavedNs = kSecondNs / 4;

  const uint64_t bytes_per_second_;
  uint64_t paid_ns_ = 0;  // up to when what was taken is paid for
};

}  // namespace extmem::region
