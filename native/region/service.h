// What the serving threads and the connections of one RegionServer share.
#pragma once

#include <atomic>
#include <cstdint>

#include "base/keys.h"
#include "region/link_table.h"
#include "region/refusals.h"
#include "region/region_table.h"

namespace extmem::region {

struct Service {
  Service(const RegionServer::Options& options)
      : cluster_key(options.cluster_key),
        incarnation(options.incarnation),
        account(options.donated_bytes),
        refusals(options.on_refused) {}

  const Key cluster_key;
  uint64_t incarnation;   // set before anybody is served
  MemoryAccount account;  // outlives the regions
  RegionTable regions;
  LinkTable links;
  Refusals refusals;
  std::atomic<uint64_t> connections{0}, operations{0}, bytes_read{0}, bytes_written{0}, fenced_clients{0};
};

}  // namespace extmem::region
