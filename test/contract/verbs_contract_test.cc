// What only one-sided access over RDMA can get wrong. Needs a device (EXTMEM_TEST_VERBS); without one its cases are
// counted as skipped, and those that need that there is none run instead.
#include <doctest/doctest.h>

#include <algorithm>

#include "base/clock.h"
#include "contract/raw_verbs_client.h"
#include "contract/test_client.h"
#include "fabric/verbs/local_memory.h"

using namespace extmem;
using namespace extmem::contract;

namespace {

constexpr uint64_t kMiB = 1 << 20;
constexpr Transport kVerbs{"verbs", fabric::TransportKind::verbs, nullptr};
constexpr Transport kAutomatic{"automatic", fabric::TransportKind::automatic, nullptr};

std::vector<uint8_t> page_of(uint8_t byte) { return std::vector<uint8_t>(4096, byte); }

/// One appliance with region 10 of 4 MiB, and a client of it.
struct Bench {
  ApplianceProcess process;
  TestClient client{{.transport = kVerbs}};
  fabric::Appliance& appliance{client.add_appliance(process)};
  fabric::Region& region{(process.command("create 10 4194304 0"), client.add_region(appliance, 10, 4 * kMiB))};
};

auto needs_device() { return doctest::skip(!has_verbs()); }

}  // namespace

TEST_CASE("reads and writes are served by no code of the appliance" * needs_device()) {
  Bench bench;
  std::vector<uint8_t> data(kMiB, 7), got(kMiB);
  REQUIRE(bench.client.write(bench.region, 0, data) == Status::ok);
  REQUIRE(bench.client.read(bench.region, 2 * kMiB, got) == Status::ok);
  const int before = bench.process.status("operations");
  for (int round = 0; round < 20; ++round) {
    REQUIRE(bench.client.write(bench.region, kMiB / 2, page_of(static_cast<uint8_t>(round))) == Status::ok);
    auto page = page_of(255);
    REQUIRE(bench.client.read(bench.region, kMiB / 2, page) == Status::ok);
    REQUIRE(page == page_of(static_cast<uint8_t>(round)));
    REQUIRE(bench.client.read(bench.region, 2 * kMiB - 512 * 1024, got) == Status::ok);  // across two chunks
  }
  // 60 operations; heartbeats are served.
  CHECK(bench.process.status("operations") - before < 20);
  CHECK(bench.appliance.transport == fabric::TransportKind::verbs);
}

TEST_CASE("what is asked for in one go is posted in one go, and of its writes only the last tells of its end" *
          needs_device()) {
  Bench bench;
  constexpr size_t kCount = 16;
  std::vector<std::vector<uint8_t>> data;
  for (size_t index = 0; index < kCount; ++index) data.push_back(page_of(static_cast<uint8_t>(index + 1)));
  std::vector<iovec> segments;
  for (auto& one : data) segments.push_back({.iov_base = one.data(), .iov_len = one.size()});
  const auto run_all = [&](Op op) {
    std::vector<Operation> operations(kCount);
    for (size_t index = 0; index < kCount; ++index) {
      operations[index].op = op;
      operations[index].region = &bench.region;
      operations[index].offset = index * 8192;
      operations[index].segments = &segments[index];
      operations[index].segment_count = 1;
      operations[index].bytes = 4096;
    }
    bench.client.run_all(operations);
    for (auto& operation : operations) REQUIRE(operation.status == Status::ok);
  };
  REQUIRE(bench.client.write(bench.region, 0, page_of(1)) == Status::ok);  // the chunk is lent now
  const auto counts = [&bench] {
    const fabric::LinkTotals totals = TestClient::totals(bench.appliance);
    return std::array{totals.device_posts, totals.device_requests, totals.device_signals};
  };
  const auto at_first = counts();
  run_all(Op::write);
  const auto written = counts();
  CHECK(written[0] - at_first[0] == 1);
  CHECK(written[1] - at_first[1] == kCount);
  CHECK(written[2] - at_first[2] == 1);
  for (auto& one : data) std::fill(one.begin(), one.end(), 0);
  run_all(Op::read);
  const auto read = counts();
  CHECK(read[0] - written[0] == 1);
  CHECK(read[1] - written[1] == kCount);
  CHECK(read[2] - written[2] == kCount);  // somebody waits for each
  for (size_t index = 0; index < kCount; ++index) CHECK(data[index] == page_of(static_cast<uint8_t>(index + 1)));
}

