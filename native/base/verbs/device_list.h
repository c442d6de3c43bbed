// The RDMA devices of this machine, for those who want to know before they use them (extmem doctor).
#pragma once

#include <string>
#include <vector>

namespace extmem::verbs {

struct DeviceInfo {
  std::string name;
  unsigned port;
  std::string state;  ///< "active", "down", ...
  unsigned mtu;       ///< in bytes, of a packet's payload
  bool on_demand_paging;
};

/// One for each port. Empty where the libraries or devices are missing.
std::vector<DeviceInfo> list_devices();

}  // namespace extmem::verbs
