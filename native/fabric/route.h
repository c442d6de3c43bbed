// By which of an appliance's addresses a link connects, and when it goes back to its own. Its home is one of them; when
// that has failed, the link strays to another, and is told to go home after a while. On the reactor's thread; what the
// reactors find out about addresses they share (Appliance::failed).
#pragma once

#include <cstdint>

#include "fabric/transport.h"

namespace extmem::fabric {

class Route {
 public:
  Route(Appliance& appliance, uint32_t home) : appliance_(appliance), home_(home), endpoint_(home) {}

  uint32_t home() const { return home_; }
  /// Position in Appliance::endpoints of what is, or was last, connected to.
  uint32_t endpoint() const { return endpoint_; }
  bool is_home() const { return endpoint_ == home_; }

  /// Everything may be tried again.
  void begin_round();
  /// The endpoint to try next, of so many.
  uint32_t choose(size_t count);
  /// It could not be reached; answers whether there is another to try in this round.
  bool try_another();
  /// A connection by it was lost: the next goes another way, where there is one.
  void note_lost() { mark(true); }
  /// `used_lately`: somebody may soon want it.
  void note_connected(uint64_t now, bool used_lately);

  /// When to go home; UINT64_MAX: it is there, or nothing is known to be wrong with it.
  uint64_t home_ns() const { return home_ns_; }
  void stay_away(uint64_t now, bool used_lately);
  void stay_until(uint64_t due_ns) { home_ns_ = due_ns; }
  /// From here on it is not for the route to say when.
  void forget_home() { home_ns_ = UINT64_MAX; }
  bool has_home() const { return home_ < appliance_.link_count.load(std::memory_order_acquire); }
  /// The next round tries nothing but home.
  void set_out() { going_home_ = true; }
  bool going_home() const { return going_home_; }

 private:
  bool untried(uint32_t endpoint) const { return (tried_ >> endpoint & 1) == 0; }
  bool is_good(uint32_t endpoint) const {
    return untried(endpoint) && !appliance_.failed[endpoint].load(std::memory_order_acquire);
  }
  void mark(bool failed) { appliance_.failed[endpoint_].store(failed, std::memory_order_release); }

  Appliance& appliance_;
  const uint32_t home_;
  uint32_t endpoint_;
  uint32_t tried_ = 0;  // bits: endpoints that this round has tried in vain
  bool going_home_ = false;
  uint64_t home_ns_ = UINT64_MAX;
  uint64_t home_backoff_ns_ = 0;
};

}  // namespace extmem::fabric
