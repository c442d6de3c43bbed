// One region: a memfd, the grants of its descriptor, and the file records kept beside it.
//
// Serving threads use it under a shared hold that they never wait for: while the control thread changes the memfd
// (fence, resize, destroy) they are told `busy` (nullopt) and come back later, so that a region that moves delays
// nobody but its own clients.
//
// Lock order: hold_, then thin_lock_ or atomics_lock_ or records_lock_ or holders_lock_ or
// lent_lock_; never two of the latter.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <shared_mutex>
#include <span>
#include <unordered_map>
#include <vector>

#include "base/socket.h"
#include "base/written_map.h"
#include "region/access.h"
#include "region/block_state.h"
#include "region/memory_account.h"
#include "region/region_server.h"
#include "region/wire.h"

namespace extmem::region {

struct Outcome {
  Status status = Status::ok;
  uint32_t epoch = 0;
  uint64_t value = 0;
};

class Region final : public Written, public std::enable_shared_from_this<Region> {
 public:
  struct Shape {
    uint64_t id, bytes;
    bool thin;
    /// There is a backing store: what its blocks are is kept (BlockState).
    bool kept = false;
    /// It comes out of the store: its memory is taken whatever the limit says.
    bool restored = false;
  };
  static std::shared_ptr<Region> create(const Shape& shape, MemoryAccount& account, Status& status);
  Region(const Shape& shape, MemoryAccount& account, UniqueFd fd, std::unique_ptr<WrittenMap> written);
  ~Region();

  uint64_t id() const { return id_; }
  bool thin() const { return thin_; }

  // Serving threads; nullopt: busy, ask again.
  std::optional<Outcome> check_read(uint64_t offset, uint64_t bytes);
  std::optional<Outcome> check_write(uint64_t offset, uint64_t bytes);
  std::optional<Outcome> read(uint64_t offset, std::span<uint8_t> into);
  std::optional<Outcome> write(uint64_t offset, std::span<const uint8_t> data);
  /// Takes memory for a range, so that it is ours whoever writes there. Not of a thin region, whose memory is counted
  /// by its writes.
  std::optional<Outcome> populate(uint64_t offset, uint64_t bytes);
  std::optional<Outcome> fetch_add(uint64_t offset, uint64_t addend);
  std::optional<Outcome> compare_swap(uint64_t offset, uint64_t expected, uint64_t desired);
  /// Sends up to `bytes` from `offset` on to the socket; answers what sendfile(2) did (errno kept), 0 if the region is
  /// not what it was.
  std::optional<ssize_t> send(int socket, uint64_t offset, size_t bytes);
  /// A descriptor of its own for that client, which is remembered as a holder.
  struct HandOver {
    Outcome outcome;
    UniqueFd fd;
    UniqueFd written;  ///< the map that the client marks what it stores in, if it may
  };
  std::optional<HandOver> hand_over(uint64_t client, const Grant& grant);

  /// Has a chunk (kLendBytes, by its number) registered by that lender, which takes memory for it. Not of a thin
  /// region, whose memory is counted by its writes: bad_request.
  struct Loan {
    Outcome outcome;
    std::shared_ptr<LentChunk> chunk;
    uint64_t bytes = 0;  // whole pages
  };
  std::optional<Loan> lend(uint64_t number, bool writable, Lender& lender, std::weak_ptr<Borrower> borrower);

  // Any thread, lock-free.
  Usage& usage() { return usage_; }
  uint32_t access_version() const { return access_version_.load(std::memory_order_acquire); }
  void mark_written(uint64_t offset, uint64_t bytes) override;
  /// The chunks (kLendBytes, by their numbers) that were written since this was last asked, or may have been. Of a
  /// chunk that is lent for writing, only what was written with notice, until the loan ends. One thread at a time.
  std::vector<uint64_t> take_written();

  // The control thread.
  Status resize(uint64_t bytes);
  /// nullopt: a block that it touches in part is in the store only, and is to be brought home first.
  std::optional<Status> punch(uint64_t offset, uint64_t bytes);
  void destroy();
  /// If a client that is meant holds a descriptor: moves the data to a fresh memfd and empties the old one.
  void revoke(const std::function<bool(uint64_t client, const Grant& grant)>& meant);
  /// Before connections are told (Connection::revise): afterwards none attaches by an older grant.
  void raise_access_version(uint32_t version);
  /// After that: descriptors that were handed over by an older one are of no use any more.
  void revise_holders(const AccessChange& change);
  RegionInfo info() const;
  uint64_t resident_bytes() const;

  // Any thread. The bytes are taken unless it is busy.
  std::optional<Outcome> put_record(uint64_t ino, std::vector<uint8_t>&& bytes);
  /// Also ok when there is none: a retry after a lost reply.
  std::optional<Outcome> remove_record(uint64_t ino);
  void append_records(std::vector<RecordInfo>& into) const;

