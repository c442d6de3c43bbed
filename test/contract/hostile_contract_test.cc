// What a client does with memory that it was lent (shm): it cuts it, seals it, leases it, fills it, keeps it after it
// was fenced. It may spoil what it may write, and nothing else; nobody else waits for it, and nothing is left behind.
#include <doctest/doctest.h>
#include <fcntl.h>
#include <signal.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>

#include "base/clock.h"
#include "contract/test_client.h"

using namespace extmem;
using namespace extmem::contract;

namespace {

constexpr uint64_t kMiB = 1 << 20;
constexpr Transport kShm{"shm", fabric::TransportKind::shm, nullptr};
constexpr Transport kTcp{"tcp", fabric::TransportKind::tcp, nullptr};
constexpr int kSealWrite = F_SEAL_WRITE, kSealShrink = F_SEAL_SHRINK, kSealSeal = F_SEAL_SEAL;

std::vector<uint8_t> bytes_of(size_t bytes, uint8_t value) { return std::vector<uint8_t>(bytes, value); }

/// How many of a process's descriptors are regions.
size_t region_descriptors(pid_t pid) {
  size_t count = 0;
  for (const auto& entry : std::filesystem::directory_iterator("/proc/" + std::to_string(pid) + "/fd")) {
    std::error_code gone;
    count += std::filesystem::read_symlink(entry, gone).string().find("extmem-region") != std::string::npos;
  }
  return count;
}

/// One appliance with one thread: region 10 is the neighbours' alone, 20 the hostile client's own, 30 shared with it.
/// The neighbours have their bytes in 10 and 30 before anything happens.
struct Bench {
  explicit Bench(uint64_t shared_bytes = kMiB) {
    process.command("create 10 1048576 0");
    process.command("create 20 1048576 0");
    process.command("create 30 " + std::to_string(shared_bytes) + " 0");
    own = &near.add_region(near.add_appliance(process), 10, kMiB);
    shared = &near.add_region(near.add_appliance(process), 30, shared_bytes);
    far_shared = &far.add_region(far.add_appliance(process), 30, shared_bytes);
    REQUIRE(near.write(*own, 0, bytes_of(kMiB, 1)) == Status::ok);
    REQUIRE(near.write(*shared, 0, bytes_of(kMiB, 3)) == Status::ok);
    REQUIRE(hostile.command("join 2 " + process.link_name() + " " + std::to_string(process.port()) + " 1") == "0");
  }
  int abuse(const std::string& line) { return std::stoi(hostile.command(line)); }

