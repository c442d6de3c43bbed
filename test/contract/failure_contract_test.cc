// What happens when appliances die, stop, restart, are cut off, fence, or are talked to by strangers.
#include <doctest/doctest.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <future>

#include "base/clock.h"
#include "base/socket.h"
#include "contract/proxy.h"
#include "contract/test_client.h"

using namespace extmem;
using namespace extmem::contract;

namespace {

constexpr uint64_t kMiB = 1 << 20;
constexpr double kPromiseSeconds = 5;
constexpr Transport kShm{"shm", fabric::TransportKind::shm, nullptr};

double seconds_of(const std::function<void()>& work) {
  const uint64_t begin = monotonic_ns();
  work();
  return static_cast<double>(monotonic_ns() - begin) / 1e9;
}

bool is_outage(Status status) { return status == Status::unreachable || status == Status::timed_out; }

std::vector<uint8_t> page_of(uint8_t byte) { return std::vector<uint8_t>(4096, byte); }

/// A write of the segment's bytes to the beginning of a region.
Operation write_of(fabric::Region& region, const iovec& segment) {
  Operation operation;
  operation.op = Op::write;
  operation.region = &region;
  operation.segments = &segment;
  operation.segment_count = 1;
  operation.bytes = static_cast<uint32_t>(segment.iov_len);
  return operation;
}

Operation record_of(fabric::Region& region, const iovec& segment) {
  Operation operation = write_of(region, segment);
  operation.op = Op::put_record;
  operation.operand = 5;
  return operation;
}

/// An operation that is under way on a reactor.
class Started {
 public:
  Started(TestClient& client, const Operation& operation, unsigned reactor) : operation_(operation) {
    operation_.context = &answered_;
    operation_.complete = [](Operation& done) {
      static_cast<std::promise<Status>*>(done.context)->set_value(done.status);
    };
    client.on_reactor([&](Reactor&, fabric::Fabric& fabric) { fabric.submit(operation_); }, reactor);
  }
  Started(const Started&) = delete;
  Status ended() { return answered_.get_future().get(); }

