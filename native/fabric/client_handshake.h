// The client's half of the handshake, without any I/O: what to say, and what to make of the answers.
#pragma once

#include <cstdint>

#include "base/keys.h"
#include "fabric/transport.h"

namespace extmem::fabric {

class ClientHandshake {
 public:
  struct Link {
    uint32_t index;        ///< the reactor's
    uint32_t generation;   ///< higher than any before on this link: fences them
    uint64_t incarnation;  ///< the appliance's, as the manager told us
  };
  ClientHandshake(const Credentials& credentials, const Link& link);

  const protocol::ClientHello& hello() const { return hello_; }
  /// ok: proof() is to be sent. stale_incarnation only if the appliance itself has proved it.
  Status accept(const protocol::ServerHello& answer);
  const protocol::ClientProof& proof() const { return proof_; }
  /// The outcome of the handshake.
  static Status conclude(const protocol::ReplyHeader& answer);

 private:
  const Key key_;
  protocol::ClientHello hello_{};
  protocol::ClientProof proof_{};
};

/// Rises in this process and, going by the clock, across processes that use the same credentials after each other.
uint32_t next_link_generation();

}  // namespace extmem::fabric
