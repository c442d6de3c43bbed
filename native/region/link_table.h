// Who may talk: the links of every client, newest generation only, and the clients that were fenced.
//
// A connection enters here at the end of its handshake and before that is answered; the one it replaces is killed
// under its own lock, so that nothing of it is applied afterwards. Any thread.
//
// Lock order: a connection's lock, then lock_; and, never with lock_ held, the lock of a connection that registered
// earlier. Registrations are ordered, so there is no cycle.
#pragma once

#include <compare>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "base/protocol.h"
#include "region/access.h"

namespace extmem::region {

/// What fencing needs of a connection.
class Killable {
 public:
  virtual ~Killable() = default;
  /// When it returns, nothing that came over this connection is applied any more. Tells the peer why, if it can.
  virtual void kill(protocol::Status reason) = 0;
  /// When they return, nothing that came by what was taken away is applied any more, or answered.
  virtual void revise(const AccessChange& change) = 0;
  virtual void end_overdue(uint64_t now_ms) = 0;
};

/// Client ids from first to last.
struct ClientRange {
  uint64_t first;
  uint64_t last;
};

class LinkTable {
 public:
  struct Link {
    uint64_t client;
    uint32_t client_generation;
    uint32_t link;
    auto operator<=>(const Link&) const = default;
  };
  /// ok, or fenced. On ok the link's earlier connection is dead.
  protocol::Status enter(const Link& link, uint32_t link_generation, std::weak_ptr<Killable> connection);
  /// Kills the connections of these clients and refuses them for good; answers how many of them had been here.
  size_t fence(const ClientRange& clients);
  bool fenced(uint64_t client) const;
  /// Those there are now.
  std::vector<std::shared_ptr<Killable>> connections() const;
  size_t fenced_ranges() const;

 private:
  struct Entry {
    uint32_t link_generation = 0;
    std::weak_ptr<Killable> connection;
  };
  void refuse_locked(ClientRange clients);
  bool fenced_locked(uint64_t client) const;

  mutable std::mutex lock_;
  std::map<Link, Entry> links_;
  /// first -> last. Ids are never used again and the manager tells whole gaps between those that live, so that there
  /// are no more of these than clients.
  std::map<uint64_t, uint64_t> fenced_;
};

}  // namespace extmem::region
