// The Fabric of one reactor: finds the links to the appliance of an operation's region. On the reactor's thread
// throughout. It may be closed from within a completion, but not destroyed there.
#pragma once

#include <memory>
#include <vector>

#include "fabric/links.h"
#include "fabric/transport.h"

namespace extmem::fabric {

class Router final : public Fabric {
 public:
  Router(Reactor& reactor, Directory& directory, const Options& options);
  ~Router() override;

  void submit(Operation& operation) override;
  void close() override;
  void rejoin(const Credentials& credentials) override;
  /// Severs the connection to that appliance, as a network might.
  void cut(Appliance& appliance);
  /// Why the last connection to it failed; empty if it did not.
  std::string failure(const Appliance& appliance) const;

 private:
  void route(Operation& operation);
  Links& links_to(Appliance& appliance);

  Reactor& reactor_;
  Directory& directory_;
  Options options_;                            // the links refer to it
  std::vector<std::unique_ptr<Links>> links_;  // by Appliance::index
  OperationList deferred_;
  unsigned depth_ = 0;
  bool closed_ = false;
};

}  // namespace extmem::fabric
