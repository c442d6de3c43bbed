// Whose turn it is at a shared file, beside a control plane that keeps its answers back until the test lets them go.
#include "cache/shared_turns.h"

#include <doctest/doctest.h>
#include <errno.h>

#include <cstring>
#include <deque>
#include <functional>

#include "cache/file_control.h"
#include "cache/shared_io.h"
#include "native/cache_cluster.h"

namespace extmem::cache {
namespace {

using Kind = extent::ControlCall::Kind;
constexpr uint64_t kNode = 7;

/// Answers what the cluster answers, but for the kinds that are kept.
class KeepingPlane final : public extent::ControlPlane {
 public:
  explicit KeepingPlane(Cluster& cluster) : cluster_(cluster) {}
  void ask(extent::ControlCall& call) override {
    asked.push_back(call.kind);
    if (keeps && keeps(call.kind)) {
      kept.push_back(&call);
    } else {
      cluster_.ask(call);
    }
  }
  void answer(int error = 0) {
    extent::ControlCall* call = kept.front();
    kept.pop_front();
    call->error = error;
    call->answered();
  }
  void become_another_client() { life_.fetch_add(1); }
  long count(Kind kind) const { return std::count(asked.begin(), asked.end(), kind); }

  std::function<bool(Kind)> keeps;
  std::deque<extent::ControlCall*> kept;
  std::vector<Kind> asked;

 private:
  Cluster& cluster_;
};

struct Fixture {
  Reactor reactor{{}};
  fabric::Directory directory;
  Cluster cluster{directory};
  KeepingPlane plane{cluster};
  PageCache cache{{}, directory, plane};
  std::unique_ptr<fabric::Fabric> fabric = fabric::Fabric::create(reactor, directory, test_credentials());
  Lane lane{reactor, *fabric, nullptr, {}};
  File* file;

  Fixture() {
    cluster.attach(cache.slabs());
    REQUIRE(install_file(cache, kNode, Delegation::shared, record(0, 1)) == 0);
    file = cache.find_file(kNode);
  }
  ~Fixture() {
    fabric->close();
    cache.put_file(*file);
  }

