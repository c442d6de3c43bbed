#include "fabric/wire_connection.h"

#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "base/assert.h"
#include "base/clock.h"

namespace extmem::fabric {

namespace {

/// A ping is sent after one whole silent interval. With the interval in which the last bytes came and the time that the
/// answer is given, an appliance that says nothing is noticed within 2.5 s.
constexpr uint64_t kHeartbeatNs = 500'000'000;
constexpr uint64_t kPongTimeoutNs = 1'500'000'000;
/// A connection not used for this long is left to the kernel's keep-alive: a program that does not answer harms nobody
/// who asks nothing of it.
constexpr uint64_t kRecentNs = 10'000'000'000;

}  // namespace

WireConnection::WireConnection(Reactor& reactor, Owner& owner, const Credentials& credentials,
                               const ClientHandshake::Link& link)
    : reactor_(reactor), owner_(owner), handshake_(credentials, link), in_(new uint8_t[kInputBytes]) {}

WireConnection::~WireConnection() { close(); }

void WireConnection::start(UniqueFd fd, bool connected, uint64_t deadline_ns) {
  fd_ = std::move(fd);
  earliest_deadline_ns_ = deadline_ns;
  reactor_.watch(fd_.get(), connected ? EPOLLIN : EPOLLOUT, *this);
  if (connected) begin_handshake();
}

void WireConnection::close() {
  if (state_ == State::closed) return;
  if (state_ == State::ready) reactor_.remove_poller(*this);
  state_ = State::closed;
  end_stream();
}

void WireConnection::end_stream() {
  if (!fd_) return;
  reactor_.unwatch(fd_.get(), *this);
  drop_unsent_on_close(fd_.get());
  fd_.reset();
}

void WireConnection::lose(Status status, const std::string& reason) {
  if (state_ == State::closed) return;
  owner_.on_lost(status, reason);
}

void WireConnection::sever(const char* reason) {
  broken_ = reason;
  owner_.wake();
}

WireConnection::Unfinished WireConnection::release() {
  EXTMEM_ASSERT(state_ == State::closed);
  Unfinished unfinished;
  for (; !order_.empty(); order_.pop()) {
    Slot& slot = slots_[order_.at(0)];
    if (slot.operation != nullptr) {
      (slot.sent_bytes > 0 ? unfinished.sent : unfinished.untouched).push(*slot.operation);
    }
    free_slot(slot);
  }
  for (auto& [region, attachment] : attachments_) {
    while (!attachment.parked.empty()) unfinished.untouched.push(attachment.parked.pop());
    while (!attachment.populating.empty()) unfinished.untouched.push(attachment.populating.pop());
  }
  return unfinished;
}

void WireConnection::check(uint64_t now) {
  if (broken_ != nullptr) return lose(Status::unreachable, broken_);
  if (now >= earliest_deadline_ns_) {
    if (state_ != State::ready) return lose(Status::timed_out, "the handshake was not answered in time");
    earliest_deadline_ns_ = earliest_own_deadline_ns();
    for (size_t position = 0; position < order_.size(); ++position) {
      earliest_deadline_ns_ = std::min(earliest_deadline_ns_, slots_[order_.at(position)].deadline_ns);
    }
    if (now >= earliest_deadline_ns_) return lose(Status::timed_out, "an operation was not answered in time");
  }
  if (now >= next_heartbeat_ns_) check_heartbeat(now);
}

void WireConnection::check_heartbeat(uint64_t now) {
  if (heard_) ping_sent_ns_ = 0;
  if (ping_sent_ns_ != 0 && now - ping_sent_ns_ >= kPongTimeoutNs) {
    return lose(Status::timed_out, "heartbeats were not answered");
  }
  const bool in_use = busy_ > 0 || now - last_used_ns_ < kRecentNs;
  if (in_use && !heard_ && ping_sent_ns_ == 0 && !full()) send_ping(now);
  heard_ = false;
  next_heartbeat_ns_ = in_use ? now + kHeartbeatNs : UINT64_MAX;
}

void WireConnection::send_ping(uint64_t now) {
  ping_sent_ns_ = now;
  enqueue(take_slot(Op::ping, nullptr, UINT64_MAX));
  flush();
}

// ---- sending

void WireConnection::submit(Operation& operation, uint64_t attempt_deadline_ns) {
  attach(*operation.region, attempt_deadline_ns);
  Slot& slot = take_slot(operation.op, operation.region, attempt_deadline_ns, operation.bytes);
  slot.operation = &operation;
  slot.header.offset = operation.offset;
  slot.header.operand = operation.operand;
  switch (operation.op) {
    case Op::read:
      slot.header.length = operation.bytes;
      break;
    case Op::write:
    case Op::put_record:
      slot.header.length = slot.payload_bytes = operation.bytes;
      break;
    case Op::compare_swap:
      slot.header.length = slot.payload_bytes = sizeof operation.desired;
      break;
    default:
      break;
  }
  enqueue(slot);
  note_use(operation.started_ns);
  flush();
}

void WireConnection::note_use(uint64_t now) {
  last_used_ns_ = now;
  if (next_heartbeat_ns_ != UINT64_MAX || !has_heartbeat()) return;
  heard_ = true;
  next_heartbeat_ns_ = now + kHeartbeatNs;
}

WireConnection::Attachment& WireConnection::attach(Region& region, uint64_t deadline_ns) {
  Attachment& attachment = attachments_[&region];
  // Rights that were granted since are asked for at once: of several writes on their way only the first denial could
  // cure it.
  const bool as_granted = attachment.grant == region.grant.load(std::memory_order_acquire);
  if (attachment.state == Attachment::State::asked && as_granted) return attachment;
  attachment.state = Attachment::State::asked;
  attachment.refusal = Status::ok;
  Slot& slot = take_slot(Op::attach, &region, deadline_ns);
  {
    std::lock_guard guard(region.appliance->lock);
    slot.capability = region.capability;
    attachment.grant = region.grant.load(std::memory_order_acquire);
  }
  slot.header.length = slot.payload_bytes = sizeof slot.capability;
  enqueue(slot);
  return attachment;
}

void WireConnection::request_descriptor(Region& region, uint64_t deadline_ns) {
  attach(region, deadline_ns);
  enqueue(take_slot(Op::shm_descriptor, &region, deadline_ns));
  flush();
}

void WireConnection::request_memory(Region& region, uint64_t offset, uint64_t bytes, uint64_t deadline_ns) {
  attach(region, deadline_ns);
  Slot& slot = take_slot(Op::populate, &region, deadline_ns);
  slot.header.offset = offset;
  slot.header.operand = bytes;
  enqueue(slot);
  flush();
}

void WireConnection::request_chunk(Region& region, uint64_t offset, uint64_t deadline_ns) {
  attach(region, deadline_ns);
  Slot& slot = take_slot(Op::lend, &region, deadline_ns);
  slot.header.offset = offset;
  enqueue(slot);
  flush();
}

void WireConnection::hasten_descriptor(Region& region, uint64_t deadline_ns) {
  for (size_t position = 0; position < order_.size(); ++position) {
    Slot& slot = slots_[order_.at(position)];
    if (slot.region != &region || slot.header.op != static_cast<uint8_t>(Op::shm_descriptor)) continue;
    slot.deadline_ns = std::min(slot.deadline_ns, deadline_ns);
    earliest_deadline_ns_ = std::min(earliest_deadline_ns_, deadline_ns);
  }
}

WireConnection::Slot& WireConnection::take_slot(Op op, Region* region, uint64_t deadline_ns, uint32_t bytes) {
  if (free_slots_.empty()) {
    EXTMEM_ASSERT(slots_.size() < kMaxSlots);
    free_slots_.push_back(static_cast<uint16_t>(slots_.size()));
    slots_.emplace_back();
  }
  const uint16_t index = free_slots_.back();
  free_slots_.pop_back();
  Slot& slot = slots_[index];
  slot.header = {};
  slot.header.magic = protocol::kWireMagic;
  slot.header.op = static_cast<uint8_t>(op);
  slot.header.id = ++sequence_ << 16 | index;  // never 0
  slot.header.region = region != nullptr ? region->id : 0;
  slot.operation = nullptr;
  slot.region = region;
  slot.deadline_ns = deadline_ns;
  slot.payload_bytes = slot.sent_bytes = 0;
  slot.busy = true;
  ++busy_;
  earliest_deadline_ns_ = std::min(earliest_deadline_ns_, deadline_ns);
  slot.polled = op != Op::ping && bytes <= protocol::kPolledBytes;
  if (slot.polled) reactor_.begin_operation();
  return slot;
}

void WireConnection::free_slot(Slot& slot) {
  EXTMEM_ASSERT(slot.busy);
  if (slot.polled) reactor_.end_operation();
  slot.busy = false;
  slot.operation = nullptr;
  --busy_;
  free_slots_.push_back(static_cast<uint16_t>(slot.header.id));
}

void WireConnection::enqueue(Slot& slot) {
  const auto index = static_cast<uint16_t>(slot.header.id);
  order_.push(index);
  send_queue_.push(index);
}

void WireConnection::flush() {
  while (!send_queue_.empty() && broken_ == nullptr && !writing_) {
    std::array<iovec, kMaxSegments> segments;
    size_t bytes = 0;
    msghdr message{};
    message.msg_iov = segments.data();
    message.msg_iovlen = gather(segments, bytes);
    ssize_t sent = send_message(message);
    if (sent < 0 && errno == EINTR) continue;
    if (sent < 0 && errno == EAGAIN) {
      writing_ = true;
      return watch_writable(true);
    }
    if (sent < 0) return sever("sending failed");
    account_sent(static_cast<size_t>(sent));
  }
}

size_t WireConnection::gather(std::array<iovec, kMaxSegments>& segments, size_t& bytes) const {
  size_t count = 0;
  for (size_t position = 0; position < send_queue_.size(); ++position) {
    const Slot& slot = slots_[send_queue_.at(position)];
    size_t skip = slot.sent_bytes;
    auto add = [&](const void* base, size_t length) {
      if (skip >= length) {
        skip -= length;
        return true;
      }
      if (count == segments.size()) return false;
      segments[count++] = {.iov_base = static_cast<char*>(const_cast<void*>(base)) + skip, .iov_len = length - skip};
      bytes += length - skip;
      skip = 0;
      return true;
    };
    if (!add(&slot.header, sizeof slot.header)) return count;
    if (slot.payload_bytes == 0) continue;
    if (slot.operation == nullptr) {
      if (!add(&slot.capability, sizeof slot.capability)) return count;
    } else if (slot.operation->op == Op::compare_swap) {
      if (!add(&slot.operation->desired, sizeof slot.operation->desired)) return count;
    } else {
      for (uint32_t index = 0; index < slot.operation->segment_count; ++index) {
        const iovec& segment = slot.operation->segments[index];
        if (!add(segment.iov_base, segment.iov_len)) return count;
      }
    }
  }
  return count;
}

void WireConnection::account_sent(size_t bytes) {
  while (bytes > 0) {
    Slot& slot = slots_[send_queue_.at(0)];
    const size_t left = sizeof slot.header + slot.payload_bytes - slot.sent_bytes;
    const size_t taken = std::min(bytes, left);
    slot.sent_bytes += static_cast<uint32_t>(taken);
    bytes -= taken;
    if (taken == left) send_queue_.pop();
  }
}

ssize_t WireConnection::send_message(msghdr& message) {
  return sendmsg(fd_.get(), &message, MSG_NOSIGNAL | MSG_DONTWAIT);
}

void WireConnection::resume_writing() {
  if (!std::exchange(writing_, false)) return;
  watch_writable(false);
  flush();
}

void WireConnection::watch_writable(bool wanted) {
  reactor_.rewatch(fd_.get(), wanted ? EPOLLIN | EPOLLOUT : EPOLLIN, *this);
}

// ---- events and handshake

void WireConnection::on_ready(uint32_t epoll_events) {
  if (state_ == State::closed) return;
  if (broken_ != nullptr) return lose(Status::unreachable, broken_);
  if (state_ == State::connecting) return on_socket_connected();
  if (state_ != State::ready) return receive_handshake();
  if ((epoll_events & EPOLLOUT) != 0) resume_writing();
  if ((epoll_events & (EPOLLIN | EPOLLHUP | EPOLLERR)) != 0) receive();
}

bool WireConnection::poll() {
  if (busy_ == 0 || state_ != State::ready || broken_ != nullptr) return false;
  return receive();
}

void WireConnection::on_socket_connected() {
  int error = 0;
  socklen_t bytes = sizeof error;
  getsockopt(fd_.get(), SOL_SOCKET, SO_ERROR, &error, &bytes);
  if (error != 0) return lose(Status::unreachable, std::string("connecting failed: ") + std::strerror(error));
  reactor_.rewatch(fd_.get(), EPOLLIN, *this);
  begin_handshake();
}

void WireConnection::begin_handshake() {
  state_ = State::hello_sent;
  send_handshake(&handshake_.hello(), sizeof handshake_.hello());
}

/// A new stream takes these few bytes whole.
void WireConnection::send_handshake(const void* data, size_t bytes) {
  iovec segment{.iov_base = const_cast<void*>(data), .iov_len = bytes};
  msghdr message{};
  message.msg_iov = &segment;
  message.msg_iovlen = 1;
  if (send_message(message) != static_cast<ssize_t>(bytes)) {
    sever("the handshake could not be sent");
  }
}

void WireConnection::receive_handshake() {
  const size_t wanted = state_ == State::hello_sent ? sizeof(protocol::ServerHello) : sizeof(protocol::ReplyHeader);
  iovec segment{.iov_base = in_.get() + in_end_, .iov_len = wanted - in_end_};
  msghdr message{};
  message.msg_iov = &segment;
  message.msg_iovlen = 1;
  ssize_t got = receive_message(message);
  if (got < 0 && (errno == EAGAIN || errno == EINTR)) return;
  if (got <= 0) return lose(Status::unreachable, "the connection ended during the handshake");
  in_end_ += static_cast<size_t>(got);
  if (in_end_ < wanted) return;
  in_end_ = 0;
  if (state_ == State::hello_sent) {
    take_server_hello();
  } else {
    take_conclusion();
  }
}

void WireConnection::take_server_hello() {
  protocol::ServerHello answer;
  std::memcpy(&answer, in_.get(), sizeof answer);
  Status status = handshake_.accept(answer);
  if (status != Status::ok) return lose(status, "the appliance and we do not agree in the handshake");
  state_ = State::proof_sent;
  send_handshake(&handshake_.proof(), sizeof handshake_.proof());
}

void WireConnection::take_conclusion() {
  protocol::ReplyHeader answer;
  std::memcpy(&answer, in_.get(), sizeof answer);
  Status status = ClientHandshake::conclude(answer);
  if (status != Status::ok) return lose(status, "the appliance refused us");
  state_ = State::ready;
  earliest_deadline_ns_ = UINT64_MAX;
  reactor_.add_poller(*this);
  owner_.on_connected();
}

}  // namespace extmem::fabric