  /// Neighbours are served what they wrote, by both ways, and without waiting for anybody.
  void check_neighbours() {
    const uint64_t begin = monotonic_ns();
    auto got = bytes_of(kMiB, 0);
    CHECK(near.read(*own, 0, got) == Status::ok);
    CHECK(got == bytes_of(kMiB, 1));
    TestClient newcomer({.transport = kShm, .credentials = make_credentials(4, 1)});
    fabric::Region& theirs = newcomer.add_region(newcomer.add_appliance(process), 10, kMiB);
    CHECK(newcomer.write(theirs, 0, bytes_of(4096, 1)) == Status::ok);
    CHECK(theirs.shm_fd >= 0);
    CHECK(monotonic_ns() - begin < 1'500'000'000);
  }

  ApplianceProcess process;
  LineProcess hostile{"hostile"};
  TestClient near{{.transport = kShm}};
  TestClient far{{.transport = kTcp, .credentials = make_credentials(3, 1)}};
  fabric::Region* own = nullptr;
  fabric::Region* shared = nullptr;
  fabric::Region* far_shared = nullptr;
};

}  // namespace

TEST_CASE("whoever cuts a region that it may write has spoilt that region, and harmed nobody else") {
  Bench bench;
  REQUIRE(bench.abuse("take 20 1048576 3") == 0);
  REQUIRE(bench.abuse("take 30 1048576 3") == 0);
  REQUIRE(bench.abuse("keep 30") == 0);
  CHECK(bench.abuse("cut 20 0") == 0);
  CHECK(bench.abuse("cut 30 4096") == 0);
  CHECK(bench.abuse("cut 30 1048576") == -EPERM);  // not back again, as zeros
  CHECK(bench.abuse("load 30 8192") == -EFAULT);
  // What is gone is told, and never read as zeros; the connection by which others are asked for as well goes on.
  auto got = bytes_of(kMiB, 0);
  CHECK(bench.near.read(*bench.shared, 0, got) == Status::not_present);
  CHECK(bench.far.read(*bench.far_shared, 0, got) == Status::not_present);
  CHECK(bench.near.write(*bench.shared, 8192, bytes_of(4096, 4)) == Status::not_present);
  CHECK(bench.far.write(*bench.far_shared, 8192, bytes_of(4096, 4)) == Status::not_present);
  auto page = bytes_of(4096, 0);
  CHECK(bench.far.read(*bench.far_shared, 0, page) == Status::ok);
  CHECK(page == bytes_of(4096, 3));
  CHECK(TestClient::totals(*bench.far_shared->appliance).losses == 0);
  bench.check_neighbours();
}

TEST_CASE("whoever fills a region to its end, and beyond, takes no memory that was not given to it") {
  Bench bench;
  REQUIRE(bench.abuse("take 20 1048576 3") == 0);
  CHECK(bench.abuse("populate 20 0 1048576") == 0);
  CHECK(bench.abuse("populate 20 1048576 4096") == -EPERM);
  CHECK(bench.abuse("write 20 1048576 5") == -EPERM);
  CHECK(bench.process.command("memory") == "1073741824 3145728 3145728");
  bench.check_neighbours();
}

TEST_CASE("a descriptor for reading does not become one for writing by another user") {
  Bench bench;
  REQUIRE(bench.abuse("take 30 1048576 1") == 0);
  CHECK(bench.abuse("write 30 0 9") == -EBADF);
  CHECK(bench.abuse("cut 30 0") == -EINVAL);
  CHECK(bench.abuse("seal 30 " + std::to_string(kSealWrite)) == -EPERM);
  REQUIRE(bench.abuse("drop") == 0);
  CHECK(bench.abuse("reopen 30") == -EACCES);
  CHECK(bench.abuse("read 30 0") == 3);
  auto got = bytes_of(kMiB, 0);
  CHECK(bench.near.read(*bench.shared, 0, got) == Status::ok);
  CHECK(got == bytes_of(kMiB, 3));
}

TEST_CASE("a fenced client's mapping and descriptor, reopened or not, reach nothing that others have then") {
  Bench bench;
  REQUIRE(bench.abuse("take 30 1048576 1") == 0);
  REQUIRE(bench.abuse("reopen 30") == 0);  // the same user, or root: trusted until it is fenced
  REQUIRE(bench.abuse("keep 30") == 0);
  CHECK(bench.abuse("store 30 4096 9") == 9);
  CHECK(bench.process.status("fence 2 2") == 0);
  CHECK(bench.abuse("load 30 4096") == -EFAULT);
  CHECK(bench.abuse("store 30 0 9") == -EFAULT);
  CHECK(bench.abuse("write 30 0 9") < 0);
  CHECK(bench.abuse("populate 30 0 4096") < 0);
  auto got = bytes_of(4096, 0);
  CHECK(bench.near.read(*bench.shared, 0, got) == Status::ok);
  CHECK(got == bytes_of(4096, 3));
  CHECK(bench.near.write(*bench.shared, 0, bytes_of(4096, 4)) == Status::ok);
  CHECK(bench.far.read(*bench.far_shared, 0, got) == Status::ok);
  CHECK(got == bytes_of(4096, 4));
  bench.check_neighbours();
}

TEST_CASE("whoever has sealed a region does not keep the bytes of others from them once it is fenced") {
  for (int seals : {kSealWrite, kSealShrink, kSealSeal, kSealWrite | kSealShrink | kSealSeal}) {
    INFO("seals ", seals);
    // More than is moved in one piece.
    Bench bench(160 * kMiB);
    const auto data = bytes_of(kMiB, 7);
    for (uint64_t offset : {uint64_t{0}, 80 * kMiB, 159 * kMiB}) {
      REQUIRE(bench.far.write(*bench.far_shared, offset, data) == Status::ok);
    }
    REQUIRE(bench.abuse("take 30 " + std::to_string(160 * kMiB) + " 3") == 0);
    REQUIRE(bench.abuse("seal 30 " + std::to_string(seals)) == 0);
    if ((seals & kSealWrite) != 0) CHECK(bench.near.write(*bench.shared, 0, data) != Status::ok);  // told, not lost
    CHECK(bench.process.status("fence 2 2") == 0);
    CHECK(bench.abuse("write 30 0 9") < 0);
    bench.check_neighbours();
    // Sealed against seals only, others cannot be kept from writing while it is moved: what they wrote could be lost
    // without a word, so that it is said that all is.
    const bool lost = seals == kSealSeal;
    for (uint64_t offset : {uint64_t{0}, 80 * kMiB, 159 * kMiB}) {
      auto got = bytes_of(kMiB, 0);
      CHECK(bench.far.read(*bench.far_shared, offset, got) == (lost ? Status::not_present : Status::ok));
      if (lost) continue;
      CHECK(got == data);
      CHECK(bench.near.write(*bench.shared, offset, bytes_of(4096, 8)) == Status::ok);
    }
  }
}

TEST_CASE("a lease on lent memory holds up nobody") {
  for (int kind : {F_RDLCK, F_WRLCK}) {
    INFO("lease ", kind);
    Bench bench;
    REQUIRE(bench.abuse("take 20 1048576 " + std::string(kind == F_RDLCK ? "1" : "3")) == 0);
    REQUIRE(bench.abuse("lease 20 " + std::to_string(kind)) == 0);
    // Somebody else is to be lent it as well: the appliance's thread opens it, and serves the neighbours meanwhile.
    TestClient other({.transport = kShm, .credentials = make_credentials(5, 1)});
    fabric::Region& region = other.add_region(other.add_appliance(bench.process), 20, kMiB);
    const uint64_t begin = monotonic_ns();
    CHECK(other.write(region, 0, bytes_of(4096, 6)) == Status::ok);
    CHECK(monotonic_ns() - begin < 1'500'000'000);
    bench.check_neighbours();
  }
}

TEST_CASE("a client that dies leaves nothing at the appliance, and an appliance that dies leaves nothing at a client") {
  Bench bench;
  REQUIRE(bench.abuse("take 20 1048576 3") == 0);
  REQUIRE(bench.abuse("take 30 1048576 3") == 0);
  REQUIRE(bench.abuse("keep 30") == 0);
  const std::string connections = bench.process.command("connections");
  bench.hostile.kill();
  CHECK(eventually([&] { return std::stoi(bench.process.command("connections")) == std::stoi(connections) - 1; }));
  CHECK(region_descriptors(bench.process.pid()) == 3);
  for (const char* region : {"10", "20", "30"}) CHECK(bench.process.status(std::string("destroy ") + region) == 0);
  CHECK(bench.process.command("memory") == "1073741824 0 0");
  CHECK(region_descriptors(bench.process.pid()) == 0);

  bench.process.command("create 40 1048576 0");
  fabric::Region& region = bench.near.add_region(bench.near.add_appliance(bench.process), 40, kMiB);
  REQUIRE(bench.near.write(region, 0, bytes_of(4096, 1)) == Status::ok);
  bench.process.kill();
  CHECK(eventually([] { return region_descriptors(getpid()) == 0; }));
}