TEST_CASE("what may have been written without notice is known as written when the loan ends" * needs_device()) {
  Bench bench;
  REQUIRE(bench.client.write(bench.region, 0, page_of(1)) == Status::ok);
  CHECK(bench.process.command("written 10") == "");
  REQUIRE(bench.process.status("fence 1 1") == 0);
  // Nothing can be written any more from here on; the loans themselves end some at a time.
  std::string written;
  CHECK(eventually([&] { return !(written = bench.process.command("written 10")).empty(); }));
  CHECK(written == "0 ");
}

TEST_CASE("a notice for what was not lent for writing ends the connection" * needs_device()) {
  Bench bench;
  RawVerbsClient stranger(bench.process, make_credentials(2, 1));
  const uint32_t key = stranger.borrow(10, kRead);
  REQUIRE(stranger.transfer(IBV_WR_RDMA_READ, key));
  stranger.notify(1);
  CHECK(stranger.wait_for_end());
  CHECK(bench.process.command("written 10") == "");
}

TEST_CASE("announced memory is used in place, block by block, and not after it was withdrawn" * needs_device()) {
  Bench bench;
  std::vector<uint8_t> memory(5 * kMiB, 1);
  auto* begin = reinterpret_cast<std::byte*>(memory.data());
  fabric::announce_memory(begin, memory.size());
  iovec segment{.iov_base = memory.data() + 2 * kMiB - 8192, .iov_len = kMiB};  // across two blocks
  Operation operation;
  operation.op = Op::write;
  operation.region = &bench.region;
  operation.segments = &segment;
  operation.segment_count = 1;
  operation.bytes = kMiB;
  CHECK(bench.client.run(operation) == Status::ok);
  std::fill(memory.begin(), memory.end(), 2);
  operation.op = Op::read;
  CHECK(bench.client.run(operation) == Status::ok);
  CHECK(std::count(memory.begin(), memory.end(), 1) == kMiB);
  fabric::withdraw_memory(begin);
  std::fill(memory.begin(), memory.end(), 3);
  CHECK(bench.client.run(operation) == Status::ok);  // copied
  CHECK(std::count(memory.begin(), memory.end(), 1) == kMiB);
}

TEST_CASE("a key that was never given is refused, and disturbs nobody else" * needs_device()) {
  Bench bench;
  REQUIRE(bench.client.write(bench.region, 0, page_of(1)) == Status::ok);
  RawVerbsClient stranger(bench.process, make_credentials(2, 1));
  const uint32_t key = stranger.borrow(10, kRead);
  REQUIRE(stranger.transfer(IBV_WR_RDMA_READ, key));
  CHECK(stranger.page() == page_of(1));
  CHECK_FALSE(stranger.transfer(IBV_WR_RDMA_READ, key ^ 0x5a00));
  CHECK(stranger.failure().find("remote access error") != std::string::npos);
  auto got = page_of(0);
  CHECK(bench.client.read(bench.region, 0, got) == Status::ok);
  CHECK(got == page_of(1));
}

TEST_CASE("a key that another client was given is worth nothing" * needs_device()) {
  Bench bench;
  REQUIRE(bench.client.write(bench.region, 0, page_of(1)) == Status::ok);
  RawVerbsClient owner(bench.process, make_credentials(2, 1)), thief(bench.process, make_credentials(3, 1));
  const uint32_t key = owner.borrow(10, kRead | kWrite);
  thief.fill_page(9);
  CHECK_FALSE(thief.transfer(IBV_WR_RDMA_WRITE, key));
  INFO(thief.failure());
  CHECK(thief.failure().find("remote access error") != std::string::npos);
  CHECK(owner.transfer(IBV_WR_RDMA_READ, key));
  CHECK(owner.page() == page_of(1));
}

TEST_CASE("the key of a read-only grant does not write" * needs_device()) {
  Bench bench;
  REQUIRE(bench.client.write(bench.region, 0, page_of(1)) == Status::ok);
  RawVerbsClient reader(bench.process, make_credentials(2, 1));
  const uint32_t key = reader.borrow(10, kRead);
  CHECK(reader.transfer(IBV_WR_RDMA_READ, key));
  reader.fill_page(9);
  CHECK_FALSE(reader.transfer(IBV_WR_RDMA_WRITE, key));
  CHECK(reader.failure().find("remote access error") != std::string::npos);
  auto got = page_of(0);
  CHECK(bench.client.read(bench.region, 0, got) == Status::ok);
  CHECK(got == page_of(1));
}

TEST_CASE("what was punched, freed or fenced is out of reach before its memory is anybody's" * needs_device()) {
  for (const char* command : {"punch 10 0 2097152", "destroy 10", "resize 10 4096", "fence 2 2"}) {
    INFO(std::string(command));
    ApplianceProcess process;
    process.command("create 10 4194304 0");
    RawVerbsClient holder(process, make_credentials(2, 1));
    const uint32_t key = holder.borrow(10, kRead | kWrite);
    holder.fill_page(5);
    const bool written = holder.transfer(IBV_WR_RDMA_WRITE, key);
    INFO(holder.failure());
    REQUIRE(written);
    REQUIRE(process.status(command) == 0);
    CHECK_FALSE(holder.transfer(IBV_WR_RDMA_WRITE, key));
  }
}

