// The tcp transport: WireConnection over a TCP socket.
#pragma once

#include <string>

#include "fabric/wire_connection.h"

namespace extmem::fabric {

class TcpConnection final : public WireConnection {
 public:
  using WireConnection::WireConnection;
  TransportKind kind() const override { return TransportKind::tcp; }
  static constexpr Capabilities capabilities() {
    return {.one_sided = false, .atomics = true, .completes_inline = false, .write_with_notify = true};
  }

  struct Target {
    const std::string& address;
    uint16_t port;
  };
  /// Empty, or why it is impossible.
  std::string open(const Target& target, uint64_t deadline_ns);
};

}  // namespace extmem::fabric
