// A serving thread: its connections, its listeners (the first thread's), its epoll. It polls for a while after the last
// operation, because waking it up costs a client several times what the operation does, then sleeps.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <unordered_map>
#include <vector>

#include "base/poll_governor.h"
#include "base/poll_window.h"
#include "base/socket.h"
#include "region/connection.h"

namespace extmem::region {

class ServiceThread {
 public:
  /// Where what was accepted goes: any thread's adopt().
  using Distribute = std::function<void(std::unique_ptr<Wire> wire)>;

  ServiceThread(Service& service, const PollWindow& window);
  ~ServiceThread();
  /// Before start().
  void listen(std::unique_ptr<Acceptor> acceptor, Distribute distribute);
  void start();
  void stop();
  /// Any thread.
  void adopt(std::unique_ptr<Wire> wire);

 private:
  void run();
  bool wait(int timeout);
  bool advance_hot();
  int timeout_ms(uint64_t now);
  void handle(void* target, uint64_t now);
  void accept_all(Acceptor& acceptor, uint64_t now);
  void pause_accepting(Acceptor& acceptor, uint64_t now);
  void resume_accepting(uint64_t now);
  void probe_peers(uint64_t now);
  void settle_ended();
  void take_adopted();
  void advance(Connection& connection);
  void note_operation(bool worth_polling);
  void watch(Connection& connection, uint32_t events);
  void remove(Connection& connection);
  void retry_parked();
  void drop_overdue(uint64_t now);

  Service& service_;
  UniqueFd epoll_fd_, wake_fd_;
  struct Listening {
    std::unique_ptr<Acceptor> acceptor;
    uint64_t again_ns = 0;  // not 0: out of descriptors, say, and paused until then
  };
  std::vector<Listening> acceptors_;
  Distribute distribute_;
  std::thread thread_;
  std::atomic<bool> stopping_{false};

  std::mutex adopted_lock_;
  std::vector<std::shared_ptr<Connection>> adopted_;

  // The thread's own.
  struct Entry {
    std::shared_ptr<Connection> connection;
    uint32_t events;
  };
  std::unordered_map<Connection*, Entry> connections_;
  std::vector<Connection*> strangers_;              // not authenticated, oldest first
  std::vector<Connection*> parked_;                 // wait for a region that is being changed
  std::vector<std::shared_ptr<Connection>> ended_;  // with registrations left, which end a few at a time
  size_t probed_ = 0;                               // connections that need probes
  uint64_t probe_ns_ = 0;                           // when they are due
  Connection* hot_ = nullptr;                       // served last, and waits for requests
  uint64_t last_operation_ns_ = 0;
  PollWindow window_;
  PollGovernor governor_;
  size_t paused_ = 0;  // acceptors
};

}  // namespace extmem::region
