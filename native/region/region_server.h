// ⑤ The appliance's side of the fabric: regions in memfds, served to authenticated clients over tcp and, on the
// same host, by handing over descriptors (shm). Native threads, adaptive polling; an idle server uses no CPU.
//
// Every region is a memfd of its own, sealed against growth, filled lazily. A thick region counts in full against what
// the appliance donates; a thin one counts what has been written (tcp only: shm could not be bounded). The data path
// uses pread and pwrite on the memfd, never loads and stores: a 4 KiB page is then replaced as a whole even if the
// writer is killed, a truncated memfd gives a short read instead of SIGBUS, and reading a hole does not populate it.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/poll_window.h"
#include "base/protocol.h"
#include "region/link_table.h"
#include "region/usage.h"

namespace extmem::region {

using protocol::Status;

struct RegionInfo {
  uint64_t id, bytes, resident_bytes;
  bool thin;
  uint32_t epoch;
  uint64_t absent_bytes;   ///< restored or freed, and in the store only
  uint64_t damaged_pages;  ///< reads of them fail
  uint32_t access_version;
  bool given;  ///< clients were given the memory itself: what they do there is not in `usage`, but for what they tell
  RegionUsage usage{};
};

struct RecordInfo {
  uint64_t region, ino;
  std::vector<uint8_t> bytes;
};

struct ListenPoint {
  std::string address;
  uint16_t port = 0;  ///< 0: that of the first, if it is free there; else chosen by the kernel
};

/// Of a region's access parameters, as it begins.
struct AccessVersion {
  uint64_t region;
  uint32_t version;
};

struct Memory {
  uint64_t offered, reserved, resident;
};

struct Counters {
  uint64_t connections, refused, operations, bytes_read, bytes_written, fenced_clients;
};

/// A region that came out of the backing store. exact: with everything that was ever acknowledged.
struct RestoredRegion {
  uint64_t region, bytes;
  bool exact;
};

struct StoreStatus {
  uint64_t used_bytes = 0, limit_bytes = 0, commits = 0, written_bytes = 0, persisted_bytes = 0, damaged_blocks = 0;
  uint64_t ns_per_mebibyte = 0;  ///< what persisting took, when it was last more than a little; 0: not known
  uint64_t absent_bytes = 0;     ///< of regions, still only in the store
  uint64_t damaged_pages = 0;    ///< reads of them fail
  std::string broken{};          ///< why nothing is persisted any more
};

class RegionServer {
 public:
  struct StoreOptions {
    std::string path;  ///< empty: none
    uint64_t limit_bytes = 0;
    bool compress = false;
    std::vector<uint8_t> key;       ///< 32 bytes, or none
    bool lazily = false;            ///< restored blocks come only when they are asked for
    uint64_t bytes_per_second = 0;  ///< persist_in_background() puts no more; 0: no limit
  };
  struct Piece {
    uint64_t region, offset, bytes;
  };
  /// By persist(): of what was meant, what takes no memory any more, and what does because clients hold it themselves.
  struct Freed {
    uint64_t freed_bytes = 0, held_bytes = 0;
  };
  struct PersistProgress {
    uint64_t done_bytes, total_bytes;
  };
  struct Options {
    std::string listen_address = "127.0.0.1";
    uint16_t port = 0;                       ///< 0: chosen by the kernel
    std::vector<ListenPoint> more_points{};  ///< of other networks
    std::string link_name;                   ///< abstract unix socket; empty: no shm
    std::array<uint8_t, 32> cluster_key{};
    uint64_t incarnation = 0;
    uint64_t donated_bytes = 0;
    unsigned threads = 1;
    /// How long a thread polls after its last operation; within these bounds the window follows the traffic.
    uint64_t poll_ns = 200'000;
    uint64_t poll_shortest_ns = PollWindow::kShortestNs;
    StoreOptions store;
    /// Grants of older versions are void from the beginning, of what the store brings back.
    std::vector<AccessVersion> access{};
    /// Something was handed out that is to be taken back then (end_overdue); any thread.
    std::function<void(uint64_t not_after_ms)> on_window{};
    std::function<void(const std::string& peer, const std::string& why)>
        on_refused;  ///< once per peer and reason; any thread
  };
  /// null: why is in `error`; whether it is the store's fault, in `store_failed`.
  static std::unique_ptr<RegionServer> create(const Options& options, std::string& error, bool* store_failed = nullptr);
  virtual ~RegionServer() = default;
  /// Of the first address.
  virtual uint16_t port() const = 0;
  /// Of all, in their order.
  virtual const std::vector<uint16_t>& ports() const = 0;
  /// Whether RDMA connections are taken there too, on every address.
  virtual bool serves_verbs() const = 0;

