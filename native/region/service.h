// What the serving threads and the connections of one RegionServer share.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <functional>
#include <mutex>
#include <string>
#include <vector>

#include "base/keys.h"
#include "region/link_table.h"
#include "region/refusals.h"
#include "region/region_table.h"

namespace extmem::region {

/// The addresses that clients are told of, in their order. Any thread.
class LinkAddresses {
 public:
  void set(std::vector<std::string> addresses) {
    std::lock_guard guard(lock_);
    addresses_ = std::move(addresses);
  }
  /// Of Via; 0: it is none of them.
  uint32_t bit_of(const std::string& address) const {
    std::lock_guard guard(lock_);
    for (size_t index = 0; index < std::min<size_t>(addresses_.size(), protocol::kMaxLinks); ++index) {
      if (addresses_[index] == address) return static_cast<uint32_t>(protocol::Via::link_0) << index;
    }
    return 0;
  }

 private:
  mutable std::mutex lock_;
  std::vector<std::string> addresses_;
};

struct Service {
  Service(const RegionServer::Options& options)
      : cluster_key(options.cluster_key),
        incarnation(options.incarnation),
        account(options.donated_bytes),
        refusals(options.on_refused),
        on_window(options.on_window) {}

  const Key cluster_key;
  uint64_t incarnation;   // set before anybody is served
  MemoryAccount account;  // outlives the regions
  RegionTable regions;
  LinkTable links;
  LinkAddresses addresses;
  Refusals refusals;
  /// Something was handed out until then. Any thread.
  void note_window(uint64_t not_after_ms) {
    if (not_after_ms == 0 || last_window_.exchange(not_after_ms) == not_after_ms || !on_window) return;
    on_window(not_after_ms);
  }
  const std::function<void(uint64_t not_after_ms)> on_window;
  void note_read(Region& region, const protocol::RequestHeader& header) {
    bytes_read.fetch_add(header.length, std::memory_order_relaxed);
    region.usage().note_read(header.offset, header.length);
  }
  void note_written(Region& region, const protocol::RequestHeader& header) {
    bytes_written.fetch_add(header.length, std::memory_order_relaxed);
    region.usage().note_written(header.offset, header.length);
  }
  std::atomic<uint64_t> connections{0}, operations{0}, bytes_read{0}, bytes_written{0}, fenced_clients{0};

 private:
  std::atomic<uint64_t> last_window_{0};
};

}  // namespace extmem::region
