// A lock for sections of well under a microsecond (TTAS). It yields after a bounded spin, because on a
// machine with few CPUs the holder may be waiting for this very CPU.
#pragma once

#include <sched.h>

#include <atomic>

namespace extmem {

inline void pause_cpu() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

class SpinLock {
 public:
  void lock() {
    for (int spins = 0; flag_.exchange(true, std::memory_order_acquire);) {
      while (flag_.load(std::memory_order_relaxed)) {
        if (++spins > kSpinsBeforeYield) {
          sched_yield();
          spins = 0;
        } else {
          pause_cpu();
        }
      }
    }
  }
  bool try_lock() { return !flag_.exchange(true, std::memory_order_acquire); }
  void unlock() { flag_.store(false, std::memory_order_release); }

 private:
  static constexpr int kSpinsBeforeYield = 200;
  std::atomic<bool> flag_{false};
};

}  // namespace extmem