  // The keeper's thread, of a region that is kept.
  BlockState* blocks() { return blocks_.get(); }
  /// Who needs an absent block asks by this; set before anybody else knows the region.
  std::function<void(Region& region, uint64_t block)> on_absent;
  /// Takes the marks of what has changed so far, of blocks from `first` up to `end`. `unseen`: clients may have written
  /// by themselves, in these chunks too.
  struct Changes {
    std::vector<uint64_t> blocks;
    bool unseen = false;
    std::vector<uint64_t> chunks{};  ///< kLendBytes, in order; all blocks are in them
    uint64_t bytes = 0;
    std::vector<uint64_t> told{};  ///< of these chunks, those that clients have said to have written
    uint64_t first = 0, end = 0;   ///< whole chunks, where `unseen`
  };
  Changes begin_persist(uint64_t first = 0, uint64_t end = UINT64_MAX);
  /// A block as it is at some moment in between: page by page as somebody wrote it. Padded with zeros; false: gone.
  bool copy_block(uint64_t block, std::span<uint8_t> into);
  /// The first block from there on that has memory.
  uint64_t next_with_memory(uint64_t block) const;
  /// Of what clients were given: descriptors are written to no more, and what was lent is taken back.
  void end_writing();
  /// How often memory was given back. Read before what the store has of a block is read, which is then still true.
  uint64_t drops() const { return drops_.load(); }
  /// What the store had of an absent block, when drops() was that; nothing: it is damaged there. nullopt: look again.
  /// Not ok: there was no room for it, and it is absent still.
  std::optional<Status> fill(uint64_t block, std::span<const uint8_t> data, uint64_t drops);
  /// When no client holds any of its memory: how often some was given so far, by which drop() knows that none was
  /// since. nullopt: clients hold it, or one of them has sealed or cut it; or it is thin.
  std::optional<uint64_t> unshared();
  /// Gives back the memory of those blocks from `first` up to `end` that have not changed since they were put, and are
  /// absent from then on. Answers how much that was, in bytes; nullopt: some was given to clients meanwhile.
  std::optional<uint64_t> drop(uint64_t first, uint64_t end, uint64_t given,
                               const std::function<bool(uint64_t block)>& is_stored);
  /// Bytes of these blocks that are in memory.
  uint64_t resident_within(uint64_t first, uint64_t end) const;
  bool unseen() const { return unseen_.load(); }

 private:
  class Use;
  class Exclusive;
  Outcome outcome(Status status, uint64_t value = 0) const { return {status, epoch_, value}; }
  Status check_range(uint64_t offset, uint64_t bytes) const;
  Status write_held(uint64_t offset, std::span<const uint8_t> data);
  Status write_thin(uint64_t offset, std::span<const uint8_t> data);
  Status write_memory(uint64_t offset, std::span<const uint8_t> data);
  Status store(uint64_t offset, std::span<const uint8_t> data);
  std::optional<Outcome> update_word(uint64_t offset, uint64_t desired, const uint64_t* expected);
  uint64_t missing_bytes(uint64_t offset, uint64_t bytes) const;
  void recount_thin();
  bool stop_writers();
  bool move_to_fresh(uint64_t bytes, bool others_hold);
  void end_lending(uint64_t offset, uint64_t bytes);
  bool is_lent(uint64_t number);
  void append_lent(std::vector<uint64_t>& into, uint64_t first, uint64_t end);
  Status clear_within_chunk(uint64_t offset, uint64_t bytes);
  Status free_memory(uint64_t offset, uint64_t bytes);
  void destroy_held();
  BlockState::Presence presence(uint64_t offset, uint64_t bytes, bool replaces);
  std::optional<Outcome> check(uint64_t offset, uint64_t bytes, bool replaces);
  bool is_all_here() const { return !blocks_ || blocks_->settled(); }
  bool is_held();
  bool is_droppable(uint64_t block, const std::function<bool(uint64_t block)>& is_stored);
  ssize_t copy_once(uint64_t block, std::span<uint8_t> into) const;
  bool cover_written(uint64_t bytes);

  const uint64_t id_;
  const bool thin_;
  MemoryAccount& account_;

  mutable std::shared_mutex hold_;                // shared: uses of fd_; exclusive: changes of what follows
  mutable std::atomic<int> exclusive_wanted_{0};  // glibc's lock prefers readers: they step back when they see this
  UniqueFd fd_;
  uint64_t bytes_;
  uint32_t epoch_ = 1;
  bool destroyed_ = false;

  std::atomic<WrittenMap*> written_;                       // the last of written_maps_
  std::vector<std::unique_ptr<WrittenMap>> written_maps_;  // former ones stay: somebody may be marking there

  const std::unique_ptr<BlockState> blocks_;  // null: there is no store
  /// A client was given writable memory, and its writes are not seen here.
  std::atomic<bool> unseen_{false};
  std::atomic<uint64_t> given_{0};  // so often memory at all
  std::atomic<uint64_t> drops_{0};

  std::atomic<uint32_t> access_version_{0};
  Usage usage_;

  std::mutex thin_lock_;  // one write at a time to a thin region: what it made resident is then known
  uint64_t thin_counted_ = 0;
  std::mutex atomics_lock_;

  std::mutex holders_lock_;
  std::map<uint64_t, Grant> holders_;  // clients that were given a descriptor, and by what
  bool grow_sealed_ = false;

  std::mutex lent_lock_;
  struct Lent {
    std::weak_ptr<LentChunk> chunk;
    std::weak_ptr<Borrower> borrower;
  };
  /// By number; those that a connection still has. None is ended with the lock held.
  std::map<uint64_t, std::vector<Lent>> lent_;

  mutable std::mutex records_lock_;
  std::unordered_map<uint64_t, std::vector<uint8_t>> records_;
};

}  // namespace extmem::region
