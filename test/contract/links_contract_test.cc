// An appliance with two addresses, each behind a network of its own that can fail: both are used at once, one is
// enough, and nothing that was sent over the one that failed is done late or twice.
#include <doctest/doctest.h>
#include <signal.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <thread>

#include "base/clock.h"
#include "contract/proxy.h"
#include "contract/test_client.h"

using namespace extmem;
using namespace extmem::contract;

namespace {

constexpr uint64_t kMiB = 1 << 20;
constexpr uint32_t kPageBytes = protocol::kPageBytes;
/// Two attempts and what a reconnect takes (Operation::deadline_ns).
constexpr uint64_t longest_ms(uint64_t attempt_ms) { return 2 * attempt_ms + 500; }

std::vector<uint8_t> page_of(uint8_t byte) { return std::vector<uint8_t>(kPageBytes, byte); }

/// One appliance behind two networks, with region 10 of 4 MiB, and a client of it.
struct TwoNetworks {
  explicit TwoNetworks(uint64_t deadline_ms = protocol::kOperationDeadlineMs)
      : client({.operation_deadline_ms = deadline_ms}),
        appliance(client.add_appliance(process, {first.port(), second.port()})),
        region((process.command("create 10 4194304 0"), client.add_region(appliance, 10, 4 * kMiB))) {}

  fabric::LinkTotals of(const Proxy& proxy) {
    fabric::LinkTotals sum;
    const std::string address = host_address() + ":" + std::to_string(proxy.port());
    for (auto& one : appliance.sum_statistics()) {
      if (one.address == address) sum += one;
    }
    return sum;
  }
  bool connected(const Proxy& proxy) { return of(proxy).connections == 1; }
  /// Until both links are up.
  bool settle() {
    auto page = page_of(0);
    return eventually(
        [&] { return client.read(region, 0, page) == Status::ok && connected(first) && connected(second); }, 10);
  }

  ApplianceProcess process;
  Proxy first{process.port()}, second{process.port()};
  TestClient client;
  fabric::Appliance& appliance;
  fabric::Region& region;
};

/// Writes of one page each, all at once; each page is full of `byte`.
Status write_all(TwoNetworks& networks, uint8_t byte, size_t count = 64) {
  auto page = page_of(byte);
  iovec segment{page.data(), page.size()};
  std::vector<Operation> operations(count);
  for (size_t index = 0; index < count; ++index) {
    operations[index].op = Op::write;
    operations[index].region = &networks.region;
    operations[index].offset = index * kPageBytes;
    operations[index].segments = &segment;
    operations[index].segment_count = 1;
    operations[index].bytes = kPageBytes;
  }
  networks.client.run_all(operations);
  for (const Operation& one : operations) {
    if (one.status != Status::ok) return one.status;
  }
  return Status::ok;
}

bool holds(TwoNetworks& networks, uint8_t byte, size_t count = 64) {
  std::vector<uint8_t> got(count * kPageBytes);
  if (networks.client.read(networks.region, 0, got) != Status::ok) return false;
  return std::all_of(got.begin(), got.end(), [byte](uint8_t one) { return one == byte; });
}

Status add_one(TwoNetworks& networks) {
  Operation add;
  add.op = Op::fetch_add;
  add.region = &networks.region;
  add.offset = 2 * kMiB;
  add.operand = 1;
  return networks.client.run(add);
}

}  // namespace

TEST_CASE("two links carry traffic at once") {
  TwoNetworks networks;
  REQUIRE(networks.settle());
  const uint64_t before_first = networks.of(networks.first).operations;
  const uint64_t before_second = networks.of(networks.second).operations;
  REQUIRE(write_all(networks, 7) == Status::ok);
  CHECK(holds(networks, 7));
  CHECK(networks.of(networks.first).operations > before_first);
  CHECK(networks.of(networks.second).operations > before_second);
  CHECK(networks.process.command("connections") == "2");
}

TEST_CASE("a link that is cut silently costs no operation, and is used again when it is whole") {
  constexpr uint64_t kAttemptMs = 500;
  TwoNetworks networks(kAttemptMs);
  REQUIRE(networks.settle());
  networks.first.black_hole();
  for (uint8_t round = 1; round <= 20; ++round) {
    const uint64_t begin = monotonic_ns();
    REQUIRE(write_all(networks, round) == Status::ok);
    REQUIRE(monotonic_ns() - begin < longest_ms(kAttemptMs) * 1'000'000);
    REQUIRE(holds(networks, round));
  }
  CHECK_FALSE(networks.connected(networks.first));
  CHECK(networks.of(networks.first).losses == 1);
  networks.first.mend();
  REQUIRE(networks.settle());
  const uint64_t before = networks.of(networks.first).operations;
  REQUIRE(write_all(networks, 99) == Status::ok);
  CHECK(holds(networks, 99));
  CHECK(networks.of(networks.first).operations > before);
  CHECK(networks.appliance.breaker_openings == 0);
}