TEST_CASE("a part of a lent chunk that was punched reads as zeros by the key that goes on being good" *
          needs_device()) {
  Bench bench;
  RawVerbsClient holder(bench.process, make_credentials(2, 1));
  const uint32_t key = holder.borrow(10, kRead | kWrite);
  holder.fill_page(5);
  REQUIRE(holder.transfer(IBV_WR_RDMA_WRITE, key));
  REQUIRE(bench.process.status("punch 10 0 4096") == 0);
  CHECK(holder.transfer(IBV_WR_RDMA_READ, key));
  CHECK(holder.page() == page_of(0));
}

TEST_CASE("a client is told of chunks that it has no more, and does not lose its connection by them" * needs_device()) {
  Bench bench;
  for (uint8_t round = 1; round < 6; ++round) {
    REQUIRE(bench.client.write(bench.region, 0, page_of(round)) == Status::ok);
    REQUIRE(bench.process.status("punch 10 0 2097152") == 0);
    // Behind the notice on the same stream.
    REQUIRE(bench.client.put_record(bench.region, 1, "record") == Status::ok);
    auto got = page_of(9);
    REQUIRE(bench.client.read(bench.region, 0, got) == Status::ok);
    CHECK(got == page_of(0));
  }
  CHECK(bench.client.totals(bench.appliance).losses == 0);
}

TEST_CASE("an appliance's memory is as its account says when lent chunks are given back" * needs_device()) {
  ApplianceProcess process;
  process.command("create 10 4194304 0");
  {
    TestClient client({.transport = kVerbs});
    fabric::Region& region = client.add_region(client.add_appliance(process), 10, 4 * kMiB);
    for (uint64_t offset : {uint64_t{0}, 2 * kMiB}) REQUIRE(client.write(region, offset, page_of(1)) == Status::ok);
    CHECK(process.command("memory") == "1073741824 4194304 4194304");
    CHECK(process.status("punch 10 0 4194304") == 0);
    CHECK(process.command("memory") == "1073741824 4194304 0");
    auto got = page_of(9);
    CHECK(client.read(region, 0, got) == Status::ok);
    CHECK(got == page_of(0));
  }
  CHECK(process.status("destroy 10") == 0);
  CHECK(process.command("memory") == "1073741824 0 0");
}

TEST_CASE("the automatic transport takes verbs where it is announced, and tcp where that was not true" *
          needs_device()) {
  ApplianceProcess process, without({.address = "127.0.0.1"});
  process.command("create 10 65536 0");
  without.command("create 20 65536 0");
  CHECK(process.command("serves_verbs") == "1");
  CHECK(without.command("serves_verbs") == "0");
  TestClient client({.transport = kAutomatic});
  auto page = page_of(0);
  fabric::Appliance& far = client.directory().put_appliance("far", "another-host", host_address(), process.port(), "",
                                                            process.incarnation(), true);
  CHECK(client.read(client.add_region(far, 10, 65536), 0, page) == Status::ok);
  CHECK(far.transport == fabric::TransportKind::verbs);
  fabric::Appliance& wrong = client.directory().put_appliance("wrong", "another-host", "127.0.0.1", without.port(), "",
                                                              without.incarnation(), true);
  CHECK(client.read(client.add_region(wrong, 20, 65536), 0, page) == Status::ok);
  CHECK(wrong.transport == fabric::TransportKind::tcp);
}

TEST_CASE("without a device, verbs by force is unreachable at once, and by choice is not taken" *
          doctest::skip(verbs::Library::has_device())) {
  ApplianceProcess process;
  process.command("create 10 65536 0");
  CHECK(process.command("serves_verbs") == "0");
  auto page = page_of(0);
  const uint64_t begin = monotonic_ns();
  TestClient forced({.transport = kVerbs});
  CHECK(forced.read(forced.add_region(forced.add_appliance(process), 10, 65536), 0, page) == Status::unreachable);
  TestClient choosing({.transport = kAutomatic});
  fabric::Appliance& far = choosing.directory().put_appliance("far", "another-host", host_address(), process.port(), "",
                                                              process.incarnation(), true);
  CHECK(choosing.read(choosing.add_region(far, 10, 65536), 0, page) == Status::ok);
  CHECK(far.transport == fabric::TransportKind::tcp);
  CHECK(monotonic_ns() - begin < 500'000'000);
}
