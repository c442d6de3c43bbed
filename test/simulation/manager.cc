#include "simulation/manager.h"

#include <cerrno>
#include <cstring>
#include <utility>

#include "base/clock.h"
#include "base/protocol.h"
#include "simulation/keys.h"

namespace extmem::simulation {

namespace {

constexpr uint64_t kRecallNs = protocol::kRecallTimeoutMs * kMillisecond;
constexpr uint64_t kCreateNs = 1000 * kMillisecond;
constexpr uint64_t kRegionBytes = protocol::kSlabRegionBytes;

/// The regions that a record names.
std::set<uint64_t> regions_in(const Record& record) {
  std::set<uint64_t> regions;
  protocol::RecordHeader header;
  if (record.size() < sizeof header) return regions;
  std::memcpy(&header, record.data(), sizeof header);
  size_t at = sizeof header;
  for (uint32_t left = header.extent_count; left > 0; --left) {
    protocol::ExtentHeader extent;
    std::memcpy(&extent, record.data() + at, sizeof extent);
    at += sizeof extent;
    for (uint32_t member = 0; member < extent.member_count; ++member) {
      protocol::ExtentMember place;
      std::memcpy(&place, record.data() + at, sizeof place);
      at += sizeof place;
      regions.insert(place.region);
    }
  }
  return regions;
}

/// How often the file has been changed.
uint64_t change_of(const Record& record) {
  protocol::RecordHeader header{};
  if (record.size() >= sizeof header) std::memcpy(&header, record.data(), sizeof header);
  return header.change;
}

}  // namespace

Manager::Manager(Network& network, Model& model, std::vector<std::unique_ptr<Appliance>>& appliances)
    : network_(network),
      world_(network.world()),
      model_(model),
      appliances_(appliances),
      host_(network.add_host("manager")) {}

void Manager::join(Holder& holder, const Answer& answer) {
  const ClientId id = next_client_++;
  clients_[id].holder = &holder;
  answer({.client = id});
}

void Manager::leave(Holder& holder) {
  for (auto& [id, client] : clients_) {
    if (client.holder == &holder) client.holder = nullptr;
  }
}

void Manager::open(ClientId client, FileId id, bool for_writing, Answer answer) {
  if (clients_[client].fenced) return answer({.error = ESTALE});
  files_[id].waiters.push_back({.client = client, .for_writing = for_writing, .answer = std::move(answer)});
  serve(id);
}

/// Whoever is first gets it as soon as nobody who is in the way has it any more.
void Manager::serve(FileId id) {
  File& file = files_[id];
  while (!file.waiters.empty()) {
    Waiter& first = file.waiters.front();
    bool free = true;
    for (auto [client, writes] : file.holders) {
      if (client == first.client || !(writes || first.for_writing)) continue;
      free = false;
      ask_back(client, id);
    }
    if (!free) return;
    Waiter waiter = std::move(first);
    file.waiters.pop_front();
    if (clients_[waiter.client].fenced) {
      waiter.answer({.error = ESTALE});
      continue;
    }
    bool& writes = file.holders[waiter.client];
    writes |= waiter.for_writing;
    model_.grant(waiter.client, id);
    world_.note("grant", waiter.client, id, writes ? 1 : 0);
    Granted granted{.record = file.record};
    for (uint64_t region : regions_in(file.record)) granted.regions.push_back(grant_of(waiter.client, region, writes));
    waiter.answer(std::move(granted));
  }
}

void Manager::ask_back(ClientId client, FileId id) {
  if (files_[id].recalled.contains(client)) return;
  const uint64_t number = files_[id].recalled[client] = ++recalls_;
  world_.note("recall", client, id);
  Holder* holder = clients_[client].holder;
  if (holder != nullptr) network_.send_message(host_, holder->host(), [holder, id] { holder->recall(id); });
  world_.after(kRecallNs, [this, client, id, number] {
    const auto& recalled = files_[id].recalled;
    if (auto asked = recalled.find(client); asked != recalled.end() && asked->second == number) fence(client);
  });
}

/// Also of who was recalled by the program that ran here before.
void Manager::recalled(ClientId client, FileId id, const Record& record, const Answer& answer) {
  if (clients_[client].fenced) return answer({.error = ESTALE});
  answer({});
  File& file = files_[id];
  const auto holder = file.holders.find(client);
  if (holder == file.holders.end()) return;
  if (holder->second && !record.empty()) take_record(id, record);
  world_.note("recalled", client, id);
  file.recalled.erase(client);
  file.holders.erase(client);
  model_.hand_back(client, id);
  serve(id);
}

void Manager::renew(ClientId client, Answer answer) { answer({.error = clients_[client].fenced ? ESTALE : 0}); }

void Manager::commit(ClientId client, FileId id, Record record, Answer answer) {
  if (clients_[client].fenced) return answer({.error = ESTALE});
  File& file = files_[id];
  const auto holder = file.holders.find(client);
  const bool may = holder != file.holders.end() && holder->second;
  if (may) take_record(id, record);
  answer({.error = may ? 0 : EIO});
}

void Manager::take_record(FileId id, const Record& record) {
  File& file = files_[id];
  if (file.record.empty() || change_of(record) > change_of(file.record)) file.record = record;
}

RegionGrant Manager::grant_of(ClientId client, uint64_t region, bool for_writing) const {
  const RegionPlace& place = regions_.at(region);
  RegionGrant grant{.region = region,
                    .bytes = place.bytes,
                    .appliance = place.appliance,
                    .incarnation = place.incarnation,
                    .capability = {}};
  grant.capability.client = client;
  grant.capability.client_generation = kClientGeneration;
  grant.capability.rights = for_writing ? 3 : 1;
  grant.capability.region = region;
  grant.capability.mac = compute_capability_mac(cluster_key(), grant.capability);
  return grant;
}

/// One region, on an appliance whose turn it is.
void Manager::provision(ClientId client, Answer answer) {
  if (clients_[client].fenced) return answer({.error = ESTALE});
  create_region(static_cast<unsigned>(world_.below(appliances_.size())), client, std::move(answer));
}

void Manager::create_region(unsigned index, ClientId client, Answer answer) {
  const uint64_t id = next_region_++;
  Appliance& appliance = *appliances_[index];
  auto once = std::make_shared<Answer>(std::move(answer));
  auto settle = [once](Granted granted) {
    if (Answer then = std::exchange(*once, nullptr)) then(std::move(granted));
  };
  world_.after(kCreateNs, [settle] { settle({.error = ENOSPC}); });
  network_.send_message(host_, appliance.host(), [this, &appliance, id, client, settle] {
    const bool made = appliance.create_region(id, kRegionBytes);
    const uint64_t incarnation = appliance.incarnation();
    network_.send_message(appliance.host(), host_, [this, &appliance, id, client, settle, made, incarnation] {
      if (!made) return settle({.error = ENOSPC});
      regions_[id] = {.bytes = kRegionBytes, .appliance = appliance.index(), .incarnation = incarnation};
      settle({.regions = {grant_of(client, id, true)}});
    });
  });
}

// ---- fencing

/// From here on nothing of the client is taken, and it gets nothing; its files are free when every appliance has
/// answered.
void Manager::fence(ClientId client) {
  if (std::exchange(clients_[client].fenced, true)) return;
  world_.note("fence", client);
  Fence& fence = fences_[client];
  for (auto& appliance : appliances_) fence.unanswered.insert(appliance->index());
  for (auto& appliance : appliances_) fence_at(appliance->index(), client);
}

void Manager::fence_at(unsigned index, ClientId client) {
  Appliance& appliance = *appliances_[index];
  network_.send_message(host_, appliance.host(), [this, &appliance, client] {
    appliance.fence(client);
    network_.send_message(appliance.host(), host_, [this, &appliance, client, records = appliance.records()] {
      take_fenced(appliance.index(), client, records);
    });
  });
}

void Manager::take_fenced(unsigned index, ClientId client, const std::vector<region::RecordInfo>& records) {
  auto fence = fences_.find(client);
  if (fence == fences_.end()) return;
  // What it committed beside its regions while it did not reach us.
  for (const region::RecordInfo& record : records) {
    const auto& holders = files_[record.ino].holders;
    const auto holder = holders.find(client);
    if (holder != holders.end() && holder->second) take_record(record.ino, record.bytes);
  }
  fence->second.unanswered.erase(index);
  if (!fence->second.unanswered.empty()) return;
  finish_fence(client);
}

void Manager::finish_fence(ClientId client) {
  fences_.erase(client);
  world_.note("fenced", client);
  for (auto& [id, file] : files_) {
    file.recalled.erase(client);
    if (file.holders.erase(client) > 0) model_.depose(client, id);
  }
  for (auto& [id, file] : files_) serve(id);
}

/// A new incarnation has nothing of what the old one granted.
void Manager::enlist(unsigned index, uint64_t incarnation) {
  for (auto& [id, client] : clients_) {
    if (client.fenced) fence_at(index, id);
    Holder* holder = client.holder;
    if (holder == nullptr) continue;
    network_.send_message(host_, holder->host(),
                          [holder, index, incarnation] { holder->put_appliance(index, incarnation); });
  }
}

void Manager::start_again() {
  for (auto& [id, file] : files_) {
    file.waiters.clear();
    file.recalled.clear();
  }
  for (auto& [client, fence] : fences_) {
    for (unsigned index : fence.unanswered) fence_at(index, client);
  }
  for (auto& appliance : appliances_) {
    network_.send_message(host_, appliance->host(), [this, &appliance = *appliance] {
      network_.send_message(appliance.host(), host_, [this, &appliance, incarnation = appliance.incarnation()] {
        enlist(appliance.index(), incarnation);
      });
    });
  }
}

}  // namespace extmem::simulation
