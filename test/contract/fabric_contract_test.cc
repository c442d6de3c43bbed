// The fabric's contract: one suite over every transport, against an appliance in another process.
#include <doctest/doctest.h>

#include <algorithm>
#include <cstring>
#include <numeric>
#include <random>

#include "base/clock.h"
#include "contract/test_client.h"

using namespace extmem;
using namespace extmem::contract;

namespace {

constexpr uint64_t kMiB = 1 << 20;

std::vector<uint8_t> pattern(size_t bytes, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<uint8_t> data(bytes);
  std::generate(data.begin(), data.end(), [&] { return static_cast<uint8_t>(random()); });
  return data;
}

/// One appliance with region 10 of 4 MiB, and a client of it.
struct Bench {
  explicit Bench(const Transport& transport)
      : faulty(transport.faults != nullptr),
        client({.transport = transport}),
        appliance(client.add_appliance(process)),
        region((process.command("create 10 4194304 0"), client.add_region(appliance, 10, 4 * kMiB))) {}
  const bool faulty;
  ApplianceProcess process;
  TestClient client;
  fabric::Appliance& appliance;
  fabric::Region& region;
};

template <typename Body>
void over_all_transports(Body body) {
  for (const Transport& transport : all_transports()) {
    INFO("transport ", std::string(transport.name));
    Bench bench(transport);
    body(bench);
  }
}

}  // namespace

TEST_CASE("a read returns what was written, at any offset and size") {
  over_all_transports([](Bench& bench) {
    std::mt19937_64 random(42);
    std::vector<uint8_t> model(4 * kMiB);
    for (int round = 0; round < 60; ++round) {
      const size_t bytes = round % 3 == 0 ? random() % kMiB + 1 : random() % 20'000 + 1;
      const size_t offset = random() % (model.size() - bytes + 1);
      const auto data = pattern(bytes, random());
      REQUIRE(bench.client.write(bench.region, offset, data) == Status::ok);
      std::copy(data.begin(), data.end(), model.begin() + static_cast<ptrdiff_t>(offset));
      const size_t read_bytes = random() % kMiB + 1, read_offset = random() % (model.size() - read_bytes + 1);
      std::vector<uint8_t> got(read_bytes, 0xee);
      REQUIRE(bench.client.read(bench.region, read_offset, got) == Status::ok);
      REQUIRE(std::memcmp(got.data(), model.data() + read_offset, read_bytes) == 0);
    }
  });
}

TEST_CASE("new memory is zero") {
  over_all_transports([](Bench& bench) {
    std::vector<uint8_t> got(kMiB, 0xee);
    CHECK(bench.client.read(bench.region, 3 * kMiB, got) == Status::ok);
    CHECK(std::all_of(got.begin(), got.end(), [](uint8_t byte) { return byte == 0; }));
  });
}

