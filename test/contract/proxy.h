// A tcp proxy that can hold back what clients send, for as long as a test wants: the network as an adversary.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "base/socket.h"

namespace extmem::contract {

class Proxy {
 public:
  explicit Proxy(uint16_t target_port);
  ~Proxy();
  uint16_t port() const { return port_; }

  /// What clients send on the connections there are now stays here, and the end of those connections too.
  void hold();
  /// The same of all connections that are made from now on.
  void hold_new();
  /// Those go on their way.
  void let_new_go();
  /// Everything held goes on its way.
  void let_go();
  /// From now on nothing passes in either direction, on any connection, old or new: a cut cable.
  void black_hole() { black_hole_ = true; }
  /// The cable is whole again. On the connections there were, too much is missing: they stay silent.
  void mend();

 private:
  struct Link;
  void accept_all();
  void forward(Link& link, int from, int to, bool from_client);

  const uint16_t target_port_;
  uint16_t port_ = 0;
  UniqueFd listener_;
  std::atomic<bool> stopping_{false}, black_hole_{false};
  std::mutex lock_;
  std::condition_variable changed_;
  std::vector<std::unique_ptr<Link>> links_;
  bool holding_new_ = false;  // under lock_
  std::thread acceptor_;
};

}  // namespace extmem::contract