  static std::vector<uint8_t> record(uint64_t size, uint32_t epoch) {
    extent::FileAttributes attributes;
    attributes.ino = kNode;
    attributes.size = size;
    attributes.epoch = epoch;
    return extent::encode_record(attributes, {});
  }
};

/// -1 until it has ended.
Detached write(Fixture& all, uint64_t offset, std::span<const std::byte> data, int& ended, bool appends = false) {
  Write write{offset, data};
  write.appends = appends;
  ended = co_await write_file(all.cache, all.lane, *all.file, write);
}
Detached pause(Fixture& all, bool& done) {
  co_await pause_writers(all.lane, *all.file);
  done = true;
}
Detached settle(Fixture& all, bool& done) {
  co_await reads_settled(all.lane, *all.file);
  done = true;
}
Detached yield(Fixture& all, bool& done) {
  co_await yield_end(all.lane, *all.file);
  done = true;
}

Task<int> until(Fixture& all, std::function<bool()> holds) {
  while (!holds()) co_await Sleep(all.reactor, 100'000);
  co_return 0;
}
/// A question of ours is kept.
Task<int> until_kept(Fixture& all) {
  co_return co_await until(all, [&all] { return all.plane.kept.size() == 1; });
}
/// Long enough for whatever does not wait to be done.
Task<int> pass_turns(Fixture& all) {
  int turns = 0;
  co_return co_await until(all, [&turns] { return ++turns > 20; });
}

/// Runs a test on the fixture's reactor.
using Script = Task<int> (*)(Fixture& all);
Detached run_script(Fixture& all, Script script) {
  co_await script(all);
  all.reactor.stop();
}
void play(Script script) {
  Fixture all;
  run_script(all, script);
  all.reactor.run();
}

std::vector<std::byte> bytes(size_t count, int value) { return {count, static_cast<std::byte>(value)}; }

TEST_CASE("writers are paused once those within have ended, and nobody begins before they are resumed") {
  play([](Fixture& all) -> Task<int> {
    all.plane.keeps = [](Kind kind) { return kind == Kind::wrote; };
    auto data = bytes(100, 1);
    int first = -1;
    int second = -1;
    bool paused = false;
    write(all, 0, data, first);
    co_await until_kept(all);
    pause(all, paused);
    write(all, 0, data, second);
    co_await pass_turns(all);
    CHECK_FALSE(paused);
    all.plane.answer();
    co_await until(all, [&] { return paused && first == 0; });
    co_await pass_turns(all);
    CHECK(all.plane.kept.empty());  // the second has not begun
    resume_writers(*all.file);
    co_await until_kept(all);
    all.plane.answer();
    co_await until(all, [&] { return second == 0; });
    co_return 0;
  });
}

TEST_CASE("paused writers fail once the manager is away, and go on when its record is known again") {
  play([](Fixture& all) -> Task<int> {
    auto data = bytes(10, 1);
    bool paused = false;
    int ended = -1;
    pause(all, paused);
    write(all, 0, data, ended);
    co_await pass_turns(all);
    CHECK(ended == -1);
    refuse_writers(*all.file);
    co_await until(all, [&] { return ended != -1; });
    CHECK(ended == EIO);
    resume_writers(*all.file);
    write(all, 0, data, ended);
    co_await until(all, [&] { return ended == 0; });
    co_return 0;
  });
}

TEST_CASE("a pause that was ended while it waited for a writer stays ended") {
  play([](Fixture& all) -> Task<int> {
    all.plane.keeps = [](Kind kind) { return kind == Kind::wrote; };
    auto data = bytes(100, 1);
    int first = -1;
    int second = -1;
    bool paused = false;
    write(all, 0, data, first);
    co_await until_kept(all);
    pause(all, paused);
    resume_writers(*all.file);
    co_await until(all, [&] { return paused; });
    all.plane.answer();
    co_await until(all, [&] { return first == 0; });
    write(all, 0, data, second);
    co_await until_kept(all);
    all.plane.answer();
    co_await until(all, [&] { return second == 0; });
    co_return 0;
  });
}

TEST_CASE("who claimed the end before a fence, and writes after it, claims it again") {
  play([](Fixture& all) -> Task<int> {
    auto data = bytes(100, 1);
    int first = -1;
    int second = -1;
    bool paused = false;
    write(all, 0, data, first, true);
    co_await until(all, [&] { return first == 0; });
    pause(all, paused);
    co_await until(all, [&] { return paused; });
    write(all, 0, data, second, true);  // the end is ours already
    co_await pass_turns(all);
    CHECK(second == -1);
    CHECK(all.plane.count(Kind::claim_end) == 1);
    all.file->lock.lock();  // as make_void and renew_file do, before it is looked at again
    all.file->end.ours = false;
    all.file->lock.unlock();
    resume_writers(*all.file);
    co_await until(all, [&] { return second == 0; });
    CHECK(all.plane.count(Kind::claim_end) == 2);
    CHECK(all.file->size.load() == 200);
    co_return 0;
  });
}

TEST_CASE("the end that was given to the client before a fence is claimed again") {
  play([](Fixture& all) -> Task<int> {
    auto data = bytes(100, 1);
    int ended = -1;
    all.plane.keeps = [](Kind kind) { return kind == Kind::claim_end; };
    write(all, 0, data, ended, true);
    co_await until_kept(all);
    all.plane.keeps = nullptr;
    all.plane.answer();
    all.plane.become_another_client();  // before the writer has heard of it
    co_await until(all, [&] { return ended != -1; });
    CHECK(ended == 0);
    CHECK(all.plane.count(Kind::claim_end) == 2);
    co_return 0;
  });
}

TEST_CASE("two that wait for the reads before them both end, whatever begins meanwhile") {
  play([](Fixture& all) -> Task<int> {
    bool first = false;
    bool second = false;
    auto old = std::make_unique<ReadInFlight>(*all.file);
    settle(all, first);
    auto later = std::make_unique<ReadInFlight>(*all.file);
    settle(all, second);
    old.reset();  // the second is woken first, and turns back
    co_await Sleep(all.reactor, 100'000);
    ReadInFlight last(*all.file);
    later.reset();
    co_await until(all, [&] { return first && second; });
    co_return 0;
  });
}

TEST_CASE("reads are settled when those have ended that began before; later ones keep nobody waiting") {
  play([](Fixture& all) -> Task<int> {
    bool settled = false;
    {
      auto before = std::make_unique<ReadInFlight>(*all.file);
      settle(all, settled);
      ReadInFlight after(*all.file);
      co_await pass_turns(all);
      CHECK_FALSE(settled);
      before.reset();
      co_await until(all, [&] { return settled; });
    }
    settled = false;
    settle(all, settled);
    CHECK(settled);
    co_return 0;
  });
}

TEST_CASE("the end is asked for once, used by one writer at a time, and asked for again after it was yielded") {
  play([](Fixture& all) -> Task<int> {
    all.plane.keeps = [](Kind kind) { return kind == Kind::claim_end; };
    auto ones = bytes(3000, 1);
    auto twos = bytes(3000, 2);
    int first = -1;
    int second = -1;
    write(all, 0, ones, first, true);
    write(all, 0, twos, second, true);
    co_await pass_turns(all);
    CHECK(all.plane.kept.size() == 1);
    bool yielded = false;
    yield(all, yielded);  // after whoever uses it, before whoever is next
    co_await pass_turns(all);
    CHECK_FALSE(yielded);
    all.plane.answer();
    co_await until(all, [&] { return yielded; });
    CHECK(first == 0);
    co_await until_kept(all);
    CHECK(second == -1);
    all.plane.answer();
    co_await until(all, [&] { return second == 0; });
    int third = -1;
    write(all, 0, ones, third, true);
    co_await until(all, [&] { return third == 0; });
    CHECK(all.plane.count(Kind::claim_end) == 2);
    CHECK(all.file->size.load() == 9000);
    std::vector<std::byte> read(9000);
    int error = -1;
    [](Fixture& all, std::vector<std::byte>& read, int& error) -> Detached {
      error = co_await read_through(all.cache, all.lane, *all.file, 0, read.data(), 9000);
    }(all, read, error);
    co_await until(all, [&] { return error != -1; });
    for (size_t at = 0; at < 9000; at += 1000) CHECK(read[at] == std::byte(at / 3000 == 1 ? 2 : 1));
    co_return 0;
  });
}

TEST_CASE("a file is longer when that was told, not before; and what was not told is given up") {
  play([](Fixture& all) -> Task<int> {
    all.plane.keeps = [](Kind kind) { return kind == Kind::wrote; };
    auto data = bytes(5000, 1);
    int ended = -1;
    write(all, 0, data, ended);
    co_await until_kept(all);
    CHECK(all.file->size.load() == 0);
    all.plane.answer();
    co_await until(all, [&] { return ended == 0; });
    CHECK(all.file->size.load() == 5000);
    write(all, 5000, data, ended = -1);
    co_await until_kept(all);
    all.plane.answer(EIO);
    co_await until(all, [&] { return ended == EIO; });
    CHECK(all.file->size.load() == 5000);
    CHECK(all.plane.count(Kind::give_up_end) == 1);
    CHECK_FALSE(all.file->end.ours);
    co_return 0;
  });
}

TEST_CASE("a shared file grows by what is told of it, and shrinks by a record of another epoch only") {
  play([](Fixture& all) -> Task<int> {
    grow_shared_size(*all.file, 100);
    CHECK(all.file->size.load() == 100);
    grow_shared_size(*all.file, 50);
    CHECK(install_file(all.cache, kNode, Delegation::shared, Fixture::record(70, 1)) == 0);
    CHECK(all.file->size.load() == 100);
    CHECK(install_file(all.cache, kNode, Delegation::shared, Fixture::record(70, 2)) == 0);
    CHECK(all.file->size.load() == 70);
    co_return 0;
  });
}

TEST_CASE("what is dropped while it is being read is not kept") {
  play([](Fixture& all) -> Task<int> {
    CHECK(install_file(all.cache, kNode, Delegation::read, {}) == 0);
    uint32_t frame = all.cache.take_frame(all.lane);
    all.file->lock.lock();
    all.cache.set_state_locked(*all.file, 0, frame, PageState::filling);
    all.file->set_frame(0, frame);
    all.file->lock.unlock();
    all.cache.drop_clean(*all.file, 0, UINT32_MAX);
    CHECK((all.cache.frames()[frame].flags.load() & Frame::kStale) != 0);
    all.file->lock.lock();
    all.cache.set_state_locked(*all.file, 0, frame, PageState::absent);
    all.file->set_frame(0, 0);
    all.file->lock.unlock();
    all.cache.frames().release(frame);
    co_return 0;
  });
}

}  // namespace
}  // namespace extmem::cache
