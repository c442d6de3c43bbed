#include "fabric/route.h"

#include <algorithm>

#include "base/clock.h"

namespace extmem::fabric {

namespace {

constexpr uint64_t kFirstStayNs = 250 * kMillisecond;
constexpr uint64_t kMaxStayNs = 1000 * kMillisecond;
constexpr uint64_t kIdleStayNs = 10'000 * kMillisecond;

}  // namespace

void Route::begin_round() {
  going_home_ = false;
  tried_ = 0;
}

/// Home, unless it has failed lately and there is another that has not.
uint32_t Route::choose(size_t count) {
  const auto size = static_cast<uint32_t>(count);
  const uint32_t home = home_ % size;  // it may announce fewer than it did
  endpoint_ = home;
  if (going_home_ || is_good(home)) return endpoint_;
  for (bool good : {true, false}) {
    for (uint32_t step = good ? 1 : 0; step < size; ++step) {
      endpoint_ = (home + step) % size;
      if (good ? is_good(endpoint_) : untried(endpoint_)) return endpoint_;
    }
  }
  return endpoint_ = home;
}

bool Route::try_another() {
  mark(true);
  tried_ |= 1u << endpoint_;
  const uint32_t all = (1u << appliance_.link_count.load(std::memory_order_acquire)) - 1;
  return !going_home_ && (tried_ & all) != all;
}

void Route::note_connected(uint64_t now, bool used_lately) {
  mark(false);
  if (!is_home()) return stay_away(now, used_lately);
  home_ns_ = UINT64_MAX;
  home_backoff_ns_ = 0;
}

void Route::stay_away(uint64_t now, bool used_lately) {
  home_backoff_ns_ = std::clamp(home_backoff_ns_ * 2, kFirstStayNs, kMaxStayNs);
  home_ns_ = now + (used_lately ? home_backoff_ns_ : kIdleStayNs);
}

}  // namespace extmem::fabric
