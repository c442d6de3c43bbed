#include "base/verbs/queue_pair.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netdb.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "base/assert.h"
#include "base/protocol.h"

namespace extmem::verbs {

namespace {

/// The identity in a completion: what it was (2 bits), how many work requests it stands for, and how many transfers or
/// which buffer.
uint64_t identity_of(unsigned tag, unsigned requests, unsigned what) {
  return uint64_t{tag} | uint64_t{requests} << 2 | uint64_t{what} << 32;
}

std::string describe_errno(const char* what) { return std::string(what) + ": " + std::strerror(errno); }

void set_nonblocking(int fd) { fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK); }

/// A packet that is not acknowledged is sent again after 4.096 us * 2^16 (a device may take up to four times that),
/// eight times in all: so a lost one is made up for within an operation's deadline, and who has vanished is noticed in
/// seconds. What rdma_cm derives by itself is longer than that deadline.
constexpr uint8_t kAcknowledgeExponent = 16;

/// Of an older kernel that does not know it, rdma_cm's stands.
void set_acknowledge_timeout(const Library& library, rdma_cm_id* id) {
  uint8_t exponent = kAcknowledgeExponent;
  library.set_option(id, RDMA_OPTION_ID, RDMA_OPTION_ID_ACK_TIMEOUT, &exponent, sizeof exponent);
}

bool watch(int epoll_fd, int fd) {
  epoll_event event{.events = EPOLLIN, .data = {.fd = fd}};
  return epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event) == 0;
}

constexpr Greeting kGreeting{
    .magic = protocol::kWireMagic, .version = static_cast<uint16_t>(protocol::kProtocolVersion), .reserved = 0};

rdma_conn_param connection_parameters() {
  rdma_conn_param parameters{};
  parameters.private_data = &kGreeting;
  parameters.private_data_len = sizeof kGreeting;
  parameters.responder_resources = 16;
  parameters.initiator_depth = 16;
  parameters.retry_count = 7;      // of packets that were lost
  parameters.rnr_retry_count = 7;  // without end: credits keep it from happening, the operations' deadlines bound it
  return parameters;
}

}  // namespace

QueuePair::QueuePair(const Options& options)
    : library_(*Library::get()),
      options_(options),
      epoll_fd_(epoll_create1(EPOLL_CLOEXEC)),
      wake_fd_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
  can_wait_ = epoll_fd_ && wake_fd_ && watch(epoll_fd_.get(), wake_fd_.get());
}

QueuePair::~QueuePair() {
  end();
  registration_.reset();
  if (queue_ != nullptr) library_.destroy_cq(queue_);
  if (channel_ != nullptr) library_.destroy_comp_channel(channel_);
  domain_.reset();  // before the id: with the last one of a device that is gone goes the device's context
  if (id_ != nullptr) library_.destroy_id(id_);
  if (events_ != nullptr) library_.destroy_event_channel(events_);
}

bool QueuePair::make_channel() {
  if (!can_wait_) return false;  // no descriptors were left
  events_ = library_.create_event_channel();
  if (events_ == nullptr) return false;
  set_nonblocking(events_->fd);
  return watch(epoll_fd_.get(), events_->fd);
}

std::string QueuePair::connect(const SocketAddress& target, int timeout_ms) {
  if (!make_channel()) return describe_errno("opening rdma_cm");
  if (library_.create_id(events_, &id_, this, RDMA_PS_TCP) != 0) return describe_errno("making an rdma_cm id");
  set_acknowledge_timeout(library_, id_);
  auto* address = const_cast<sockaddr*>(target.raw());
  if (library_.resolve_addr(id_, nullptr, address, timeout_ms) != 0) return describe_errno("no RDMA device to there");
  return {};
}

