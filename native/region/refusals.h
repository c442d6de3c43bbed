// Peers that were turned away: counted always, told once per peer and reason, so that a scanner cannot fill a log.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <mutex>
#include <set>
#include <string>
#include <utility>

namespace extmem::region {

class Refusals {
 public:
  using Listener = std::function<void(const std::string& peer, const std::string& why)>;
  explicit Refusals(Listener listener) : listener_(std::move(listener)) {}

  void report(const std::string& peer, const std::string& why) {
    count_.fetch_add(1, std::memory_order_relaxed);
    {
      std::lock_guard guard(lock_);
      if (told_.size() >= kMaxTold || !told_.emplace(peer, why).second) return;
    }
    if (listener_) listener_(peer, why);
  }
  uint64_t count() const { return count_.load(std::memory_order_relaxed); }

 private:
  static constexpr size_t kMaxTold = 1024;
  const Listener listener_;
  std::mutex lock_;
  std::set<std::pair<std::string, std::string>> told_;
  std::atomic<uint64_t> count_{0};
};

}  // namespace extmem::region
