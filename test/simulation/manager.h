// The control plane of the simulated cluster, as a script of the manager's rules (src/manager): who holds which file,
// recalls, and fences. Of each file many may read or one may write; whoever does not give it back in time is fenced at
// every appliance before another gets it. It tells the model what it does.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <vector>

#include "fabric/sim/network.h"
#include "simulation/appliance.h"
#include "simulation/model.h"

namespace extmem::simulation {

using Record = std::vector<uint8_t>;

struct RegionGrant {
  uint64_t region, bytes;
  unsigned appliance;
  uint64_t incarnation;
  protocol::Capability capability;
};

/// What a mount is told. error: an errno; ESTALE: it was fenced.
struct Granted {
  int error = 0;
  Record record{};
  std::vector<RegionGrant> regions{};
  ClientId client = 0;  // join: who it is
};

/// A mount, as the manager talks to it.
class Holder {
 public:
  virtual HostId host() const = 0;
  virtual void recall(FileId file) = 0;
  virtual void put_appliance(unsigned index, uint64_t incarnation) = 0;

 protected:
  ~Holder() = default;
};

class Manager {
 public:
  using Answer = std::function<void(Granted)>;

  Manager(Network& network, Model& model, std::vector<std::unique_ptr<Appliance>>& appliances);
  HostId host() const { return host_; }

  // Requests, as they arrive. `answer` is called here, at most once, and is to be sent back.
  void join(Holder& holder, const Answer& answer);
  void leave(Holder& holder);
  void open(ClientId client, FileId file, bool for_writing, Answer answer);
  void recalled(ClientId client, FileId file, const Record& record, const Answer& answer);
  void renew(ClientId client, Answer answer);
  void commit(ClientId client, FileId file, Record record, Answer answer);
  void provision(ClientId client, Answer answer);
  /// An appliance has started.
  void enlist(unsigned index, uint64_t incarnation);

  /// Its program was started again: what it knows it knows, who waited for it waits in vain.
  void start_again();

 private:
  struct Client {
    Holder* holder = nullptr;  // null: it has left
    bool fenced = false;       // or being fenced
  };
  struct Waiter {
    ClientId client;
    bool for_writing;
    Answer answer;
  };
  struct File {
    Record record;
    std::map<ClientId, bool> holders;  // for writing
    std::deque<Waiter> waiters;
    std::map<ClientId, uint64_t> recalled;  // by the recall's number
  };
  struct RegionPlace {
    uint64_t bytes;
    unsigned appliance;
    uint64_t incarnation;
  };
  struct Fence {
    std::set<unsigned> unanswered;
  };

  void serve(FileId id);
  void ask_back(ClientId client, FileId id);
  void fence(ClientId client);
  void fence_at(unsigned appliance, ClientId client);
  void take_fenced(unsigned appliance, ClientId client, const std::vector<region::RecordInfo>& records);
  void finish_fence(ClientId client);
  void take_record(FileId id, const Record& record);
  RegionGrant grant_of(ClientId client, uint64_t region, bool for_writing) const;
  void create_region(unsigned appliance, ClientId client, Answer answer);

  Network& network_;
  fabric::sim::World& world_;
  Model& model_;
  std::vector<std::unique_ptr<Appliance>>& appliances_;
  const HostId host_;
  ClientId next_client_ = 100;
  uint64_t next_region_ = 1;
  uint64_t recalls_ = 0;
  std::map<ClientId, Client> clients_;
  std::map<FileId, File> files_;
  std::map<uint64_t, RegionPlace> regions_;
  std::map<ClientId, Fence> fences_;
};

}  // namespace extmem::simulation
