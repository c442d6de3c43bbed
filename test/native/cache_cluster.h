// For tests of the cache: two appliances in this process, and a control plane that grants regions from them at once.
#pragma once

#include <doctest/doctest.h>

#include "base/keys.h"
#include "cache/page_cache.h"
#include "region/region_server.h"

namespace extmem::cache {

inline constexpr uint64_t kTestClient = 42;

inline Key cluster_key() {
  Key key;
  key.fill(0x5A);
  return key;
}

inline fabric::Fabric::Options test_credentials() {
  fabric::Fabric::Options options;
  options.credentials = {kTestClient, 1, derive_client_key(cluster_key(), kTestClient, 1)};
  return options;
}

class Cluster final : public extent::ControlPlane {
 public:
  explicit Cluster(fabric::Directory& directory) : directory_(directory) {
    for (unsigned index = 0; index < 2; ++index) {
      region::RegionServer::Options options;
      options.cluster_key = cluster_key();
      options.incarnation = 100 + index;
      options.donated_bytes = 256ull << 20;
      std::string error;
      servers_[index] = region::RegionServer::create(options, error);
      REQUIRE_MESSAGE(servers_[index] != nullptr, error);
      appliances_[index] = &directory.put_appliance("appliance" + std::to_string(index), "elsewhere", "127.0.0.1",
                                                    servers_[index]->port(), "", 100 + index);
    }
  }
  void attach(extent::SlabAllocator& slabs) { slabs_ = &slabs; }

  /// As manager and appliance do with what was cut off: zero it, then give it back.
  void recycle(const extent::Piece& piece) {
    unsigned index = piece.region->appliance == appliances_[0] ? 0 : 1;
    REQUIRE(servers_[index]->punch_region(piece.region->id, piece.region_offset, piece.length) == protocol::Status::ok);
    slabs_->free(piece.region->id, piece.region_offset, piece.length);
  }

  void ask(extent::ControlCall& call) override {
    if (call.kind == extent::ControlCall::Kind::provision) call.error = provision() ? 0 : ENOSPC;
    call.answered();
  }

 private:
  bool provision() {
    for (unsigned index = 0; index < 2; ++index) {
      uint64_t id = next_region_++;
      constexpr uint64_t kBytes = 8ull << 20;
      if (servers_[index]->create_region(id, kBytes, false) != protocol::Status::ok) return false;
      protocol::Capability capability{kTestClient, 1, 3, id, {}};
      capability.mac = compute_capability_mac(cluster_key(), capability);
      slabs_->add_region(directory_.put_region(id, kBytes, *appliances_[index], capability), {});
    }
    return true;
  }

  fabric::Directory& directory_;
  extent::SlabAllocator* slabs_ = nullptr;
  std::unique_ptr<region::RegionServer> servers_[2];
  fabric::Appliance* appliances_[2];
  uint64_t next_region_ = 1;
};

}  // namespace extmem::cache
