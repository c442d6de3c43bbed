// Who may do what with a region, by which way, and until when: what capabilities say, enforced by the appliance on
// every transport, and taken back there while it is being used.
#include <doctest/doctest.h>
#include <unistd.h>

#include <string>
#include <vector>

#include "contract/test_client.h"
#include "region/access.h"

using namespace extmem;
using namespace extmem::contract;

namespace {

constexpr uint64_t kMiB = 1 << 20;
constexpr uint32_t kReadWrite = kRead | kWrite;

uint32_t bit(protocol::Via via) { return static_cast<uint32_t>(via); }

uint32_t via_of(const Transport& transport) {
  switch (transport.kind) {
    case fabric::TransportKind::shm:
      return bit(protocol::Via::shm);
    case fabric::TransportKind::verbs:
      return bit(protocol::Via::verbs);
    default:
      return bit(protocol::Via::tcp);
  }
}

/// To read and to write.
uint32_t both(uint32_t via) { return via | via << 8; }

struct Terms {
  uint32_t rights = kReadWrite;
  uint32_t version = 1;
  uint64_t not_after = 0;
  uint32_t via = 0;
};

/// One client of one appliance's region, with capabilities as they are given to it.
struct Holder {
  Holder(ApplianceProcess& process, const Transport& transport, uint64_t id = 1)
      : credentials(make_credentials(id, 1)),
        client({.transport = transport, .credentials = credentials}),
        appliance(client.add_appliance(process)) {}

  fabric::Region& give(const Terms& terms) { return put(capability(terms)); }
  fabric::Region& put(const protocol::Capability& capability) {
    return client.directory().put_region(10, kMiB, appliance, capability);
  }
  protocol::Capability capability(const Terms& terms) const {
    auto capability = make_capability(credentials, 10, terms.rights);
    capability.version = terms.version;
    capability.not_after = terms.not_after;
    capability.via = terms.via;
    capability.mac = compute_capability_mac(cluster_key(), capability);
    return capability;
  }
  Status read(fabric::Region& region) { return client.read(region, 0, page); }
  Status write(fabric::Region& region) { return client.write(region, 0, std::vector<uint8_t>(4096, 5)); }

  fabric::Credentials credentials;
  TestClient client;
  fabric::Appliance& appliance;
  std::vector<uint8_t> page = std::vector<uint8_t>(4096);
};

template <typename Body>
void over_plain_transports(Body body) {
  for (const Transport& transport : plain_transports()) {
    INFO("transport ", std::string(transport.name));
    ApplianceProcess process;
    process.command("create 10 1048576 0");
    process.command("links " + host_address());
    body(process, transport);
  }
}

Status status_when(bool allowed) { return allowed ? Status::ok : Status::forbidden; }

}  // namespace

TEST_CASE("each right, by each way: what is not given is forbidden, and what is given is done") {
  over_plain_transports([](ApplianceProcess& process, const Transport& transport) {
    const uint32_t own = via_of(transport);
    const uint32_t link = own == bit(protocol::Via::shm) ? 0 : bit(protocol::Via::link_0);
    const uint32_t ways[] = {0,
                             bit(protocol::Via::shm),
                             bit(protocol::Via::tcp),
                             bit(protocol::Via::verbs),
                             bit(protocol::Via::link_0),
                             bit(protocol::Via::link_1)};
    uint64_t id = 1;
    for (const uint32_t via : ways) {
      for (const uint32_t rights : {kRead, kWrite, kReadWrite}) {
        INFO("via ", via, " rights ", rights);
        Holder holder(process, transport, ++id);
        auto& region = holder.give({.rights = rights, .via = both(via)});
        const bool by_way = via == 0 || (via & (own | link)) != 0;
        CHECK(holder.write(region) == status_when(by_way && (rights & kWrite) != 0));
        CHECK(holder.read(region) == status_when(by_way && (rights & kRead) != 0));
      }
    }
  });
}

