#include "fuse/uring_channel.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstring>
#include <utility>

#include "base/assert.h"
#include "base/clock.h"
#include "base/resident.h"
#include "fuse/opcode_table.h"
#include "fuse/worker.h"

namespace extmem::fuse {

namespace {

constexpr unsigned kBatchEntries = 32;
/// With fewer than this many left, the kernel gets another batch.
constexpr unsigned kLowWater = 16;
/// Of one queue. Who fills these waits for the others.
constexpr unsigned kMaxEntries = 2048;
constexpr unsigned kCompletionsPerTurn = 64;
/// Answers go out together when the turn is over, but not large ones: meanwhile the caller could be using them.
constexpr size_t kUnsentBytes = 64 * 1024;
/// Payloads populated beyond this many bytes count, and so many of them stay populated.
constexpr size_t kSmallPayloadBytes = 64 * 1024;
constexpr unsigned kKeptPayloads = 8;
constexpr uint64_t kTrimAfterNs = 1'000'000'000;

bool is_through_open_file(uint32_t opcode) {
  switch (opcode) {
    case FUSE_READ:
    case FUSE_WRITE:
    case FUSE_FLUSH:
    case FUSE_FSYNC:
    case FUSE_FALLOCATE:
    case FUSE_LSEEK:
    case FUSE_GETLK:
    case FUSE_SETLK:
    case FUSE_SETLKW:
      return true;
    default:
      return false;
  }
}

// What completions are for, where it is no entry.
constexpr uint64_t kEpollReady = 1;
constexpr uint64_t kWoken = 2;

}  // namespace

void RingEntry::run() { channel->commit(*this); }

UringChannel::Batch::Batch() {
  void* memory = mmap(nullptr, kBatchEntries * kMaxWriteBytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  payloads = memory == MAP_FAILED ? nullptr : static_cast<std::byte*>(memory);
  if (payloads == nullptr) return;
  madvise(payloads, kBatchEntries * kMaxWriteBytes, MADV_NOHUGEPAGE);  // most requests touch a page of it
  entries.reset(new RingEntry[kBatchEntries]);
}

UringChannel::Batch::~Batch() {
  if (payloads != nullptr) munmap(payloads, kBatchEntries * kMaxWriteBytes);
}

UringChannel::UringChannel(Worker& worker, std::unique_ptr<IoRing> ring, int fuse_fd,
                           const std::vector<uint16_t>& queues)
    : worker_(worker), ring_(std::move(ring)), fuse_fd_(fuse_fd) {
  for (uint16_t id : queues) queues_.push_back({.id = id});
}

int UringChannel::open() {
  int error = ring_->start(fuse_fd_);
  if (error == 0) error = open_queues();
  if (error != 0) return error;
  Reactor& reactor = worker_.reactor();
  reactor.wait_in(this);
  ring_->poll_always(reactor.epoll_fd(), kEpollReady);
  ring_->poll_always(reactor.wake_fd(), kWoken);
  return 0;
}

int UringChannel::open_queues() {
  opening_ = true;
  for (uint16_t queue = 0; queue < queues_.size(); ++queue) {
    if (!add_entries(queue)) return ENOMEM;
  }
  int error = ring_->enter(0);
  while (reap()) {  // what is refused was refused while it was submitted
  }
  opening_ = false;
  return error != 0 ? error : refused_;
}

void UringChannel::close() {
  worker_.reactor().cancel(*this);
  worker_.reactor().wait_in(nullptr);
}

bool UringChannel::add_entries(uint16_t index) {
  auto batch = std::make_unique<Batch>();
  if (batch->payloads == nullptr) return false;
  // The kernel uses first what it was given last: the first entries are those that stay warm.
  for (unsigned number = kBatchEntries; number-- > 0;) {
    RingEntry& entry = batch->entries[number];
    entry.channel = this;
    entry.queue = index;
    entry.payload = batch->payloads + number * kMaxWriteBytes;
    entry.places[0] = {&entry.header, sizeof entry.header};
    entry.places[1] = {entry.payload, kMaxWriteBytes};
    if (batches_.empty() && number < kResidentBuffers) keep_resident(entry.payload, kMaxWriteBytes);
    submit(entry, FUSE_IO_URING_CMD_REGISTER);
  }
  queues_[index].with_kernel += kBatchEntries;
  queues_[index].entries += kBatchEntries;
  worker_.counters.ring_entries.fetch_add(kBatchEntries, std::memory_order_relaxed);
  batches_.push_back(std::move(batch));
  return true;
}

void UringChannel::submit(RingEntry& entry, fuse_uring_cmd command) {
  io_uring_sqe& submission = ring_->next();
  submission.opcode = IORING_OP_URING_CMD;
  submission.flags = IOSQE_FIXED_FILE;
  submission.fd = 0;
  submission.cmd_op = command;
  submission.user_data = reinterpret_cast<uint64_t>(&entry);
  if (command == FUSE_IO_URING_CMD_REGISTER) {
    submission.addr = reinterpret_cast<uint64_t>(entry.places);
    submission.len = 2;
  }
  fuse_uring_cmd_req request{};
  request.qid = queues_[entry.queue].id;
  request.commit_id = command == FUSE_IO_URING_CMD_REGISTER ? 0 : entry.commit_id;
  std::memcpy(submission.cmd, &request, sizeof request);
}

void UringChannel::grow(uint16_t index) {
  if (!add_entries(index)) return;
  queues_[index].fresh += kBatchEntries;
  fresh_ = true;
}

void UringChannel::nudge_fresh() {
  fresh_ = false;
  cpu_set_t usual;
  pthread_getaffinity_np(pthread_self(), sizeof usual, &usual);
  for (Queue& queue : queues_) {
    unsigned fresh = std::exchange(queue.fresh, 0);
    uint64_t node = fresh > 0 ? open_file_of(queue) : 0;
    if (node == 0) continue;
    cpu_set_t own;
    CPU_ZERO(&own);
    CPU_SET(queue.id, &own);
    // Where we may not run, others seldom do, and the next request there does as well.
    if (pthread_setaffinity_np(pthread_self(), sizeof own, &own) != 0) continue;
    for (; fresh > 0; --fresh) nudge(queue.id, node);
  }
  pthread_setaffinity_np(pthread_self(), sizeof usual, &usual);
}

/// Without one there is nobody to help: requests that are not made through an open file are answered soon.
uint64_t UringChannel::open_file_of(const Queue& queue) const {
  for (auto& batch : batches_) {
    for (unsigned number = 0; number < kBatchEntries; ++number) {
      const RingEntry& entry = batch->entries[number];
      if (entry.state == RingEntry::State::held && entry.open_file != 0 && &queues_[entry.queue] == &queue)
        return entry.open_file;
    }
  }
  return 0;
}

/// Asks the kernel for nothing of a file's pages, whereupon it makes a request (NOTIFY_REPLY) in the queue of the CPU
/// that asks. This notice waits for no page and for no answer; those that may wait never leave from here. The file is
/// one that a caller keeps open: ours is never the last reference, whose end would wait for the file's pages.
void UringChannel::nudge(uint16_t cpu, uint64_t node) {
  constexpr uint64_t kOurs = uint64_t{1} << 62;  // the kernel counts its requests from below
  struct {
    fuse_out_header header;
    fuse_notify_retrieve_out retrieve;
  } notice{};
  notice.header = {sizeof notice, FUSE_NOTIFY_RETRIEVE, 0};
  notice.retrieve.notify_unique = kOurs | uint64_t{cpu} << 40 | ++nudges_ << 1;
  notice.retrieve.nodeid = node;
  [[maybe_unused]] ssize_t written = write(fuse_fd_, &notice, sizeof notice);
}

bool UringChannel::wait(int timeout_ms) {
  if (epoll_ready_ || fresh_) timeout_ms = 0;
  bool work = ring_->has_work();
  if (trim_due_ && !work) trim();
  if (timeout_ms != 0 || work) EXTMEM_ASSERT(ring_->enter(timeout_ms) == 0);
  if (fresh_) nudge_fresh();
  unsent_bytes_ = 0;
  bool any = reap();
  // Readiness is told once: descriptors are asked until none has anything left.
  if (epoll_ready_) {
    epoll_ready_ = worker_.reactor().collect();
    any |= epoll_ready_;
  }
  return any;
}

bool UringChannel::reap() {
  io_uring_cqe completion;
  unsigned count = 0;
  for (; count < kCompletionsPerTurn && ring_->take(completion); ++count) {
    bool over = (completion.flags & IORING_CQE_F_MORE) == 0;
    if (completion.user_data == kEpollReady) {
      epoll_ready_ = true;
      if (over) ring_->poll_always(worker_.reactor().epoll_fd(), kEpollReady);
    } else if (completion.user_data == kWoken) {
      if (over) ring_->poll_always(worker_.reactor().wake_fd(), kWoken);
    } else {
      complete(*reinterpret_cast<RingEntry*>(completion.user_data), completion.res);
    }
  }
  return count > 0;
}

void UringChannel::complete(RingEntry& entry, int result) {
  Queue& queue = queues_[entry.queue];
  if (result == -EAGAIN || result == -EINTR) {
    return submit(entry, entry.commit_id == 0 ? FUSE_IO_URING_CMD_REGISTER : FUSE_IO_URING_CMD_COMMIT_AND_FETCH);
  }
  --queue.with_kernel;
  if (result < 0) {
    // ENOTCONN: the session is over, which the reader of /dev/fuse is told too.
    entry.state = RingEntry::State::gone;
    --queue.entries;
    worker_.counters.ring_entries.fetch_sub(1, std::memory_order_relaxed);
    if (opening_ && refused_ == 0) refused_ = -result;
    return;
  }
  if (queue.with_kernel < kLowWater && queue.entries < kMaxEntries) grow(entry.queue);
  take(entry);
}

void UringChannel::take(RingEntry& entry) {
  const auto& header = *reinterpret_cast<const fuse_in_header*>(entry.header.in_out);
  const fuse_uring_ent_in_out& sizes = entry.header.ring_ent_in_out;
  entry.state = RingEntry::State::held;
  entry.commit_id = sizes.commit_id;
  entry.open_file = is_through_open_file(header.opcode) ? header.nodeid : 0;
  size_t payload = sizes.payload_sz;
  EXTMEM_ASSERT(payload <= kMaxWriteBytes && header.len >= sizeof header + payload);
  size_t operation = header.len - sizeof header - payload;
  EXTMEM_ASSERT(operation <= sizeof entry.header.op_in);
  note_payload(entry, payload);
  RequestBuffer buffer(entry.payload);
  Request request{header,
                  {reinterpret_cast<const std::byte*>(entry.header.op_in), operation},
                  {entry.payload, payload},
                  {this, header.unique, &entry},
                  buffer};
  worker_.take(request, find_opcode(header.opcode));
}

void UringChannel::answer(const Ticket& ticket, int error, iovec* segments, unsigned count, size_t body_bytes) {
  RingEntry& entry = *ticket.entry;
  EXTMEM_ASSERT(entry.state == RingEntry::State::held && body_bytes <= kMaxWriteBytes);
  size_t at = 0;
  for (unsigned index = 1; index < count; ++index) {
    const iovec& segment = segments[index];
    if (segment.iov_base != entry.payload + at && segment.iov_len > 0)
      std::memcpy(entry.payload + at, segment.iov_base, segment.iov_len);
    at += segment.iov_len;
  }
  auto& header = *reinterpret_cast<fuse_out_header*>(entry.header.in_out);
  header = {static_cast<uint32_t>(sizeof header + body_bytes), -error, ticket.unique};
  entry.header.ring_ent_in_out.payload_sz = static_cast<uint32_t>(body_bytes);
  commit(entry);
}

void UringChannel::answer_from_outside(const Ticket& ticket, int error, std::span<const uint8_t> body) {
  RingEntry& entry = *ticket.entry;
  EXTMEM_ASSERT(entry.state == RingEntry::State::held && body.size() <= kMaxWriteBytes);
  if (!body.empty()) std::memcpy(entry.payload, body.data(), body.size());
  auto& header = *reinterpret_cast<fuse_out_header*>(entry.header.in_out);
  header = {static_cast<uint32_t>(sizeof header + body.size()), -error, ticket.unique};
  entry.header.ring_ent_in_out.payload_sz = static_cast<uint32_t>(body.size());
  worker_.reactor().post(entry);
}

void UringChannel::commit(RingEntry& entry) {
  size_t bytes = entry.header.ring_ent_in_out.payload_sz;
  note_payload(entry, bytes);
  entry.state = RingEntry::State::kernel;
  ++queues_[entry.queue].with_kernel;
  submit(entry, FUSE_IO_URING_CMD_COMMIT_AND_FETCH);
  unsent_bytes_ += bytes;
  if (unsent_bytes_ < kUnsentBytes) return;
  EXTMEM_ASSERT(ring_->enter(0) == 0);
  unsent_bytes_ = 0;
}

void UringChannel::note_payload(RingEntry& entry, size_t bytes) {
  if (bytes <= kSmallPayloadBytes || entry.grown) return;
  entry.grown = true;
  if (++grown_ > kKeptPayloads && !armed()) worker_.reactor().arm(*this, monotonic_ns() + kTrimAfterNs);
}

/// Only while the ring is at rest: the kernel fills payloads on this thread, in enter(), so that of an entry that is
/// the kernel's neither a request nor an answer is under way.
void UringChannel::trim() {
  trim_due_ = false;
  for (auto batch = batches_.rbegin(); batch != batches_.rend() && grown_ > kKeptPayloads; ++batch) {
    for (unsigned number = kBatchEntries; number-- > 0 && grown_ > kKeptPayloads;) {
      RingEntry& entry = (*batch)->entries[number];
      if (!entry.grown || entry.state == RingEntry::State::held) continue;
      madvise(entry.payload, kMaxWriteBytes, MADV_DONTNEED);
      entry.grown = false;
      --grown_;
    }
  }
  if (grown_ > kKeptPayloads) worker_.reactor().arm(*this, monotonic_ns() + kTrimAfterNs);
}

}  // namespace extmem::fuse
