// One client connection of the appliance, whatever it is served over: handshake, then requests in order, replies in
// order.
//
// Owned and advanced by one serving thread; kill() comes from any thread. Both hold lock_, so that when kill() returns,
// nothing that the client sent is applied any more.
//
// Bounded: one input buffer, one output buffer, at most one streamed read and one record being received. While the
// output is blocked no request is taken, so that a client which does not read its replies blocks only itself.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "region/attachments.h"
#include "region/handshake.h"
#include "region/service.h"
#include "region/wire.h"

namespace extmem::region {

class Connection final : public Killable, public Borrower, public std::enable_shared_from_this<Connection> {
 public:
  enum class Wants : uint8_t { read, write, retry, close };

  Connection(std::unique_ptr<Wire> wire, Service& service);
  ~Connection() override;

  /// Does what can be done without waiting; says what to wait for. The serving thread.
  Wants advance();
  /// Whether the last advance() received anything. The serving thread.
  bool progressed() const { return progressed_; }
  /// Whether another small operation may follow at once, which is worth polling for.
  bool worth_polling() const { return last_length_ <= protocol::kPolledBytes; }
  void kill(Status reason) override;
  void revise(const AccessChange& change) override;
  void end_overdue(uint64_t now_ms) override;
  /// When it returns, the other side reaches no memory any more. Before the last reference goes: whoever finds none
  /// left (LinkTable) takes the connection for ended.
  void end();
  void note_ended(uint64_t region, uint64_t number) override;
  /// After end(): ends some of the registrations that are left, which takes the device a while each; answers whether
  /// none is left.
  bool settle();
  /// Finds out whether a peer that says nothing is there still.
  void probe();

  int fd() const { return wire_->fd(); }
  bool tells_output() const { return wire_->tells_output(); }
  bool needs_probes() const { return wire_->lender() != nullptr; }
  bool authenticated() const { return state_ == State::serving; }
  uint64_t accepted_ns() const { return accepted_ns_; }
  void report_slow_handshake() { refuse("the handshake was not finished in time"); }

 private:
  enum class State : uint8_t {
    hello,    // nothing known yet
    proof,    // our nonce is out
    serving,  // authenticated
    closed
  };
  enum class Step : uint8_t { done, need_input, need_output, busy, close };
  /// The rest of a reply that goes from the region straight to the socket.
  struct Stream {
    std::shared_ptr<Region> region;
    uint64_t offset = 0;
    uint32_t left = 0;
  };
  /// A request whose payload is arriving.
  struct Incoming {
    protocol::RequestHeader header{};
    Status status = Status::ok;  // once it is not ok, the rest of the payload is dropped
    uint32_t epoch = 0;
    uint32_t left = 0;
    std::shared_ptr<Region> region;
    std::vector<uint8_t> record;
  };

  Step flush();
  Step receive();
  Step process();
  Step take_hello();
  Step take_proof();
  Step take_request();
  Step serve_read(const protocol::RequestHeader& header);
  Step serve_simple(const protocol::RequestHeader& header);
  static std::optional<Outcome> operate(Region& region, const protocol::RequestHeader& header);
  Step serve_attach(const protocol::RequestHeader& header);
  Step serve_compare_swap(const protocol::RequestHeader& header);
  Step serve_lend(const protocol::RequestHeader& header);
  void close_locked(std::span<const uint8_t> last_words);
  Step refill();
  Step serve_descriptor(const protocol::RequestHeader& header);
  Step begin_payload(const protocol::RequestHeader& header, Status status);
  Step take_payload();
  Step apply_piece(uint32_t available);
  Step finish_payload();

  Status authorize(const protocol::RequestHeader& header, uint32_t rights, Attachment*& attached);
  std::optional<Status> attach(uint64_t id, const protocol::Capability& capability);
  bool comes_by(uint32_t via) const;
  Step answer(const protocol::RequestHeader& header, const Outcome& outcome, uint32_t length = 0);
  void put_output(const void* data, size_t bytes);
  bool send_descriptors(const protocol::ReplyHeader& reply, std::span<const int> descriptors, bool& sent);
  void refuse(const std::string& why);
  size_t available() const { return in_end_ - in_begin_; }
  void consume(size_t bytes);

  std::mutex lock_;  // all below, except wire_'s descriptor and accepted_ns_
  const std::unique_ptr<Wire> wire_;
  Service& service_;
  Handshake handshake_;
  const uint64_t accepted_ns_;
  std::atomic<State> state_{State::hello};
  bool by_network_ = true;
  bool trusted_neighbour_ = false;  // same user or root, over a unix socket: may be given descriptors

  std::unique_ptr<uint8_t[]> in_;
  size_t in_capacity_ = 0, in_begin_ = 0, in_end_ = 0;
  bool progressed_ = false;
  uint32_t last_length_ = 0;  // of the last request
  bool drained_ = false;      // the last receive took all there was
  std::unique_ptr<uint8_t[]> out_;
  size_t out_capacity_ = 0, out_begin_ = 0, out_end_ = 0;
  bool blocked_ = false;
  bool finishing_ = false;  // close once the output is out
  Stream stream_;
  Incoming incoming_;
  Attachments attachments_;
};

}  // namespace extmem::region
