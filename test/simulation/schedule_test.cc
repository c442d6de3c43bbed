// The simulation itself: a seed plays the same way twice, and the model and the network are as strict as they say.
#include "simulation/schedule.h"

#include <doctest/doctest.h>

#include <cstring>

namespace extmem::simulation {
namespace {

TEST_CASE("a seed plays the same way twice, another one differently") {
  const Outcome once = Schedule(7).run(), again = Schedule(7).run(), other = Schedule(8).run();
  CHECK_MESSAGE(once.wrong.empty(), once.wrong);
  CHECK_MESSAGE(other.wrong.empty(), other.wrong);
  CHECK(once.reads > 100);
  CHECK(once.writes > 50);
  CHECK(once.hash == again.hash);
  CHECK(once.events == again.events);
  CHECK(once.hash != other.hash);
}

class Written {
 public:
  Written() {
    model.grant(kClient, kFile);
    stamp(kFile, kCells, 1, data);
    model.begin_write(kClient, kFile, kCells, 1);
    model.end_write(kClient, kFile, kCells, 1, true);
  }
  std::string read(ClientId client) { return model.check_read(client, kFile, kCells, data); }
  static constexpr ClientId kClient = 5, kOther = 6;
  static constexpr FileId kFile = 3;
  static constexpr CellRange kCells{.first = kPageCells, .count = kPageCells};
  Model model{4};
  std::vector<std::byte> data = std::vector<std::byte>(kPageBytes);
};

TEST_CASE("what was written is read, nothing else") {
  Written one;
  CHECK(one.read(Written::kClient).empty());
  SUBCASE("not zeros") {
    std::memset(one.data.data(), 0, one.data.size());
    CHECK(!one.read(Written::kClient).empty());
  }
  SUBCASE("not half of it") {
    std::memset(one.data.data(), 0, kCellBytes);
    CHECK(!one.read(Written::kClient).empty());
  }
  SUBCASE("not a torn cell") {
    one.data[100] ^= std::byte{1};
    CHECK(!one.read(Written::kClient).empty());
  }
  SUBCASE("not what was written elsewhere") {
    stamp(Written::kFile, {.first = 0, .count = kPageCells}, 1, one.data);
    CHECK(!one.read(Written::kClient).empty());
  }
}

TEST_CASE("a crash leaves what was durable, or newer; whatever was read then stays") {
  Written one;
  const bool synced = [] {
    bool value = false;
    SUBCASE("synced") { value = true; }
    SUBCASE("not synced") {}
    return value;
  }();
  if (synced) CHECK(one.model.check_synced(Written::kClient, Written::kFile).empty());
  one.model.crash(Written::kClient);
  one.model.depose(Written::kClient, Written::kFile);
  one.model.grant(Written::kOther, Written::kFile);
  std::vector<std::byte> zeros(one.data.size());
  const auto read_zeros = [&] { return one.model.check_read(Written::kOther, Written::kFile, Written::kCells, zeros); };
  CHECK(read_zeros().empty() == !synced);
  CHECK(one.read(Written::kOther).empty() == synced);
}

TEST_CASE("who has lost a file may see its own last content, and is told of nothing durable after writing more") {
  Written one;
  one.model.depose(Written::kClient, Written::kFile);
  CHECK(one.read(Written::kClient).empty());
  CHECK(one.model.check_synced(Written::kClient, Written::kFile).empty());
  one.model.begin_write(Written::kClient, Written::kFile, Written::kCells, 2);
  one.model.end_write(Written::kClient, Written::kFile, Written::kCells, 2, true);
  CHECK(!one.model.check_synced(Written::kClient, Written::kFile).empty());
}

/// Sends and receives on a simulated network.
class Talker final : public fabric::sim::StreamUser {
 public:
  void on_connected(bool accepted) override { connected = accepted; }
  bool on_input() override {
    char bytes[64];
    const iovec segment{bytes, sizeof bytes};
    const ssize_t got = stream->receive({&segment, 1});
    if (got > 0) received.append(bytes, static_cast<size_t>(got));
    ended |= got == 0;
    return !ended;
  }
  void on_room() override {}
  void say(const std::string& text) {
    const iovec segment{const_cast<char*>(text.data()), text.size()};
    REQUIRE(stream->send({&segment, 1}) == static_cast<ssize_t>(text.size()));
  }
  std::shared_ptr<fabric::sim::Stream> stream;
  std::string received;
  bool connected = false, ended = false;
};

TEST_CASE("what was on its way arrives after its sender has closed, however late, and in order") {
  fabric::sim::World world(1);
  fabric::sim::Network network(world, {});
  Talker asking, listening;
  const HostId one = network.add_host("one"), other = network.add_host("other");
  network.listen(other, [&](std::shared_ptr<fabric::sim::Stream> stream) {
    listening.stream = std::move(stream);
    listening.stream->set_user(&listening);
  });
  const auto run_for = [&](uint64_t ns) {
    const uint64_t until = world.now_ns() + ns;
    while (world.next_due_ns() <= until) world.run_next();
    world.move_to(until);
  };
  asking.stream = network.connect(one, "other", asking);
  run_for(1'000'000);
  REQUIRE(asking.connected);
  network.cut(one, other, true);
  asking.say("first, ");
  asking.say("second");
  asking.stream->close();
  run_for(5'000'000'000);
  CHECK(listening.received.empty());
  network.cut(one, other, false);
  run_for(1'000'000'000);
  CHECK(listening.received == "first, second");
  CHECK(listening.ended);
  listening.stream->close();
}

}  // namespace
}  // namespace extmem::simulation