 private:
  Operation operation_;
  std::promise<Status> answered_;
};

int connect_to(const SocketAddress& address) {
  int fd = socket(address.storage.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
  REQUIRE(connect(fd, address.raw(), address.bytes) == 0);
  return fd;
}

}  // namespace

TEST_CASE("a killed appliance gives an error within 5 s, then at once, and never its old bytes") {
  for (const Transport& transport : plain_transports()) {
    INFO("transport ", std::string(transport.name));
    ApplianceProcess process;
    process.command("create 10 1048576 0");
    TestClient client({.transport = transport});
    fabric::Region& region = client.add_region(client.add_appliance(process), 10, kMiB);
    auto page = page_of(5);
    REQUIRE(client.write(region, 0, page) == Status::ok);
    process.kill();
    // A page that the dead appliance's memory still shows (shm) was right at the moment of death; not for longer.
    CHECK(eventually([&] { return client.read(region, 0, page) == Status::unreachable; }));
    CHECK(seconds_of([&] { CHECK(client.write(region, 0, page) == Status::unreachable); }) < 0.1);
    CHECK(seconds_of([&] { CHECK(is_outage(client.read(region, 0, page))); }) < kPromiseSeconds);
  }
}

TEST_CASE("an appliance that was killed in the middle of operations fails them within 5 s") {
  ApplianceProcess process;
  process.command("create 10 67108864 0");
  TestClient client({});
  fabric::Region& region = client.add_region(client.add_appliance(process), 10, 64 * kMiB);
  std::vector<uint8_t> data(kMiB);
  std::vector<iovec> segments(64, iovec{.iov_base = data.data(), .iov_len = data.size()});
  std::vector<Operation> operations(64);
  for (size_t index = 0; index < operations.size(); ++index) {
    operations[index].op = Op::write;
    operations[index].region = &region;
    operations[index].offset = index * kMiB;
    operations[index].segments = &segments[index];
    operations[index].segment_count = 1;
    operations[index].bytes = kMiB;
  }
  std::thread killer([&] { process.kill(); });
  const double took = seconds_of([&] { client.run_all(operations); });
  killer.join();
  CHECK(took < kPromiseSeconds);
}

TEST_CASE("a stopped appliance delays nobody but those who ask it, and is used again when it goes on") {
  ApplianceProcess stopped, healthy;
  stopped.command("create 10 1048576 0");
  healthy.command("create 20 1048576 0");
  TestClient client({.reactors = 1});
  fabric::Region& dead = client.add_region(client.add_appliance(stopped), 10, kMiB);
  fabric::Region& alive = client.add_region(client.add_appliance(healthy), 20, kMiB);
  auto page = page_of(1);
  REQUIRE(client.write(dead, 0, page) == Status::ok);
  REQUIRE(client.write(alive, 0, page) == Status::ok);
  stopped.signal(SIGSTOP);
  double took = 0;
  Status status = Status::ok;
  std::thread asker([&] {
    auto got = page_of(0);
    took = seconds_of([&] { status = client.read(dead, 0, got); });
  });
  double slowest = 0;
  for (int round = 0; round < 200; ++round) {
    slowest = std::max(slowest, seconds_of([&] { CHECK(client.read(alive, 0, page) == Status::ok); }));
  }
  asker.join();
  CHECK(slowest < 0.5);
  CHECK(is_outage(status));
  CHECK(took < kPromiseSeconds);
  CHECK(seconds_of([&] { CHECK(client.read(dead, 0, page) == Status::unreachable); }) < 0.1);
  stopped.signal(SIGCONT);
  CHECK(eventually([&] { return client.read(dead, 0, page) == Status::ok; }));
  CHECK(page == page_of(1));
}

TEST_CASE("what one reactor has found dead, another does not wait for again") {
  ApplianceProcess process;
  process.command("create 10 1048576 0");
  TestClient client({.reactors = 2});
  fabric::Region& region = client.add_region(client.add_appliance(process), 10, kMiB);
  auto page = page_of(1);
  REQUIRE(client.write(region, 0, page, 0) == Status::ok);
  REQUIRE(client.read(region, 0, page, 1) == Status::ok);
  process.signal(SIGSTOP);
  CHECK(seconds_of([&] { CHECK(is_outage(client.read(region, 0, page, 0))); }) < kPromiseSeconds);
  CHECK(seconds_of([&] { CHECK(is_outage(client.read(region, 0, page, 1))); }) < 0.5);
  CHECK(seconds_of([&] { CHECK(is_outage(client.read(region, 0, page, 0))); }) < 0.5);
  process.signal(SIGCONT);
  for (unsigned reactor : {0u, 1u}) {
    CHECK(eventually([&] { return client.read(region, 0, page, reactor) == Status::ok; }));
  }
}

TEST_CASE("a cut cable is noticed while something is outstanding") {
  ApplianceProcess process;
  process.command("create 10 1048576 0");
  Proxy proxy(process.port());
  TestClient client({});
  fabric::Region& region = client.add_region(client.add_appliance(process, proxy.port()), 10, kMiB);
  auto page = page_of(1);
  REQUIRE(client.write(region, 0, page) == Status::ok);
  proxy.black_hole();
  const double took = seconds_of([&] { CHECK(client.read(region, 0, page) == Status::timed_out); });
  CHECK(took < kPromiseSeconds);
}

TEST_CASE("a restarted appliance is told apart: stale_incarnation, then not_present, never zeros") {
  for (const Transport& transport : plain_transports()) {
    INFO("transport ", std::string(transport.name));
    auto first = std::make_unique<ApplianceProcess>();
    first->command("create 10 1048576 0");
    TestClient client({.transport = transport});
    fabric::Appliance& appliance = client.add_appliance(*first);
    fabric::Region& region = client.add_region(appliance, 10, kMiB);
    auto page = page_of(3);
    REQUIRE(client.write(region, 0, page) == Status::ok);
    const uint16_t port = first->port();
    const std::string link_name = first->link_name();
    first.reset();
    ApplianceProcess second({.port = port, .link_name = link_name, .incarnation = 2});
    second.command("create 10 1048576 0");
    Status status = Status::ok;
    // The death itself may be seen first.
    CHECK(eventually([&] {
      status = client.read(region, 0, page);
      return status != Status::unreachable && status != Status::ok;
    }));
    CHECK(status == Status::stale_incarnation);
    CHECK(page == page_of(3));
    CHECK(client.read(region, 0, page) == Status::not_present);
    CHECK(client.write(region, 0, page) == Status::not_present);
    // Told of the new incarnation, the client uses what is there now; the old region stays lost.
    fabric::Region& fresh = (client.add_appliance(second), client.add_region(appliance, 10, kMiB));
    CHECK(&fresh != &region);
    CHECK(client.read(fresh, 0, page) == Status::ok);
    CHECK(page == page_of(0));
    CHECK(client.read(region, 0, page) == Status::not_present);
  }
}

TEST_CASE("a write held back past its deadline and then let go changes nothing; its retry has taken effect") {
  ApplianceProcess process;
  process.command("create 10 1048576 0");
  Proxy proxy(process.port());
  TestClient client({.operation_deadline_ms = 300});
  fabric::Region& region = client.add_region(client.add_appliance(process, proxy.port()), 10, kMiB);
  REQUIRE(client.write(region, 0, page_of(1)) == Status::ok);
  proxy.hold();
  CHECK(client.write(region, 0, page_of(2)) == Status::ok);
  auto got = page_of(0);
  CHECK(client.read(region, 0, got) == Status::ok);
  CHECK(got == page_of(2));
  CHECK(client.write(region, 0, page_of(3)) == Status::ok);
  proxy.let_go();
  for (int round = 0; round < 20; ++round) {
    usleep(5'000);  // the late write has time to do harm
    REQUIRE(client.read(region, 0, got) == Status::ok);
    REQUIRE(got == page_of(3));
  }
  CHECK(process.command("connections") == "1");
}

TEST_CASE("a fenced client cannot write any more, by connection or by descriptor; others go on") {
  for (const Transport& transport : plain_transports()) {
    INFO("transport ", std::string(transport.name));
    ApplianceProcess process;
    process.command("create 10 1048576 0");
    TestClient fenced({.transport = transport, .credentials = make_credentials(1, 1)});
    TestClient other({.transport = transport, .credentials = make_credentials(2, 1)});
    fabric::Region& theirs = fenced.add_region(fenced.add_appliance(process), 10, kMiB);
    fabric::Region& ours = other.add_region(other.add_appliance(process), 10, kMiB);
    REQUIRE(fenced.write(theirs, 0, page_of(1)) == Status::ok);
    REQUIRE(other.write(ours, 8192, page_of(4)) == Status::ok);
    const int kept = theirs.shm_fd >= 0 ? fcntl(theirs.shm_fd, F_DUPFD_CLOEXEC, 0) : -1;
    CHECK((kept >= 0) == (transport.kind == fabric::TransportKind::shm));
    CHECK(process.status("fence 1 1") == 0);
    const auto two = page_of(2);
    if (kept >= 0) {
      CHECK(pwrite(kept, two.data(), two.size(), 0) < 0);
      std::vector<uint8_t> stolen(4096);
      CHECK(pread(kept, stolen.data(), stolen.size(), 0) == 0);
      close(kept);
    }
    CHECK(fenced.write(theirs, 0, two) == Status::fenced);
    auto got = page_of(0);
    CHECK(fenced.read(theirs, 0, got) == Status::fenced);
    CHECK(other.read(ours, 0, got) == Status::ok);
    CHECK(got == page_of(1));
    CHECK(other.write(ours, 0, page_of(3)) == Status::ok);
    CHECK(other.read(ours, 8192, got) == Status::ok);
    CHECK(got == page_of(4));
    TestClient next({.transport = transport, .credentials = make_credentials(3, 1)});
    fabric::Region& again = next.add_region(next.add_appliance(process), 10, kMiB);
    CHECK(next.read(again, 0, got) == Status::ok);
    CHECK(got == page_of(3));
  }
}

TEST_CASE("an honest client's writes survive the fencing of another, while they are going on") {
  ApplianceProcess process;
  process.command("create 10 16777216 0");
  TestClient writer({.transport = kShm, .credentials = make_credentials(1, 1)});
  TestClient victim({.transport = kShm, .credentials = make_credentials(2, 1)});
  fabric::Region& region = writer.add_region(writer.add_appliance(process), 10, 16 * kMiB);
  fabric::Region& theirs = victim.add_region(victim.add_appliance(process), 10, 16 * kMiB);
  auto got = page_of(0);
  REQUIRE(victim.read(theirs, 0, got) == Status::ok);
  std::atomic<bool> done{false};
  std::thread fencer([&] {
    process.command("fence 2 2");
    done = true;
  });
  std::vector<uint8_t> last(4096, 0);
  for (int round = 0; !done || round < 2000; ++round) {
    const size_t page = static_cast<size_t>(round) % 4096;
    const auto byte = static_cast<uint8_t>(round / 4096 * 31 + round % 251 + 1);
    REQUIRE(writer.write(region, page * 4096, page_of(byte)) == Status::ok);
    last[page] = byte;
  }
  fencer.join();
  for (size_t page = 0; page < last.size(); ++page) {
    REQUIRE(writer.read(region, page * 4096, got) == Status::ok);
    REQUIRE(got == page_of(last[page]));
  }
}

TEST_CASE("a destroyed region is not present, and its memory is the system's again even if a client keeps it") {
  for (const Transport& transport : plain_transports()) {
    INFO("transport ", std::string(transport.name));
    ApplianceProcess process;
    process.command("create 10 67108864 0");
    TestClient client({.transport = transport});
    fabric::Region& region = client.add_region(client.add_appliance(process), 10, 64 * kMiB);
    const std::vector<uint8_t> data(kMiB, 1);
    for (uint64_t offset = 0; offset < 64 * kMiB; offset += kMiB)
      REQUIRE(client.write(region, offset, data) == Status::ok);
    CHECK(process.command("memory") == "1073741824 67108864 67108864");
    const int kept = region.shm_fd >= 0 ? fcntl(region.shm_fd, F_DUPFD_CLOEXEC, 0) : -1;
    CHECK(process.status("destroy 10") == 0);
    CHECK(process.command("memory") == "1073741824 0 0");
    auto got = page_of(0);
    CHECK(client.read(region, 0, got) == Status::not_present);
    CHECK(client.write(region, 0, got) == Status::not_present);
    if (kept >= 0) {
      CHECK(lseek(kept, 0, SEEK_END) == 0);
      CHECK(pwrite(kept, got.data(), got.size(), 0) < 0);
      close(kept);
    }
  }
}

TEST_CASE("a region grows with its bytes kept, shrinks, and punched ranges read as zeros") {
  for (const Transport& transport : plain_transports()) {
    INFO("transport ", std::string(transport.name));
    ApplianceProcess process;
    process.command("create 10 1048576 0");
    TestClient client({.transport = transport});
    fabric::Appliance& appliance = client.add_appliance(process);
    fabric::Region& region = client.add_region(appliance, 10, kMiB);
    REQUIRE(client.write(region, kMiB - 4096, page_of(6)) == Status::ok);
    CHECK(client.write(region, kMiB, page_of(7)) == Status::out_of_range);
    CHECK(process.status("resize 10 2097152") == 0);
    client.add_region(appliance, 10, 2 * kMiB);
    CHECK(client.write(region, kMiB, page_of(7)) == Status::ok);
    auto got = page_of(0);
    CHECK(client.read(region, kMiB - 4096, got) == Status::ok);
    CHECK(got == page_of(6));
    CHECK(process.status("punch 10 " + std::to_string(kMiB - 4096) + " 4096") == 0);
    CHECK(client.read(region, kMiB - 4096, got) == Status::ok);
    CHECK(got == page_of(0));
    CHECK(process.status("resize 10 1048576") == 0);
    CHECK(client.read(region, kMiB, got) == Status::out_of_range);
    // One-sided, memory is taken chunk by chunk.
    const bool by_chunk = transport.kind == fabric::TransportKind::verbs;
    CHECK(process.command("memory") == (by_chunk ? "1073741824 1048576 1048576" : "1073741824 1048576 0"));
  }
}

TEST_CASE("a thin region of a tebibyte exists, counts what was written, and is refused what is not there") {
  ApplianceProcess process({.donated_bytes = 8 * kMiB});
  const uint64_t bytes = uint64_t{1} << 40;
  CHECK(process.status("create 10 " + std::to_string(bytes) + " 1") == 0);
  CHECK(process.status("create 11 8392704 0") == static_cast<int>(Status::no_space));
  TestClient client({.transport = {"automatic", fabric::TransportKind::automatic, nullptr}});
  fabric::Region& region = client.add_region(client.add_appliance(process), 10, bytes);
  const std::vector<uint8_t> data(kMiB, 1);
  for (uint64_t index = 0; index < 8; ++index) REQUIRE(client.write(region, index * 100 * kMiB, data) == Status::ok);
  CHECK(process.command("memory") == "8388608 8388608 8388608");
  CHECK(client.write(region, bytes - 4096, page_of(1)) == Status::no_space);
  CHECK(client.write(region, 0, data) == Status::ok);  // what is there is rewritten
  auto got = page_of(9);
  CHECK(client.read(region, bytes - 4096, got) == Status::ok);
  CHECK(got == page_of(0));
  CHECK(process.status("punch 10 0 1048576") == 0);
  CHECK(client.write(region, bytes - 4096, page_of(1)) == Status::ok);
  CHECK(process.status("create 11 4096 0") == 0);
  CHECK(region.shm_fd == -1);
}

TEST_CASE("garbage on every port is refused, told once, and disturbs nobody") {
  ApplianceProcess process;
  process.command("create 10 1048576 0");
  TestClient client({});
  fabric::Region& region = client.add_region(client.add_appliance(process), 10, kMiB);
  auto page = page_of(1);
  REQUIRE(client.write(region, 0, page) == Status::ok);
  const auto tcp = parse_tcp_address(host_address(), process.port());
  const auto local = make_abstract_address(process.link_name());
  for (const auto& address : {*tcp, *local}) {
    for (int round = 0; round < 20; ++round) {
      const int fd = connect_to(address);
      const char text[] = "GET / HTTP/1.1\r\nHost: somewhere\r\n\r\n";
      REQUIRE(send(fd, text, sizeof text, MSG_NOSIGNAL) > 0);
      char byte;
      CHECK(recv(fd, &byte, 1, 0) <= 0);  // closed, nothing told
      close(fd);
    }
  }
  protocol::ClientHello hello{};
  hello.magic = protocol::kWireMagic;
  hello.version = 999;
  const int fd = connect_to(*tcp);
  REQUIRE(send(fd, &hello, sizeof hello, MSG_NOSIGNAL) == sizeof hello);
  protocol::ServerHello answer{};
  REQUIRE(recv(fd, &answer, sizeof answer, MSG_WAITALL) == sizeof answer);
  CHECK(answer.status == static_cast<uint8_t>(Status::bad_version));
  CHECK(answer.version == protocol::kProtocolVersion);
  close(fd);
  const std::string refusals = process.command("refusals");
  CHECK(refusals == host_address() + ": it does not speak this protocol; unix:uid=" + std::to_string(getuid()) +
                        ": it does not speak this protocol; " + host_address() + ": it speaks protocol version 999; ");
  CHECK(client.read(region, 0, page) == Status::ok);
}

TEST_CASE("a peer that stays silent in the handshake is dropped") {
  ApplianceProcess process;
  const int fd = connect_to(*parse_tcp_address(host_address(), process.port()));
  char byte;
  const double took = seconds_of([&] { CHECK(recv(fd, &byte, 1, 0) <= 0); });
  CHECK(took < 2 * protocol::kHandshakeTimeoutMs / 1e3);
  close(fd);
}

TEST_CASE("a write that one reactor has given up is fenced before another reactor writes there") {
  ApplianceProcess process;
  process.command("create 10 65536 0");
  Proxy proxy(process.port());
  TestClient client({.operation_deadline_ms = 2000, .reactors = 2});
  fabric::Appliance& appliance = client.add_appliance(process, proxy.port());
  fabric::Region& region = client.add_region(appliance, 10, 65536);
  auto got = page_of(0);
  REQUIRE(client.write(region, 0, page_of(1), 0) == Status::ok);
  proxy.hold();
  REQUIRE(client.read(region, 0, got, 1) == Status::ok);  // by a connection of its own, which passes
  proxy.hold_new();

  auto given_up = page_of(2), late = page_of(3);
  const iovec given_up_segment{given_up.data(), given_up.size()}, late_segment{late.data(), late.size()};
  Operation held = write_of(region, given_up_segment);
  held.deadline_ns = monotonic_ns() + 200'000'000;
  CHECK(client.run(held, 0) == Status::timed_out);
  CHECK(appliance.links_in_doubt == 1);
  Started waiting(client, write_of(region, late_segment), 1);
  // What comes behind it waits too, in vain for as long as this; had it been sent, it would be there by then.
  iovec got_segment{got.data(), got.size()};
  Operation behind = write_of(region, got_segment);
  behind.op = Op::read;
  behind.deadline_ns = monotonic_ns() + 200'000'000;
  CHECK(client.run(behind, 1) == Status::timed_out);
  TestClient observer({.credentials = make_credentials(2, 1)});
  REQUIRE(observer.read(observer.add_region(observer.add_appliance(process), 10, 65536), 0, got) == Status::ok);
  CHECK(got == page_of(1));

  proxy.let_new_go();  // the first reactor gets through again, which fences what it had given up
  CHECK(waiting.ended() == Status::ok);
  CHECK(appliance.links_in_doubt == 0);
  proxy.let_go();
  for (unsigned reactor : {0u, 1u}) {
    REQUIRE(client.read(region, 0, got, reactor) == Status::ok);
    CHECK(got == page_of(3));
  }
}

TEST_CASE("what waits for another reactor to get through waits no longer than until the appliance is found down") {
  for (const Transport& transport : {Transport{"tcp", fabric::TransportKind::tcp, nullptr}, kShm}) {
    INFO("transport ", std::string(transport.name));
    ApplianceProcess process;
    process.command("create 10 1048576 0");
    TestClient client({.transport = transport, .operation_deadline_ms = 1000, .reactors = 2});
    fabric::Appliance& appliance = client.add_appliance(process);
    fabric::Region& region = client.add_region(appliance, 10, kMiB);
    auto page = page_of(1);
    const iovec segment{page.data(), page.size()};
    for (unsigned reactor : {0u, 1u}) {
      REQUIRE(client.write(region, 0, page, reactor) == Status::ok);
      REQUIRE(Started(client, record_of(region, segment), reactor).ended() == Status::ok);
    }
    process.signal(SIGSTOP);
    Started given_up(client, record_of(region, segment), 0);
    REQUIRE(eventually([&] { return appliance.links_in_doubt == 1; }));
    CHECK(Started(client, write_of(region, segment), 1).ended() == Status::unreachable);
    CHECK(is_outage(given_up.ended()));
    // Of what a call does one after the other, only the first waits.
    for (const Operation& next : {write_of(region, segment), record_of(region, segment)}) {
      CHECK(Started(client, next, 1).ended() == Status::unreachable);
    }
    process.signal(SIGCONT);
    for (unsigned reactor : {0u, 1u}) {
      CHECK(eventually([&] { return client.write(region, 0, page, reactor) == Status::ok; }));
    }
  }
}

TEST_CASE("over shared memory, what an appliance owes an answer to ends when another reactor has found it down") {
  ApplianceProcess process;
  process.command("create 10 8388608 0");
  TestClient client({.transport = kShm, .operation_deadline_ms = 1500, .reactors = 2});
  fabric::Appliance& appliance = client.add_appliance(process);
  fabric::Region& region = client.add_region(appliance, 10, 8 * kMiB);
  auto page = page_of(1);
  for (unsigned reactor : {0u, 1u}) REQUIRE(client.write(region, 0, page, reactor) == Status::ok);
  process.signal(SIGSTOP);
  const iovec segment{page.data(), page.size()};
  Operation needs_memory = write_of(region, segment);  // so nothing is in doubt when its connection is lost
  needs_memory.offset = 4 * kMiB;
  Started first(client, needs_memory, 0);
  REQUIRE(eventually([&] { return appliance.state == fabric::PeerState::connecting; }));
  Operation halfway = record_of(region, segment);  // of the first reactor's second attempt: what comes now lasts longer
  halfway.deadline_ns = monotonic_ns() + 750'000'000;
  CHECK(Started(client, halfway, 0).ended() == Status::timed_out);
  CHECK(Started(client, record_of(region, segment), 1).ended() == Status::unreachable);
  CHECK(is_outage(first.ended()));
  process.signal(SIGCONT);
  for (unsigned reactor : {0u, 1u}) {
    CHECK(eventually([&] { return client.write(region, 0, page, reactor) == Status::ok; }));
  }
}

TEST_CASE("a client that dies in the middle of a write leaves whole pages, old or new") {
  ApplianceProcess process;
  process.command("create 10 1048576 0");
  Proxy proxy(process.port());
  auto writer = std::make_unique<TestClient>(TestClient::Options{.operation_deadline_ms = 200});
  fabric::Region& region = writer->add_region(writer->add_appliance(process, proxy.port()), 10, kMiB);
  const std::vector<uint8_t> old_bytes(kMiB, 1), new_bytes(kMiB, 2);
  REQUIRE(writer->write(region, 0, old_bytes) == Status::ok);
  proxy.hold();
  writer->write(region, 0, new_bytes);
  writer.reset();
  proxy.let_go();
  TestClient reader({.credentials = make_credentials(2, 1)});
  fabric::Region& same = reader.add_region(reader.add_appliance(process), 10, kMiB);
  std::vector<uint8_t> got(kMiB);
  REQUIRE(reader.read(same, 0, got) == Status::ok);
  for (size_t page = 0; page < 256; ++page) {
    const auto begin = got.begin() + static_cast<ptrdiff_t>(page * 4096);
    REQUIRE(std::all_of(begin, begin + 4096, [&](uint8_t byte) { return byte == *begin; }));
  }
}

TEST_CASE("forced shared memory that is impossible is unreachable") {
  ApplianceProcess process({.link_name = "-"});
  process.command("create 10 65536 0");
  TestClient client({.transport = kShm});
  fabric::Appliance& appliance =
      client.directory().put_appliance("a", "this-host", host_address(), process.port(), "", process.incarnation());
  auto page = page_of(0);
  CHECK(client.read(client.add_region(appliance, 10, 65536), 0, page) == Status::unreachable);
}

TEST_CASE("an idle appliance and an idle client cost next to no CPU") {
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
  constexpr uint64_t kNextToNoneUs = 50'000;
#else
  constexpr uint64_t kNextToNoneUs = 10'000;  // of a second
#endif
  for (const Transport& transport : plain_transports()) {
    INFO("transport ", std::string(transport.name));
    ApplianceProcess process;
    process.command("create 10 65536 0");
    TestClient client({.transport = transport});
    auto page = page_of(0);
    REQUIRE(client.read(client.add_region(client.add_appliance(process), 10, 65536), 0, page) == Status::ok);
    usleep(50'000);
    const uint64_t ours = read_clock_ns(CLOCK_PROCESS_CPUTIME_ID);
    const uint64_t theirs = std::stoull(process.command("cpu"));
    usleep(1'000'000);
    CHECK(std::stoull(process.command("cpu")) - theirs < kNextToNoneUs);  // who polled would take all of it
    CHECK((read_clock_ns(CLOCK_PROCESS_CPUTIME_ID) - ours) / 1000 < kNextToNoneUs);
  }
}