std::string QueuePair::accept(rdma_cm_id* id, const rdma_conn_param& asked) {
  id_ = id;
  set_acknowledge_timeout(library_, id_);
  Greeting greeting{};
  // rdma_cm may pad what was sent.
  if (asked.private_data_len >= sizeof greeting) std::memcpy(&greeting, asked.private_data, sizeof greeting);
  std::string refusal;
  if (greeting.magic != protocol::kWireMagic) refusal = "it does not speak this protocol";
  if (refusal.empty() && (!make_channel() || library_.migrate_id(id_, events_) != 0)) {
    refusal = describe_errno("opening rdma_cm");
  }
  if (refusal.empty()) refusal = prepare();
  rdma_conn_param parameters = connection_parameters();
  // The event tells them as seen from here (rdma_get_cm_event(3)).
  parameters.responder_resources = std::min(parameters.responder_resources, asked.responder_resources);
  parameters.initiator_depth = std::min(parameters.initiator_depth, asked.initiator_depth);
  if (refusal.empty() && library_.accept(id_, &parameters) != 0) refusal = describe_errno("accepting");
  if (!refusal.empty()) library_.reject(id_, &kGreeting, sizeof kGreeting);
  return refusal;
}

std::string QueuePair::prepare() {
  domain_ = options_.choose_domain(id_->verbs);
  if (!domain_ || !make_queues()) return describe_errno("making a queue pair");
  ibv_qp_attr attributes{};
  ibv_qp_init_attr initial{};
  if (library_.query_qp(id_->qp, &attributes, IBV_QP_PATH_MTU, &initial) == 0 && attributes.path_mtu != 0) {
    path_mtu_ = 128u << attributes.path_mtu;
  }
  buffers_ = std::make_unique_for_overwrite<std::byte[]>((2 * kCredits + kSpare) * kMessageBytes);
  const std::span<std::byte> memory{buffers_.get(), (2 * kCredits + kSpare) * kMessageBytes};
  registration_ = Registration::create(
      domain_, {.memory = memory, .iova = reinterpret_cast<uint64_t>(memory.data()), .access = IBV_ACCESS_LOCAL_WRITE});
  if (!registration_) return describe_errno("registering a connection's buffers (is the memlock limit too low?)");
  for (unsigned index = 0; index < kCredits + kSpare; ++index) {
    if (!post_receive(index)) return describe_errno("posting receives");
  }
  for (unsigned index = 0; index < kCredits; ++index) {
    free_sends_[free_send_count_++] = static_cast<uint16_t>(kCredits + kSpare + index);
  }
  return arm() ? std::string() : "its completion queue cannot be armed";
}

bool QueuePair::make_queues() {
  ibv_device_attr device{};
  if (library_.query_device(id_->verbs, &device) != 0) return false;
  max_segments_ = std::clamp<unsigned>(static_cast<unsigned>(device.max_sge), 1, kWantedSegments);
  // A message, and an empty one that gives credits back (or a probe, when there is nothing else), for each credit.
  const unsigned messages = 2 * kCredits;
  const unsigned depth = std::min(options_.transfers + messages, static_cast<unsigned>(device.max_qp_wr));
  if (depth < messages) return false;
  transfer_capacity_ = std::min(options_.transfers, depth - messages);
  channel_ = library_.create_comp_channel(id_->verbs);
  if (channel_ == nullptr) return false;
  set_nonblocking(channel_->fd);
  if (!watch(epoll_fd_.get(), channel_->fd)) return false;
  const auto entries = static_cast<int>(depth + kCredits + kSpare);
  queue_ = library_.create_cq(id_->verbs, std::min(entries, device.max_cqe), nullptr, channel_, 0);
  if (queue_ == nullptr) return false;
  ibv_qp_init_attr attributes{};
  attributes.send_cq = attributes.recv_cq = queue_;
  attributes.qp_type = IBV_QPT_RC;
  attributes.cap = {.max_send_wr = depth,
                    .max_recv_wr = kCredits + kSpare,
                    .max_send_sge = max_segments_,
                    .max_recv_sge = 1,
                    .max_inline_data = kInlineBytes};
  has_pair_ = library_.create_qp(id_, domain_->raw(), &attributes) == 0;
  if (has_pair_) max_inline_ = kInlineBytes;
  attributes.cap.max_inline_data = 0;  // a device may have none
  has_pair_ = has_pair_ || library_.create_qp(id_, domain_->raw(), &attributes) == 0;
  return has_pair_;
}

// ---- events

