// What an operation is told, over every transport: one status for each thing that can be wrong, within its deadline,
// and the connection goes on.
#include <doctest/doctest.h>
#include <signal.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstring>
#include <vector>

#include "base/clock.h"
#include "base/socket.h"
#include "contract/test_client.h"
#include "fabric/client_handshake.h"

using namespace extmem;
using namespace extmem::contract;

namespace {

constexpr uint64_t kMiB = 1 << 20;
constexpr uint64_t kDeadlineNs = 200'000'000;

struct Bench {
  explicit Bench(const Transport& transport)
      : client({.transport = transport}),
        appliance(client.add_appliance(process)),
        region((process.command("create 10 1048576 0"), client.add_region(appliance, 10, kMiB))) {}
  ApplianceProcess process;
  TestClient client;
  fabric::Appliance& appliance;
  fabric::Region& region;
  std::vector<uint8_t> page = std::vector<uint8_t>(protocol::kPageBytes, 1);
};

template <typename Body>
void over_plain_transports(Body body) {
  for (const Transport& transport : plain_transports()) {
    INFO("transport ", std::string(transport.name));
    Bench bench(transport);
    body(bench);
  }
}

/// Served by the appliance's code on every transport, so that a stopped one does not answer it.
Operation addition(fabric::Region& region) {
  Operation operation;
  operation.op = Op::fetch_add;
  operation.region = &region;
  operation.operand = 1;
  return operation;
}

/// A client that says what it likes, once it has proved who it is.
class RawClient {
 public:
  RawClient(const ApplianceProcess& process, const fabric::Credentials& credentials) {
    const auto address = parse_tcp_address(host_address(), process.port());
    fd_.reset(socket(address->storage.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0));
    REQUIRE(connect(fd_.get(), address->raw(), address->bytes) == 0);
    fabric::ClientHandshake handshake(
        credentials, {.index = 0, .generation = fabric::next_link_generation(), .incarnation = process.incarnation()});
    send_all(&handshake.hello(), sizeof handshake.hello());
    protocol::ServerHello hello{};
    receive_all(&hello, sizeof hello);
    REQUIRE(handshake.accept(hello) == Status::ok);
    send_all(&handshake.proof(), sizeof handshake.proof());
    protocol::ReplyHeader conclusion{};
    receive_all(&conclusion, sizeof conclusion);
    REQUIRE(fabric::ClientHandshake::conclude(conclusion) == Status::ok);
  }
  Status ask(uint8_t op, uint64_t region, uint32_t length, const std::vector<uint8_t>& payload) {
    protocol::RequestHeader header{};
    header.magic = protocol::kWireMagic;
    header.op = op;
    header.id = ++id_;
    header.region = region;
    header.length = length;
    send_all(&header, sizeof header);
    send_all(payload.data(), payload.size());
    protocol::ReplyHeader reply{};
    receive_all(&reply, sizeof reply);
    REQUIRE(reply.id == id_);
    REQUIRE(reply.length == 0);
    return static_cast<Status>(reply.status);
  }
  Status ask(Op op, uint64_t region, const std::vector<uint8_t>& payload) {
    return ask(static_cast<uint8_t>(op), region, static_cast<uint32_t>(payload.size()), payload);
  }

 private:
  void send_all(const void* data, size_t bytes) {
    const auto* from = static_cast<const char*>(data);
    for (size_t sent = 0; sent < bytes;) {
      const ssize_t put = send(fd_.get(), from + sent, bytes - sent, MSG_NOSIGNAL);
      REQUIRE(put > 0);
      sent += static_cast<size_t>(put);
    }
  }
  void receive_all(void* into, size_t bytes) {
    REQUIRE(recv(fd_.get(), into, bytes, MSG_WAITALL) == static_cast<ssize_t>(bytes));
  }
  UniqueFd fd_;
  uint64_t id_ = 0;
};

}  // namespace

