// The shm transport: reads and writes go to the region's memfd, which the appliance on this host lends us; everything
// else, and whatever the descriptor cannot do, goes over the unix socket that lent it.
//
// Region::shm_fd is shared by all reactors: once set, its number stays the region's for good, and what it refers to is
// exchanged with dup3, so that no reactor ever uses a number that has become another file's.
#pragma once

#include <string>
#include <vector>

#include "fabric/wire_connection.h"

namespace extmem::fabric {

class ShmConnection final : public WireConnection {
 public:
  using WireConnection::WireConnection;
  ~ShmConnection() override;
  TransportKind kind() const override { return TransportKind::shm; }
  static constexpr Capabilities capabilities() {
    return {.one_sided = true, .atomics = true, .completes_inline = true, .write_with_notify = true};
  }

  /// Empty, or why it is impossible.
  std::string open(const std::string& link_name, uint64_t deadline_ns);
  void submit(Operation& operation, uint64_t attempt_deadline_ns) override;
  void disown() override;
  /// Without heartbeats: what owes us an answer. Loads and stores go on meanwhile.
  bool doubtful() const override { return busy() > 0; }

 private:
  ssize_t receive_message(msghdr& message) override;
  void on_descriptor_reply(Region& region, const protocol::ReplyHeader& reply) override;
  void on_populate_reply(Region& region) override;
  bool has_heartbeat() const override { return false; }  // the socket hangs up when the appliance dies
  bool transfer(Operation& operation);
  static bool lacks_memory(const Operation& operation, int fd);
  void populate_first(Operation& operation, uint64_t attempt_deadline_ns);
  bool hung_up(uint64_t now);
  static void hollow_out(Region& region);
  void install(Region& region, UniqueFd fd);
  static bool install_map(Region& region, UniqueFd fd);
  UniqueFd take_received();

  std::vector<UniqueFd> received_;  // not yet claimed by a reply
  uint64_t looked_ns_ = 0;
};

}  // namespace extmem::fabric
