#include "simulation/mount.h"

#include <cerrno>
#include <cstring>
#include <utility>

#include "base/clock.h"
#include "cache/file_control.h"
#include "cache/reader.h"
#include "cache/renewal.h"
#include "simulation/keys.h"

namespace extmem::simulation {

// What is sent to the manager has a name before it is awaited: GCC 12 destroys captures of a temporary in a co_await
// twice.

namespace {

/// A manager that says nothing for so long is taken for gone.
constexpr uint64_t kManagerSilenceNs = 3000 * kMillisecond;
/// An open may have to wait for a fence.
constexpr uint64_t kOpenNs = 10'000 * kMillisecond;
constexpr uint64_t kRenewNs = 700 * kMillisecond;
constexpr uint64_t kAgainNs = 200 * kMillisecond;
constexpr uint64_t kTurnNs = 3 * kMillisecond;

cache::PageCache::Options cache_options() {
  return {.cache_bytes = 48 * kPageBytes,
          .dirty_bytes = 24 * kPageBytes,
          .appliance_dirty_bytes = 24 * kPageBytes,
          .pinned_bytes = 4 * kPageBytes,
          .read_ahead_pages = 8};
}

}  // namespace

/// co_await: what the manager answers, or that it does not.
struct Mount::Question final : Message {
  explicit Question(Mount& mount) : mount(mount) {}
  bool await_ready() const noexcept { return false; }
  void await_suspend(std::coroutine_handle<> waiting) { handle = waiting; }
  Granted await_resume() { return std::move(granted); }
  void run() override { handle.resume(); }

