#include "base/io_ring.h"

#include <errno.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstring>

#include "base/assert.h"

namespace extmem {

namespace {

constexpr size_t kEntryBytes = 128;  // IORING_SETUP_SQE128

unsigned load_acquire(const unsigned* word) {
  return std::atomic_ref(*const_cast<unsigned*>(word)).load(std::memory_order_acquire);
}
void store_release(unsigned* word, unsigned value) { std::atomic_ref(*word).store(value, std::memory_order_release); }

}  // namespace

std::unique_ptr<IoRing> IoRing::create(const Sizes& sizes, int& error) {
  io_uring_params parameters{};
  // Disabled at first, because the thread that enables the ring is the one that owns it. SUBMIT_ALL: one entry that is
  // refused must not keep back those behind it.
  parameters.flags = IORING_SETUP_SQE128 | IORING_SETUP_CQSIZE | IORING_SETUP_SUBMIT_ALL | IORING_SETUP_R_DISABLED |
                     IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_TASKRUN_FLAG;
  parameters.cq_entries = sizes.completions;
  std::unique_ptr<IoRing> ring(new IoRing);
  ring->fd_ = static_cast<int>(syscall(SYS_io_uring_setup, sizes.submissions, &parameters));
  if (ring->fd_ < 0 || !ring->map(parameters)) {
    error = errno;
    return nullptr;
  }
  error = 0;
  return ring;
}

bool IoRing::map(const io_uring_params& parameters) {
  EXTMEM_ASSERT((parameters.features & IORING_FEAT_SINGLE_MMAP) != 0);
  const auto& sq = parameters.sq_off;
  const auto& cq = parameters.cq_off;
  rings_bytes_ = std::max<size_t>(sq.array + parameters.sq_entries * sizeof(unsigned),
                                  cq.cqes + parameters.cq_entries * sizeof(io_uring_cqe));
  void* rings = mmap(nullptr, rings_bytes_, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd_, IORING_OFF_SQ_RING);
  if (rings == MAP_FAILED) return false;
  rings_ = static_cast<std::byte*>(rings);
  entries_bytes_ = parameters.sq_entries * kEntryBytes;
  void* entries =
      mmap(nullptr, entries_bytes_, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd_, IORING_OFF_SQES);
  if (entries == MAP_FAILED) return false;
  entries_ = static_cast<std::byte*>(entries);
  auto word = [this](unsigned offset) { return reinterpret_cast<unsigned*>(rings_ + offset); };
  submission_head_ = word(sq.head);
  submission_tail_ = word(sq.tail);
  submission_flags_ = word(sq.flags);
  submission_mask_ = *word(sq.ring_mask);
  completion_head_ = word(cq.head);
  completion_tail_ = word(cq.tail);
  completion_mask_ = *word(cq.ring_mask);
  completions_ = reinterpret_cast<io_uring_cqe*>(rings_ + cq.cqes);
  for (unsigned index = 0; index < parameters.sq_entries; ++index) word(sq.array)[index] = index;
  queued_tail_ = submitted_tail_ = *submission_tail_;
  return true;
}

IoRing::~IoRing() {
  if (entries_ != nullptr) munmap(entries_, entries_bytes_);
  if (rings_ != nullptr) munmap(rings_, rings_bytes_);
  if (fd_ >= 0) close(fd_);
}

int IoRing::start(int file) {
  if (syscall(SYS_io_uring_register, fd_, IORING_REGISTER_ENABLE_RINGS, nullptr, 0) < 0) return errno;
  if (syscall(SYS_io_uring_register, fd_, IORING_REGISTER_FILES, &file, 1) < 0) return errno;
  // The ring's own descriptor, registered with this thread, spares a look-up per system call. A hint.
  io_uring_rsrc_update own{};
  own.offset = UINT32_MAX;
  own.data = static_cast<uint64_t>(fd_);
  bool registered = syscall(SYS_io_uring_register, fd_, IORING_REGISTER_RING_FDS, &own, 1) == 1;
  enter_fd_ = registered ? static_cast<int>(own.offset) : fd_;
  enter_flags_ = registered ? IORING_ENTER_REGISTERED_RING : 0;
  return 0;
}

io_uring_sqe& IoRing::next() {
  while (broken_ == 0 && queued_tail_ - load_acquire(submission_head_) > submission_mask_) enter(0);
  auto* entry = reinterpret_cast<io_uring_sqe*>(entries_ + (queued_tail_++ & submission_mask_) * kEntryBytes);
  std::memset(static_cast<void*>(entry), 0, kEntryBytes);
  return *entry;
}

void IoRing::poll_always(int fd, uint64_t user_data) {
  io_uring_sqe& entry = next();
  entry.opcode = IORING_OP_POLL_ADD;
  entry.fd = fd;
  entry.len = IORING_POLL_ADD_MULTI;
  entry.poll32_events = POLLIN;
  entry.user_data = user_data;
}

int IoRing::enter(int timeout_ms) {
  store_release(submission_tail_, queued_tail_);
  timespec timeout{timeout_ms / 1000, timeout_ms % 1000 * 1'000'000L};
  io_uring_getevents_arg argument{};
  if (timeout_ms > 0) argument.ts = reinterpret_cast<uint64_t>(&timeout);
  unsigned flags = enter_flags_ | IORING_ENTER_GETEVENTS | IORING_ENTER_EXT_ARG;
  long submitted = syscall(SYS_io_uring_enter, enter_fd_, queued_tail_ - submitted_tail_, timeout_ms == 0 ? 0 : 1,
                           flags, &argument, sizeof argument);
  // EAGAIN and EBUSY: the kernel is short of memory; what was not taken stays queued.
  if (submitted < 0 && errno != EINTR && errno != ETIME && errno != EAGAIN && errno != EBUSY) broken_ = errno;
  submitted_tail_ = load_acquire(submission_head_);
  return broken_;
}

bool IoRing::completion_waits() const { return load_acquire(completion_tail_) != *completion_head_; }

bool IoRing::deferred_work() const {
  return (load_acquire(submission_flags_) & (IORING_SQ_TASKRUN | IORING_SQ_CQ_OVERFLOW)) != 0;
}

bool IoRing::take(io_uring_cqe& completion) {
  unsigned head = *completion_head_;
  if (load_acquire(completion_tail_) == head) return false;
  completion = completions_[head & completion_mask_];
  store_release(completion_head_, head + 1);
  return true;
}

}  // namespace extmem