TEST_CASE("the ways to read and to write are told apart") {
  over_plain_transports([](ApplianceProcess& process, const Transport& transport) {
    const uint32_t own = via_of(transport),
                   other = own == bit(protocol::Via::tcp) ? bit(protocol::Via::shm) : bit(protocol::Via::tcp);
    Holder reads(process, transport, 1), writes(process, transport, 2);
    auto& readable = reads.give({.via = own | other << 8});
    CHECK(reads.read(readable) == Status::ok);
    CHECK(reads.write(readable) == Status::forbidden);
    auto& writable = writes.give({.via = other | own << 8});
    CHECK(writes.write(writable) == Status::ok);
    CHECK(writes.read(writable) == Status::forbidden);
  });
}

TEST_CASE("whatever of a capability is changed, it is no capability") {
  over_plain_transports([](ApplianceProcess& process, const Transport& transport) {
    void (*const forgeries[])(protocol::Capability&) = {
        [](protocol::Capability& forged) { forged.rights = kReadWrite; },
        [](protocol::Capability& forged) { forged.version += 1; },
        [](protocol::Capability& forged) { forged.not_after = 0; },
        [](protocol::Capability& forged) { forged.via = 0; },
        [](protocol::Capability& forged) { forged.client += 1; },
    };
    uint64_t id = 1;
    for (auto* forge : forgeries) {
      Holder holder(process, transport, ++id);
      auto capability =
          holder.capability({.rights = kRead, .not_after = wall_ms() + 3'600'000, .via = both(via_of(transport))});
      CHECK(holder.read(holder.put(capability)) == Status::ok);
      Holder forger(process, transport, id + 100);
      capability.client = forger.credentials.client;
      capability.mac = compute_capability_mac(cluster_key(), capability);
      forge(capability);
      CHECK(forger.read(forger.put(capability)) == Status::denied);
    }
  });
}

TEST_CASE("a right that is taken away is gone when that is answered, at those who lose it only") {
  over_plain_transports([](ApplianceProcess& process, const Transport& transport) {
    Holder loses(process, transport, 1), keeps(process, transport, 2);
    auto& lost = loses.give({});
    auto& kept = keeps.give({});
    CHECK(loses.write(lost) == Status::ok);
    CHECK(keeps.write(kept) == Status::ok);
    CHECK(process.status("access 10 2 2") == 0);
    CHECK(loses.read(lost) == Status::forbidden);
    CHECK(loses.write(lost) == Status::forbidden);
    CHECK(keeps.read(kept) == Status::ok);
    CHECK(keeps.page[0] == 5);
    CHECK(keeps.write(kept) == Status::ok);
    // Its old capability is worth nothing on another connection either; a new one is.
    Holder again(process, transport, 3);
    auto old = again.capability({.version = 1});
    CHECK(again.read(again.put(old)) == Status::forbidden);
    CHECK(again.read(again.give({.version = 2})) == Status::ok);
    CHECK(loses.read(loses.give({.rights = kRead, .version = 2})) == Status::ok);
    CHECK(loses.write(lost) == Status::forbidden);
  });
}

TEST_CASE("a version that the appliance knew already takes nothing away") {
  over_plain_transports([](ApplianceProcess& process, const Transport& transport) {
    CHECK(process.status("access 10 3 0") == 0);
    Holder holder(process, transport);
    auto& region = holder.give({.version = 3});
    CHECK(holder.write(region) == Status::ok);
    CHECK(process.status("access 10 3 0") == 0);
    CHECK(process.status("access 10 2 0") == 0);
    CHECK(holder.read(region) == Status::ok);
    CHECK(holder.write(region) == Status::ok);
  });
}

TEST_CASE("when the time is over, what was handed out is taken back, and the capability is void") {
  over_plain_transports([](ApplianceProcess& process, const Transport& transport) {
    Holder holder(process, transport);
    const uint64_t end = wall_ms() + 400;
    auto& region = holder.give({.not_after = end});
    CHECK(holder.write(region) == Status::ok);
    while (wall_ms() <= end) usleep(10'000);
    process.command("overdue");
    CHECK(holder.read(region) == Status::forbidden);
    CHECK(holder.write(region) == Status::forbidden);
    CHECK(holder.read(holder.give({.not_after = end + 3'600'000})) == Status::ok);
  });
}
