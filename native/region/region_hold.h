// How a region is held: shared by who uses it, exclusively by who changes what it is (region.h).
#pragma once

#include "region/region.h"

namespace extmem::region {

/// A serving thread's hold: it never waits.
class Region::Use {
 public:
  explicit Use(const Region& region)
      : region_(region),
        held_(region.exclusive_wanted_.load(std::memory_order_relaxed) == 0 && region.hold_.try_lock_shared()) {}
  ~Use() {
    if (held_) region_.hold_.unlock_shared();
  }
  Use(const Use&) = delete;
  explicit operator bool() const { return held_; }

 private:
  const Region& region_;
  bool held_;
};

class Region::Exclusive {
 public:
  explicit Exclusive(const Region& region) : region_(region) {
    region_.exclusive_wanted_.fetch_add(1, std::memory_order_relaxed);
    region_.hold_.lock();
  }
  ~Exclusive() {
    region_.hold_.unlock();
    region_.exclusive_wanted_.fetch_sub(1, std::memory_order_relaxed);
  }
  Exclusive(const Exclusive&) = delete;

 private:
  const Region& region_;
};

}  // namespace extmem::region
