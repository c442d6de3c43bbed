// The receiving half of WireConnection.
#include <sys/socket.h>

#include <cerrno>
#include <cstring>

#include "base/assert.h"
#include "fabric/wire_connection.h"

namespace extmem::fabric {

using protocol::ReplyHeader;

namespace {

/// Of a read whose header has not been seen: if the reply turns out to be another, what was received is moved, so this
/// bounds both the work and the buffer.
constexpr size_t kPredictedBytes = 64 * 1024;
/// Replies that came along behind a payload: a batch of acknowledgements, or the beginning of the next.
constexpr size_t kSpillBytes = 16 * 1024;
constexpr int kMaxTurns = 16;

bool tells_lend_end(const ReplyHeader& reply) {
  return reply.magic == protocol::kWireMagic && reply.id == 0 && reply.op == static_cast<uint8_t>(Op::lend) &&
         reply.length == 0;
}

/// Copies between a buffer and an operation's segments, from `begin` bytes into them.
template <typename Copy>
void for_payload(const Operation& operation, size_t begin, size_t bytes, Copy copy) {
  for (uint32_t index = 0; index < operation.segment_count && bytes > 0; ++index) {
    const iovec& segment = operation.segments[index];
    if (begin >= segment.iov_len) {
      begin -= segment.iov_len;
      continue;
    }
    const size_t taken = std::min(bytes, segment.iov_len - begin);
    copy(static_cast<uint8_t*>(segment.iov_base) + begin, taken);
    bytes -= taken;
    begin = 0;
  }
}

}  // namespace

void WireConnection::Plan::add(void* base, size_t bytes) {
  if (bytes == 0) return;
  segments[count++] = {.iov_base = base, .iov_len = bytes};
  room += bytes;
}

void WireConnection::Plan::add_payload(const Operation& operation, size_t begin, size_t limit) {
  const size_t before = room;
  for_payload(operation, begin, limit, [this](uint8_t* base, size_t bytes) {
    if (count + 1 < segments.size()) add(base, bytes);
  });
  payload = room - before;
}

ssize_t WireConnection::receive_message(msghdr& message) { return recvmsg(fd_.get(), &message, MSG_DONTWAIT); }

bool WireConnection::receive() {
  bool progress = false;
  for (int turn = 0; turn < kMaxTurns && state_ == State::ready; ++turn) {
    Plan plan;
    plan_receive(plan);
    msghdr message{};
    message.msg_iov = plan.segments.data();
    message.msg_iovlen = plan.count;
    ssize_t got = receive_message(message);
    if (got < 0 && (errno == EAGAIN || errno == EINTR)) return progress;
    if (got <= 0) {
      lose(Status::unreachable, got == 0 ? describe_end() : std::strerror(errno));
      return true;
    }
    progress = heard_ = true;
    absorb(plan, static_cast<size_t>(got));
    if (state_ == State::ready) parse();
    // With room left over there was no more: asking again would only cost a system call.
    if (static_cast<size_t>(got) < plan.room) break;
  }
  if (progress && state_ == State::ready) owner_.on_room();
  return progress;
}

void WireConnection::plan_receive(Plan& plan) {
  static_assert(kInputBytes >= 2 * sizeof(ReplyHeader) + kPredictedBytes + kSpillBytes);
  if (payload_slot_ != nullptr) {
    const Operation& operation = *payload_slot_->operation;
    const size_t left = payload_reply_.length - payload_done_;
    plan.add_payload(operation, payload_done_, left);
    if (plan.payload == left) plan.add(in_.get(), kSpillBytes);
    return;
  }
  if (in_end_ > 0 || order_.empty() || slots_[order_.at(0)].header.op != static_cast<uint8_t>(Op::read)) {
    plan.add(in_.get() + in_end_, kSpillBytes);
    return;
  }
  plan.predicted = &slots_[order_.at(0)];
  plan.add(in_.get(), sizeof(ReplyHeader));
  const Operation& operation = *plan.predicted->operation;
  plan.add_payload(operation, 0, std::min<size_t>(operation.bytes, kPredictedBytes));
  if (plan.payload == operation.bytes) plan.add(in_.get() + sizeof(ReplyHeader), kSpillBytes);
}

void WireConnection::absorb(const Plan& plan, size_t got) {
  if (plan.predicted != nullptr) return absorb_predicted(plan, got);
  if (payload_slot_ == nullptr) {
    in_end_ += got;
    return;
  }
  const size_t taken = std::min(got, plan.payload);
  payload_done_ += taken;
  in_begin_ = 0;
  in_end_ = got - taken;
  if (payload_done_ < payload_reply_.length) return;
  Slot& slot = *payload_slot_;
  payload_slot_ = nullptr;
  finish_slot(slot, payload_reply_);
}

void WireConnection::absorb_predicted(const Plan& plan, size_t got) {
  in_begin_ = 0;
  in_end_ = got;
  if (got <= sizeof(ReplyHeader)) return;
  ReplyHeader reply;
  std::memcpy(&reply, in_.get(), sizeof reply);
  const size_t taken = std::min(got - sizeof reply, plan.payload);
  Slot& slot = *plan.predicted;
  const bool as_predicted = reply.id == slot.header.id && reply.length == slot.operation->bytes;
  if (!as_predicted) {
    // Another reply than expected (an error, say) lies partly in the operation's memory: put it together again.
    const size_t rest = got - sizeof reply - taken;
    std::memmove(in_.get() + sizeof reply + taken, in_.get() + sizeof reply, rest);
    uint8_t* to = in_.get() + sizeof reply;
    for_payload(*slot.operation, 0, taken, [&to](uint8_t* from, size_t bytes) {
      std::memcpy(to, from, bytes);
      to += bytes;
    });
    return;
  }
  in_begin_ = sizeof reply;
  in_end_ = got - taken;
  if (match(reply) == nullptr) return;
  if (taken < reply.length) {
    payload_slot_ = &slot;
    payload_done_ = taken;
    payload_reply_ = reply;
    in_begin_ = in_end_ = 0;
    return;
  }
  finish_slot(slot, reply);
}

void WireConnection::parse() {
  while (state_ == State::ready && payload_slot_ == nullptr && in_end_ - in_begin_ >= sizeof(ReplyHeader)) {
    ReplyHeader reply;
    std::memcpy(&reply, in_.get() + in_begin_, sizeof reply);
    in_begin_ += sizeof reply;
    if (tells_lend_end(reply)) {
      on_lend_end(reply.value, reply.epoch);
      continue;
    }
    Slot* slot = match(reply);
    if (slot == nullptr) return;
    if (reply.length > 0) {
      const size_t ready = std::min<size_t>(in_end_ - in_begin_, reply.length);
      const uint8_t* from = in_.get() + in_begin_;
      for_payload(*slot->operation, 0, ready, [&from](uint8_t* to, size_t bytes) {
        std::memcpy(to, from, bytes);
        from += bytes;
      });
      in_begin_ += ready;
      if (ready < reply.length) {
        payload_slot_ = slot;
        payload_done_ = ready;
        payload_reply_ = reply;
        break;
      }
    }
    finish_slot(*slot, reply);
  }
  if (state_ != State::ready) return;
  std::memmove(in_.get(), in_.get() + in_begin_, in_end_ - in_begin_);
  in_end_ -= in_begin_;
  in_begin_ = 0;
}

/// The slot that the reply answers; null: the connection is lost, for this is not what the appliance may say.
WireConnection::Slot* WireConnection::match(const ReplyHeader& reply) {
  const bool notice = reply.id == 0 && reply.op == static_cast<uint8_t>(Op::ping) && reply.length == 0;
  if (reply.magic == protocol::kWireMagic && notice && reply.status == static_cast<uint8_t>(Status::fenced)) {
    lose(Status::fenced, "the appliance fenced us");
    return nullptr;
  }
  Slot* slot = order_.empty() ? nullptr : &slots_[order_.at(0)];
  const bool known = slot != nullptr && reply.magic == protocol::kWireMagic && reply.id == slot->header.id &&
                     reply.op == slot->header.op && reply.status <= static_cast<uint8_t>(Status::forbidden) &&
                     slot->sent_bytes == sizeof slot->header + slot->payload_bytes;
  const bool answers_read = known && slot->operation != nullptr && slot->operation->op == Op::read &&
                            reply.status == static_cast<uint8_t>(Status::ok);
  if (!known || reply.length != (answers_read ? slot->operation->bytes : 0)) {
    lose(Status::unreachable, "the appliance sent something that is no reply");
    return nullptr;
  }
  return slot;
}

void WireConnection::finish_slot(Slot& slot, const ReplyHeader& reply) {
  order_.pop();
  Operation* operation = slot.operation;
  Region* region = slot.region;
  const auto op = static_cast<Op>(slot.header.op);
  const auto status = static_cast<Status>(reply.status);
  const uint64_t deadline_ns = slot.deadline_ns;
  const uint64_t offset = slot.header.offset;
  free_slot(slot);
  if (operation != nullptr) {
    operation->value = reply.value;
    finish_operation(*operation, status, deadline_ns);
  } else if (op == Op::ping) {
    ping_sent_ns_ = 0;
  } else if (op == Op::attach && status != Status::ok) {
    Attachment& attachment = attachments_[region];
    attachment.state = Attachment::State::refused;  // asked anew with the next operation
    attachment.refusal = status;
  } else if (op == Op::shm_descriptor) {
    on_descriptor_reply(*region, reply);
  } else if (op == Op::populate) {
    on_populate_reply(*region);
  } else if (op == Op::lend) {
    on_lend_reply(*region, offset, reply);
  }
}

void WireConnection::finish_operation(Operation& operation, Status status, uint64_t deadline_ns) {
  if (status == Status::denied || status == Status::not_present || status == Status::forbidden) {
    Attachment& attachment = attachments_[operation.region];
    if (attachment.state == Attachment::State::refused) status = attachment.refusal;
    const uint32_t grant = operation.region->grant.load(std::memory_order_acquire);
    if (status != Status::not_present && grant != attachment.grant && !full()) {
      attachment.state = Attachment::State::none;  // the manager has granted something else since
      return submit(operation, deadline_ns);
    }
  }
  owner_.finish(operation, status);
}

}  // namespace extmem::fabric
