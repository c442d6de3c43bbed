#include "fabric/verbs/verbs_connection.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "base/assert.h"
#include "base/clock.h"

namespace extmem::fabric {

namespace {

constexpr uint64_t kChunkBytes = protocol::kLendBytes;
constexpr int kResolveMs = 1000;
constexpr uint32_t kWrite = static_cast<uint32_t>(protocol::Right::write);
// Of the value that answers lend (protocol.json).
constexpr uint64_t kWritableBit = uint64_t{1} << 63;
constexpr unsigned kPagesShift = 32, kNoticeShift = 43;
constexpr uint64_t kPagesMask = (1u << 11) - 1, kNoticeMask = (1u << 20) - 1;

bool find_key(void* memory, const std::byte* begin, size_t& bytes, uint32_t& key) {
  return static_cast<LocalMemory*>(memory)->find_key(begin, bytes, key);
}

struct BounceKey {
  uint32_t key;
};

bool find_bounce_key(void* bounce, const std::byte*, size_t&, uint32_t& key) {
  key = static_cast<const BounceKey*>(bounce)->key;
  return true;
}

}  // namespace

std::string VerbsConnection::open(const Target& target, uint64_t deadline_ns) {
  if (!possible()) return "no RDMA device here, or libibverbs and librdmacm are not installed";
  auto address = parse_tcp_address(target.address, target.port);
  if (!address) return "connecting to " + target.address + ": not a numeric address";
  pair_ = std::make_unique<verbs::QueuePair>(
      verbs::QueuePair::Options{.choose_domain = LocalMemory::domain_of, .transfers = kWorkRequests, .listener = this});
  std::string failure = pair_->connect(*address, kResolveMs);
  if (!failure.empty()) return "connecting to " + target.address + " over RDMA: " + failure;
  earliest_deadline_ns_ = deadline_ns;
  transfers_ = std::make_unique<Transfer[]>(kMaxTransfers);
  reactor_.watch(pair_->fd(), EPOLLIN, *this);
  watched_ = true;
  return {};
}

void VerbsConnection::end_stream() {
  if (!pair_) return;
  if (std::exchange(watched_, false)) reactor_.unwatch(pair_->fd(), *this);
  pair_->end();
}

ssize_t VerbsConnection::send_message(msghdr& message) {
  ring();  // what was asked for before goes before
  return pair_->send(message.msg_iov, message.msg_iovlen);
}

ssize_t VerbsConnection::receive_message(msghdr& message) {
  return pair_->receive(message.msg_iov, message.msg_iovlen);
}

// ---- events

void VerbsConnection::on_ready(uint32_t) {
  if (state_ == State::closed) return;
  if (broken_ != nullptr) return lose(Status::unreachable, broken_);
  pair_->serve_events();
  if (state_ != State::ready) advance_handshake();
  if (state_ == State::ready) pump();
}

void VerbsConnection::advance_handshake() {
  do {
    if (state_ == State::connecting && pair_->established()) {
      memory_ = LocalMemory::of(pair_->device());
      begin_handshake();
    }
    if (state_ == State::connecting && !pair_->failure().empty()) return lose(Status::unreachable, pair_->failure());
    const auto awaited = [this] { return state_ == State::hello_sent || state_ == State::proof_sent; };
    while (awaited() && (pair_->has_message() || !pair_->failure().empty())) receive_handshake();
    if (state_ == State::ready || state_ == State::closed) return;
  } while (pair_->arm() && pair_->poll());
}

bool VerbsConnection::poll() {
  if (state_ != State::ready || broken_ != nullptr) return false;
  const bool idle = transfer_count_ == 0 && busy() == 0 && queued_.empty();
  // While others keep the reactor from sleeping, its descriptor tells of what comes unasked.
  if (idle) return !pair_->armed() && prepare_sleep();
  ring();
  return pair_->poll() && pump();
}

bool VerbsConnection::prepare_sleep() {
  if (state_ != State::ready || broken_ != nullptr) return false;
  ring();
  return (!pair_->arm() || pair_->poll()) && pump();
}

/// Takes what has completed and what has come. After a loss only state_ may be looked at.
bool VerbsConnection::pump() {
  settle_transfers();
  while (state_ == State::ready && (pair_->has_message() || !pair_->failure().empty())) receive();
  if (state_ != State::ready) return true;
  resume_writing();
  start_queued();
  if (state_ == State::ready) owner_.on_room();
  return true;
}

bool VerbsConnection::settle_transfers() {
  bool any = false;
  while (transfers_done_ > 0 && state_ == State::ready) {
    --transfers_done_;
    Transfer& transfer = transfer_at(0);
    Operation& operation = *transfer.operation;
    if (transfer.piece_count > 0 && operation.op == Op::read) copy_pieces(operation, transfer, false);
    give_pieces_back(transfer);
    if (transfer.polled) reactor_.end_operation();
    first_transfer_ = (first_transfer_ + 1) % kMaxTransfers;
    --transfer_count_;
    any = true;
    owner_.finish(operation, Status::ok);
  }
  return any;
}

// ---- operations

bool VerbsConnection::full() const {
  const size_t pending = parked_count_ + queued_.size();
  return WireConnection::full(kSlotsPerPending * (pending + 1)) || transfer_count_ == kMaxTransfers;
}

void VerbsConnection::submit(Operation& operation, uint64_t attempt_deadline_ns) {
  const bool one_sided = (operation.op == Op::read || operation.op == Op::write) && operation.bytes > 0 &&
                         operation.bytes <= protocol::kMaxIoBytes;
  const bool whole = operation.op != Op::write || TransferPlan::keeps_pages_whole(operation, pair_->path_mtu());
  if (!one_sided || !whole || memory_ == nullptr) return WireConnection::submit(operation, attempt_deadline_ns);
  note_use(operation.started_ns);
  operation.wire_id = attempt_deadline_ns;
  earliest_deadline_ns_ = std::min(earliest_deadline_ns_, attempt_deadline_ns);
  start_operation(operation);
}

/// Its wire_id is its deadline from submit() on.
void VerbsConnection::start_operation(Operation& operation) {
  Region& region = *operation.region;
  const uint64_t end = region.end();
  if (operation.offset > end || operation.bytes > end - operation.offset) return pass_on(operation);
  Lending& lending = lendings_[&region];
  switch (look_up(operation, lending)) {
    case Verdict::pass_on:
      return pass_on(operation);
    case Verdict::wait:
      ++parked_count_;
      return lending.parked.push(operation);
    case Verdict::go:
      if (!queued_.empty() || !post(operation)) queued_.push(operation);
  }
}

/// The appliance serves it, or tells why it cannot be done.
void VerbsConnection::pass_on(Operation& operation) {
  const uint64_t deadline_ns = std::exchange(operation.wire_id, 0);
  WireConnection::submit(operation, deadline_ns);
}

VerbsConnection::Verdict VerbsConnection::look_up(Operation& operation, Lending& lending) {
  const uint64_t first = operation.offset / kChunkBytes;
  const uint64_t last = (operation.offset + operation.bytes - 1) / kChunkBytes;
  EXTMEM_ASSERT(last - first < keys_.size());
  Verdict verdict = Verdict::go;
  for (uint64_t number = first; number <= last; ++number) {
    Chunk& chunk = lending.chunks[number];
    const Verdict found = look_up_chunk(operation, number, chunk);
    if (found == Verdict::pass_on) return found;
    if (found == Verdict::wait) verdict = found;
    keys_[number - first] = {.key = chunk.key, .notice = chunk.notice};
  }
  return verdict;
}

VerbsConnection::Verdict VerbsConnection::look_up_chunk(const Operation& operation, uint64_t number, Chunk& chunk) {
  const uint32_t grant = operation.region->grant.load(std::memory_order_acquire);
  const uint64_t end = operation.region->end();
  const uint64_t needed = std::min(operation.offset + operation.bytes - number * kChunkBytes, kChunkBytes);
  const bool insufficient = (operation.op == Op::write && !chunk.writable) || chunk.bytes < needed;
  // Under another grant, or of a region of another size, what was lent or refused then says nothing now.
  const bool outdated = chunk.grant != grant || (insufficient && chunk.region_end != end);
  const bool rested = chunk.state == Chunk::State::refused && operation.started_ns >= chunk.again_ns;
  if (chunk.state == Chunk::State::none || rested || (outdated && chunk.state != Chunk::State::asked)) {
    chunk = {.state = Chunk::State::asked, .grant = grant, .region_end = end};
    request_chunk(*operation.region, number * kChunkBytes, operation.wire_id);
  }
  if (chunk.state == Chunk::State::asked) return Verdict::wait;
  const bool untold = operation.op == Op::write && operation.notify && chunk.notice == 0;
  return chunk.state == Chunk::State::refused || insufficient || untold ? Verdict::pass_on : Verdict::go;
}

void VerbsConnection::on_lend_reply(Region& region, uint64_t offset, const protocol::ReplyHeader& reply) {
  Lending& lending = lendings_[&region];
  Chunk& chunk = lending.chunks[offset / kChunkBytes];
  const auto status = static_cast<Status>(reply.status);
  // What the grant or the region's size forbids may be allowed by the next time; what cannot be registered, later.
  const bool refused_now = status == Status::denied || status == Status::forbidden || status == Status::not_present ||
                           status == Status::out_of_range;
  chunk.state = refused_now ? Chunk::State::none : Chunk::State::refused;
  chunk.again_ns = monotonic_ns() + kRefusedNs;
  if (status == Status::ok) {
    chunk.state = Chunk::State::lent;
    chunk.key = static_cast<uint32_t>(reply.value);
    chunk.writable = (reply.value & kWritableBit) != 0;
    chunk.notice = static_cast<uint32_t>(reply.value >> kNoticeShift & kNoticeMask);
    chunk.bytes = (reply.value >> kPagesShift & kPagesMask) * protocol::kPageBytes;
  }
  OperationList parked = lending.parked.take();
  parked_count_ -= parked.size();
  while (!parked.empty()) {
    Operation& operation = parked.pop();
    const bool meant = operation.offset < offset + kChunkBytes && offset < operation.offset + operation.bytes;
    refused_now&& meant ? pass_on(operation) : start_operation(operation);
  }
}

void VerbsConnection::on_lend_end(uint64_t region, uint64_t number) {
  for (auto& [known, lending] : lendings_) {
    if (known->id != region) continue;
    auto chunk = lending.chunks.find(number);
    // One that has been asked for again is answered after this.
    if (chunk != lending.chunks.end() && chunk->second.state == Chunk::State::lent) lending.chunks.erase(chunk);
  }
}

/// Puts it into the batch. False: there is no room now.
bool VerbsConnection::post(Operation& operation) {
  if (transfer_count_ == kMaxTransfers) return false;
  if (!pair_->failure().empty()) {
    sever(pair_->failure().c_str());
    return false;
  }
  if (!batch_.has_room()) ring();
  Transfer& transfer = transfer_at(transfer_count_);
  transfer = {.operation = &operation, .deadline_ns = operation.wire_id};
  TransferPlan::Outcome outcome = TransferPlan::Outcome::ok;
  if (!gather(operation, transfer, outcome)) return false;
  if (outcome != TransferPlan::Outcome::ok) {
    pass_on(operation);
    return true;
  }
  if (batch_.count() > pair_->transfer_room() || batch_.notices() > pair_->notice_room()) {
    batch_.remove_last();
    give_pieces_back(transfer);
    return false;
  }
  transfer.polled = operation.bytes <= protocol::kPolledBytes;
  if (transfer.polled) reactor_.begin_operation();
  ++transfer_count_;
  return true;
}

/// Posts the batch.
void VerbsConnection::ring() {
  if (batch_.count() == 0) return;
  const unsigned requests = batch_.count();
  unsigned signalled = 0;
  if (!pair_->post_transfers(batch_.first(), signalled)) sever(pair_->failure().c_str());
  batch_.clear();
  owner_.on_posted(requests, signalled);
}

/// Appends it to the batch. False: the bounce buffer has no room now.
bool VerbsConnection::gather(Operation& operation, Transfer& transfer, TransferPlan::Outcome& outcome) {
  const TransferPlan::Limits limits{.segments = pair_->max_segments(), .inline_bytes = pair_->max_inline()};
  const std::span<const iovec> own{operation.segments, operation.segment_count};
  outcome = batch_.append(operation, own, keys_, limits, find_key, memory_);
  if (outcome == TransferPlan::Outcome::ok || !make_bounce_buffer()) return true;
  if (!take_pieces(operation, transfer)) return false;
  if (operation.op == Op::write) copy_pieces(operation, transfer, true);
  std::array<iovec, protocol::kMaxIoBytes / kPieceBytes> segments;
  size_t left = operation.bytes;
  for (size_t index = 0; index < transfer.piece_count; ++index) {
    segments[index] = {.iov_base = bounce_.get() + transfer.pieces[index] * kPieceBytes,
                       .iov_len = std::min(left, kPieceBytes)};
    left -= segments[index].iov_len;
  }
  BounceKey key{bounce_registration_->local_key()};
  outcome = batch_.append(operation, {segments.data(), transfer.piece_count}, keys_, limits, find_bounce_key, &key);
  if (outcome != TransferPlan::Outcome::ok) give_pieces_back(transfer);
  return true;
}

bool VerbsConnection::make_bounce_buffer() {
  if (bounce_) return bounce_registration_ != nullptr;
  bounce_ = std::make_unique_for_overwrite<std::byte[]>(kPieces * kPieceBytes);
  bounce_registration_ =
      verbs::Registration::create(pair_->domain(), {.memory = {bounce_.get(), kPieces * kPieceBytes},
                                                    .iova = reinterpret_cast<uint64_t>(bounce_.get()),
                                                    .access = IBV_ACCESS_LOCAL_WRITE});
  for (size_t index = 0; index < kPieces; ++index) free_pieces_[free_piece_count_++] = static_cast<uint8_t>(index);
  return bounce_registration_ != nullptr;
}

bool VerbsConnection::take_pieces(const Operation& operation, Transfer& transfer) {
  const size_t wanted = (operation.bytes + kPieceBytes - 1) / kPieceBytes;
  if (wanted > free_piece_count_) return false;
  for (size_t index = 0; index < wanted; ++index) transfer.pieces[index] = free_pieces_[--free_piece_count_];
  transfer.piece_count = static_cast<uint8_t>(wanted);
  return true;
}

void VerbsConnection::give_pieces_back(const Transfer& transfer) {
  for (size_t index = 0; index < transfer.piece_count; ++index) {
    free_pieces_[free_piece_count_++] = transfer.pieces[index];
  }
}

void VerbsConnection::copy_pieces(const Operation& operation, const Transfer& transfer, bool out) {
  size_t position = 0;
  for (uint32_t index = 0; index < operation.segment_count; ++index) {
    auto* memory = static_cast<std::byte*>(operation.segments[index].iov_base);
    for (size_t left = operation.segments[index].iov_len; left > 0;) {
      const size_t within = position % kPieceBytes;
      std::byte* piece = bounce_.get() + transfer.pieces[position / kPieceBytes] * kPieceBytes + within;
      const size_t bytes = std::min(left, kPieceBytes - within);
      std::memcpy(out ? piece : memory, out ? memory : piece, bytes);
      memory += bytes;
      position += bytes;
      left -= bytes;
    }
  }
}

void VerbsConnection::start_queued() {
  // Each is looked up anew: its keys may have been asked for again since.
  for (size_t tries = queued_.size(); tries > 0 && state_ == State::ready && broken_ == nullptr; --tries) {
    OperationList rest = queued_.take();
    Operation& operation = rest.pop();
    start_operation(operation);
    const bool stuck = !queued_.empty();
    // What could not be posted stays in front of those that came after it.
    while (!rest.empty()) queued_.push(rest.pop());
    if (stuck) return;
  }
}

uint64_t VerbsConnection::earliest_own_deadline_ns() const {
  uint64_t earliest = UINT64_MAX;
  for (size_t position = 0; position < transfer_count_; ++position) {
    earliest = std::min(earliest, transfer_at(position).deadline_ns);
  }
  const auto note = [&earliest](const Operation& operation) {
    earliest = std::min(earliest, operation.wire_id);
    return false;
  };
  queued_.any(note);
  for (auto& [region, lending] : lendings_) lending.parked.any(note);
  return earliest;
}

WireConnection::Unfinished VerbsConnection::release() {
  Unfinished unfinished = WireConnection::release();
  for (; transfer_count_ > 0; --transfer_count_) {
    Transfer& transfer = transfer_at(0);
    if (transfer.polled) reactor_.end_operation();
    transfer.operation->wire_id = 0;  // to whichever transport is next it means something else
    unfinished.sent.push(*transfer.operation);
    first_transfer_ = (first_transfer_ + 1) % kMaxTransfers;
  }
  batch_.clear();
  const auto hand_back = [&unfinished](OperationList& list) {
    while (!list.empty()) {
      Operation& operation = list.pop();
      operation.wire_id = 0;
      unfinished.untouched.push(operation);
    }
  };
  for (auto& [region, lending] : lendings_) hand_back(lending.parked);
  hand_back(queued_);
  parked_count_ = 0;
  return unfinished;
}

}  // namespace extmem::fabric
