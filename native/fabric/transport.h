// ④ The fabric's contract: one-sided operations on regions of appliances, whatever carries them.
//
// A Fabric belongs to one reactor and owns that reactor's connections. submit() never blocks: an operation may
// complete inside submit() (shm), or later on the same reactor; it always completes, with a status, at the latest
// when its deadline has passed. After completion nothing touches its memory any more: an operation that timed out has
// had its connection retired, and the next connection to that appliance fences the old one's generation
// (ClientHello.link_generation) before anything else is sent.
//
// The Directory says where appliances and regions are. It is shared by all reactors; TypeScript fills it.
#pragma once

#include <sys/uio.h>

#include <array>
#include <atomic>
#include <coroutine>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "base/protocol.h"
#include "base/reactor.h"
#include "base/written_map.h"
#include "fabric/link_statistics.h"

namespace extmem::fabric {

namespace sim {
class Network;
}

using protocol::Op;
using protocol::Status;

/// What a transport can do; the contract suite asks these before it tries.
struct Capabilities {
  bool one_sided;          ///< no code of the appliance runs for a read or a write
  bool atomics;            ///< fetch_add and compare_swap
  bool completes_inline;   ///< read and write are done when submit() returns
  bool write_with_notify;  ///< the appliance learns of a write that asks for it (Operation::notify)
};

/// Who this client is, towards every appliance (issued by the manager).
struct Credentials {
  uint64_t client = 0;
  uint32_t client_generation = 0;
  std::array<uint8_t, protocol::kMacBytes> key{};
};

enum class PeerState : uint8_t { idle, connecting, up, down };

/// A network address of an appliance.
struct Endpoint {
  std::string address;  ///< numeric IPv4 or IPv6
  uint16_t port = 0;
  bool operator==(const Endpoint&) const = default;
};

/// What reactors find out of an appliance concerns their peers on the others: each is told by a message of its own to
/// look again. Belongs to the Appliance, so that it may be under way when the peer goes.
struct PeerNews final : Message {
  PeerNews(Reactor& reactor, void* peer, void (*look)(void*)) : reactor(reactor), peer(peer), look(look) {}
  void run() override {
    if (peer != nullptr) look(peer);
  }
  Reactor& reactor;
  void* peer;                 ///< the reactor's thread only; null: it is gone
  void (*const look)(void*);  ///< sets `wanted` again, then looks
  bool wanted = true;         ///< guarded by Appliance::lock; false while it is under way
};

/// One memory appliance as the client knows it. Stable address; lives as long as the Directory.
struct Appliance {
  static constexpr size_t kMaxLinks = protocol::kMaxLinks;
  std::string id;       ///< stable name
  std::string host_id;  ///< boot id of its host: equal to ours means that shm may be tried
  /// One link to each of them; the first kMaxLinks count. Never empty.
  std::vector<Endpoint> endpoints;
  std::string rack;       ///< as its administrator labelled it; empty: unknown
  std::string link_name;  ///< abstract unix socket (without the leading NUL); empty: no shm
  uint64_t incarnation = 0;
  bool serves_verbs = false;  ///< as it announces: where there is a choice, RDMA is tried
  uint32_t index = 0;         ///< position in the Directory
  std::atomic<PeerState> state{PeerState::idle};
  std::atomic<TransportKind> transport{TransportKind::automatic};  ///< in use, once connected
  std::atomic<uint32_t> connections{0};                            ///< ready ones, of all reactors and links
  std::atomic<uint32_t> link_count{1};                             ///< of endpoints, as far as they count
  /// Endpoints by which somebody has failed to get through since anybody last did.
  std::array<std::atomic<bool>, kMaxLinks> failed{};
  std::atomic<uint64_t> breaker_openings{0};
  /// Reactors whose connection was lost with writes on their way that may still land: until each has connected anew,
  /// which fences the old connection, nobody else writes there.
  std::atomic<uint32_t> links_in_doubt{0};
  std::atomic<uint64_t> dirty_bytes{0};  ///< waiting in our page cache to be written there
  /// Guards host_id, rack, endpoints, link_name, incarnation, serves_verbs, which change when it restarts; and what
  /// follows.
  std::mutex lock;
  std::vector<std::unique_ptr<PeerNews>> news;              ///< one per peer
  std::vector<std::unique_ptr<LinkStatistics>> statistics;  ///< one per peer, transport and endpoint used
  /// By transport and endpoint.
  std::vector<LinkTotals> sum_statistics();
  /// Has all peers look again: what was found out stands in the members above by now.
  void tell_peers();
};

enum class RegionState : uint8_t { live, lost };

/// A region that this client may use. Stable address; lives as long as the Directory.
struct Region {
  uint64_t id = 0;
  uint64_t bytes = 0;  ///< changes while it is used: read by end()
  Appliance* appliance = nullptr;
  uint64_t incarnation = 0;  ///< of the appliance when the region was given to us: another one no longer has it
  protocol::Capability capability{};                  ///< guarded by the appliance's lock
  std::atomic<uint32_t> grant{0};                     ///< grows with every other capability
  std::atomic<RegionState> state{RegionState::live};  ///< lost: every operation on it completes with not_present
  std::atomic<int> shm_fd{-1};                        ///< owned by the shm transport, shared by all reactors
  std::atomic<WrittenMap*> written{nullptr};          ///< the shm transport's: marked with each store
  /// Of which the last is that; former ones may be in use. Guarded by the appliance's lock.
  std::vector<std::unique_ptr<WrittenMap>> written_maps;

