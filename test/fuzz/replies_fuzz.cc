// Fuzzes what a client makes of what an appliance answers: handshake, reply frames, the scatter receive, notices
// (fabric/wire_connection.cc, wire_receive.cc). The stream is fed from memory; every segment of an operation is an
// allocation of its own, so that one byte too many is seen.
//
// Input: a program of steps (see Step): operations to ask for, honest answers to what was asked first, the same
// falsified, bytes as they are, and in what pieces all that arrives. As long as nothing was falsified, the connection
// must hold and every read must bring its own bytes.
#include <cerrno>
#include <deque>
#include <memory>
#include <vector>

#include "fabric/wire_connection.h"
#include "fuzz/fuzz_input.h"

using namespace extmem;
using namespace extmem::fuzz;
using namespace extmem::fabric;
using protocol::ReplyHeader;
using protocol::RequestHeader;

namespace {

constexpr uint64_t kIncarnation = 77;
constexpr size_t kMaxOperations = 64;

enum class Step : uint8_t {
  read,     // scattered
  other,    // an operation that brings no bytes
  chunk,    // a request of the transport's own
  answer,   // to the oldest request, as an honest appliance gives it
  fail,     // the same, with another status
  falsify,  // the same, some of its bytes changed
  raw,      // bytes as they are
  notice,   // that nothing is lent any more, or that we are fenced
  arrive,   // what was said so far arrives, in pieces of this size
  block,    // the stream takes no more requests for now
  count
};

struct Asked {
  Operation operation;
  std::vector<std::unique_ptr<uint8_t[]>> memory;
  std::vector<iovec> segments;
  bool done = false;

  void add_segment(size_t bytes) {
    memory.emplace_back(new uint8_t[bytes]);
    segments.push_back({.iov_base = memory.back().get(), .iov_len = bytes});
    operation.bytes += static_cast<uint32_t>(bytes);
  }
  void finish_segments() {
    operation.segments = segments.data();
    operation.segment_count = static_cast<uint32_t>(segments.size());
  }
  bool holds(std::span<const uint8_t> expected) const {
    for (const iovec& segment : segments) {
      if (std::memcmp(segment.iov_base, expected.data(), segment.iov_len) != 0) return false;
      expected = expected.subspan(segment.iov_len);
    }
    return true;
  }
};

/// The connection, with a stream that is made of memory.
class FedConnection final : public WireConnection {
 public:
  using WireConnection::WireConnection;
  TransportKind kind() const override { return TransportKind::tcp; }
  void begin() { begin_handshake(); }
  void ask_for_chunk(fabric::Region& region, uint64_t offset) { request_chunk(region, offset, UINT64_MAX); }
  bool closed() const { return state_ == State::closed; }
  void unblock() {
    blocked_ = false;
    if (!closed()) on_ready(EPOLLOUT);
  }
  void block() { blocked_ = true; }
  void feed(std::span<const uint8_t> bytes) { said_.insert(said_.end(), bytes.begin(), bytes.end()); }
  void arrive(size_t piece) {
    // Byte by byte only what is short: a MiB in such pieces takes longer than it teaches.
    piece_ = std::max({size_t{1}, piece, (said_.size() - said_begin_) / 512});
    while (said_begin_ < said_.size() && !closed()) on_ready(EPOLLIN);
  }
  void hang_up() {
    over_ = true;
    if (!closed()) on_ready(EPOLLIN);
  }
  protocol::ClientHello hello{};
  /// Requests that left whole and wait for their answers, oldest first.
  std::deque<RequestHeader> asked;