void QueuePair::serve_events() {
  std::array<epoll_event, 4> ready;
  const int count = epoll_wait(epoll_fd_.get(), ready.data(), static_cast<int>(ready.size()), 0);
  for (int index = 0; index < count; ++index) {
    const int fd = ready[static_cast<size_t>(index)].data.fd;
    if (events_ == nullptr || fd != events_->fd || ended_) continue;
    rdma_cm_event* event = nullptr;
    while (!ended_ && library_.get_cm_event(events_, &event) == 0) {
      serve_connection_event(*event);
      library_.ack_cm_event(event);
    }
  }
  // What had been armed for is taken with the completions themselves, or was taken by an earlier poll().
  ibv_cq* queue = nullptr;
  void* context = nullptr;
  while (channel_ != nullptr && library_.get_cq_event(channel_, &queue, &context) == 0) {
    library_.ack_cq_events(queue, 1);
    armed_ = false;
  }
  poll();
}

void QueuePair::serve_connection_event(const rdma_cm_event& event) {
  switch (event.event) {
    case RDMA_CM_EVENT_ADDR_RESOLVED:
      if (library_.resolve_route(id_, 1000) != 0) fail(describe_errno("resolving the route"));
      return;
    case RDMA_CM_EVENT_ROUTE_RESOLVED: {
      std::string refusal = prepare();
      rdma_conn_param parameters = connection_parameters();
      if (refusal.empty() && library_.connect(id_, &parameters) != 0) refusal = describe_errno("connecting");
      if (!refusal.empty()) fail(std::move(refusal));
      return;
    }
    case RDMA_CM_EVENT_ESTABLISHED: {
      established_ = true;
      ibv_qp_attr attributes{};
      ibv_qp_init_attr initial{};
      if (library_.query_qp(id_->qp, &attributes, IBV_QP_PATH_MTU, &initial) == 0) {
        path_mtu_ = 128u << attributes.path_mtu;
      }
      return;
    }
    case RDMA_CM_EVENT_REJECTED:
      return fail("nobody serves verbs there");
    case RDMA_CM_EVENT_DISCONNECTED:
    case RDMA_CM_EVENT_TIMEWAIT_EXIT:
      poll();  // what arrived before it
      return fail("the other side closed the connection");
    case RDMA_CM_EVENT_ADDR_ERROR:
      return fail("no RDMA device reaches that address");
    case RDMA_CM_EVENT_ROUTE_ERROR:
    case RDMA_CM_EVENT_CONNECT_ERROR:
    case RDMA_CM_EVENT_UNREACHABLE:
      return fail("the RDMA connection could not be made (" + std::to_string(event.status) + ")");
    case RDMA_CM_EVENT_DEVICE_REMOVAL:
      return fail("the RDMA device was removed");
    default:
      return;
  }
}

bool QueuePair::poll() {
  if (queue_ == nullptr || ended_) return false;
  std::array<ibv_wc, 32> done;
  bool any = false;
  for (;;) {
    const int count = ibv_poll_cq(queue_, static_cast<int>(done.size()), done.data());
    if (count < 0) fail("the completion queue failed");
    if (count <= 0) return any;
    any = true;
    for (int index = 0; index < count; ++index) complete(done[static_cast<size_t>(index)]);
  }
}

bool QueuePair::arm() {
  if (queue_ == nullptr || armed_) return true;
  armed_ = ibv_req_notify_cq(queue_, 0) == 0;
  if (!armed_) {
    fail("the completion queue cannot be armed");
    return false;
  }
  return true;
}

void QueuePair::complete(const ibv_wc& done) {
  const auto tag = static_cast<Tag>(done.wr_id & 3);
  const auto requests = static_cast<unsigned>(done.wr_id >> 2 & 0x3fffffff);
  const auto what = static_cast<unsigned>(done.wr_id >> 32);
  if (tag == Tag::send || tag == Tag::bare) --sends_out_;
  if (tag == Tag::send) free_sends_[free_send_count_++] = static_cast<uint16_t>(what);
  if (done.status != IBV_WC_SUCCESS)
    return fail(std::string("the queue pair failed: ") + library_.wc_status_str(done.status));
  if (tag == Tag::receive && done.opcode == IBV_WC_RECV_RDMA_WITH_IMM) return take_notice(done, what);
  if (tag == Tag::receive) return take_message(done, what);
  if (tag != Tag::transfer) return;
  transfers_out_ -= requests;
  options_.listener->on_transfers_done(what);
}

/// Nothing came into the buffer.
void QueuePair::take_notice(const ibv_wc& done, unsigned buffer) {
  if (!options_.listener->on_notice(ntohl(done.imm_data))) return fail("the other side gave a notice that it may not");
  if (!post_receive(buffer)) return fail(describe_errno("posting a receive"));
  count_taken();
}

