// One link to an appliance, as one reactor talks over it: the connection, what waits for it, the retry, the circuit
// breaker. On the reactor's thread throughout. Which of an appliance's links an operation takes is Links' choice.
//
// An operation has two attempts, the second on a new connection whose link_generation has fenced the first one's.
// An appliance that was found down fails everything at once while it is probed, also what waits for it on other
// reactors: so of all that one call asks of it, one thing after the other, only the first has to wait.
//
// A link's home is one of the appliance's addresses. When that fails, the link strays: it connects by another address,
// because that is what fences its lost connection, and finishes there what it had been given. Back home it goes when it
// has nothing to do.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/reactor.h"
#include "fabric/operation_list.h"
#include "fabric/route.h"
#include "fabric/transport.h"
#include "fabric/wire_connection.h"

namespace extmem::fabric {

class Peer final : public WireConnection::Owner, public Timer {
 public:
  Peer(Reactor& reactor, Directory& directory, Appliance& appliance, const Fabric::Options& options, uint32_t home);
  ~Peer();

  /// started_ns is set, expires_ns and attempts are not.
  void submit(Operation& operation);
  void close();
  /// We are another client from now on: nothing of the former one goes out any more.
  void rejoin();
  /// Severs the connection, as a network might (faults, tests).
  void cut();
  /// Why the last connection failed or was refused.
  const std::string& reason() const { return reason_; }

  /// Takes operations at once.
  bool ready() const { return connection_ && connection_->ready(); }
  /// And by the address that it is for.
  bool at_home() const { return ready() && route_.is_home(); }
  /// Connected other than over a network, so that more links to the appliance are of no use.
  bool is_local() const { return ready() && connection_->kind() == TransportKind::shm; }
  /// How much is under way or waits.
  uint64_t load() const { return load_; }
  /// Connects although nothing has been asked of it yet, unless it is known to be in vain.
  void prepare();

 private:
  struct Place {
    std::vector<Endpoint> endpoints;
    std::string link_name;
    std::string host_id;
    uint64_t incarnation;
    bool serves_verbs;
  };

  void on_connected() override;
  void on_lost(Status status, const std::string& reason) override;
  void on_room() override;
  void finish(Operation& operation, Status status) override;
  void on_posted(unsigned requests, unsigned signals) override { statistics_->count_posted(requests, signals); }
  void resubmit(Operation& operation) override;
  void wake() override;
  void on_timer() override;

  void start(Operation& operation, uint64_t now);
  void dispatch(Operation& operation, uint64_t now);
  void hold(Operation& operation);
  void lose_region(Operation& operation);
  bool fail_fast(Operation& operation, uint64_t now);
  bool found_down() const { return appliance_.state.load(std::memory_order_acquire) == PeerState::down; }
  void note_state(PeerState state);
  bool awaits_fence(const Operation& operation) const;
  bool awaits_in_vain(const Operation& operation) const;
  void look_again();
  void doubt(const WireConnection::Unfinished& unfinished);
  void end_doubt();
  bool newer_incarnation_known(const Region& region);

  void connect(uint64_t now);
  bool open(const Place& place, uint64_t now);
  bool may_use_shm(const Place& place) const;
  TransportKind choose(const Place& place, uint64_t now) const;
  uint64_t longest_try(size_t endpoint_count) const;
  std::string open_as(TransportKind kind, const Place& place, const ClientHandshake::Link& link, uint64_t deadline);
  bool try_another(uint64_t now);
  void begin_round();
  void note_connected();
  void note_lost_way(Status status, uint64_t now);
  void refuse(Operation& operation);
  void complete(Operation& operation, Status status);
  void go_home(uint64_t now);
  void stay_away(uint64_t now);
  LinkStatistics& statistics_for(TransportKind transport, const std::string& address);
  WireConnection::Unfinished retire();
  OperationList give_up();
  void settle_refusal(Status status, WireConnection::Unfinished unfinished);
  void settle_stale(WireConnection::Unfinished unfinished);
  void settle_outage(Status status, bool was_ready, WireConnection::Unfinished unfinished);
  void retry_or_fail(OperationList& operations, Status status, bool sent, OperationList& failed);
  void open_breaker(Status status, OperationList& failed);
  bool used_lately(uint64_t now) const;
  void fail_all(OperationList operations);
  void expire_waiting(uint64_t now);
  void arm_before(uint64_t due_ns);
  void arm_next(uint64_t now);

  Reactor& reactor_;
  Directory& directory_;
  Appliance& appliance_;
  const Fabric::Options& options_;
  const uint64_t attempt_ns_;

  std::unique_ptr<WireConnection> connection_;
  std::vector<std::unique_ptr<WireConnection>> retired_;  // freed from the timer: their code may still be on the stack
  OperationList waiting_;
  uint64_t waiting_expires_ns_ = UINT64_MAX;  // never later than the earliest of waiting_
  uint64_t armed_ns_ = UINT64_MAX;
  std::string reason_;
  bool closed_ = false;
  bool in_doubt_ = false;     // counted in Appliance::links_in_doubt
  PeerNews* news_ = nullptr;  // the appliance's

  TransportKind trying_ = TransportKind::tcp;
  bool shm_failed_ = false;             // of this round of connecting: the next is tried
  uint64_t verbs_failed_until_ns_ = 0;  // not tried again before, when there is a choice
  unsigned timeouts_ = 0;               // in a row

  Route route_;
  uint64_t load_ = 0;
  std::vector<LinkStatistics*> all_statistics_;  // the appliance's, ours
  LinkStatistics* statistics_;                   // of the last connection

  bool down_ = false;  // the breaker is open
  uint64_t probe_ns_ = 0;
  uint64_t backoff_ns_ = 0;
  uint64_t last_submit_ns_ = 0;

  Status refusal_ = Status::ok;  // denied, fenced, bad_version: the same again for a while
  uint64_t refused_until_ns_ = 0;
  uint64_t stale_incarnation_ = 0;  // proved by the appliance to be over
};

}  // namespace extmem::fabric
