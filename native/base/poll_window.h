// How long to poll for what comes next. What usually comes after 15 µs and now does not may be queued on this very CPU,
// behind who waits for it: so the window follows how long it usually takes, within bounds.
#pragma once

#include <algorithm>
#include <cstdint>

namespace extmem {

class PollWindow {
 public:
  static constexpr uint64_t kShortestNs = 60'000;
  /// A shortest that is the longest: always as long.
  explicit PollWindow(uint64_t longest_ns, uint64_t shortest_ns = kShortestNs)
      : longest_ns_(longest_ns), shortest_ns_(shortest_ns) {}
  uint64_t ns() const { return std::min(longest_ns_, std::max<uint64_t>(shortest_ns_, kFactor * usual_ns_)); }
  /// It came after so long.
  void note(uint64_t waited_ns) {
    const uint64_t step = usual_ns_ / 32 + 250;
    if (waited_ns > usual_ns_) {
      usual_ns_ = std::min(usual_ns_ + 3 * step, longest_ns_);
    } else {
      usual_ns_ -= std::min(step, usual_ns_);
    }
  }

 private:
  static constexpr uint64_t kFactor = 3;
  uint64_t longest_ns_, shortest_ns_;
  uint64_t usual_ns_ = 0;  // three of four came sooner, about: what was queued does not count for more than once
};

}  // namespace extmem