 private:
  ssize_t send_message(msghdr& message) override {
    errno = EAGAIN;
    if (blocked_) return -1;
    ssize_t sent = 0;
    for (size_t index = 0; index < message.msg_iovlen; ++index) {
      const auto* from = static_cast<const uint8_t*>(message.msg_iov[index].iov_base);
      sent_.insert(sent_.end(), from, from + message.msg_iov[index].iov_len);
      sent += static_cast<ssize_t>(message.msg_iov[index].iov_len);
    }
    if (ready()) {
      note_requests();
    } else {
      if (state_ == State::hello_sent) std::memcpy(&hello, sent_.data(), std::min(sizeof hello, sent_.size()));
      sent_.clear();
    }
    return sent;
  }
  void note_requests() {
    for (RequestHeader header; sent_.size() >= sizeof header;) {
      std::memcpy(&header, sent_.data(), sizeof header);
      const size_t bytes = sizeof header + (header.op == static_cast<uint8_t>(Op::read) ? 0 : header.length);
      if (sent_.size() < bytes) return;
      asked.push_back(header);
      sent_.erase(sent_.begin(), sent_.begin() + static_cast<ptrdiff_t>(bytes));
    }
  }
  ssize_t receive_message(msghdr& message) override {
    const size_t left = said_.size() - said_begin_;
    if (left == 0 && over_) return 0;
    errno = EAGAIN;
    if (left == 0) return -1;
    size_t got = 0;
    const size_t ready = std::min(piece_, left);
    for (size_t index = 0; index < message.msg_iovlen && got < ready; ++index) {
      const size_t taken = std::min(ready - got, message.msg_iov[index].iov_len);
      std::memcpy(message.msg_iov[index].iov_base, said_.data() + said_begin_, taken);
      said_begin_ += taken;
      got += taken;
    }
    return static_cast<ssize_t>(got);
  }
  void watch_writable(bool) override {}
  void end_stream() override {}

  std::vector<uint8_t> said_;
  size_t said_begin_ = 0;
  std::vector<uint8_t> sent_;
  size_t piece_ = SIZE_MAX;
  bool over_ = false, blocked_ = false;
};

class Client final : public WireConnection::Owner {
 public:
  Client(Reactor& reactor, fabric::Region& region, Input& input)
      : region_(region), input_(input), connection_(reactor, *this, credentials(), {0, 1, kIncarnation}) {}

  void run() {
    shake_hands();
    while (!input_.empty() && !connection_.closed()) step(static_cast<Step>(input_.byte() % uint8_t(Step::count)));
    connection_.unblock();
    connection_.arrive(SIZE_MAX);
    while (honest_ && !connection_.asked.empty()) {
      answer(Status::ok, false);
      connection_.arrive(SIZE_MAX);
    }
    EXTMEM_ASSERT(!honest_ || !connection_.closed());
    for (auto& task : tasks_) EXTMEM_ASSERT(task->done || !honest_);
    connection_.hang_up();
    EXTMEM_ASSERT(connection_.closed());
    for (auto& task : tasks_) EXTMEM_ASSERT(task->done);
  }

  // WireConnection::Owner
  void on_connected() override {}
  void on_lost(Status, const std::string&) override {
    connection_.close();
    auto unfinished = connection_.release();
    while (!unfinished.sent.empty()) finish(unfinished.sent.pop(), Status::unreachable);
    while (!unfinished.untouched.empty()) finish(unfinished.untouched.pop(), Status::unreachable);
  }
  void on_room() override {}
  void finish(Operation& operation, Status status) override {
    auto& task = *static_cast<Asked*>(operation.context);
    EXTMEM_ASSERT(!task.done);
    task.done = true;
    if (honest_ && operation.op == Op::read && status == Status::ok)
      EXTMEM_ASSERT(task.holds(pattern(operation.offset, operation.bytes)));
  }
  void resubmit(Operation& operation) override { finish(operation, Status::unreachable); }
  void wake() override {}

 private:
  static Credentials credentials() { return {.client = 1, .client_generation = 1, .key = key()}; }
  static Key key() {
    Key key;
    key.fill(3);
    return key;
  }

  void step(Step step) {
    switch (step) {
      case Step::read:
        return ask_read();
      case Step::other:
        return ask_other();
      case Step::chunk:
        if (connection_.ready() && !connection_.full()) connection_.ask_for_chunk(region_, input_.byte() * 1024);
        return;
      case Step::answer:
        return answer(Status::ok, false);
      case Step::fail:
        return answer(static_cast<Status>(input_.byte() % 12), false);
      case Step::falsify:
        return answer(Status::ok, true);
      case Step::raw:
        honest_ = false;
        return connection_.feed(input_.take_bytes(input_.byte()));
      case Step::notice:
        return notice();
      case Step::arrive:
        return connection_.arrive(1 + input_.take<uint16_t>());
      default:
        return (input_.byte() & 1) != 0 ? connection_.block() : connection_.unblock();
    }
  }