TEST_CASE(
    "what one link held back is fenced before it is written over the other, and changes nothing when it is let go") {
  TwoNetworks networks(300);
  REQUIRE(networks.settle());
  REQUIRE(write_all(networks, 1) == Status::ok);
  networks.first.hold();
  REQUIRE(write_all(networks, 2) == Status::ok);  // those of the first link over the second
  CHECK(networks.of(networks.first).retries > 0);
  REQUIRE(write_all(networks, 3) == Status::ok);
  networks.first.let_go();
  for (int round = 0; round < 20; ++round) {
    usleep(5'000);  // the late writes have time to do harm
    REQUIRE(holds(networks, 3));
  }
  CHECK(networks.appliance.links_in_doubt == 0);
}

TEST_CASE("atomics are never done twice, whichever link fails under them") {
  TwoNetworks networks(300);
  REQUIRE(networks.settle());
  uint64_t done = 0, unknown = 0;
  for (int round = 0; round < 6; ++round) {
    Proxy& failing = round % 2 == 0 ? networks.first : networks.second;
    failing.hold();
    for (int count = 0; count < 20; ++count) {
      const Status status = add_one(networks);
      (status == Status::ok ? done : unknown) += 1;
    }
    failing.let_go();
    REQUIRE(networks.settle());
  }
  Operation look;
  look.op = Op::fetch_add;
  look.region = &networks.region;
  look.offset = 2 * kMiB;
  REQUIRE(networks.client.run(look) == Status::ok);
  CHECK(done > 0);
  CHECK(look.value >= done);
  CHECK(look.value <= done + unknown);
}

TEST_CASE("with both links dead the breaker opens, refuses at once, and closes when one is back") {
  TwoNetworks networks(300);
  REQUIRE(networks.settle());
  networks.first.black_hole();
  networks.second.black_hole();
  auto page = page_of(0);
  REQUIRE(eventually(
      [&] {
        return networks.client.read(networks.region, 0, page) != Status::ok &&
               networks.appliance.state == fabric::PeerState::down;
      },
      10));
  CHECK(networks.appliance.breaker_openings == 1);
  const uint64_t refused = networks.client.totals(networks.appliance).refused;
  CHECK(networks.client.read(networks.region, 0, page) == Status::unreachable);
  CHECK(networks.client.totals(networks.appliance).refused == refused + 1);
  networks.second.mend();
  CHECK(eventually([&] { return networks.client.read(networks.region, 0, page) == Status::ok; }, 10));
  CHECK(networks.appliance.state == fabric::PeerState::up);
  networks.first.mend();
  CHECK(networks.settle());
}

TEST_CASE("a stranger at one address is passed over") {
  ApplianceProcess process;
  process.command("create 10 65536 0");
  const auto address = parse_tcp_address(host_address(), 0);
  UniqueFd listener(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  REQUIRE(bind(listener.get(), address->raw(), address->bytes) == 0);
  REQUIRE(listen(listener.get(), 16) == 0);
  SocketAddress bound;
  bound.bytes = sizeof bound.storage;
  getsockname(listener.get(), reinterpret_cast<sockaddr*>(&bound.storage), &bound.bytes);
  uint16_t port;
  std::memcpy(&port, reinterpret_cast<char*>(&bound.storage) + sizeof(sa_family_t), sizeof port);
  std::thread stranger([&] {
    for (int fd; (fd = accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC)) >= 0; close(fd)) {
      const std::vector<char> text(200, 'x');
      (void)!send(fd, text.data(), text.size(), MSG_NOSIGNAL);
    }
  });
  {
    TestClient client({});
    fabric::Appliance& appliance = client.add_appliance(process, {__builtin_bswap16(port), process.port()});
    auto page = page_of(0);
    CHECK(client.read(client.add_region(appliance, 10, 65536), 0, page) == Status::ok);
  }
  shutdown(listener.get(), SHUT_RDWR);
  stranger.join();
}