TEST_CASE("scatter lists of unequal segments keep their order") {
  over_all_transports([](Bench& bench) {
    const auto data = pattern(300'000, 5);
    REQUIRE(bench.client.write(bench.region, 1001, data) == Status::ok);
    std::vector<uint8_t> got(data.size(), 0xee);
    std::vector<iovec> segments;
    for (size_t begin = 0, step = 1; begin < got.size(); begin += segments.back().iov_len, step = step * 3 % 7919) {
      segments.push_back({.iov_base = got.data() + begin, .iov_len = std::min(step, got.size() - begin)});
    }
    Operation operation;
    operation.region = &bench.region;
    operation.offset = 1001;
    operation.segments = segments.data();
    operation.segment_count = static_cast<uint32_t>(segments.size());
    operation.bytes = static_cast<uint32_t>(got.size());
    CHECK(bench.client.run(operation) == Status::ok);
    CHECK(got == data);
    std::vector<uint8_t> other(data.rbegin(), data.rend());
    std::copy(other.begin(), other.end(), got.begin());
    operation.op = Op::write;
    CHECK(bench.client.run(operation) == Status::ok);
    std::vector<uint8_t> again(data.size());
    CHECK(bench.client.read(bench.region, 1001, again) == Status::ok);
    CHECK(again == other);
  });
}

TEST_CASE("out of range is told, changes nothing, and does not harm the connection") {
  over_all_transports([](Bench& bench) {
    const auto data = pattern(8192, 1);
    CHECK(bench.client.write(bench.region, 4 * kMiB - 4096, data) == Status::out_of_range);
    std::vector<uint8_t> tail(4096, 1);
    CHECK(bench.client.read(bench.region, 4 * kMiB - 4096, tail) == Status::ok);
    CHECK(std::all_of(tail.begin(), tail.end(), [](uint8_t byte) { return byte == 0; }));
    std::vector<uint8_t> got(8192);
    CHECK(bench.client.read(bench.region, 4 * kMiB - 1, got) == Status::out_of_range);
    CHECK(bench.client.read(bench.region, UINT64_MAX - 100, got) == Status::out_of_range);
    CHECK(bench.client.write(bench.region, UINT64_MAX, data) == Status::out_of_range);
    CHECK(bench.process.command("refusals") == "");
  });
}

TEST_CASE("a read-only grant reads and does not write") {
  over_all_transports([](Bench& bench) {
    bench.process.command("create 11 65536 0");
    fabric::Region& region = bench.client.add_region(bench.appliance, 11, 65536, kRead);
    std::vector<uint8_t> page(4096, 9);
    CHECK(bench.client.read(region, 0, page) == Status::ok);
    CHECK(bench.client.write(region, 0, page) == Status::denied);
    CHECK(bench.client.put_record(region, 1, "no") == Status::denied);
    // The manager grants more: the next write goes through on the same connection.
    bench.client.add_region(bench.appliance, 11, 65536, kRead | kWrite);
    std::vector<uint8_t> nine(4096, 9);
    CHECK(bench.client.write(region, 0, nine) == Status::ok);
  });
}

TEST_CASE("after more is granted, writes that leave together all go through") {
  over_all_transports([](Bench& bench) {
    bench.process.command("create 12 65536 0");
    fabric::Region& region = bench.client.add_region(bench.appliance, 12, 65536, kRead);
    std::vector<uint8_t> page(4096, 9);
    CHECK(bench.client.read(region, 0, page) == Status::ok);
    bench.client.add_region(bench.appliance, 12, 65536, kRead | kWrite);
    iovec segment{page.data(), page.size()};
    std::vector<Operation> operations(8);
    for (Operation& operation : operations) {
      operation.op = Op::write;
      operation.region = &region;
      operation.segments = &segment;
      operation.segment_count = 1;
      operation.bytes = 4096;
    }
    bench.client.run_all(operations);
    for (const Operation& operation : operations) CHECK(operation.status == Status::ok);
  });
}

TEST_CASE("a capability that the manager did not issue is refused") {
  over_all_transports([](Bench& bench) {
    auto forged = make_capability(make_credentials(1, 1), 10, kRead);
    forged.rights = kRead | kWrite;
    fabric::Region& region = bench.client.directory().put_region(10, 4 * kMiB, bench.appliance, forged);
    std::vector<uint8_t> page(4096, 1);
    CHECK(bench.client.write(region, 0, page) == Status::denied);
    CHECK(bench.client.read(region, 0, page) == Status::denied);
    auto of_another = make_capability(make_credentials(2, 1), 10, kRead | kWrite);
    bench.client.directory().put_region(10, 4 * kMiB, bench.appliance, of_another);
    CHECK(bench.client.read(region, 0, page) == Status::denied);
    bench.client.add_region(bench.appliance, 10, 4 * kMiB);
    CHECK(bench.client.read(region, 0, page) == Status::ok);
  });
}

TEST_CASE("a client with a wrong key is refused, and told of once") {
  for (const Transport& transport : all_transports()) {
    INFO("transport ", std::string(transport.name));
    ApplianceProcess process;
    process.command("create 10 65536 0");
    fabric::Credentials wrong = make_credentials(1, 1);
    wrong.key[0] ^= 1;
    TestClient client({.transport = transport, .credentials = wrong});
    fabric::Region& region = client.add_region(client.add_appliance(process), 10, 65536);
    std::vector<uint8_t> page(4096);
    CHECK(client.read(region, 0, page) == Status::denied);
    CHECK(client.read(region, 0, page) == Status::denied);
  }
}

TEST_CASE("a region that the appliance does not have is not present") {
  over_all_transports([](Bench& bench) {
    fabric::Region& region = bench.client.add_region(bench.appliance, 99, 65536);
    std::vector<uint8_t> page(4096);
    CHECK(bench.client.read(region, 0, page) == Status::not_present);
    CHECK(bench.client.write(region, 0, page) == Status::not_present);
  });
}

TEST_CASE("atomics return the old value and are seen by reads") {
  for (Transport transport : all_transports()) {
    INFO("transport ", std::string(transport.name));
    if (transport.faults != nullptr) transport.faults = "delay=0.2:300us";  // cut, their outcome could not be known
    Bench bench(transport);
    Operation add;
    add.op = Op::fetch_add;
    add.region = &bench.region;
    add.offset = 64;
    add.operand = 5;
    REQUIRE(bench.client.run(add) == Status::ok);
    CHECK(add.value == 0);
    REQUIRE(bench.client.run(add) == Status::ok);
    CHECK(add.value == 5);
    Operation swap;
    swap.op = Op::compare_swap;
    swap.region = &bench.region;
    swap.offset = 64;
    swap.operand = 10;
    swap.desired = 77;
    REQUIRE(bench.client.run(swap) == Status::ok);
    CHECK(swap.value == 10);
    REQUIRE(bench.client.run(swap) == Status::ok);
    CHECK(swap.value == 77);
    std::vector<uint8_t> word(8);
    CHECK(bench.client.read(bench.region, 64, word) == Status::ok);
    CHECK(word[0] == 77);
    swap.offset = 65;
    CHECK(bench.client.run(swap) == Status::bad_request);
  }
}

TEST_CASE("records are kept beside the region, replaced and removed") {
  over_all_transports([](Bench& bench) {
    CHECK(bench.client.put_record(bench.region, 3, "first") == Status::ok);
    CHECK(bench.client.put_record(bench.region, 3, "second") == Status::ok);
    CHECK(bench.process.command("records") == "10:3:second ");
    CHECK(bench.client.put_record(bench.region, 4, std::string(protocol::kMaxRecordBytes, 'x')) == Status::ok);
    Operation remove;
    remove.op = Op::remove_record;
    remove.region = &bench.region;
    remove.operand = 4;
    CHECK(bench.client.run(remove) == Status::ok);
    CHECK(bench.client.run(remove) == Status::ok);
    CHECK(bench.process.command("records") == "10:3:second ");
  });
}

TEST_CASE("a thousand operations in flight all complete, each with its own bytes") {
  over_all_transports([](Bench& bench) {
    constexpr size_t kCount = 1000, kBytes = 4096;
    std::vector<uint8_t> data = pattern(kCount * kBytes, 3), got(data.size());
    std::vector<iovec> from(kCount), to(kCount);
    std::vector<Operation> writes(kCount), reads(kCount);
    for (size_t index = 0; index < kCount; ++index) {
      from[index] = {.iov_base = data.data() + index * kBytes, .iov_len = kBytes};
      to[index] = {.iov_base = got.data() + index * kBytes, .iov_len = kBytes};
      for (auto* operation : {&writes[index], &reads[index]}) {
        operation->region = &bench.region;
        operation->offset = index * kBytes;
        operation->segment_count = 1;
        operation->bytes = kBytes;
      }
      writes[index].op = Op::write;
      writes[index].segments = &from[index];
      reads[index].segments = &to[index];
    }
    bench.client.run_all(writes);
    bench.client.run_all(reads);
    for (size_t index = 0; index < kCount; ++index) {
      // Cut twice, an operation fails; that is all that may happen to it.
      const bool done = writes[index].status == Status::ok && reads[index].status == Status::ok;
      if (!bench.faulty) REQUIRE(done);
      if (done) REQUIRE(std::memcmp(got.data() + index * kBytes, data.data() + index * kBytes, kBytes) == 0);
      REQUIRE((reads[index].status == Status::ok || reads[index].status == Status::unreachable));
    }
  });
}

TEST_CASE("errors among pipelined reads do not disturb their neighbours") {
  over_all_transports([](Bench& bench) {
    const auto data = pattern(64 * 4096, 8);
    REQUIRE(bench.client.write(bench.region, 0, data) == Status::ok);
    std::vector<uint8_t> got(data.size());
    std::vector<iovec> to(64);
    std::vector<Operation> reads(64);
    for (size_t index = 0; index < 64; ++index) {
      to[index] = {.iov_base = got.data() + index * 4096, .iov_len = 4096};
      reads[index].region = &bench.region;
      reads[index].offset = index % 3 == 1 ? 5 * kMiB : index * 4096;
      reads[index].segments = &to[index];
      reads[index].segment_count = 1;
      reads[index].bytes = 4096;
    }
    bench.client.run_all(reads);
    for (size_t index = 0; index < 64; ++index) {
      CHECK(reads[index].status == (index % 3 == 1 ? Status::out_of_range : Status::ok));
      if (index % 3 != 1) CHECK(std::memcmp(got.data() + index * 4096, data.data() + index * 4096, 4096) == 0);
    }
  });
}

TEST_CASE("several reactors of one client use the same region") {
  for (const Transport& transport : all_transports()) {
    INFO("transport ", std::string(transport.name));
    ApplianceProcess process({.threads = 2});
    process.command("create 10 4194304 0");
    TestClient client({.transport = transport, .reactors = 3});
    fabric::Region& region = client.add_region(client.add_appliance(process), 10, 4 * kMiB);
    for (unsigned round = 0; round < 9; ++round) {
      const auto data = pattern(100'000, round);
      REQUIRE(client.write(region, round * 1000, data, round % 3) == Status::ok);
      std::vector<uint8_t> got(data.size());
      REQUIRE(client.read(region, round * 1000, got, (round + 1) % 3) == Status::ok);
      CHECK(got == data);
    }
  }
}

TEST_CASE("an operation submitted from within a completion does not deepen the stack") {
  over_all_transports([](Bench& bench) {
    struct Chain {
      fabric::Fabric* fabric;
      int left = 1'000;
      bool failed = false;
    };
    Chain chain;
    std::vector<uint8_t> page(4096);
    iovec segment{.iov_base = page.data(), .iov_len = page.size()};
    Operation operation;
    operation.region = &bench.region;
    operation.segments = &segment;
    operation.segment_count = 1;
    operation.bytes = 4096;
    operation.context = &chain;
    operation.complete = [](Operation& done) {
      auto* state = static_cast<Chain*>(done.context);
      state->failed |= done.status != Status::ok;
      if (--state->left > 0) state->fabric->submit(done);
    };
    bench.client.on_reactor([&](Reactor&, fabric::Fabric& fabric) {
      chain.fabric = &fabric;
      fabric.submit(operation);
    });
    for (int left = 1; left > 0;) bench.client.on_reactor([&](Reactor&, fabric::Fabric&) { left = chain.left; });
    CHECK_FALSE(chain.failed);
  });
}

TEST_CASE("the appliance learns of writes with notice: which chunks they changed, each time anew") {
  constexpr uint64_t kChunk = protocol::kLendBytes;
  over_all_transports([](Bench& bench) {
    // It is told beside the write's completion, so that it may know a little later.
    const auto await_written = [&bench](const std::string& wanted) {
      std::string found;
      for (const uint64_t give_up = monotonic_ns() + 5'000'000'000; found != wanted && monotonic_ns() < give_up;) {
        found += bench.process.command("written 10");
      }
      return found;
    };
    const auto write = [&bench](uint64_t offset, std::vector<uint8_t> data) {
      iovec segment{.iov_base = data.data(), .iov_len = data.size()};
      Operation operation;
      operation.op = Op::write;
      operation.notify = true;
      operation.region = &bench.region;
      operation.offset = offset;
      operation.segments = &segment;
      operation.segment_count = 1;
      operation.bytes = static_cast<uint32_t>(data.size());
      return bench.client.run(operation);
    };
    std::vector<uint8_t> got(10'000);
    CHECK(bench.client.read(bench.region, 0, got) == Status::ok);
    CHECK(bench.process.command("written 10") == "");
    const auto data = pattern(10'000, 1);
    CHECK(write(kChunk, data) == Status::ok);
    CHECK(await_written("1 ") == "1 ");
    CHECK(bench.client.read(bench.region, kChunk, got) == Status::ok);
    CHECK(got == data);
    CHECK(write(kChunk - 5000, data) == Status::ok);  // across the two
    CHECK(await_written("0 1 ") == "0 1 ");
    CHECK(bench.process.command("written 10") == "");
  });
}

TEST_CASE("many writes with notice at once all arrive, and none waits for ever") {
  for (const Transport& transport : plain_transports()) {  // a cut would use up both attempts of some
    INFO("transport ", std::string(transport.name));
    Bench bench(transport);
    constexpr size_t kCount = 500;
    std::vector<std::vector<uint8_t>> data;
    std::vector<iovec> segments;
    for (size_t index = 0; index < kCount; ++index) data.push_back(pattern(index % 2 == 0 ? 4096 : 100, index));
    for (auto& one : data) segments.push_back({.iov_base = one.data(), .iov_len = one.size()});
    std::vector<Operation> operations(kCount);
    for (size_t index = 0; index < kCount; ++index) {
      operations[index].op = Op::write;
      operations[index].notify = index % 3 != 0;
      operations[index].region = &bench.region;
      operations[index].offset = index * 4096;
      operations[index].segments = &segments[index];
      operations[index].segment_count = 1;
      operations[index].bytes = static_cast<uint32_t>(data[index].size());
    }
    bench.client.run_all(operations);
    for (size_t index = 0; index < kCount; ++index) {
      REQUIRE(operations[index].status == Status::ok);
      std::vector<uint8_t> got(data[index].size());
      REQUIRE(bench.client.read(bench.region, index * 4096, got) == Status::ok);
      REQUIRE(got == data[index]);
    }
  }
}

TEST_CASE("after close everything completes with closed, what was in flight and what comes") {
  over_all_transports([](Bench& bench) {
    std::vector<uint8_t> page(4096);
    CHECK(bench.client.read(bench.region, 0, page) == Status::ok);
    bench.client.close_fabrics();
    CHECK(bench.client.read(bench.region, 0, page) == Status::closed);
  });
}

TEST_CASE("the automatic transport takes shared memory on this host and tcp elsewhere") {
  ApplianceProcess process;
  process.command("create 10 65536 0");
  TestClient client({.transport = {"automatic", fabric::TransportKind::automatic, nullptr}});
  std::vector<uint8_t> page(4096);
  fabric::Appliance& near = client.add_appliance(process);
  CHECK(client.read(client.add_region(near, 10, 65536), 0, page) == Status::ok);
  CHECK(near.transport == fabric::TransportKind::shm);

  ApplianceProcess other;
  other.command("create 20 65536 0");
  fabric::Appliance& far = client.directory().put_appliance("far", "another-host", host_address(), other.port(),
                                                            other.link_name(), other.incarnation());
  CHECK(client.read(client.add_region(far, 20, 65536), 0, page) == Status::ok);
  CHECK(far.transport == fabric::TransportKind::tcp);

  // The link's name cannot be seen from another network namespace: as if nobody listened there.
  ApplianceProcess third({.link_name = "-"});
  third.command("create 30 65536 0");
  fabric::Appliance& hidden = client.directory().put_appliance("hidden", "this-host", host_address(), third.port(),
                                                               "extmem-nobody-listens", third.incarnation());
  CHECK(client.read(client.add_region(hidden, 30, 65536), 0, page) == Status::ok);
  CHECK(hidden.transport == fabric::TransportKind::tcp);
}
