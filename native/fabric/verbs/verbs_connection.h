// The verbs transport: reads and writes go one-sided to chunks of the region that the appliance has registered for this
// connection; everything else, and whatever one-sided access cannot do, goes in messages on the same queue pair and is
// served by the appliance's code, as over tcp.
//
// A chunk's key is asked for when the chunk is first touched, and holds until the appliance ends it (the region shrank,
// was punched, freed; we were fenced): the next access then fails and takes the queue pair with it, and what was in
// flight is done anew on the next one, which asks for its keys itself. So a read that completes read what was ours.
//
// Atomics go through the appliance: the device's are not atomic towards its CPU, which serves other clients' by tcp.
#pragma once

#include <memory>
#include <string>
#include <unordered_map>

#include "base/verbs/queue_pair.h"
#include "fabric/verbs/local_memory.h"
#include "fabric/verbs/transfer_plan.h"
#include "fabric/wire_connection.h"

namespace extmem::fabric {

class VerbsConnection final : public WireConnection, public verbs::QueuePair::Listener {
 public:
  using WireConnection::WireConnection;
  ~VerbsConnection() override { close(); }
  TransportKind kind() const override { return TransportKind::verbs; }
  static constexpr Capabilities capabilities() {
    return {.one_sided = true, .atomics = true, .completes_inline = false, .write_with_notify = true};
  }
  /// Whether this machine has what it takes.
  static bool possible() { return verbs::Library::has_device(); }

  struct Target {
    std::string address;
    uint16_t port;
  };
  /// Empty, or why it is impossible.
  std::string open(const Target& target, uint64_t deadline_ns);
  bool full() const override;
  void submit(Operation& operation, uint64_t attempt_deadline_ns) override;
  Unfinished release() override;

 private:
  static constexpr size_t kMaxTransfers = 1024;
  static constexpr unsigned kWorkRequests = 1024;
  /// Slots that an operation which is not posted yet may come to need: two chunks, two attachments.
  static constexpr size_t kSlotsPerPending = 4;
  static constexpr size_t kPieceBytes = 64 * 1024;
  static constexpr size_t kPieces = 32;
  /// A chunk that could not be registered is asked for again after so long: the limit of locked memory may have been
  /// raised, or others have given some back.
  static constexpr uint64_t kRefusedNs = 5'000'000'000;
  static_assert(kPieces * kPieceBytes >= protocol::kMaxIoBytes);

  struct Chunk {
    enum class State : uint8_t { none, asked, lent, refused } state = State::none;
    bool writable = false;
    uint32_t key = 0;
    uint32_t notice = 0;      // 0: none, writes with notice go in messages
    uint32_t grant = 0;       // that we had when it was asked for
    uint64_t region_end = 0;  // as we knew it then
    uint64_t bytes = 0;
    uint64_t again_ns = 0;  // refused: not asked for before
  };
  struct Lending {
    std::unordered_map<uint64_t, Chunk> chunks;  // by number
    OperationList parked;                        // until their chunks are known
  };
  struct Transfer {
    Operation* operation = nullptr;
    uint64_t deadline_ns = 0;
    bool polled = false;
    uint8_t piece_count = 0;  // of the bounce buffer
    std::array<uint8_t, protocol::kMaxIoBytes / kPieceBytes> pieces{};
  };
  enum class Verdict : uint8_t { go, wait, pass_on };

  void on_ready(uint32_t epoll_events) override;
  bool poll() override;
  bool prepare_sleep() override;
  void on_transfers_done(unsigned count) override { transfers_done_ += count; }
  bool on_notice(uint32_t) override { return false; }
  ssize_t send_message(msghdr& message) override;
  ssize_t receive_message(msghdr& message) override;
  void watch_writable(bool) override {}  // credits come as messages do
  void end_stream() override;
  std::string describe_end() const override { return pair_->failure(); }
  uint64_t earliest_own_deadline_ns() const override;
  void on_lend_end(uint64_t region, uint64_t number) override;
  void on_lend_reply(Region& region, uint64_t offset, const protocol::ReplyHeader& reply) override;

  void advance_handshake();
  bool pump();
  void start_operation(Operation& operation);
  Verdict look_up(Operation& operation, Lending& lending);
  Verdict look_up_chunk(const Operation& operation, uint64_t number, Chunk& chunk);
  void pass_on(Operation& operation);
  bool post(Operation& operation);
  void ring();
  bool gather(Operation& operation, Transfer& transfer, TransferPlan::Outcome& outcome);
  bool take_pieces(const Operation& operation, Transfer& transfer);
  void give_pieces_back(const Transfer& transfer);
  void copy_pieces(const Operation& operation, const Transfer& transfer, bool out);
  bool make_bounce_buffer();
  bool settle_transfers();
  void start_queued();
  Transfer& transfer_at(size_t position) { return transfers_[(first_transfer_ + position) % kMaxTransfers]; }
  const Transfer& transfer_at(size_t position) const {
    return transfers_[(first_transfer_ + position) % kMaxTransfers];
  }

  std::unique_ptr<verbs::QueuePair> pair_;
  LocalMemory* memory_ = nullptr;
  bool watched_ = false;
  std::unordered_map<Region*, Lending> lendings_;
  OperationList queued_;  // their chunks are known, there was no room to post them
  size_t parked_count_ = 0;
  std::unique_ptr<Transfer[]> transfers_;  // a ring, in the order in which they complete
  size_t first_transfer_ = 0, transfer_count_ = 0;
  size_t transfers_done_ = 0;  // of the oldest, not yet settled
  TransferPlan batch_;         // the last transfers, not yet posted: they are with the reactor's next turn
  std::array<TransferPlan::Chunk, 2> keys_{};  // of the operation that is being posted

  std::unique_ptr<std::byte[]> bounce_;  // made when first needed
  std::unique_ptr<verbs::Registration> bounce_registration_;
  std::array<uint8_t, kPieces> free_pieces_{};
  size_t free_piece_count_ = 0;
};

}  // namespace extmem::fabric
