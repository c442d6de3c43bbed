// A connection to one appliance over a stream: handshake, framing, operations in flight. The stream is a socket, tcp or
// unix, unless a transport brings its own (verbs). On its reactor's thread throughout.
//
// Requests leave straight from the caller's segments and replies arrive straight in them: the reply to the oldest read
// is expected next, so header and payload of a small read are one system call.
//
// The owner is told of the loss from on_ready(), poll() or check() only, never from within submit(): an error found
// while sending waits for check(). The owner keeps the object alive until that call has returned.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <deque>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "base/reactor.h"
#include "base/socket.h"
#include "fabric/client_handshake.h"
#include "fabric/operation_list.h"
#include "fabric/transport.h"

namespace extmem::fabric {

class WireConnection : public ReadyHandler, public Poller {
 public:
  class Owner {
   public:
    virtual void on_connected() = 0;
    virtual void on_lost(Status status, const std::string& reason) = 0;
    /// There is room for another operation.
    virtual void on_room() = 0;
    /// Counts and completes it.
    virtual void finish(Operation& operation, Status status) = 0;
    /// Starts it anew, as far as its time allows.
    virtual void resubmit(Operation& operation) = 0;
    /// Of a transport that rings a device: it was, for so many requests, of which so many tell of their end.
    virtual void on_posted(unsigned /* requests */, unsigned /* signals */) {}
    /// Calls check() soon, not from within.
    virtual void wake() = 0;

   protected:
    ~Owner() = default;
  };

  WireConnection(Reactor& reactor, Owner& owner, const Credentials& credentials, const ClientHandshake::Link& link);
  virtual ~WireConnection();
  WireConnection(const WireConnection&) = delete;

  bool ready() const { return state_ == State::ready; }
  virtual bool full() const { return full(0); }
  /// Nothing has come lately, so that it may be as dead as others have found the appliance.
  virtual bool doubtful() const { return ping_sent_ns_ != 0 || (!heard_ && next_heartbeat_ns_ == UINT64_MAX); }
  uint64_t incarnation() const { return handshake_.hello().incarnation; }
  virtual TransportKind kind() const = 0;

  /// Needs ready() and not full().
  virtual void submit(Operation& operation, uint64_t attempt_deadline_ns);
  /// Looks for what only time tells: an error while sending, deadlines, heartbeats.
  void check(uint64_t now);
  /// When check() has something to do, at the earliest.
  uint64_t next_check_ns() const { return std::min(earliest_deadline_ns_, next_heartbeat_ns_); }
  /// Ends all I/O; nothing touches the operations' memory afterwards.
  void close();
  /// The appliance is gone, or has given us up: whatever it lent us is not to be used any more.
  virtual void disown() {}
  struct Unfinished {
    OperationList untouched;  ///< not a byte was sent
    OperationList sent;       ///< may have been done
  };
  /// What was in flight. After close().
  virtual Unfinished release();
  /// Loses the connection soon, as if the network had (faults, tests).
  void sever(const char* reason);

 protected:
  enum class State : uint8_t { connecting, hello_sent, proof_sent, ready, closed };
  struct Attachment {
    enum class State : uint8_t { none, asked, refused } state = State::none;  // asked: replies come in order
    Status refusal = Status::ok;
    uint32_t grant = 0;  // Region::grant when it was asked for
    // Of the shm transport:
    uint64_t socket_until_ns = 0;  // no descriptor is asked for before
    bool fetching = false;
    OperationList parked;      // until the descriptor is there
    OperationList populating;  // until their ranges have memory; asked for and answered in this order
  };
  struct Slot {
    protocol::RequestHeader header{};
    protocol::Capability capability{};  // the payload of an attach
    Operation* operation = nullptr;     // null: ours
    Region* region = nullptr;
    uint64_t deadline_ns = 0;
    uint32_t payload_bytes = 0;
    uint32_t sent_bytes = 0;
    bool busy = false;
    bool polled = false;  // counts as an operation to poll for
  };

