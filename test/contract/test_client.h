// A client of the fabric with a reactor thread of its own, used from the test's thread as if it were synchronous.
#pragma once

#include <unistd.h>

#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "base/keys.h"
#include "contract/appliance_process.h"
#include "fabric/transport.h"

namespace extmem::contract {

using fabric::Operation;
using protocol::Op;
using protocol::Status;

constexpr uint32_t kRead = 1, kWrite = 2;

Key cluster_key();
fabric::Credentials make_credentials(uint64_t client, uint32_t generation);
protocol::Capability make_capability(const fabric::Credentials& credentials, uint64_t region, uint32_t rights);

struct Transport {
  const char* name;
  fabric::TransportKind kind;
  const char* faults;  // null: none
};
/// Without faults.
std::vector<Transport> plain_transports();
std::vector<Transport> all_transports();

/// Whether it holds within so many seconds.
template <typename Condition>
bool eventually(Condition condition, int seconds = 4) {
  for (int tries = 0; tries < 100 * seconds; ++tries) {
    if (condition()) return true;
    usleep(10'000);
  }
  return false;
}

class TestClient {
 public:
  struct Options {
    Transport transport{"tcp", fabric::TransportKind::tcp, nullptr};
    fabric::Credentials credentials = make_credentials(1, 1);
    uint64_t operation_deadline_ms = protocol::kOperationDeadlineMs;
    unsigned reactors = 1;
    uint64_t fault_seed = 1;
  };
  explicit TestClient(const Options& options);
  ~TestClient();

  fabric::Directory& directory() { return directory_; }
  fabric::Appliance& add_appliance(const ApplianceProcess& process, uint16_t port = 0);
  /// Reached by these ports of the host, a link each.
  fabric::Appliance& add_appliance(const ApplianceProcess& process, const std::vector<uint16_t>& ports);
  fabric::Region& add_region(fabric::Appliance& appliance, uint64_t id, uint64_t bytes,
                             uint32_t rights = kRead | kWrite);

  /// Runs on the reactor's thread, to its end.
  void on_reactor(const std::function<void(Reactor&, fabric::Fabric&)>& work, unsigned reactor = 0);
  Status run(Operation& operation, unsigned reactor = 0);
  /// All at once; answers when the last is done.
  void run_all(std::vector<Operation>& operations, unsigned reactor = 0);

  Status read(fabric::Region& region, uint64_t offset, std::vector<uint8_t>& into, unsigned reactor = 0);
  Status write(fabric::Region& region, uint64_t offset, const std::vector<uint8_t>& data, unsigned reactor = 0);
  Status put_record(fabric::Region& region, uint64_t ino, const std::string& text);
  /// Of all transports, links and reactors.
  static fabric::LinkTotals totals(fabric::Appliance& appliance);
  void close_fabrics();

 private:
  struct Lane {
    std::unique_ptr<Reactor> reactor;
    std::unique_ptr<fabric::Fabric> fabric;
    std::thread thread;
  };
  const Options options_;
  fabric::Directory directory_;
  std::vector<Lane> lanes_;
};

}  // namespace extmem::contract