  Mount& mount;
  Granted granted;
  std::coroutine_handle<> handle;
};

Mount::Mount(const Place& place)
    : place_(place),
      world_(place.network.world()),
      reactor_({}),
      cache_(cache_options(), directory_, *this),
      lane_{reactor_,
            *[&] {
              fabric::Fabric::Options options;
              options.transport = fabric::TransportKind::sim;
              options.network = &place.network;
              options.sim_host = place.host;
              fabric_ = fabric::Fabric::create(reactor_, directory_, options);
              return fabric_.get();
            }(),
            nullptr,
            {}},
      flusher_(cache_, lane_) {
  lane_.flusher = &flusher_;
  place_.network.start_host(place_.host);
  for (auto& appliance : place_.appliances) put_appliance(appliance->index(), appliance->incarnation());
  keep_in_touch();
}

Mount::~Mount() {
  for (auto& [id, opened] : opened_) {
    if (opened.file != nullptr) cache_.discard(*opened.file);
    release(opened);
  }
}

fabric::Credentials Mount::credentials() const {
  return {client_, kClientGeneration, derive_client_key(cluster_key(), client_, kClientGeneration)};
}

Opened& Mount::opened(FileId id) {
  Opened& opened = opened_[id];
  opened.id = id;
  return opened;
}

bool Mount::names_lost_memory(const Opened& opened) const {
  if (opened.file == nullptr) return false;
  for (const extent::Extent& extent : opened.file->extents.extents()) {
    for (const extent::Member& member : opened.file->extents.members(extent)) {
      const uint64_t now = place_.appliances[member.region->appliance->index]->incarnation();
      if (member.region->incarnation != now || member.region->state.load() == fabric::RegionState::lost) return true;
    }
  }
  return false;
}

void Mount::stop(Model& model, bool silently) {
  if (std::exchange(stopped_, true)) return;
  place_.network.stop_host(place_.host, silently);
  place_.manager.leave(*this);
  model.crash(client_);
  settle_all();
  fabric_->close();
  flusher_.stop();
}

// ---- files

Task<int> Mount::open(Opened& opened, bool for_writing) {
  const ClientId client = client_;
  Send send = [client, id = opened.id, for_writing](Manager& manager, Manager::Answer answer) {
    manager.open(client, id, for_writing, std::move(answer));
  };
  const auto life = this->life();
  opened.asking = true;
  Granted granted = co_await ask_manager(std::move(send), {kOpenNs, EIO});
  opened.asking = false;
  // Fenced meanwhile, what was granted is of no use to whom this is from then on.
  if (granted.error != 0 || stopped_ || life != this->life()) co_return granted.error != 0 ? granted.error : EIO;
  put_regions(granted.regions, false);
  if (granted.record.empty()) {
    extent::FileAttributes attributes;
    attributes.ino = opened.id;
    attributes.size = place_.file_bytes;
    granted.record = extent::encode_record(attributes, {});
  }
  const auto mode = for_writing ? cache::Delegation::write : cache::Delegation::read;
  // Held already, it is what this mount has; only the right is new.
  const bool held = opened.file != nullptr;
  const std::span<const uint8_t> record = held ? std::span<const uint8_t>() : granted.record;
  if (install_file(cache_, opened.id, mode, record) != 0) co_return EIO;
  if (!held) {
    opened.file = cache_.find_file(opened.id);
    opened.handle = {.file = opened.file,
                     .flags = 0,
                     .seen_errors = opened.file->error_sequence.load(),
                     .life = opened.file->life.load(),
                     .direct = false,
                     .kernel = nullptr};
  }
  opened.for_writing = for_writing;
  co_return 0;
}

Task<int> Mount::read(Opened& opened, uint64_t offset, std::span<std::byte> into) {
  cache::File& file = *opened.file;
  std::fill(into.begin(), into.end(), std::byte{0});
  const uint64_t size = file.size.load();
  if (offset >= size) co_return cache::is_void(file) ? EIO : 0;
  const auto bytes = static_cast<uint32_t>(std::min<uint64_t>(into.size(), size - offset));
  cache::PinnedPages pins(cache_.frames());
  if (!cache::read_hit(cache_, lane_, file, offset, bytes, cache::Reuse::ours, pins)) {
    const int error = co_await cache::read_pages(cache_, lane_, file, offset, bytes, cache::Reuse::ours, pins);
    if (error != 0) co_return error;
  }
  for (uint32_t done = 0, index = 0; done < bytes; ++index) {
    const auto at = static_cast<uint32_t>((offset + done) % kPageBytes);
    const uint32_t length = std::min(kPageBytes - at, bytes - done);
    std::memcpy(into.data() + done, cache_.frames().data(pins[index]) + at, length);
    done += length;
  }
  if (!stopped_) cache::read_ahead(cache_, lane_, file, offset, bytes);
  co_return 0;
}

Task<int> Mount::write(Opened& opened, uint64_t offset, std::span<const std::byte> data) {
  cache::Write write{offset, data};
  write.handle = &opened.handle;
  if (cache::is_void(*opened.file)) co_return EIO;
  co_return co_await cache::write_file(cache_, lane_, *opened.file, write);
}

Task<int> Mount::sync(Opened& opened) {
  if (cache::is_void(*opened.file)) co_return EIO;
  const int error = co_await cache::sync_file(cache_, lane_, *opened.file, false, 0);
  const int reported = cache::take_error(opened.handle);
  co_return error != 0 ? error : reported;
}

void Mount::drop_pages(Opened& opened) { cache_.drop_clean(*opened.file, 0, UINT32_MAX); }

void Mount::release(Opened& opened) {
  if (opened.file == nullptr) return;
  cache_.put_file(*std::exchange(opened.file, nullptr));
  cache_.forget_file(opened.id);
  opened.for_writing = false;
}

// ---- what the manager asks

void Mount::recall(FileId id) {
  if (!std::exchange(opened(id).recalled, true)) give_back(id);
}

/// Flushes, gives up what is cached, answers; as long as it takes, or until this is another client.
Detached Mount::give_back(FileId id) {
  Active active(*this);
  Opened& opened = this->opened(id);
  const ClientId client = client_;
  // What came before it on the same way, a grant perhaps, has its turn first.
  co_await Sleep(reactor_, 1);
  while (opened.busy && !opened.asking) co_await Sleep(reactor_, kTurnNs);
  const bool was_busy = std::exchange(opened.busy, true);
  const auto is_ours = [this, client] { return !stopped_ && client == client_ && !rejoining_; };
  Record record;
  while (opened.file != nullptr && is_ours() && !cache::is_void(*opened.file)) {
    if (co_await cache::flush_settled(cache_, lane_, *opened.file) == 0) {
      record = cache::record_of(*opened.file);
      cache_.drop_clean(*opened.file, 0, UINT32_MAX);
      break;
    }
    co_await Sleep(reactor_, kAgainNs);
  }
  Send send = [client, id, record](Manager& manager, const Manager::Answer& answer) {
    manager.recalled(client, id, record, answer);
  };
  while (is_ours() && (co_await ask_manager(send, {kManagerSilenceNs, ENOTCONN})).error != 0) continue;
  if (is_ours()) release(opened);
  if (!was_busy) opened.busy = false;
  opened.recalled = false;
}

void Mount::put_appliance(unsigned index, uint64_t incarnation) {
  const std::string& address = place_.appliances[index]->address();
  directory_.put_appliance(address, "elsewhere", address, 1, "", incarnation);
  for (auto known = known_.begin(); known != known_.end();) {
    const auto& [region, grant] = *known;
    const fabric::Region* there = directory_.find_region(region);
    const bool gone = there != nullptr && there->appliance->index == index && grant.first != incarnation;
    if (gone) {
      directory_.lose_region(region);
      cache_.slabs().remove_region(region);
    }
    known = gone ? known_.erase(known) : std::next(known);
  }
}

void Mount::put_regions(const std::vector<RegionGrant>& grants, bool provisioned) {
  for (const RegionGrant& grant : grants) {
    const bool writable = (grant.capability.rights & 2) != 0;
    const auto known = known_.find(grant.region);
    if (known != known_.end() && (known->second.second || !writable)) continue;
    fabric::Appliance& appliance = directory_.appliance(grant.appliance);
    // What the manager told of its restart may have been lost on the way.
    if (appliance.incarnation < grant.incarnation) put_appliance(appliance.index, grant.incarnation);
    fabric::Region& region = directory_.put_region(grant.region, grant.bytes, appliance, grant.capability);
    if (appliance.incarnation != grant.incarnation) {  // it no longer has it
      directory_.lose_region(grant.region);
      continue;
    }
    known_[grant.region] = {grant.incarnation, writable};
    if (provisioned) cache_.slabs().add_region(region, {});
  }
}

// ---- what is asked of the manager

void Mount::ask(extent::ControlCall& call) {
  if (stopped_ || !may_work()) {
    call.error = EIO;
    return call.answered();
  }
  answer_call(call);
}

Detached Mount::answer_call(extent::ControlCall& call) {
  Active active(*this);
  using Kind = extent::ControlCall::Kind;
  const ClientId client = client_;
  Granted granted{.error = EIO};
  if (call.kind == Kind::provision) {
    Send send = [client](Manager& manager, Manager::Answer answer) { manager.provision(client, std::move(answer)); };
    granted = co_await ask_manager(std::move(send), {kManagerSilenceNs, ENOSPC});
    if (granted.error == 0 && call.life() == life()) put_regions(granted.regions, true);
  } else if (call.kind == Kind::commit && call.life() == life()) {
    Send send = [client, id = call.node, record = call.record](Manager& manager, Manager::Answer answer) {
      manager.commit(client, id, record, std::move(answer));
    };
    granted = co_await ask_manager(std::move(send), {kManagerSilenceNs, ENOTCONN});
  }
  call.error = granted.error == ESTALE ? EIO : granted.error;
  call.answered();
}

Task<Granted> Mount::ask_manager(Send send, Patience patience) {
  if (stopped_) co_return Granted{.error = EIO};
  Question question(*this);
  const uint64_t id = next_question_++;
  questions_[id] = &question;
  Manager& manager = place_.manager;
  place_.network.send_message(host(), manager.host(), [this, id, asker = client_, &manager, send = std::move(send)] {
    send(manager, [this, id, asker, &manager](Granted granted) {
      place_.network.send_message(manager.host(), host(), [this, id, asker, granted = std::move(granted)] {
        if (granted.error == ESTALE && asker == client_) join_anew();
        settle(id, granted);
      });
    });
  });
  world_.after(patience.ns, [this, id, error = patience.error] { settle(id, {.error = error}); });
  co_return co_await question;
}

void Mount::settle(uint64_t id, Granted granted) {
  auto asked = questions_.extract(id);
  if (!asked) return;
  asked.mapped()->granted = std::move(granted);
  reactor_.post(*asked.mapped());
}

void Mount::settle_all() {
  while (!questions_.empty()) settle(questions_.begin()->first, {.error = EIO});
}

// ---- being a client

Detached Mount::keep_in_touch() {
  Active active(*this);
  co_await join();
  while (!stopped_) {
    co_await Sleep(reactor_, kRenewNs);
    if (stopped_ || rejoining_) continue;
    if (directory_.fenced.load()) {
      join_anew();
      continue;
    }
    const ClientId client = client_;
    Send send = [client](Manager& manager, Manager::Answer answer) { manager.renew(client, std::move(answer)); };
    co_await ask_manager(std::move(send), {kManagerSilenceNs, ENOTCONN});
  }
}

/// Until the manager has said who this is.
Task<int> Mount::join() {
  while (!stopped_) {
    Send send = [this](Manager& manager, Manager::Answer answer) { manager.join(*this, answer); };
    const Granted granted = co_await ask_manager(std::move(send), {kManagerSilenceNs, ENOTCONN});
    if (granted.client == 0) continue;
    client_ = granted.client;
    fabric_->rejoin(credentials());
    break;
  }
  co_return 0;
}

/// This mount was fenced: what Session::rejoin and the client (src/client/rejoining.ts) do.
Detached Mount::join_anew() {
  if (stopped_ || std::exchange(rejoining_, true)) co_return;
  Active active(*this);
  world_.note("rejoin", client_);
  directory_.fenced.store(true);
  life_.fetch_add(1);
  settle_all();
  directory_.lose_all_regions();
  cache_.slabs().clear();
  known_.clear();
  for (cache::File* file : cache_.all_files()) {
    cache::make_void(*file);
    cache_.put_file(*file);
  }
  co_await join();
  directory_.fenced.store(false);
  for (auto& [id, opened] : opened_) {
    while (opened.busy && !stopped_) co_await Sleep(reactor_, kTurnNs);
    if (opened.file == nullptr || stopped_) continue;
    opened.busy = true;
    co_await cache::settle_void(cache_, lane_, *opened.file);
    cache::break_handles(*opened.file, EIO);
    release(opened);
    opened.busy = false;
  }
  rejoining_ = false;
}

}  // namespace extmem::simulation
