// Whether a loop may poll, or should sleep. Polling saves the wake-up of an idle CPU (40-60 µs), but only while the CPU
// would be idle otherwise: among more pollers than CPUs, the one that is waited for may be queued behind one that
// waits. A loop whose polling did not pay several times in a row (it was preempted, seen as a gap between two turns; or
// polled in vain for all that is allowed) sleeps instead for a while, longer when it happens again.
//
// sched_yield() is no way out: since Linux 6.18 it gives up the whole time slice. docs/adr/0007-polling.md has the
// figures.
#pragma once

#include <algorithm>
#include <cstdint>

namespace extmem {

class PollGovernor {
 public:
  /// Asked on every turn that would poll. False: sleep instead.
  bool may_poll(uint64_t now_ns) {
    if (now_ns < banned_until_ns_) return false;
    if (polling_ && now_ns - last_turn_ns_ > kGapNs) did_not_pay(now_ns);
    polling_ = now_ns >= banned_until_ns_;
    last_turn_ns_ = now_ns;
    return polling_;
  }
  /// All that is allowed was polled, and nothing came.
  void in_vain(uint64_t now_ns) {
    if (polling_) did_not_pay(now_ns);
    polling_ = false;
  }
  /// Something came, or the loop sleeps for another reason.
  void interrupt(bool paid) {
    if (polling_ && paid) failures_ = 0;
    polling_ = false;
  }

 private:
  static constexpr uint64_t kGapNs = 100'000;
  static constexpr unsigned kFailuresInARow = 4;
  static constexpr uint64_t kShortestBanNs = 5'000'000;
  static constexpr uint64_t kLongestBanNs = 100'000'000;

  void did_not_pay(uint64_t now_ns) {
    if (++failures_ < kFailuresInARow) return;
    bool again = now_ns - banned_until_ns_ < kLongestBanNs;
    ban_ns_ = again ? std::min(ban_ns_ * 2, kLongestBanNs) : kShortestBanNs;
    banned_until_ns_ = now_ns + ban_ns_;
    failures_ = 0;
  }

  bool polling_ = false;
  unsigned failures_ = 0;
  uint64_t last_turn_ns_ = 0;
  uint64_t ban_ns_ = kShortestBanNs;
  uint64_t banned_until_ns_ = 0;
};

}  // namespace extmem