void QueuePair::take_message(const ibv_wc& done, unsigned buffer) {
  const uint32_t given = (done.wc_flags & IBV_WC_WITH_IMM) != 0 ? ntohl(done.imm_data) : 0;
  // An empty message is there to give some; so nobody can send more of them than we send messages.
  if (given > kCredits - credits_ || (given == 0 && done.byte_len == 0)) {
    return fail("the other side gave credits that it does not owe");
  }
  credits_ += given;
  if (done.byte_len == 0) {
    if (!post_receive(buffer)) fail(describe_errno("posting a receive"));
    return;
  }
  if (inbox_count_ == inbox_.size()) return fail("the other side sent more than it may");
  inbox_[(inbox_head_ + inbox_count_++) % inbox_.size()] = {.buffer = static_cast<uint16_t>(buffer),
                                                            .bytes = done.byte_len};
}

void QueuePair::fail(std::string reason) {
  if (failure_.empty()) failure_ = std::move(reason);
}

// ---- the stream

bool QueuePair::post_receive(unsigned buffer) {
  ibv_sge segment{.addr = reinterpret_cast<uint64_t>(buffer_at(buffer)),
                  .length = kMessageBytes,
                  .lkey = registration_->local_key()};
  ibv_recv_wr wr{};
  wr.wr_id = identity_of(static_cast<unsigned>(Tag::receive), 1, buffer);
  wr.sg_list = &segment;
  wr.num_sge = 1;
  ibv_recv_wr* bad = nullptr;
  return ibv_post_recv(id_->qp, &wr, &bad) == 0;
}

ssize_t QueuePair::receive(const iovec* into, size_t count) {
  ssize_t got = 0;
  for (size_t index = 0; index < count; ++index) {
    auto* to = static_cast<std::byte*>(into[index].iov_base);
    size_t room = into[index].iov_len;
    while (room > 0 && inbox_count_ > 0) {
      const Arrived& first = inbox_[inbox_head_];
      const size_t taken = std::min<size_t>(room, first.bytes - inbox_done_);
      std::memcpy(to, buffer_at(first.buffer) + inbox_done_, taken);
      to += taken;
      room -= taken;
      got += static_cast<ssize_t>(taken);
      inbox_done_ += static_cast<uint32_t>(taken);
      if (inbox_done_ == first.bytes) repost(first.buffer);
    }
  }
  if (got > 0) return got;
  if (!failure_.empty()) return 0;
  errno = EAGAIN;
  return -1;
}

void QueuePair::repost(unsigned buffer) {
  inbox_head_ = static_cast<unsigned>((inbox_head_ + 1) % inbox_.size());
  --inbox_count_;
  inbox_done_ = 0;
  if (ended_ || !failure_.empty()) return;
  if (!post_receive(buffer)) return fail(describe_errno("posting a receive"));
  count_taken();
}

void QueuePair::count_taken() {
  if (++taken_ >= kCredits / 2) give_credits_back();
}

void QueuePair::give_credits_back() {
  if (sends_out_ >= 2 * kCredits) return;  // told with the next
  ibv_send_wr wr{};
  wr.wr_id = identity_of(static_cast<unsigned>(Tag::bare), 1, 0);
  wr.opcode = IBV_WR_SEND_WITH_IMM;
  wr.send_flags = IBV_SEND_SIGNALED;
  wr.imm_data = htonl(std::exchange(taken_, 0u));
  if (post_send(wr)) ++sends_out_;
}

ssize_t QueuePair::send(const iovec* from, size_t count) {
  if (ended_ || !failure_.empty()) {
    errno = EPIPE;
    return -1;
  }
  ssize_t sent = 0;
  size_t index = 0, begin = 0;
  while (index < count && credits_ > 0 && free_send_count_ > 0 && sends_out_ < 2 * kCredits) {
    const unsigned buffer = free_sends_[free_send_count_ - 1];
    size_t filled = 0;
    while (index < count && filled < kMessageBytes) {
      const size_t taken = std::min(kMessageBytes - filled, from[index].iov_len - begin);
      std::memcpy(buffer_at(buffer) + filled, static_cast<std::byte*>(from[index].iov_base) + begin, taken);
      filled += taken;
      begin += taken;
      if (begin < from[index].iov_len) continue;
      ++index;
      begin = 0;
    }
    if (filled == 0) break;
    if (!post_message(buffer, static_cast<uint32_t>(filled))) break;
    sent += static_cast<ssize_t>(filled);
  }
  if (sent > 0 || index == count) return sent;
  errno = failure_.empty() ? EAGAIN : EPIPE;
  return -1;
}

