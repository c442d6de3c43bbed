#include "fabric/shm/shm_connection.h"

#include <fcntl.h>
#include <limits.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "base/clock.h"

namespace extmem::fabric {

namespace {

/// Operations run without a turn of the reactor between them when one coroutine does many: so long may pass until it is
/// looked whether the appliance still lives.
constexpr uint64_t kLookNs = 1'000'000;
/// A region that is not lent may be later: it was not all in memory.
constexpr uint64_t kAskAgainNs = 1'000'000'000;
constexpr size_t kMaxReceived = 16;
/// Bits of Operation::wire_id: its descriptor was asked for anew; memory for it was asked for.
constexpr uint64_t kAskedAgain = 1;
constexpr uint64_t kPopulated = 2;
/// A write of so much is likely to go on: memory is taken for what follows too.
constexpr uint32_t kStreamBytes = 256 * 1024;
constexpr uint64_t kStreamStepBytes = 2 * 1024 * 1024;
constexpr uint64_t kSmallStepBytes = 64 * 1024;
static_assert(protocol::kMaxIoBytes <= kStreamStepBytes && 2 * kStreamStepBytes <= protocol::kMaxPopulateBytes);

/// struct cachestat of <linux/mman.h>, which Debian 12's headers do not have.
struct CacheStat {
  uint64_t cached, dirty, writeback, evicted, recently_evicted;
};
struct CacheStatRange {
  uint64_t offset, bytes;
};
constexpr long kSysCachestat = 451;

/// Exchanges what a number refers to; the kernel does it atomically for threads that are using it. The raw system
/// call, because thread sanitizer takes the exchange for a close.
void exchange_descriptor(int with, int number) { syscall(SYS_dup3, with, number, O_CLOEXEC); }

/// Fails every read and write with EBADF.
int hollow_descriptor() {
  static const int fd = open("/", O_PATH | O_CLOEXEC);
  return fd;
}

}  // namespace

ShmConnection::~ShmConnection() = default;

std::string ShmConnection::open(const std::string& link_name, uint64_t deadline_ns) {
  auto address = make_abstract_address(link_name);
  if (!address) return "the appliance has no link for shared memory";
  UniqueFd fd(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd) return std::string("making a socket: ") + std::strerror(errno);
  if (connect(fd.get(), address->raw(), address->bytes) != 0) {
    return "connecting to the link " + link_name + ": " + std::strerror(errno);
  }
  start(std::move(fd), true, deadline_ns);
  return {};
}

void ShmConnection::submit(Operation& operation, uint64_t attempt_deadline_ns) {
  const bool direct = (operation.op == Op::read || operation.op == Op::write) && operation.bytes > 0 &&
                      operation.segment_count <= IOV_MAX;
  if (!direct || hung_up(operation.started_ns)) return WireConnection::submit(operation, attempt_deadline_ns);
  Region& region = *operation.region;
  const int fd = region.shm_fd.load(std::memory_order_acquire);
  if (fd >= 0 && lacks_memory(operation, fd)) return populate_first(operation, attempt_deadline_ns);
  if (fd >= 0 && transfer(operation)) return owner_.finish(operation, Status::ok);
  // The region moved, was freed, is out of range, or has not been lent to us yet.
  Attachment& attachment = attachments_[&region];
  if (operation.started_ns < attachment.socket_until_ns || (operation.wire_id & kAskedAgain) != 0) {
    return WireConnection::submit(operation, attempt_deadline_ns);
  }
  operation.wire_id |= kAskedAgain;
  attachment.parked.push(operation);
  if (attachment.fetching) return hasten_descriptor(region, attempt_deadline_ns);
  attachment.fetching = true;
  request_descriptor(region, attempt_deadline_ns);
}

/// Memory that a write takes is charged to who writes, and would be our memory cgroup's: only the appliance knows what
/// it may give. Kernels before 6.5 cannot tell, and charge us.
bool ShmConnection::lacks_memory(const Operation& operation, int fd) {
  if (operation.op != Op::write || (operation.wire_id & kPopulated) != 0) return false;
  const uint64_t first = operation.offset / protocol::kPageBytes;
  const uint64_t end = (operation.offset + operation.bytes - 1) / protocol::kPageBytes + 1;
  CacheStatRange range{first * protocol::kPageBytes, (end - first) * protocol::kPageBytes};
  CacheStat found{};
  if (syscall(kSysCachestat, fd, &range, &found, 0) != 0) return false;
  return found.cached + found.evicted < end - first;
}

void ShmConnection::populate_first(Operation& operation, uint64_t attempt_deadline_ns) {
  Region& region = *operation.region;
  const uint64_t step = operation.bytes >= kStreamBytes ? kStreamStepBytes : kSmallStepBytes;
  const uint64_t begin = operation.offset / step * step;
  const uint64_t wanted = (operation.offset + operation.bytes + step - 1) / step * step;
  const uint64_t end = std::min(wanted, region.end());
  operation.wire_id |= kPopulated;
  attachments_[&region].populating.push(operation);
  request_memory(region, begin, end - begin, attempt_deadline_ns);
}

void ShmConnection::on_populate_reply(Region& region) {
  // Whatever the answer was: without memory the write itself is told why.
  owner_.resubmit(attachments_[&region].populating.pop());
}

/// A page is replaced as a whole by pwrite, and a cut memfd reads short instead of raising SIGBUS.
bool ShmConnection::transfer(Operation& operation) {
  Region& region = *operation.region;
  const uint64_t end = region.end();
  // Checked here too: a write across the end would otherwise be done in part.
  if (operation.offset > end || operation.bytes > end - operation.offset) return false;
  const int fd = region.shm_fd.load(std::memory_order_acquire);
  const auto count = static_cast<int>(operation.segment_count);
  const auto offset = static_cast<off_t>(operation.offset);
  // Before the store for whoever looks if we die, after it for whoever has looked in between.
  WrittenMap* map = operation.op == Op::write ? region.written.load(std::memory_order_acquire) : nullptr;
  if (map != nullptr) map->mark(operation.offset, operation.bytes);
  ssize_t done;
  do {
    done = operation.op == Op::read ? preadv(fd, operation.segments, count, offset)
                                    : pwritev(fd, operation.segments, count, offset);
  } while (done < 0 && errno == EINTR);
  if (map != nullptr) map->mark(operation.offset, operation.bytes);
  return done == static_cast<ssize_t>(operation.bytes);
}

/// The orphaned memfd of a dead appliance would go on serving, so the socket is looked at as well.
bool ShmConnection::hung_up(uint64_t now) {
  if (now < looked_ns_ + kLookNs) return false;
  looked_ns_ = now;
  char byte;
  ssize_t got = recv(fd_.get(), &byte, 1, MSG_PEEK | MSG_DONTWAIT);
  if (got > 0 || (got < 0 && errno == EAGAIN)) return false;
  sever("the appliance hung up");
  return true;
}

ssize_t ShmConnection::receive_message(msghdr& message) {
  alignas(cmsghdr) std::array<uint8_t, CMSG_SPACE(sizeof(int) * 4)> control;
  message.msg_control = control.data();
  message.msg_controllen = control.size();
  ssize_t got = recvmsg(fd_.get(), &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
  if (got <= 0) return got;
  for (cmsghdr* part = CMSG_FIRSTHDR(&message); part != nullptr; part = CMSG_NXTHDR(&message, part)) {
    if (part->cmsg_level != SOL_SOCKET || part->cmsg_type != SCM_RIGHTS) continue;
    const size_t count = (part->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (size_t index = 0; index < count; ++index) {
      int fd;
      std::memcpy(&fd, CMSG_DATA(part) + index * sizeof fd, sizeof fd);
      UniqueFd taken(fd);
      if (received_.size() < kMaxReceived) received_.push_back(std::move(taken));
    }
  }
  return got;
}

UniqueFd ShmConnection::take_received() {
  if (received_.empty()) return {};
  UniqueFd fd = std::move(received_.front());
  received_.erase(received_.begin());
  return fd;
}

void ShmConnection::on_descriptor_reply(Region& region, const protocol::ReplyHeader& reply) {
  Attachment& attachment = attachments_[&region];
  attachment.fetching = false;
  const auto status = static_cast<Status>(reply.status);
  UniqueFd fd, map;
  if (status == Status::ok) fd = take_received();
  if (status == Status::ok && reply.value > 1) map = take_received();
  struct stat found {};
  const bool usable = fd && fstat(fd.get(), &found) == 0 && S_ISREG(found.st_mode);
  // With the right to write comes the map; what cannot be marked there is not stored past the appliance.
  if (usable && (reply.value == 1 || install_map(region, std::move(map)))) {
    install(region, std::move(fd));
  } else if (status == Status::denied || usable) {  // not `forbidden`: that may be allowed by the next time
    // Thin, not all there, or we are not trusted with descriptors.
    attachment.socket_until_ns = monotonic_ns() + kAskAgainNs;
    hollow_out(region);  // what we had is of no use, nor a reason to ask for memory
  }
  OperationList parked = attachment.parked.take();
  while (!parked.empty()) {
    Operation& operation = parked.pop();
    const int lent = region.shm_fd.load(std::memory_order_acquire);
    if (state_ == State::ready && lent >= 0 && !lacks_memory(operation, lent) && transfer(operation)) {
      owner_.finish(operation, Status::ok);
    } else {
      owner_.resubmit(operation);
    }
  }
}

void ShmConnection::install(Region& region, UniqueFd fd) {
  int number = -1;
  if (region.shm_fd.compare_exchange_strong(number, fd.get(), std::memory_order_acq_rel)) {
    fd.release();  // the region's from now on; the Directory closes it
    return;
  }
  exchange_descriptor(fd.get(), number);
}

bool ShmConnection::install_map(Region& region, UniqueFd fd) {
  std::lock_guard guard(region.appliance->lock);
  if (!region.written_maps.empty() && region.written_maps.back()->is_of(fd.get())) return true;
  auto map = WrittenMap::open(std::move(fd));
  if (!map) return false;
  region.written.store(map.get(), std::memory_order_release);
  region.written_maps.push_back(std::move(map));
  return true;
}

void ShmConnection::hollow_out(Region& region) {
  const int number = region.shm_fd.load(std::memory_order_acquire);
  if (number >= 0) exchange_descriptor(hollow_descriptor(), number);
}

void ShmConnection::disown() {
  for (auto& [region, attachment] : attachments_) hollow_out(*region);
}

}  // namespace extmem::fabric