  void on_ready(uint32_t epoll_events) override;
  bool poll() override;
  /// Takes over a socket that is connected or connecting.
  void start(UniqueFd fd, bool connected, uint64_t deadline_ns);
  // The stream: as sendmsg(2) and recvmsg(2) without waiting, errno included.
  virtual ssize_t send_message(msghdr& message);
  virtual ssize_t receive_message(msghdr& message);
  /// Whether on_ready() is to be called when the stream takes more.
  virtual void watch_writable(bool wanted);
  virtual void end_stream();
  virtual std::string describe_end() const { return "the appliance closed the connection"; }
  /// The earliest deadline of what a transport has in flight beside the requests.
  virtual uint64_t earliest_own_deadline_ns() const { return UINT64_MAX; }
  /// The appliance has ended a chunk that it had lent.
  virtual void on_lend_end(uint64_t /* region */, uint64_t /* number */) {}
  virtual void on_lend_reply(Region&, uint64_t /* offset */, const protocol::ReplyHeader&) {}
  virtual void on_descriptor_reply(Region&, const protocol::ReplyHeader&) {}
  virtual void on_populate_reply(Region&) {}
  virtual bool has_heartbeat() const { return true; }
  size_t busy() const { return busy_; }
  /// Whether an operation would find no slots, if so many others come to be needed.
  bool full(size_t reserved) const { return busy_ + kReserve + reserved > kMaxSlots; }
  Attachment& attach(Region& region, uint64_t deadline_ns);
  void request_descriptor(Region& region, uint64_t deadline_ns);
  void request_memory(Region& region, uint64_t offset, uint64_t bytes, uint64_t deadline_ns);
  void request_chunk(Region& region, uint64_t offset, uint64_t deadline_ns);
  /// Another operation waits for the descriptor that was asked for, and less long.
  void hasten_descriptor(Region& region, uint64_t deadline_ns);
  void flush();
  /// The stream takes more than it did when it was full.
  void resume_writing();
  /// Answers whether anything arrived. After a loss only state_ may be looked at.
  bool receive();
  void begin_handshake();
  void receive_handshake();
  /// From now on silence counts.
  void note_use(uint64_t now);
  void lose(Status status, const std::string& reason);

  Reactor& reactor_;
  Owner& owner_;
  UniqueFd fd_;
  State state_ = State::connecting;
  std::unordered_map<Region*, Attachment> attachments_;
  const char* broken_ = nullptr;
  uint64_t earliest_deadline_ns_ = UINT64_MAX;  // never later than the earliest

 private:
  static constexpr size_t kMaxSlots = 1024;
  static constexpr size_t kReserve = 4;  // attach, descriptor, ping beside an operation
  static constexpr size_t kMaxSegments = 256;
  static constexpr size_t kInputBytes = 96 * 1024;

  /// Fixed and indexed round: nothing is allocated while operations run.
  class SlotRing {
   public:
    bool empty() const { return head_ == tail_; }
    size_t size() const { return static_cast<uint16_t>(tail_ - head_); }
    uint16_t at(size_t position) const { return entries_[static_cast<uint16_t>(head_ + position) % kMaxSlots]; }
    void push(uint16_t slot) { entries_[tail_++ % kMaxSlots] = slot; }
    void pop() { ++head_; }

   private:
    std::array<uint16_t, kMaxSlots> entries_;
    uint16_t head_ = 0, tail_ = 0;
  };
  /// Where the bytes of one receive go.
  struct Plan {
    std::array<iovec, kMaxSegments + 2> segments;
    size_t count = 0;
    size_t room = 0;
    size_t payload = 0;  // of it, in the operation's memory
    Slot* predicted = nullptr;
    void add(void* base, size_t bytes);
    void add_payload(const Operation& operation, size_t begin, size_t limit);
  };

  void on_socket_connected();
  void send_handshake(const void* data, size_t bytes);
  void take_server_hello();
  void take_conclusion();
  Slot& take_slot(Op op, Region* region, uint64_t deadline_ns, uint32_t bytes = 0);
  void free_slot(Slot& slot);
  void enqueue(Slot& slot);
  void send_ping(uint64_t now);
  size_t gather(std::array<iovec, kMaxSegments>& segments, size_t& bytes) const;
  void account_sent(size_t bytes);
  void plan_receive(Plan& plan);
  void absorb(const Plan& plan, size_t got);
  void absorb_predicted(const Plan& plan, size_t got);
  void parse();
  Slot* match(const protocol::ReplyHeader& reply);
  void finish_slot(Slot& slot, const protocol::ReplyHeader& reply);
  void finish_operation(Operation& operation, Status status, uint64_t deadline_ns);
  void check_heartbeat(uint64_t now);

  ClientHandshake handshake_;
  std::deque<Slot> slots_;  // grows to kMaxSlots, never shrinks; addresses are stable
  std::vector<uint16_t> free_slots_;
  SlotRing send_queue_;
  SlotRing order_;  // in flight, oldest first: replies come in this order
  size_t busy_ = 0;
  uint64_t sequence_ = 0;
  bool writing_ = false;  // the stream was full

  std::unique_ptr<uint8_t[]> in_;
  size_t in_begin_ = 0, in_end_ = 0;
  Slot* payload_slot_ = nullptr;  // its payload is arriving
  size_t payload_done_ = 0;
  protocol::ReplyHeader payload_reply_{};

  uint64_t next_heartbeat_ns_ = UINT64_MAX;
  uint64_t last_used_ns_ = 0;
  uint64_t ping_sent_ns_ = 0;  // 0: none outstanding
  bool heard_ = false;         // since the last look
};

}  // namespace extmem::fabric
