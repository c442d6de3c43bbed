// An appliance of the simulated cluster: the shipped regions, link table and connections over streams of the simulated
// network. What RegionServer does with threads and sockets, this does in events.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <vector>

#include "fabric/sim/network.h"
#include "region/service.h"

namespace extmem::simulation {

using fabric::sim::HostId;
using fabric::sim::Network;

class Appliance {
 public:
  Appliance(Network& network, unsigned index);
  ~Appliance();

  HostId host() const { return host_; }
  unsigned index() const { return index_; }
  const std::string& address() const { return address_; }
  bool running() const { return service_ != nullptr; }
  uint64_t incarnation() const { return incarnation_; }

  /// With empty memory, as another incarnation.
  void start();
  void stop(bool silently);

  // What the manager asks of it.
  bool create_region(uint64_t id, uint64_t bytes);
  void fence(uint64_t client);
  std::vector<region::RecordInfo> records() const;

 private:
  class Served;
  void remove(uint64_t number);

  Network& network_;
  const unsigned index_;
  const std::string address_;
  const HostId host_;
  uint64_t incarnation_ = 0;
  std::unique_ptr<region::Service> service_;
  uint64_t next_served_ = 0;
  std::map<uint64_t, std::shared_ptr<Served>>
      served_;  // in the order in which they came: it must not depend on addresses
};

}  // namespace extmem::simulation