  // All of these may be called from one control thread (the appliance's JavaScript).
  virtual Status create_region(uint64_t id, uint64_t bytes, bool thin) = 0;  ///< no_space, bad_request (id in use)
  virtual Status resize_region(uint64_t id, uint64_t bytes) = 0;             ///< at the end; shrinking frees memory
  virtual Status destroy_region(uint64_t id) = 0;                            ///< memory goes back to the OS at once
  virtual Status punch_region(uint64_t id, uint64_t offset,
                              uint64_t bytes) = 0;  ///< reads as zeros afterwards; memory freed
  /// Kills every grant of these clients: their connections are closed, and regions whose descriptor one of them was
  /// given move to fresh memfds. When it returns, nothing of those clients can write any more.
  virtual void fence_clients(std::span<const ClientRange> clients) = 0;
  /// From now on capabilities of an older version are void, and so is what was handed out by them, but for that of
  /// these clients. When it returns, nothing goes on by them.
  virtual Status set_access(uint64_t region, uint32_t version, std::span<const uint64_t> keep) = 0;
  /// What was handed out for a time that is over is taken back.
  virtual void end_overdue() = 0;
  /// By which clients are told to come, in the order of Via's links.
  virtual void set_link_addresses(std::vector<std::string> addresses) = 0;
  /// From now on regions are made and grow within so much; what there is stays.
  virtual void offer_memory(uint64_t bytes) = 0;
  virtual std::vector<RegionInfo> list_regions() const = 0;
  virtual std::optional<RegionInfo> region(uint64_t id) const = 0;
  virtual std::vector<RecordInfo> list_records() const = 0;  ///< file records kept beside regions
  virtual std::vector<uint64_t> take_written(
      uint64_t region) = 0;  ///< chunks written since this was last asked (Region::take_written)
  /// As a client's write by message; nullopt: busy, ask again. Any thread.
  virtual std::optional<Status> write(uint64_t region, uint64_t offset, std::span<const uint8_t> data) = 0;
  /// Of each kSumBytes of the range (the last may be shorter) the XXH3 hash. Any thread; timed_out: it is being moved,
  /// or brought home from the store, all the time.
  virtual Status sum(uint64_t region, uint64_t offset, uint64_t bytes, std::vector<uint64_t>& sums) = 0;
  virtual Status put_record(uint64_t region, uint64_t ino, std::vector<uint8_t> bytes) = 0;
  virtual Status remove_record(uint64_t region, uint64_t ino) = 0;
  virtual Memory memory() const = 0;
  virtual Counters counters() const = 0;
  virtual void close() = 0;

  // With a backing store. Empty, or why it failed; by one thread, not that of the others, at a time.
  /// Options::incarnation; where the backing store has all that an earlier incarnation acknowledged, that one goes on.
  virtual uint64_t incarnation() const = 0;
  virtual const std::vector<RestoredRegion>& restored() const = 0;
  virtual std::optional<StoreStatus> store_status() const = 0;
  /// These pieces, or everything if none are named. While a job is under way in the background, on another thread, it
  /// goes first. `freed`, unless null: then their memory is given back, but for what is written meanwhile or held.
  virtual std::string persist(const std::vector<Piece>& pieces, Freed* freed,
                              const std::function<void(const PersistProgress&)>& tell) = 0;
  virtual std::string persist_in_background() = 0;
  /// Now, and for good.
  virtual void end_background() = 0;
  /// Nobody is served from now on; everything as it was last acknowledged. Ends what is under way in the background.
  virtual std::string persist_last(const std::function<void(const PersistProgress&)>& tell) = 0;
  /// After punch_region and destroy_region: the same in the store, before anybody is told that it was done.
  virtual std::string settle_freed(const std::vector<Piece>& pieces) = 0;
  virtual std::string settle_destroyed(const std::vector<uint64_t>& regions) = 0;
};

}  // namespace extmem::region
