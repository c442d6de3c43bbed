// The appliance's half of the handshake: nothing is exposed before both sides have proved that they know the client's
// key. What is answered to whom, without any I/O.
#pragma once

#include <cstdint>
#include <string>

#include "base/keys.h"
#include "region/link_table.h"

namespace extmem::region {

class Handshake {
 public:
  Handshake(const Key& cluster_key, uint64_t incarnation) : cluster_key_(cluster_key), incarnation_(incarnation) {}

  /// The answer to a hello; unless its status is ok, the connection ends after it.
  protocol::ServerHello answer(const protocol::ClientHello& hello);
  bool verify(const protocol::ClientProof& proof) const;

  LinkTable::Link link() const {
    return {.client = hello_.client, .client_generation = hello_.client_generation, .link = hello_.link};
  }
  uint32_t link_generation() const { return hello_.link_generation; }

  /// One per reactor of the client and address of ours: a bound, so that a client cannot fill the link table.
  static constexpr uint32_t kMaxLinks = 4096;

 private:
  const Key& cluster_key_;
  const uint64_t incarnation_;
  protocol::ClientHello hello_{};
  Nonce nonce_{};
  Key client_key_{};
};

}  // namespace extmem::region
