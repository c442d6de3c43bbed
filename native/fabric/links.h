// One appliance, as one reactor talks to it: over as many links as it announces addresses, up to Appliance::kMaxLinks.
// Says which link an operation takes. On the reactor's thread throughout.
//
// The less loaded link takes the next operation; a link that strayed (peer.h) takes none while another is at home. So
// both of two networks carry traffic, and a link that is silent is left alone as soon as something waits on it.
// Operations that are under way together may overtake each other, as they may on the reactors' different connections.
#pragma once

#include <array>
#include <memory>
#include <string>

#include "fabric/peer.h"

namespace extmem::fabric {

class Links {
 public:
  Links(Reactor& reactor, Directory& directory, Appliance& appliance, const Fabric::Options& options);

  void submit(Operation& operation) { pick(operation).submit(operation); }
  void close();
  void rejoin();
  /// Severs the connection that was used last, as a network might (faults, tests).
  void cut() { peers_[last_]->cut(); }
  /// Why the last connection failed or was refused.
  std::string reason() const;

 private:
  Peer& pick(const Operation& operation);
  Peer& pick_among(uint32_t count, const Operation& operation);
  Peer& pick_stray(uint32_t count);

  Reactor& reactor_;
  Directory& directory_;
  Appliance& appliance_;
  const Fabric::Options& options_;
  std::array<std::unique_ptr<Peer>, Appliance::kMaxLinks> peers_;  // the first always; the others when first used
  size_t last_ = 0;
};

}  // namespace extmem::fabric