  uint64_t end() { return std::atomic_ref(bytes).load(std::memory_order_relaxed); }
};

class Directory {
 public:
  Directory() = default;
  Directory(const Directory&) = delete;
  /// Closes the regions' descriptors: every Fabric that uses it is closed by then.
  ~Directory();
  /// Adds an appliance, or tells where it is now. A new incarnation makes the regions of the old one lost.
  /// `more`: addresses of its other networks.
  Appliance& put_appliance(const std::string& id, const std::string& host_id, const std::string& address, uint16_t port,
                           const std::string& link_name, uint64_t incarnation, bool serves_verbs = false,
                           const std::vector<Endpoint>& more = {}, const std::string& rack = {});
  /// Adds a region, or refreshes its capability. A lost region stays lost to those who hold it;
  /// the id then names a new Region.
  Region& put_region(uint64_t id, uint64_t bytes, Appliance& appliance, const protocol::Capability& capability);
  void lose_region(uint64_t id);
  /// This client was fenced: no region is ours.
  void lose_all_regions();
  /// Once no reactor has a connection that it made before lose_all_regions().
  void close_lost_descriptors();
  /// An appliance has told us that we are fenced; until we have joined again.
  std::atomic<bool> fenced{false};
  Region* find_region(uint64_t id);
  /// One that is not known to us, because nobody may use it now: lost to whoever gets it here, also when it becomes
  /// known.
  Region& unknown_region(uint64_t id);
  Appliance* find_appliance(const std::string& id);
  std::vector<Appliance*> appliances();
  /// By Appliance::index; without a lock.
  Appliance& appliance(uint32_t index) { return *by_index_[index].load(std::memory_order_acquire); }
  static constexpr size_t kMaxAppliances = 1024;

 private:
  std::mutex lock_;
  std::unordered_map<uint64_t, std::unique_ptr<Region>> regions_;
  std::vector<std::unique_ptr<Region>> former_;  // lost, and given to us anew since: whoever has them open keeps them
  std::unordered_map<uint64_t, std::unique_ptr<Region>> unknown_;
  Appliance nowhere_;  // of the unknown ones
  std::vector<std::unique_ptr<Appliance>> appliances_;
  std::array<std::atomic<Appliance*>, kMaxAppliances> by_index_{};
};

/// One operation. It belongs to the submitter (usually a coroutine's frame) and must not move or die before complete().
struct Operation {
  Op op = Op::read;
  Region* region = nullptr;
  uint64_t offset = 0;              ///< in the region
  const iovec* segments = nullptr;  ///< read: filled; write: sent; put_record: the record. Total = bytes
  uint32_t segment_count = 0;
  uint32_t bytes = 0;    ///< at most kMaxIoBytes (kMaxRecordBytes for put_record)
  uint64_t operand = 0;  ///< fetch_add: addend; compare_swap: expected; put_record, remove_record: ino
  uint64_t desired = 0;  ///< compare_swap
  bool notify = false;   ///< write: the appliance is to know by then that it was written (Region::take_written there)
  uint64_t deadline_ns = 0;  ///< monotonic, retry included; 0: two attempts of Options::operation_deadline_ms

  Status status = Status::ok;  ///< set when complete() is called
  uint64_t value = 0;          ///< old value of an atomic

  void (*complete)(Operation&) = nullptr;  ///< on the reactor's thread; may destroy the operation
  void* context = nullptr;                 ///< the submitter's

  Operation* next = nullptr;  ///< the transport's, while in flight
  uint64_t started_ns = 0;    ///< the transport's
  uint64_t wire_id = 0;       ///< the transport's
  uint8_t attempts = 0;       ///< the transport's
  uint64_t expires_ns = 0;    ///< the transport's: when it completes at the latest, retry included
};

class Fabric {
 public:
  struct Options {
    Credentials credentials;
    TransportKind transport = TransportKind::automatic;
    std::string host_id;  ///< ours
    uint64_t operation_deadline_ms = protocol::kOperationDeadlineMs;
    uint64_t fault_seed = 0;  ///< not 0: the `fault` transport wraps the chosen one
    std::string fault_plan;   ///< what it injects (fault/fault_transport.h)
    /// TransportKind::sim: what carries it, and from which host (sim/network.h).
    sim::Network* network = nullptr;
    uint32_t sim_host = 0;
  };
  virtual ~Fabric() = default;
  virtual void submit(Operation& operation) = 0;
  /// Fails everything in flight with Status::closed and closes all connections. On the reactor's thread.
  virtual void close() = 0;
  /// From now on another client: fails everything that was asked for (Status::fenced) and connects anew. The Directory
  /// has lost all regions before, so that nothing that waits elsewhere goes out in the new client's name. On the
  /// reactor's thread.
  virtual void rejoin(const Credentials& credentials) = 0;

  /// The fabric of one reactor. Call it on that reactor's thread or before it runs.
  static std::unique_ptr<Fabric> create(Reactor& reactor, Directory& directory, const Options& options);
};

/// Several operations awaited together: submit all, then `co_await batch`. Single use.
class Batch {
 public:
  explicit Batch(Fabric& fabric) : fabric_(fabric) {}
  void submit(Operation& operation) {
    ++pending_;
    operation.context = this;
    operation.complete = [](Operation& done) {
      auto* batch = static_cast<Batch*>(done.context);
      if (--batch->pending_ == 0 && batch->waiter_) batch->waiter_.resume();
    };
    fabric_.submit(operation);
  }
  bool await_ready() const noexcept { return pending_ == 0; }
  void await_suspend(std::coroutine_handle<> waiter) noexcept { waiter_ = waiter; }
  void await_resume() const noexcept {}

 private:
  Fabric& fabric_;
  unsigned pending_ = 0;
  std::coroutine_handle<> waiter_;
};

}  // namespace extmem::fabric
