// For tests of the cache: two appliances in this process, and a control plane that grants regions from them at once.
#pragma once

#include <doctest/doctest.h>

#include <algorithm>
#include <atomic>
#include <functional>
#include <future>
#include <utility>

#include "base/keys.h"
#include "base/task.h"
#include "cache/page_cache.h"
#include "extent/file_record.h"
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

/// Has a reactor that runs on another thread do this, and waits for it.
inline int run_on(Reactor& reactor, std::function<Task<int>()> work) {
  struct Job final : Message {
    std::function<Task<int>()> work;
    std::promise<int> done;
    void run() override { drive(*this); }
    static Detached drive(Job& job) {
      int error = co_await job.work();
      job.done.set_value(error);
    }
  };
  Job job;
  job.work = std::move(work);
  reactor.post(job);
  return job.done.get_future().get();
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
    for (const extent::Member& copy : piece.all()) {
      const unsigned index = copy.region->appliance == appliances_[0] ? 0 : 1;
      REQUIRE(servers_[index]->punch_region(copy.region->id, copy.offset, piece.length) == protocol::Status::ok);
      slabs_->free(copy.region->id, copy.offset, piece.length);
    }
  }

  void ask(extent::ControlCall& call) override {
    if (call.kind == extent::ControlCall::Kind::provision) call.error = provision() ? 0 : ENOSPC;
    if (call.kind == extent::ControlCall::Kind::drop_copies) drop_copies(call);
    call.answered();
  }

  /// An appliance is gone, with what it held.
  void kill(unsigned index) { servers_[index].reset(); }

  std::atomic<bool> refuses_to_drop{false};
  std::atomic<unsigned> drops{0};

 private:
  /// As the manager does it: what is at these places is missing from now on.
  void drop_copies(extent::ControlCall& call) {
    call.error = refuses_to_drop.load() ? EIO : 0;
    if (call.error != 0) return;
    ++drops;
    extent::FileAttributes attributes;
    extent::ExtentMap before, after;
    REQUIRE(extent::decode_record(call.record, directory_, attributes, before));
    for (const extent::Extent& one : before.extents()) {
      const auto members = before.members(one);
      std::vector<extent::Member> marked(members.begin(), members.end());
      for (extent::Member& member : marked) {
        member.missing |= std::ranges::any_of(call.places, [&](const extent::ControlCall::Place& place) {
          return place.region == member.region->id && place.offset >= member.offset &&
                 place.offset < member.offset + one.member_bytes();
        });
      }
      after.insert(one.file_offset, one.length, one.shape, marked);
    }
    ++attributes.epoch;
    ++attributes.change;
    call.record = extent::encode_record(attributes, after);
  }

  bool provision() {
    for (unsigned index = 0; index < 2; ++index) {
      uint64_t id = next_region_++;
      constexpr uint64_t kBytes = 8ull << 20;
      if (servers_[index]->create_region(id, kBytes, false) != protocol::Status::ok) return false;
      protocol::Capability capability{};
      capability.client = kTestClient;
      capability.client_generation = 1;
      capability.rights = 3;
      capability.region = id;
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
