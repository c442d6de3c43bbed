// Real region servers, over tcp: two that have memory, and one that copies it.
#include "move/copier.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <string>
#include <thread>

#include "base/clock.h"
#include "base/keys.h"

namespace extmem::move {
namespace {

using protocol::Status;

constexpr uint64_t kPage = protocol::kPageBytes, kMiB = 1 << 20, kRegionBytes = 8 * kMiB;
constexpr uint64_t kCopier = uint64_t{1} << 52;

Key cluster_key() {
  Key key;
  key.fill(0x5A);
  return key;
}

fabric::Credentials credentials() {
  return {.client = kCopier, .client_generation = 1, .key = derive_client_key(cluster_key(), kCopier, 1)};
}

protocol::Capability may_read(uint64_t region) {
  protocol::Capability capability{};
  capability.client = kCopier;
  capability.client_generation = 1;
  capability.rights = 1;
  capability.region = region;
  capability.mac = compute_capability_mac(cluster_key(), capability);
  return capability;
}

std::vector<uint8_t> noise(size_t bytes, unsigned seed) {
  std::vector<uint8_t> data(bytes);
  for (uint8_t& byte : data) byte = static_cast<uint8_t>((seed = seed * 1664525 + 1013904223) >> 24);
  return data;
}

struct Host {
  explicit Host(uint64_t number) : id("a" + std::to_string(number)), incarnation(number), region(10 + number) {
    region::RegionServer::Options options;
    options.cluster_key = cluster_key();
    options.incarnation = number;
    options.donated_bytes = 64 * kMiB;
    std::string error;
    server = region::RegionServer::create(options, error);
    REQUIRE_MESSAGE(server != nullptr, error);
    REQUIRE(server->create_region(region, kRegionBytes, false) == Status::ok);
    origin = {.id = id, .endpoints = {{.address = "127.0.0.1", .port = server->port()}}, .incarnation = number};
  }
  void put(uint64_t offset, const std::vector<uint8_t>& data) {
    const auto status = server->write(region, offset, data);
    REQUIRE(status.has_value());
    REQUIRE(*status == Status::ok);
  }
  Source source(uint64_t offset) const { return source(offset, region); }
  Source source(uint64_t offset, uint64_t region) const {
    return {
        .origin = id, .region = region, .region_bytes = kRegionBytes, .offset = offset, .capability = may_read(region)};
  }
  /// What a client would read.
  std::vector<uint8_t> get(uint64_t offset, uint64_t bytes) {
    fabric::Directory directory;
    Reactor reactor{Reactor::Options{}};
    fabric::Fabric::Options options;
    options.credentials = credentials();
    options.transport = fabric::TransportKind::tcp;
    auto fabric = fabric::Fabric::create(reactor, directory, options);
    auto& appliance = directory.put_appliance(id, "", "127.0.0.1", server->port(), "", incarnation);
    std::vector<uint8_t> data(bytes);
    struct Get final : Message {
      void run() override { fabric->submit(operation); }
      fabric::Fabric* fabric = nullptr;
      fabric::Operation operation;
    } get;
    iovec segment{.iov_base = data.data(), .iov_len = bytes};
    get.fabric = fabric.get();
    get.operation.region = &directory.put_region(region, kRegionBytes, appliance, may_read(region));
    get.operation.offset = offset;
    get.operation.segments = &segment;
    get.operation.segment_count = 1;
    get.operation.bytes = static_cast<uint32_t>(bytes);
    get.operation.context = &reactor;
    get.operation.complete = [](fabric::Operation& done) { static_cast<Reactor*>(done.context)->stop(); };
    reactor.post(get);
    reactor.run();
    fabric->close();
    REQUIRE(get.operation.status == Status::ok);
    return data;
  }

  std::string id;
  uint64_t incarnation, region;
  std::unique_ptr<region::RegionServer> server;
  Origin origin;
};

struct Bench {
  Host one{1}, two{2}, target{3};

