#include "simulation/schedule.h"

#include <algorithm>
#include <utility>

#include "base/clock.h"

namespace extmem::simulation {

namespace {

constexpr unsigned kAppliances = 2;
constexpr unsigned kMounts = 3;
constexpr unsigned kWorkers = 2;  // of each mount
constexpr unsigned kFiles = 4;
constexpr uint32_t kFilePages = 12;
constexpr uint64_t kFaultsNs = 8'000 * kMillisecond;
/// So long after the last trouble a call may still fail of it: breakers, silences, recalls and fences follow each
/// other.
constexpr uint64_t kAftermathNs = 12'000 * kMillisecond;
/// So long after the last trouble a call that was begun in it may still be under way.
constexpr uint64_t kPatienceNs = 10'000 * kMillisecond;
constexpr uint64_t kCalmCallNs = 5'000 * kMillisecond;

}  // namespace

Schedule::Schedule(uint64_t seed)
    : world_(seed), network_(world_, {}), model_(kFilePages), manager_(network_, model_, appliances_) {
  for (unsigned index = 0; index < kAppliances; ++index) {
    appliances_.push_back(std::make_unique<Appliance>(network_, index));
  }
  for (unsigned index = 0; index < kFiles; ++index) files_.push_back(next_file_++);
  for (unsigned index = 0; index < kMounts; ++index) {
    slots_.push_back({.host = network_.add_host("mount" + std::to_string(index))});
    start_mount(slots_.back());
  }
}

Schedule::~Schedule() = default;

Outcome Schedule::run() {
  next_fault();
  run_until(world_.now_ns() + kFaultsNs);
  heal();
  run_until(world_.now_ns() + kPatienceNs);
  for (auto& [number, call] : calls_) {
    if (call.begun_ns < last_trouble_ns_) {
      fail(std::string(call.what) + " has not ended " + std::to_string(kPatienceNs / kMillisecond) +
           " ms after everything was healed");
    }
  }
  run_until(last_trouble_ns_ + kAftermathNs + 100 * kMillisecond);
  working_ = false;
  run_until(world_.now_ns() + kCalmCallNs);
  if (!calls_.empty()) fail(std::string(calls_.begin()->second.what) + " does not end in a calm cluster");
  for (Slot& slot : slots_) {
    verify(*slot.mount);
    for (uint64_t until = world_.now_ns() + kPatienceNs; verifying_ > 0 && world_.now_ns() < until;) {
      run_until(world_.now_ns() + 50 * kMillisecond);
    }
    if (verifying_ > 0) fail("a mount cannot read and write all files in a calm cluster");
  }
  for (Slot& slot : slots_) slot.mount->stop(model_, false);
  for (int turn = 0; turn < 100; ++turn) {
    const bool over = std::all_of(mounts_.begin(), mounts_.end(), [](auto& mount) { return mount->over(); });
    if (over && verifying_ == 0) break;
    run_until(world_.now_ns() + 100 * kMillisecond);
  }
  outcome_.hash = world_.hash();
  outcome_.events = world_.notes();
  return outcome_;
}

/// Time goes from one thing that happens to the next.
void Schedule::run_until(uint64_t time_ns) {
  for (;;) {
    while (turn_reactors()) continue;
    uint64_t due = world_.next_due_ns();
    for (auto& mount : mounts_) due = std::min(due, mount->reactor().next_due_ns());
    if (due > time_ns) break;
    if (world_.next_due_ns() <= due) {
      world_.run_next();
    } else {
      world_.move_to(due);
    }
  }
  world_.move_to(time_ns);
}

bool Schedule::turn_reactors() {
  bool progress = false;
  for (size_t index = 0; index < mounts_.size(); ++index) {
    if (!mounts_[index]->over()) progress |= mounts_[index]->reactor().turn();
  }
  return progress;
}

void Schedule::fail(std::string wrong) {
  if (!outcome_.wrong.empty()) return;
  outcome_.wrong = std::move(wrong);
  outcome_.last_events = world_.last_notes();
}

void Schedule::start_mount(Slot& slot) {
  mounts_.push_back(std::make_unique<Mount>(Mount::Place{.network = network_,
                                                         .manager = manager_,
                                                         .appliances = appliances_,
                                                         .host = slot.host,
                                                         .file_bytes = uint64_t{kFilePages} * kPageBytes}));
  slot.mount = mounts_.back().get();
  for (unsigned worker = 0; worker < kWorkers; ++worker) work(*slot.mount);
}

// ---- what mounts do

Detached Schedule::work(Mount& mount) {
  Mount::Active active(mount);
  while (working_ && !mount.stopped()) {
    // After the storm it is enough to see that everything goes on.
    co_await Sleep(mount.reactor(), world_.between(1, causing_faults_ ? 40 : 250) * kMillisecond);
    Opened& opened = mount.opened(files_[world_.below(files_.size())]);
    if (mount.stopped() || !mount.may_work() || opened.busy || opened.recalled) continue;
    opened.busy = true;
    co_await do_something(mount, opened);
    opened.busy = false;
  }
}

Task<int> Schedule::do_something(Mount& mount, Opened& opened) {
  const uint64_t what = world_.below(16);
  const bool writes = what < 8;
  if (opened.file == nullptr || (writes && !opened.for_writing)) {
    const int error = co_await do_open(mount, opened, writes);
    if (error != 0 || opened.file == nullptr || opened.recalled) co_return error;
  }
  if (what < 6) co_return co_await do_write(mount, opened, some_cells());
  if (what < 8) co_return co_await do_sync(mount, opened);
  if (what == 8) mount.drop_pages(opened);
  co_return co_await do_read(mount, opened, some_cells());
}

/// A few adjacent cells, whole pages sometimes.
CellRange Schedule::some_cells() {
  const bool whole = world_.chance(0.4);
  const uint32_t unit = whole ? kPageCells : 1;
  const uint32_t units = kFilePages * kPageCells / unit;
  const auto count = static_cast<uint32_t>(world_.between(1, whole ? 4 : 12));
  const auto first = static_cast<uint32_t>(world_.below(units - count + 1));
  return {.first = first * unit, .count = count * unit};
}

uint64_t Schedule::begin_call(const char* what) {
  calls_[next_call_] = {.what = what, .begun_ns = world_.now_ns()};
  return next_call_++;
}

/// In a calm cluster nothing fails but what is lost for good, and nothing takes long.
void Schedule::end_call(uint64_t number, const Mount& mount, const Opened& opened, int error) {
  const auto ended = calls_.extract(number);
  const Call& call = ended.mapped();
  world_.note(call.what, mount.client(), opened.id, static_cast<uint64_t>(error));
  if (mount.stopped()) return;
  outcome_.failures += error != 0;
  if (error != 0) replace_if_lost(mount, opened);
  const bool calm = call.begun_ns > last_trouble_ns_ + kAftermathNs;
  if (!calm) return;
  if (error != 0 && !model_.is_tainted(opened.id)) {
    fail(std::string(call.what) + " of file " + std::to_string(opened.id) + " failed in a calm cluster, errno " +
         std::to_string(error));
  }
  if (world_.now_ns() - call.begun_ns > kCalmCallNs) fail(std::string(call.what) + " took long in a calm cluster");
}

void Schedule::replace_if_lost(const Mount& mount, const Opened& opened) {
  if (!mount.names_lost_memory(opened)) return;
  model_.taint(opened.id);
  for (FileId& file : files_) {
    if (file == opened.id) file = next_file_++;
  }
}

Task<int> Schedule::do_open(Mount& mount, Opened& opened, bool for_writing) {
  const uint64_t call = begin_call(for_writing ? "open to write" : "open to read");
  const int error = co_await mount.open(opened, for_writing);
  end_call(call, mount, opened, error);
  co_return error;
}

Task<int> Schedule::do_read(Mount& mount, Opened& opened, CellRange cells) {
  const uint64_t call = begin_call("read");
  const ClientId client = mount.client();
  std::vector<std::byte> data(size_t{cells.count} * kCellBytes);
  world_.note("reads", cells.first, cells.count);
  const int error = co_await mount.read(opened, uint64_t{cells.first} * kCellBytes, data);
  if (error == 0 && !mount.stopped()) {
    ++outcome_.reads;
    if (std::string wrong = model_.check_read(client, opened.id, cells, data); !wrong.empty()) fail(std::move(wrong));
  }
  end_call(call, mount, opened, error);
  co_return error;
}

Task<int> Schedule::do_write(Mount& mount, Opened& opened, CellRange cells) {
  const uint64_t call = begin_call("write");
  const ClientId client = mount.client();
  const Version version = next_version_++;
  std::vector<std::byte> data(size_t{cells.count} * kCellBytes);
  stamp(opened.id, cells, version, data);
  world_.note("writes", version, cells.first, cells.count);
  model_.begin_write(client, opened.id, cells, version);
  const int error = co_await mount.write(opened, uint64_t{cells.first} * kCellBytes, data);
  if (!mount.stopped()) {
    model_.end_write(client, opened.id, cells, version, error == 0);
    outcome_.writes += error == 0;
  }
  end_call(call, mount, opened, error);
  co_return error;
}

Task<int> Schedule::do_sync(Mount& mount, Opened& opened) {
  const uint64_t call = begin_call("fsync");
  const ClientId client = mount.client();
  const int error = co_await mount.sync(opened);
  if (error == 0 && !mount.stopped()) {
    ++outcome_.syncs;
    if (std::string wrong = model_.check_synced(client, opened.id); !wrong.empty()) fail(std::move(wrong));
  }
  end_call(call, mount, opened, error);
  co_return error;
}

/// Everything is read, and can be written.
Detached Schedule::verify(Mount& mount) {
  ++verifying_;
  Mount::Active active(mount);
  for (size_t index = 0; index < files_.size(); ++index) {
    Opened& opened = mount.opened(files_[index]);
    while (opened.busy && !mount.stopped()) co_await Sleep(mount.reactor(), kMillisecond);
    if (mount.stopped()) break;
    opened.busy = true;
    co_await verify_file(mount, opened);
    opened.busy = false;
  }
  --verifying_;
}

Task<int> Schedule::verify_file(Mount& mount, Opened& opened) {
  int error = co_await do_open(mount, opened, false);
  if (error != 0 || opened.file == nullptr) co_return error;
  mount.drop_pages(opened);
  for (uint32_t page = 0; page < kFilePages; ++page) {
    co_await do_read(mount, opened, {.first = page * kPageCells, .count = kPageCells});
  }
  error = co_await do_open(mount, opened, true);
  if (error != 0 || opened.file == nullptr) co_return error;
  co_await do_write(mount, opened, some_cells());
  co_return co_await do_sync(mount, opened);
}

// ---- what goes wrong

void Schedule::next_fault() {
  world_.after(world_.between(50, 1500) * kMillisecond, [this] {
    if (!causing_faults_) return;
    cause_fault();
    next_fault();
  });
}

void Schedule::note_trouble(const char* fault, uint64_t lasts_ns) {
  ++outcome_.faults[fault];
  last_trouble_ns_ = std::max(last_trouble_ns_, world_.now_ns() + lasts_ns);
}

HostId Schedule::some_host() { return static_cast<HostId>(world_.below(1 + kAppliances + kMounts)); }

void Schedule::cause_fault() {
  const HostId one = some_host(), other = some_host();
  if (one == other) return;
  const uint64_t what = world_.below(16);
  world_.note("fault", what, one, other);
  if (what < 3) return cut_way(one, other);
  if (what == 3) return lose_touch();
  if (what < 6) {
    const uint64_t lasts = world_.between(200, 4000) * kMillisecond;
    note_trouble("slow way", lasts);
    network_.slow(one, other, world_.between(1, 900) * kMillisecond);
    world_.after(lasts, [this, one, other] { network_.slow(one, other, 0); });
  } else if (what < 11) {
    const uint64_t late = world_.between(500, 6000) * kMillisecond;
    note_trouble("late packet", late);
    network_.delay_next(one, other, late);
  } else if (what < 13) {
    note_trouble("lost connection", 0);
    network_.reset_streams(one, other);
  } else if (what == 13) {
    if (world_.chance(0.4)) stop_appliance();
  } else if (what == 14) {
    stop_mount();
  } else {
    stop_manager();
  }
}

void Schedule::cut_way(HostId one, HostId other) {
  const bool both = world_.chance(0.5);
  const uint64_t lasts = world_.between(100, 7000) * kMillisecond;
  note_trouble(both ? "cut" : "cut one way", lasts);
  network_.cut(one, other, true);
  if (both) network_.cut(other, one, true);
  world_.after(lasts, [this, one, other, both] {
    network_.cut(one, other, false);
    if (both) network_.cut(other, one, false);
  });
}

/// A mount goes on with the appliances and not with the manager, which can fence it at one of them only late.
void Schedule::lose_touch() {
  const HostId mount = slots_[world_.below(slots_.size())].host;
  const HostId appliance = appliances_[world_.below(appliances_.size())]->host();
  const uint64_t lasts = world_.between(4000, 9000) * kMillisecond;
  note_trouble("lost touch", lasts);
  const std::vector<std::pair<HostId, HostId>> ways{
      {manager_.host(), mount}, {mount, manager_.host()}, {manager_.host(), appliance}};
  for (auto [from, to] : ways) {
    network_.cut(from, to, true);
    world_.after(lasts, [this, from = from, to = to] { network_.cut(from, to, false); });
  }
}

void Schedule::stop_appliance() {
  Appliance& appliance = *appliances_[world_.below(appliances_.size())];
  if (!appliance.running()) return;
  const uint64_t lasts = world_.between(100, 5000) * kMillisecond;
  note_trouble("appliance", lasts);
  appliance.stop(world_.chance(0.5));
  world_.after(lasts, [this, &appliance] {
    appliance.start();
    world_.note("appliance starts", appliance.index(), appliance.incarnation());
    network_.send_message(appliance.host(), manager_.host(), [this, &appliance, incarnation = appliance.incarnation()] {
      manager_.enlist(appliance.index(), incarnation);
    });
  });
}

void Schedule::stop_mount() {
  Slot& slot = slots_[world_.below(slots_.size())];
  if (slot.mount == nullptr) return;
  const uint64_t lasts = world_.between(50, 3000) * kMillisecond;
  note_trouble("mount", lasts);
  world_.note("mount stops", slot.mount->client());
  std::exchange(slot.mount, nullptr)->stop(model_, world_.chance(0.5));
  world_.after(lasts, [this, &slot] { start_mount(slot); });
}

void Schedule::stop_manager() {
  const uint64_t lasts = world_.between(50, 4000) * kMillisecond;
  note_trouble("manager", lasts);
  network_.stop_host(manager_.host(), world_.chance(0.5));
  world_.after(lasts, [this] {
    network_.start_host(manager_.host());
    manager_.start_again();
  });
}

/// What is cut or slow is not any more; what is down comes back when it would have.
void Schedule::heal() {
  causing_faults_ = false;
  run_until(last_trouble_ns_);
  network_.heal();
}

}  // namespace extmem::simulation