TEST_CASE("what is refused is told for each operation by itself, and costs no connection") {
  over_plain_transports([](Bench& bench) {
    bench.process.command("create 11 65536 0");
    fabric::Region& read_only = bench.client.add_region(bench.appliance, 11, 65536, kRead);
    fabric::Region& absent = bench.client.add_region(bench.appliance, 99, 65536);
    for (int round = 0; round < 3; ++round) {
      CHECK(bench.client.write(bench.region, 0, bench.page) == Status::ok);
      CHECK(bench.client.write(read_only, 0, bench.page) == Status::denied);
      CHECK(bench.client.write(bench.region, kMiB, bench.page) == Status::out_of_range);
      CHECK(bench.client.read(bench.region, kMiB - 1, bench.page) == Status::out_of_range);
      CHECK(bench.client.read(absent, 0, bench.page) == Status::not_present);
      CHECK(bench.client.read(read_only, 0, bench.page) == Status::ok);
      bench.page.assign(bench.page.size(), 1);
    }
    const auto totals = TestClient::totals(bench.appliance);
    CHECK(totals.losses == 0);
    CHECK(totals.connects == 1);
    CHECK(totals.failures == 12);
    CHECK(totals.operations == 18);
  });
}

TEST_CASE("a fenced client is told fenced") {
  over_plain_transports([](Bench& bench) {
    REQUIRE(bench.client.write(bench.region, 0, bench.page) == Status::ok);
    REQUIRE(bench.process.status("fence 1 1") == 0);
    CHECK(bench.client.write(bench.region, 0, bench.page) == Status::fenced);
  });
}

TEST_CASE("an appliance that nobody runs is unreachable") {
  over_plain_transports([](Bench& bench) {
    bench.process.kill();
    CHECK(bench.client.write(bench.region, 0, bench.page) == Status::unreachable);
  });
}

TEST_CASE(
    "an operation with a deadline ends by it: timed_out, and the same operation is done once the appliance answers") {
  over_plain_transports([](Bench& bench) {
    Operation first = addition(bench.region);
    REQUIRE(bench.client.run(first) == Status::ok);
    bench.process.signal(SIGSTOP);
    Operation late = addition(bench.region);
    const uint64_t begin = monotonic_ns();
    late.deadline_ns = begin + kDeadlineNs;
    CHECK(bench.client.run(late) == Status::timed_out);
    CHECK(monotonic_ns() - begin >= kDeadlineNs);
    CHECK(monotonic_ns() - begin < uint64_t{protocol::kOperationDeadlineMs} * 1'000'000);
    bench.process.signal(SIGCONT);
    Operation again = addition(bench.region);
    Status status = Status::timed_out;
    for (int tries = 0; tries < 400 && status != Status::ok; ++tries) {
      status = bench.client.run(again);
      usleep(10'000);
    }
    CHECK(status == Status::ok);
    CHECK(again.value >= 1);
    CHECK(again.value <= 2);  // the late one was done, or was not
  });
}

TEST_CASE("no request that is wrong in itself costs the connection, however it is wrong") {
  ApplianceProcess process;
  process.command("create 10 1048576 0");
  const auto credentials = make_credentials(1, 1);
  RawClient client(process, credentials);
  const auto capability = make_capability(credentials, 10, kRead | kWrite);
  std::vector<uint8_t> attach(sizeof capability);
  std::memcpy(attach.data(), &capability, sizeof capability);
  const std::vector<uint8_t> none, word(8), seven(7), much(protocol::kMaxRecordBytes + 4096);
  CHECK(client.ask(Op::write, 10, seven) == Status::denied);  // before it is attached
  CHECK(client.ask(Op::attach, 10, seven) == Status::bad_request);
  CHECK(client.ask(Op::attach, 11, attach) == Status::denied);
  CHECK(client.ask(Op::attach, 10, attach) == Status::ok);
  CHECK(client.ask(99, 10, 7, seven) == Status::bad_request);
  CHECK(client.ask(0, 10, 0, none) == Status::bad_request);
  CHECK(client.ask(Op::compare_swap, 10, seven) == Status::bad_request);
  CHECK(client.ask(Op::fetch_add, 10, word) == Status::bad_request);
  CHECK(client.ask(Op::ping, 0, word) == Status::bad_request);
  CHECK(client.ask(Op::shm_descriptor, 10, none) == Status::denied);
  CHECK(client.ask(Op::lend, 10, none) == Status::bad_request);
  CHECK(client.ask(static_cast<uint8_t>(Op::read), 10, protocol::kMaxIoBytes + 1, none) == Status::bad_request);
  CHECK(client.ask(Op::write, 10, much) == Status::bad_request);
  CHECK(client.ask(Op::put_record, 10, much) == Status::bad_request);
  CHECK(client.ask(Op::write, 10, word) == Status::ok);
  CHECK(client.ask(Op::ping, 0, none) == Status::ok);
  CHECK(process.command("connections") == "1");
}