bool QueuePair::post_message(unsigned buffer, uint32_t bytes) {
  ibv_sge segment{
      .addr = reinterpret_cast<uint64_t>(buffer_at(buffer)), .length = bytes, .lkey = registration_->local_key()};
  ibv_send_wr wr{};
  wr.wr_id = identity_of(static_cast<unsigned>(Tag::send), 1, buffer);
  wr.sg_list = &segment;
  wr.num_sge = 1;
  wr.opcode = IBV_WR_SEND_WITH_IMM;
  wr.send_flags = IBV_SEND_SIGNALED;
  if (bytes <= max_inline_) wr.send_flags |= IBV_SEND_INLINE;
  wr.imm_data = htonl(std::exchange(taken_, 0u));
  if (!post_send(wr)) return false;
  --free_send_count_;
  --credits_;
  ++sends_out_;
  return true;
}

bool QueuePair::post_send(ibv_send_wr& wr) {
  ibv_send_wr* bad = nullptr;
  if (ibv_post_send(id_->qp, &wr, &bad) == 0) return true;
  fail(describe_errno("posting to the queue pair"));
  return false;
}

bool QueuePair::post_transfers(ibv_send_wr& first, unsigned& signalled) {
  unsigned requests = 0, notices = 0, untold = 0, transfers = 0;
  signalled = 0;
  for (ibv_send_wr* request = &first; request != nullptr; request = request->next) {
    ++requests;
    ++untold;
    if (request->opcode == IBV_WR_RDMA_WRITE_WITH_IMM) ++notices;
    const bool ends = request->wr_id == kEndsTransfer;
    if (ends) ++transfers;
    const bool tells =
        ends && (request->opcode == IBV_WR_RDMA_READ || request->next == nullptr || transfers == kSignalEvery);
    request->wr_id = identity_of(static_cast<unsigned>(Tag::transfer), tells ? untold : 0, tells ? transfers : 0);
    if (!tells) continue;
    request->send_flags |= IBV_SEND_SIGNALED;
    untold = transfers = 0;
    ++signalled;
  }
  EXTMEM_ASSERT(untold == 0 && requests <= transfer_room() && notices <= credits_);
  if (ended_ || !failure_.empty() || !post_send(first)) return false;
  transfers_out_ += requests;
  credits_ -= notices;
  return true;
}

void QueuePair::probe() {
  if (ended_ || !established_ || !failure_.empty() || sends_out_ > 0) return;
  // Of no bytes, so that it needs neither memory nor a key, and none of the other side's code runs.
  ibv_send_wr wr{};
  wr.wr_id = identity_of(static_cast<unsigned>(Tag::bare), 1, 0);
  wr.opcode = IBV_WR_RDMA_WRITE;
  wr.send_flags = IBV_SEND_SIGNALED;
  if (post_send(wr)) ++sends_out_;
}

std::string QueuePair::describe_peer() const { return describe(rdma_get_peer_addr(id_)); }

std::string QueuePair::describe_local() const { return describe(rdma_get_local_addr(id_)); }

std::string QueuePair::describe(const sockaddr* address) {
  std::array<char, NI_MAXHOST> name{};
  const socklen_t bytes = address->sa_family == AF_INET6 ? sizeof(sockaddr_in6) : sizeof(sockaddr_in);
  const bool known = getnameinfo(address, bytes, name.data(), name.size(), nullptr, 0, NI_NUMERICHOST) == 0;
  return known ? name.data() : "unknown";
}

void QueuePair::end() {
  if (std::exchange(ended_, true)) return;
  fail("the connection was ended");
  if (has_pair_) {
    library_.disconnect(id_);  // tells the other side
    library_.destroy_qp(id_);
    has_pair_ = false;
  }
  uint64_t one = 1;
  [[maybe_unused]] auto written = write(wake_fd_.get(), &one, sizeof one);
}

}  // namespace extmem::verbs