  /// The nonce cannot be guessed, so that the proof is made here; what comes after it, and instead of it, is the
  /// input's.
  void shake_hands() {
    connection_.begin();
    protocol::ServerHello answer{};
    answer.magic = protocol::kWireMagic;
    answer.version = protocol::kProtocolVersion;
    answer.incarnation = kIncarnation;
    answer.proof = compute_handshake_proof(
        key(), Prover::server,
        {.client_nonce = connection_.hello.nonce, .server_nonce = answer.nonce, .incarnation = answer.incarnation});
    ReplyHeader conclusion{};
    conclusion.magic = protocol::kWireMagic;
    conclusion.op = static_cast<uint8_t>(Op::ping);
    std::vector<uint8_t> said;
    append(said, answer);
    append(said, conclusion);
    const uint8_t changed = input_.byte();  // 0: nothing is
    if (changed != 0) said[changed % said.size()] ^= input_.byte();
    honest_ = changed == 0;
    connection_.feed(said);
    connection_.arrive(1 + input_.byte());
  }

  Asked& add_task(Op op) {
    tasks_.push_back(std::make_unique<Asked>());
    Operation& operation = tasks_.back()->operation;
    operation.op = op;
    operation.region = &region_;
    operation.context = tasks_.back().get();
    operation.started_ns = 1;
    return *tasks_.back();
  }
  bool may_ask() const { return connection_.ready() && !connection_.full() && tasks_.size() < kMaxOperations; }

  void ask_read() {
    const uint8_t count = input_.byte();
    if (!may_ask()) return;
    Asked& task = add_task(Op::read);
    for (unsigned index = 0; index < 1u + count % 4; ++index) {
      const auto bytes = input_.take<uint16_t>();
      task.add_segment(1 + (count > 200 ? bytes * 3 : bytes));
    }
    // More segments than one receive takes.
    if (count % 16 == 15) {
      for (unsigned index = 0; index < 400; ++index) task.add_segment(1 + index % 3);
    }
    submit(task);
  }

  void ask_other() {
    constexpr Op kOthers[] = {Op::write, Op::fetch_add, Op::compare_swap, Op::put_record, Op::remove_record};
    const uint8_t choice = input_.byte();
    if (!may_ask()) return;
    Asked& task = add_task(kOthers[choice % 5]);
    if (task.operation.op == Op::write || task.operation.op == Op::put_record) {
      task.add_segment(1 + choice * 16);
      std::memset(task.memory[0].get(), 0, task.operation.bytes);
    }
    submit(task);
  }

  void submit(Asked& task) {
    task.operation.offset = tasks_.size();  // and what its bytes are
    task.finish_segments();
    connection_.submit(task.operation, UINT64_MAX);
  }

  void answer(Status status, bool falsified) {
    if (connection_.asked.empty() || connection_.closed()) return;
    const RequestHeader request = connection_.asked.front();
    connection_.asked.pop_front();
    const bool brings = request.op == static_cast<uint8_t>(Op::read) && status == Status::ok;
    ReplyHeader reply{};
    reply.magic = protocol::kWireMagic;
    reply.op = request.op;
    reply.status = static_cast<uint8_t>(status);
    reply.id = request.id;
    reply.length = brings ? request.length : 0;
    std::vector<uint8_t> said;
    append(said, reply);
    const auto brought = pattern(request.offset, reply.length);
    said.insert(said.end(), brought.begin(), brought.end());
    if (falsified) {
      honest_ = false;
      for (unsigned left = 1 + input_.byte() % 4; left > 0; --left) said[input_.byte() % sizeof reply] = input_.byte();
    }
    connection_.feed(said);
  }

  void notice() {
    const uint8_t choice = input_.byte();
    ReplyHeader notice{};
    notice.magic = protocol::kWireMagic;
    notice.op = static_cast<uint8_t>((choice & 1) != 0 ? Op::ping : Op::lend);
    notice.status = static_cast<uint8_t>((choice & 1) != 0 ? Status::fenced : Status::not_present);
    notice.epoch = choice;
    notice.value = region_.id;
    honest_ &= (choice & 1) == 0;
    std::vector<uint8_t> said;
    append(said, notice);
    connection_.feed(said);
  }

  fabric::Region& region_;
  Input& input_;
  std::vector<std::unique_ptr<Asked>> tasks_;
  bool honest_ = true;
  FedConnection connection_;
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t bytes) {
  static Reactor reactor(Reactor::Options{});
  static Directory directory;
  static fabric::Region& region = directory.put_region(
      10, uint64_t{1} << 30, directory.put_appliance("appliance", "elsewhere", "127.0.0.1", 1, "", kIncarnation), {});
  Input input(data, bytes);
  Client(reactor, region, input).run();
  return 0;
}
