#include "region/connection.h"

#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "base/clock.h"
#include "base/trace.h"

namespace extmem::region {

using protocol::Op;
using protocol::ReplyHeader;
using protocol::RequestHeader;

namespace {

/// Before the handshake a peer costs us no more than this.
constexpr size_t kStrangerBytes = 512;
/// Large payloads pass through it in pieces that stay in the CPU's cache between the socket and the memfd.
constexpr size_t kInputBytes = 256 * 1024;
constexpr size_t kOutputBytes = 64 * 1024;
/// Up to here a copy into the output buffer and one send are cheaper than a send and a sendfile.
constexpr uint32_t kInlineReadBytes = 16 * 1024;
/// What is cheaper moved to the front than left to shorten the next receive.
constexpr size_t kCheapMoveBytes = 8 * 1024;
/// Then other connections get their turn.
constexpr int kMaxReceives = 16;

constexpr uint32_t kRead = static_cast<uint32_t>(protocol::Right::read);
/// Of Via in a capability: the ways to read, then those to write.
constexpr uint32_t kViaBits = 8, kViaMask = 0xff;
constexpr uint32_t kWrite = static_cast<uint32_t>(protocol::Right::write);

}  // namespace

Connection::Connection(std::unique_ptr<Wire> wire, Service& service)
    : wire_(std::move(wire)),
      service_(service),
      handshake_(service.cluster_key, service.incarnation),
      accepted_ns_(monotonic_ns()),
      in_(new uint8_t[kStrangerBytes]),
      in_capacity_(kStrangerBytes),
      out_(new uint8_t[kStrangerBytes]),
      out_capacity_(kStrangerBytes) {
  int domain = AF_UNSPEC;
  socklen_t bytes = sizeof domain;
  if (wire_->socket() < 0 || getsockopt(wire_->socket(), SOL_SOCKET, SO_DOMAIN, &domain, &bytes) != 0) return;
  ucred peer{};
  bytes = sizeof peer;
  by_network_ = domain != AF_UNIX;
  trusted_neighbour_ = domain == AF_UNIX && getsockopt(wire_->socket(), SOL_SOCKET, SO_PEERCRED, &peer, &bytes) == 0 &&
                       (peer.uid == geteuid() || peer.uid == 0);
}

Connection::~Connection() {
  end();
  while (!settle()) continue;
}

bool Connection::settle() {
  std::lock_guard guard(lock_);
  return attachments_.end_some();
}

void Connection::probe() {
  std::lock_guard guard(lock_);
  if (state_ == State::serving) wire_->probe();
}

void Connection::end() {
  std::lock_guard guard(lock_);
  if (state_ == State::closed) return;
  close_locked({});
}

void Connection::close_locked(std::span<const uint8_t> last_words) {
  if (state_ == State::serving) service_.connections.fetch_sub(1, std::memory_order_relaxed);
  state_ = State::closed;
  wire_->cut(last_words);
}

void Connection::kill(Status reason) {
  std::lock_guard guard(lock_);
  if (state_ == State::closed) return;
  ReplyHeader notice{};
  notice.magic = protocol::kWireMagic;
  notice.op = static_cast<uint8_t>(Op::ping);
  notice.status = static_cast<uint8_t>(reason);
  const bool may_speak = state_ == State::serving && out_begin_ == out_end_ && stream_.left == 0;
  // Its serving thread wakes up and closes it.
  close_locked({reinterpret_cast<const uint8_t*>(&notice), may_speak ? sizeof notice : 0});
}

void Connection::revise(const AccessChange& change) {
  std::lock_guard guard(lock_);
  if (state_ != State::serving || attachments_.revise(change, handshake_.link().client)) return;
  if (incoming_.region && incoming_.region->id() == change.region) incoming_.status = Status::forbidden;
  // A reply that has promised its bytes cannot be taken back: the client comes again, and is told.
  if (stream_.region && stream_.region->id() == change.region) close_locked({});
}

void Connection::end_overdue(uint64_t now_ms) {
  std::lock_guard guard(lock_);
  if (state_ == State::serving) attachments_.end_overdue(now_ms);
}

void Connection::note_ended(uint64_t region, uint64_t number) {
  std::lock_guard guard(lock_);
  // Only a hint: where there is no room for it now, the client finds out by itself.
  if (state_ != State::serving || stream_.left > 0 || out_capacity_ - out_end_ < sizeof(ReplyHeader)) return;
  ReplyHeader notice{};
  notice.magic = protocol::kWireMagic;
  notice.op = static_cast<uint8_t>(Op::lend);
  notice.status = static_cast<uint8_t>(Status::not_present);
  notice.epoch = static_cast<uint32_t>(number);
  notice.value = region;
  put_output(&notice, sizeof notice);
  flush();  // what it does not take goes with the next reply
}

Connection::Wants Connection::advance() {
  std::lock_guard guard(lock_);
  drained_ = blocked_ = progressed_ = false;
  for (int receives = 0; state_ != State::closed;) {
    const Step step = process();
    const Step flushed = flush();
    if (step == Step::close || flushed == Step::close) return Wants::close;
    if (flushed == Step::need_output || blocked_) return Wants::write;
    if (flushed == Step::busy || step == Step::busy) return Wants::retry;
    if (finishing_) return wire_->drained() ? Wants::close : Wants::write;
    if (step == Step::need_output) continue;
    // A receive that left room behind took everything: another one would only be told to wait. Whoever has had its
    // turns comes again, for what it has not received yet keeps its socket ready.
    if (drained_ || receives == kMaxReceives) return Wants::read;
    ++receives;
    switch (receive()) {
      case Step::close:
        return Wants::close;
      case Step::need_input:
        return Wants::read;
      default:
        break;
    }
  }
  return Wants::close;
}

Connection::Step Connection::receive() {
  if (in_begin_ > 0 && (in_end_ == in_capacity_ || available() <= kCheapMoveBytes)) {
    std::memmove(in_.get(), in_.get() + in_begin_, available());
    in_end_ -= in_begin_;
    in_begin_ = 0;
  }
  const size_t room = in_capacity_ - in_end_;
  ssize_t got = wire_->receive({in_.get() + in_end_, room});
  if (got < 0 && (errno == EAGAIN || errno == EINTR)) return Step::need_input;
  if (got <= 0) return Step::close;
  in_end_ += static_cast<size_t>(got);
  progressed_ = true;
  drained_ = static_cast<size_t>(got) < room;
  return Step::done;
}

Connection::Step Connection::flush() {
  const bool by_buffer = wire_->socket() < 0;
  while (out_begin_ < out_end_ || (by_buffer && stream_.left > 0)) {
    if (out_begin_ == out_end_) {
      if (const Step step = refill(); step != Step::done) return step;
    }
    ssize_t sent = wire_->send({out_.get() + out_begin_, out_end_ - out_begin_}, stream_.left > 0);
    if (sent < 0 && errno == EINTR) continue;
    if (sent < 0) return errno == EAGAIN ? Step::need_output : Step::close;
    out_begin_ += static_cast<size_t>(sent);
  }
  out_begin_ = out_end_ = 0;
  while (stream_.left > 0) {
    auto sent = stream_.region->send(wire_->socket(), stream_.offset, stream_.left);
    if (!sent) return Step::busy;
    if (*sent < 0 && errno == EINTR) continue;
    if (*sent < 0 && errno == EAGAIN) return Step::need_output;
    if (*sent <= 0) return Step::close;  // the region is gone in the middle of a reply that promised its bytes
    stream_.offset += static_cast<uint64_t>(*sent);
    stream_.left -= static_cast<uint32_t>(*sent);
  }
  stream_.region.reset();
  return Step::done;
}

/// Without a socket the rest of a read goes through the output buffer.
Connection::Step Connection::refill() {
  const auto bytes = static_cast<uint32_t>(std::min<size_t>(stream_.left, out_capacity_));
  out_begin_ = out_end_ = 0;
  auto outcome = stream_.region->read(stream_.offset, {out_.get(), bytes});
  if (!outcome) return Step::busy;
  if (outcome->status != Status::ok) return Step::close;  // gone in the middle of a reply that promised its bytes
  out_end_ = bytes;
  stream_.offset += bytes;
  stream_.left -= bytes;
  return Step::done;
}

Connection::Step Connection::process() {
  Step step = Step::done;
  while (step == Step::done && !finishing_) {
    switch (state_) {
      case State::hello:
        step = take_hello();
        break;
      case State::proof:
        step = take_proof();
        break;
      case State::serving:
        step = take_request();
        break;
      case State::closed:
        step = Step::close;
        break;
    }
  }
  return step;
}

Connection::Step Connection::take_hello() {
  protocol::ClientHello hello;
  uint32_t magic = protocol::kWireMagic;
  std::memcpy(&magic, in_.get() + in_begin_, std::min(available(), sizeof magic));
  if (magic != protocol::kWireMagic) {  // told as soon as it shows: a stranger may never send as much as a hello
    refuse("it does not speak this protocol");
    return Step::close;
  }
  // The version stands before anything that another version could have moved.
  uint16_t version = protocol::kProtocolVersion;
  if (available() >= sizeof magic + sizeof version) {
    std::memcpy(&version, in_.get() + in_begin_ + sizeof magic, sizeof version);
  }
  if (available() < sizeof hello && version == protocol::kProtocolVersion) return Step::need_input;
  hello = {};
  std::memcpy(&hello, in_.get() + in_begin_, std::min(available(), sizeof hello));
  consume(std::min(available(), sizeof hello));
  const protocol::ServerHello reply = handshake_.answer(hello);
  put_output(&reply, sizeof reply);
  if (reply.status == static_cast<uint8_t>(Status::ok)) {
    state_ = State::proof;
    return Step::done;
  }
  const auto status = static_cast<Status>(reply.status);
  if (status == Status::bad_version) refuse("it speaks protocol version " + std::to_string(version));
  if (status == Status::stale_incarnation) refuse("it asks for an earlier incarnation of this appliance");
  if (status == Status::bad_request) refuse("its link number is out of range");
  finishing_ = true;
  return Step::done;
}

Connection::Step Connection::take_proof() {
  protocol::ClientProof proof;
  if (available() < sizeof proof) return Step::need_input;
  std::memcpy(&proof, in_.get() + in_begin_, sizeof proof);
  consume(sizeof proof);
  RequestHeader ping{};
  ping.op = static_cast<uint8_t>(Op::ping);
  Status status = Status::denied;
  if (proof.magic != protocol::kWireMagic || !handshake_.verify(proof)) {
    refuse("it does not know the client's key");
  } else {
    status = service_.links.enter(handshake_.link(), handshake_.link_generation(), weak_from_this());
    if (status != Status::ok) refuse("its client, or its link's generation, was fenced");
  }
  if (status != Status::ok) {
    finishing_ = true;
    return answer(ping, {.status = status});
  }
  auto input = std::make_unique_for_overwrite<uint8_t[]>(kInputBytes);
  const size_t rest = available();
  std::memcpy(input.get(), in_.get() + in_begin_, rest);
  in_ = std::move(input);
  in_capacity_ = kInputBytes;
  in_begin_ = 0;
  in_end_ = rest;
  auto output = std::make_unique_for_overwrite<uint8_t[]>(kOutputBytes);
  std::memcpy(output.get(), out_.get(), out_end_);
  out_ = std::move(output);
  out_capacity_ = kOutputBytes;
  state_ = State::serving;
  service_.connections.fetch_add(1, std::memory_order_relaxed);
  return answer(ping, {});
}

Connection::Step Connection::take_request() {
  if (stream_.left > 0 || out_capacity_ - out_end_ < kInlineReadBytes + sizeof(ReplyHeader)) return Step::need_output;
  if (incoming_.header.magic != 0) return take_payload();
  RequestHeader header;
  if (available() < sizeof header) return Step::need_input;
  std::memcpy(&header, in_.get() + in_begin_, sizeof header);
  if (header.magic != protocol::kWireMagic) {
    refuse("garbage where a request should be");
    return Step::close;
  }
  last_length_ = header.length;
  switch (static_cast<Op>(header.op)) {
    case Op::read:
      return serve_read(header);
    case Op::write:
      return begin_payload(header, header.length > protocol::kMaxIoBytes ? Status::bad_request : Status::ok);
    case Op::put_record:
      return begin_payload(header, Status::ok);
    case Op::attach:
      return serve_attach(header);
    case Op::compare_swap:
      return serve_compare_swap(header);
    case Op::shm_descriptor:
      return serve_descriptor(header);
    case Op::lend:
      return serve_lend(header);
    case Op::ping:
    case Op::detach:
    case Op::fetch_add:
    case Op::remove_record:
    case Op::populate:
      return serve_simple(header);
  }
  return begin_payload(header, Status::bad_request);
}

Connection::Step Connection::serve_read(const RequestHeader& header) {
  trace::mark(trace::Point::region_serve, header.offset);
  Attachment* attached = nullptr;
  Status status = authorize(header, kRead, attached);
  if (status == Status::ok && header.length > protocol::kMaxIoBytes) status = Status::bad_request;
  std::optional<Outcome> outcome = Outcome{.status = status};
  const bool copied = header.length <= kInlineReadBytes;
  if (status == Status::ok && copied) {
    outcome = attached->region()->read(header.offset, {out_.get() + out_end_ + sizeof(ReplyHeader), header.length});
  } else if (status == Status::ok) {
    outcome = attached->region()->check_read(header.offset, header.length);
  }
  if (!outcome) return Step::busy;
  consume(sizeof header);
  if (outcome->status != Status::ok) return answer(header, *outcome);
  service_.note_read(*attached->region(), header);
  answer(header, *outcome, header.length);
  if (copied) {
    out_end_ += header.length;
  } else {
    stream_ = {.region = attached->region(), .offset = header.offset, .left = header.length};
  }
  return Step::done;
}

std::optional<Outcome> Connection::operate(Region& region, const RequestHeader& header) {
  switch (static_cast<Op>(header.op)) {
    case Op::fetch_add:
      return region.fetch_add(header.offset, header.operand);
    case Op::populate:
      if (header.operand > protocol::kMaxPopulateBytes) return Outcome{.status = Status::bad_request};
      return region.populate(header.offset, header.operand);
    default:
      return region.remove_record(header.operand);
  }
}

Connection::Step Connection::serve_simple(const RequestHeader& header) {
  if (header.length != 0) return begin_payload(header, Status::bad_request);
  Attachment* attached = nullptr;
  std::optional<Outcome> outcome = Outcome{};
  const auto op = static_cast<Op>(header.op);
  if (op == Op::fetch_add || op == Op::remove_record || op == Op::populate) {
    outcome->status = authorize(header, op == Op::fetch_add ? kRead | kWrite : kWrite, attached);
    if (outcome->status == Status::ok) outcome = operate(*attached->region(), header);
  } else if (op == Op::detach) {
    if (!attachments_.remove(header.region)) return Step::busy;
  }
  if (!outcome) return Step::busy;
  consume(sizeof header);
  return answer(header, *outcome);
}

Connection::Step Connection::serve_attach(const RequestHeader& header) {
  protocol::Capability capability;
  if (header.length != sizeof capability) return begin_payload(header, Status::bad_request);
  if (available() < sizeof header + sizeof capability) return Step::need_input;
  std::memcpy(&capability, in_.get() + in_begin_ + sizeof header, sizeof capability);
  const auto status = attach(header.region, capability);
  if (!status) return Step::busy;
  consume(sizeof header + sizeof capability);
  return answer(header, {.status = *status});
}

/// nullopt: ask again.
std::optional<Status> Connection::attach(uint64_t id, const protocol::Capability& capability) {
  const LinkTable::Link link = handshake_.link();
  if (capability.client != link.client || capability.client_generation != link.client_generation ||
      capability.region != id ||
      !macs_equal(capability.mac, compute_capability_mac(service_.cluster_key, capability))) {
    refuse("a capability that is not the manager's, or not for this client");
    return Status::denied;
  }
  auto region = service_.regions.find(id);
  if (!region) return Status::not_present;
  Grant grant{.rights = capability.rights, .version = capability.version, .not_after_ms = capability.not_after};
  if (!comes_by(capability.via & kViaMask)) grant.rights &= ~kRead;
  if (!comes_by(capability.via >> kViaBits & kViaMask)) grant.rights &= ~kWrite;
  const bool is_void = grant.version < region->access_version() || grant.ended(wall_ms());
  if (is_void || (grant.rights == 0 && capability.rights != 0)) return Status::forbidden;
  if (!attachments_.put(id, std::move(region), grant)) return std::nullopt;
  return Status::ok;
}

bool Connection::comes_by(uint32_t via) const {
  if (via == 0) return true;
  const auto transport = wire_->lender() != nullptr ? protocol::Via::verbs
                         : by_network_              ? protocol::Via::tcp
                                                    : protocol::Via::shm;
  if ((via & static_cast<uint32_t>(transport)) != 0) return true;
  return by_network_ && (via & service_.addresses.bit_of(wire_->local_address())) != 0;
}

Connection::Step Connection::serve_lend(const RequestHeader& header) {
  if (header.length != 0) return begin_payload(header, Status::bad_request);
  Attachment* attached = nullptr;
  std::optional<Outcome> outcome = Outcome{.status = authorize(header, kRead, attached)};
  if (outcome->status == Status::ok) {
    outcome = attached->lend(header.offset, wire_->lender(), weak_from_this());
    service_.note_window(attached->grant().not_after_ms);
  }
  if (!outcome) return Step::busy;
  consume(sizeof header);
  return answer(header, *outcome);
}

Connection::Step Connection::serve_compare_swap(const RequestHeader& header) {
  uint64_t desired;
  if (header.length != sizeof desired) return begin_payload(header, Status::bad_request);
  if (available() < sizeof header + sizeof desired) return Step::need_input;
  std::memcpy(&desired, in_.get() + in_begin_ + sizeof header, sizeof desired);
  Attachment* attached = nullptr;
  std::optional<Outcome> outcome = Outcome{.status = authorize(header, kRead | kWrite, attached)};
  if (outcome->status == Status::ok) {
    outcome = attached->region()->compare_swap(header.offset, header.operand, desired);
  }
  if (!outcome) return Step::busy;
  consume(sizeof header + sizeof desired);
  return answer(header, *outcome);
}

Connection::Step Connection::serve_descriptor(const RequestHeader& header) {
  if (header.length != 0) return begin_payload(header, Status::bad_request);
  if (out_end_ > 0) return Step::need_output;  // it leaves as a message of its own, after what is before it
  Attachment* attached = nullptr;
  Status status = trusted_neighbour_ ? authorize(header, kRead, attached) : Status::denied;
  if (status != Status::ok) {
    consume(sizeof header);
    return answer(header, {.status = status});
  }
  const LinkTable::Link link = handshake_.link();
  auto given = attached->region()->hand_over(link.client, attached->grant());
  if (!given) return Step::busy;
  service_.note_window(attached->grant().not_after_ms);
  if (given->outcome.status != Status::ok) {
    consume(sizeof header);
    return answer(header, given->outcome);
  }
  ReplyHeader reply{};
  reply.magic = protocol::kWireMagic;
  reply.op = header.op;
  reply.id = header.id;
  reply.epoch = given->outcome.epoch;
  const std::array descriptors{given->fd.get(), given->written.get()};
  reply.value = given->written ? 2 : 1;
  bool sent = false;
  if (!send_descriptors(reply, std::span(descriptors).first(reply.value), sent)) return Step::close;
  blocked_ = !sent;
  if (!sent) return Step::need_output;
  consume(sizeof header);
  service_.operations.fetch_add(1, std::memory_order_relaxed);
  return Step::done;
}

bool Connection::send_descriptors(const ReplyHeader& reply, std::span<const int> descriptors, bool& sent) {
  iovec segment{.iov_base = const_cast<ReplyHeader*>(&reply), .iov_len = sizeof reply};
  alignas(cmsghdr) std::array<uint8_t, CMSG_SPACE(2 * sizeof(int))> control{};
  msghdr message{};
  message.msg_iov = &segment;
  message.msg_iovlen = 1;
  message.msg_control = control.data();
  message.msg_controllen = CMSG_SPACE(descriptors.size_bytes());
  cmsghdr* rights = CMSG_FIRSTHDR(&message);
  rights->cmsg_level = SOL_SOCKET;
  rights->cmsg_type = SCM_RIGHTS;
  rights->cmsg_len = CMSG_LEN(descriptors.size_bytes());
  std::memcpy(CMSG_DATA(rights), descriptors.data(), descriptors.size_bytes());
  ssize_t put = sendmsg(wire_->socket(), &message, MSG_NOSIGNAL | MSG_DONTWAIT);
  sent = put == sizeof reply;
  return sent || (put < 0 && (errno == EAGAIN || errno == EINTR));
}

Connection::Step Connection::begin_payload(const RequestHeader& header, Status status) {
  if (header.length > protocol::kMaxRecordBytes) {
    refuse("a request larger than anything that is allowed");
    status = Status::bad_request;  // what follows is dropped, not kept
  }
  const auto op = static_cast<Op>(header.op);
  Attachment* attached = nullptr;
  uint32_t epoch = 0;
  if (status == Status::ok) status = authorize(header, kWrite, attached);
  if (status == Status::ok && op == Op::write) {
    auto checked = attached->region()->check_write(header.offset, header.length);
    if (!checked) return Step::busy;
    status = checked->status;
    epoch = checked->epoch;
  }
  consume(sizeof header);
  incoming_.header = header;
  incoming_.status = status;
  incoming_.epoch = epoch;
  incoming_.left = header.length;
  incoming_.region = attached != nullptr ? attached->region() : nullptr;
  return Step::done;
}

Connection::Step Connection::take_payload() {
  if (incoming_.left == 0) return finish_payload();
  const auto ready = static_cast<uint32_t>(std::min<size_t>(available(), incoming_.left));
  if (ready == 0) return Step::need_input;
  const auto op = static_cast<Op>(incoming_.header.op);
  if (incoming_.status == Status::ok && op == Op::write) return apply_piece(ready);
  if (incoming_.status == Status::ok) {
    incoming_.record.insert(incoming_.record.end(), in_.get() + in_begin_, in_.get() + in_begin_ + ready);
  }
  incoming_.left -= ready;
  consume(ready);
  return Step::done;
}

/// Only pages that have arrived completely are applied, so that a page is old or new even if the rest never comes.
Connection::Step Connection::apply_piece(uint32_t ready) {
  const uint64_t offset = incoming_.header.offset + (incoming_.header.length - incoming_.left);
  if (ready < incoming_.left) {
    const uint64_t whole = (offset + ready) / protocol::kPageBytes * protocol::kPageBytes;
    if (whole <= offset) return Step::need_input;
    ready = static_cast<uint32_t>(whole - offset);
  }
  auto outcome = incoming_.region->write(offset, {in_.get() + in_begin_, ready});
  if (!outcome) return Step::busy;
  incoming_.status = outcome->status;
  incoming_.epoch = outcome->epoch;
  incoming_.left -= ready;
  consume(ready);
  return Step::done;
}

Connection::Step Connection::finish_payload() {
  if (incoming_.status == Status::ok && static_cast<Op>(incoming_.header.op) == Op::put_record) {
    auto outcome = incoming_.region->put_record(incoming_.header.operand, std::move(incoming_.record));
    if (!outcome) return Step::busy;
    incoming_.status = outcome->status;
    incoming_.epoch = outcome->epoch;
  } else if (incoming_.status == Status::ok) {
    service_.note_written(*incoming_.region, incoming_.header);
  }
  const RequestHeader header = incoming_.header;
  const Outcome outcome{.status = incoming_.status, .epoch = incoming_.epoch};
  incoming_ = {};
  return answer(header, outcome);
}

Status Connection::authorize(const RequestHeader& header, uint32_t rights, Attachment*& attached) {
  attached = attachments_.find(header.region);
  if (attached == nullptr) return service_.regions.find(header.region) ? Status::denied : Status::not_present;
  return attached->check(rights);
}

Connection::Step Connection::answer(const RequestHeader& header, const Outcome& outcome, uint32_t length) {
  ReplyHeader reply{};
  reply.magic = protocol::kWireMagic;
  reply.op = header.op;
  reply.status = static_cast<uint8_t>(outcome.status);
  reply.id = header.id;
  reply.length = length;
  reply.epoch = outcome.epoch;
  reply.value = outcome.value;
  put_output(&reply, sizeof reply);
  service_.operations.fetch_add(1, std::memory_order_relaxed);
  return Step::done;
}

void Connection::put_output(const void* data, size_t bytes) {
  std::memcpy(out_.get() + out_end_, data, bytes);
  out_end_ += bytes;
}

void Connection::consume(size_t bytes) {
  in_begin_ += bytes;
  if (in_begin_ == in_end_) in_begin_ = in_end_ = 0;
}

void Connection::refuse(const std::string& why) { service_.refusals.report(wire_->describe_peer(), why); }

}  // namespace extmem::region