  std::unique_ptr<Copier> copier(uint64_t limit_ms = 3000) {
    return std::make_unique<Copier>(*target.server, Copier::Options{.credentials = credentials(), .limit_ms = limit_ms},
                                    std::vector<Origin>{one.origin, two.origin});
  }
};

TEST_CASE("pieces are copied as they are, from several appliances at once, and what was zero takes no memory") {
  Bench bench;
  const auto first = noise(3 * kMiB + 5 * kPage, 1), second = noise(2 * kPage, 2);
  bench.one.put(kPage, first);
  bench.two.put(5 * kMiB, second);
  const auto outcome = bench.copier()->copy({
      {.region = bench.target.region, .offset = 0, .bytes = first.size() + kMiB, .sources = {bench.one.source(kPage)}},
      {.region = bench.target.region,
       .offset = 6 * kMiB,
       .bytes = kMiB,
       .sources = {bench.two.source(5 * kMiB - 3 * kPage)}},
  });
  CHECK_MESSAGE(outcome.code == CopyOutcome::Code::ok, outcome.why);
  for (uint64_t at = 0; at < first.size(); at += kPage) {
    const auto page = bench.target.get(at, kPage);
    REQUIRE(std::equal(page.begin(), page.end(), first.begin() + static_cast<ptrdiff_t>(at)));
  }
  CHECK(bench.target.get(6 * kMiB + 3 * kPage, 2 * kPage) == second);
  CHECK(bench.target.get(6 * kMiB, 3 * kPage) == std::vector<uint8_t>(3 * kPage));
  CHECK(bench.target.server->region(bench.target.region)->resident_bytes == first.size() + second.size());
}

TEST_CASE("where one source cannot be read, the next is") {
  Bench bench;
  const auto data = noise(kMiB, 3);
  bench.two.put(0, data);
  SUBCASE("because it is gone") { bench.one.server->close(); }
  SUBCASE("because the region is") { bench.one.server->destroy_region(bench.one.region); }
  const auto outcome = bench.copier()->copy({{.region = bench.target.region,
                                              .offset = 0,
                                              .bytes = kMiB,
                                              .sources = {bench.one.source(0), bench.two.source(0)}}});
  CHECK_MESSAGE(outcome.code == CopyOutcome::Code::ok, outcome.why);
  CHECK(bench.target.get(0, kMiB) == data);
}

TEST_CASE("what no source has fails, with the appliance named, and so does what has no place") {
  Bench bench;
  SUBCASE("no source") {
    const auto outcome = bench.copier()->copy(
        {{.region = bench.target.region, .offset = 0, .bytes = kMiB, .sources = {bench.two.source(0, 99)}}});
    CHECK(outcome.code == CopyOutcome::Code::unreadable);
    CHECK(outcome.why.find("appliance a2") != std::string::npos);
  }
  SUBCASE("no place") {
    bench.one.put(0, noise(kPage, 4));
    const auto outcome =
        bench.copier()->copy({{.region = 99, .offset = 0, .bytes = kPage, .sources = {bench.one.source(0)}}});
    CHECK(outcome.code == CopyOutcome::Code::unwritable);
  }
}

TEST_CASE("a copy that is stopped, before or in the middle, returns soon; one that has no time is late") {
  Bench bench;
  bench.one.put(0, noise(kRegionBytes, 5));
  std::vector<CopyPiece> pieces;
  for (int round = 0; round < 2000; ++round)
    pieces.push_back(
        {.region = bench.target.region, .offset = 0, .bytes = kRegionBytes, .sources = {bench.one.source(0)}});
  auto copier = bench.copier(60'000);
  const uint64_t began = monotonic_ns();
  SUBCASE("before") {
    copier->stop();
    CHECK(copier->copy(pieces).code == CopyOutcome::Code::stopped);
  }
  SUBCASE("in the middle") {
    std::thread stopper([&] {
      while (bench.target.server->region(bench.target.region)->resident_bytes < kRegionBytes) std::this_thread::yield();
      copier->stop();
    });
    CHECK(copier->copy(pieces).code == CopyOutcome::Code::stopped);
    stopper.join();
  }
  SUBCASE("late") { CHECK(bench.copier(100)->copy(pieces).code == CopyOutcome::Code::late); }
  CHECK(monotonic_ns() - began < 30'000'000'000);
}

}  // namespace
}  // namespace extmem::move
