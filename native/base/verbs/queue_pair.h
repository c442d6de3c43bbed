// One RC connection: rdma_cm's id, completion queue, queue pair, and on it two things: a stream of bytes like a
// socket's (send/receive messages, for everything that the other side's code serves), and one-sided transfers.
//
// The stream is bounded by credits: a side sends only what the other has posted receives for; those taken are told back
// in the immediate data of what goes the other way, or of an empty message, for which further receives are kept. A
// write with notice takes a receive as well, and so a credit; its immediate data is the notice.
//
// Transfers are posted as a chain, for which the device is rung once. Of a chain, reads and the last request tell of
// their completion, writes before it only now and then: completions come in order, so that a later one tells of them.
//
// One owner at a time (a reactor's thread, or whoever holds the appliance's connection lock). fd() becomes readable
// when there is something to look at with serve_events().
#pragma once

#include <sys/socket.h>
#include <sys/uio.h>

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/socket.h"
#include "base/verbs/protection_domain.h"

namespace extmem::verbs {

/// What rdma_cm carries in the clear: enough to turn away what speaks something else. Who it is is proved later.
struct Greeting {
  uint32_t magic;
  uint16_t version;
  uint16_t reserved;
};
static_assert(sizeof(Greeting) <= 56);

class QueuePair {
 public:
  class Listener {
   public:
    /// So many more transfers are done, in the order in which they were posted.
    virtual void on_transfers_done(unsigned count) = 0;
    /// The other side has written, and says so. False: it may not.
    virtual bool on_notice(uint32_t notice) = 0;

   protected:
    ~Listener() = default;
  };
  /// Which protection domain a connection on that device uses.
  using ChooseDomain = std::shared_ptr<ProtectionDomain> (*)(ibv_context* device);
  struct Options {
    ChooseDomain choose_domain;
    unsigned transfers;  ///< room for so many work requests beside messages
    Listener* listener;
  };

  explicit QueuePair(const Options& options);
  ~QueuePair();
  QueuePair(const QueuePair&) = delete;

  /// Begins to connect; empty, or why it is impossible.
  std::string connect(const SocketAddress& target, int timeout_ms);
  /// The appliance's side of a request that the listener got; takes the id. Empty, or why it was turned away.
  std::string accept(rdma_cm_id* id, const rdma_conn_param& asked);

  int fd() const { return epoll_fd_.get(); }
  bool established() const { return established_; }
  /// Once this is not empty, nothing more arrives than what receive() still has.
  const std::string& failure() const { return failure_; }
  ibv_context* device() const { return id_->verbs; }
  const std::shared_ptr<ProtectionDomain>& domain() const { return domain_; }
  /// The peer's, numeric.
  std::string describe_peer() const;
  /// Ours.
  std::string describe_local() const;

  /// Takes what is complete; answers whether anything was. No system call, unless a wake-up was armed.
  bool poll();
  bool armed() const { return armed_; }
  /// The same after fd() was readable: also the connection's own events.
  void serve_events();
  /// From now on fd() tells of completions. Answers false if there are some already: poll() first.
  bool arm();

  bool has_message() const { return inbox_count_ > 0; }
  /// Like recv(2) and send(2) on a non-blocking stream, errno included.
  ssize_t receive(const iovec* into, size_t count);
  ssize_t send(const iovec* from, size_t count);
  /// Whether all that was sent has reached the other side.
  bool drained() const { return sends_out_ == 0; }

  unsigned transfer_room() const { return transfer_capacity_ - transfers_out_; }
  unsigned max_segments() const { return max_segments_; }
  unsigned max_inline() const { return max_inline_; }
  /// One message's packets are of so many bytes.
  unsigned path_mtu() const { return path_mtu_; }
  /// Writes with notice that may be posted now; some credits are left to messages.
  unsigned notice_room() const { return credits_ > kMessageCredits ? credits_ - kMessageCredits : 0; }
  /// The last request of a transfer has this as its wr_id, those before it 0.
  static constexpr uint64_t kEndsTransfer = 1;
  /// A chain of work requests; needs transfer_room() for all, and notice_room() for those that write with notice. Tells
  /// how many of them will tell of their completion.
  bool post_transfers(ibv_send_wr& first, unsigned& signalled);

  /// Has the other side's device answer for it: where it does not, the connection fails. For an end that only answers
  /// otherwise, and would not learn that the other has vanished. Does nothing while something is under way, which
  /// finds that out as well.
  void probe();

  /// When it returns, nothing of this connection reaches memory any more, on either side's behalf. The other side is
  /// told. Afterwards fd() is readable.
  void end();

 private:
  static constexpr size_t kMessageBytes = 8192;
  static constexpr unsigned kCredits = 16;
  static constexpr unsigned kMessageCredits = 2;
  /// So many writes at most complete untold.
  static constexpr unsigned kSignalEvery = 16;
  /// Messages that only give credits back: at most one per half of the credits can be under way.
  static constexpr unsigned kSpare = 4;
  static constexpr unsigned kInlineBytes = 220;
  static constexpr unsigned kWantedSegments = 30;
  enum class Tag : uint8_t { receive = 0, send = 1, bare = 2, transfer = 3 };  // bare: has no buffer
  struct Arrived {
    uint16_t buffer;
    uint32_t bytes;
  };

  static std::string describe(const sockaddr* address);
  bool make_channel();
  std::string prepare();
  bool make_queues();
  void serve_connection_event(const rdma_cm_event& event);
  bool post_receive(unsigned buffer);
  void repost(unsigned buffer);
  void count_taken();
  void give_credits_back();
  bool post_message(unsigned buffer, uint32_t bytes);
  bool post_send(ibv_send_wr& wr);
  void complete(const ibv_wc& done);
  void take_message(const ibv_wc& done, unsigned buffer);
  void take_notice(const ibv_wc& done, unsigned buffer);
  void fail(std::string reason);
  std::byte* buffer_at(unsigned index) { return buffers_.get() + index * kMessageBytes; }

  const Library& library_;
  const Options options_;
  UniqueFd epoll_fd_, wake_fd_;
  rdma_event_channel* events_ = nullptr;
  rdma_cm_id* id_ = nullptr;
  std::shared_ptr<ProtectionDomain> domain_;
  ibv_comp_channel* channel_ = nullptr;
  ibv_cq* queue_ = nullptr;
  bool can_wait_ = false;
  bool has_pair_ = false;
  bool established_ = false;
  bool ended_ = false;
  bool armed_ = false;
  std::string failure_;

  std::unique_ptr<std::byte[]> buffers_;  // receives first, then sends
  std::unique_ptr<Registration> registration_;
  std::array<Arrived, kCredits + kSpare> inbox_{};
  unsigned inbox_head_ = 0, inbox_count_ = 0;
  uint32_t inbox_done_ = 0;  // bytes of the first that were received
  std::array<uint16_t, kCredits> free_sends_{};
  unsigned free_send_count_ = 0;
  unsigned credits_ = kCredits;  // what the other side can take
  unsigned taken_ = 0;           // receives that we have posted anew and not told of
  unsigned sends_out_ = 0;

  unsigned transfer_capacity_ = 0;
  unsigned transfers_out_ = 0;  // work requests
  unsigned max_segments_ = 1;
  unsigned max_inline_ = 0;
  unsigned path_mtu_ = 0;
};

}  // namespace extmem::verbs
