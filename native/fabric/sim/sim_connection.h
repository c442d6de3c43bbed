// The sim transport: WireConnection over a stream of a simulated network (network.h). Everything above the stream is
// what tcp has.
#pragma once

#include <memory>
#include <string>

#include "fabric/sim/network.h"
#include "fabric/wire_connection.h"

namespace extmem::fabric {

class SimConnection final : public WireConnection, private sim::StreamUser {
 public:
  using WireConnection::WireConnection;
  ~SimConnection() override;
  TransportKind kind() const override { return TransportKind::sim; }

  struct Target {
    sim::HostId from;
    const std::string& address;
  };
  void open(sim::Network& network, const Target& target, uint64_t deadline_ns);

 private:
  void on_connected(bool accepted) override;
  bool on_input() override;
  void on_room() override;
  ssize_t send_message(msghdr& message) override;
  ssize_t receive_message(msghdr& message) override;
  void watch_writable(bool) override {}  // the stream tells by itself
  void end_stream() override;

  std::shared_ptr<sim::Stream> stream_;
};

}  // namespace extmem::fabric
