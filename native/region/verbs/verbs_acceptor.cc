#include "region/verbs/verbs_acceptor.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>

#include "region/verbs/verbs_wire.h"

namespace extmem::region {

namespace {
constexpr int kVerbsBacklog = 64;
/// At a time: whoever asks for nothing of use is not to keep those who are served waiting.
constexpr int kMaxEvents = 16;

/// rdma_cm takes a loopback address for any device's, though nobody reaches that device by it.
bool is_loopback(const SocketAddress& address) {
  if (address.storage.ss_family == AF_INET6) {
    return IN6_IS_ADDR_LOOPBACK(&reinterpret_cast<const sockaddr_in6*>(&address.storage)->sin6_addr);
  }
  return ntohl(reinterpret_cast<const sockaddr_in*>(&address.storage)->sin_addr.s_addr) >> 24 == IN_LOOPBACKNET;
}

}  // namespace

std::unique_ptr<VerbsAcceptor> VerbsAcceptor::create(const SocketAddress& address) {
  if (!verbs::Library::has_device() || is_loopback(address)) return nullptr;
  std::unique_ptr<VerbsAcceptor> acceptor(new VerbsAcceptor(*verbs::Library::get()));
  const verbs::Library& library = acceptor->library_;
  acceptor->events_ = library.create_event_channel();
  if (acceptor->events_ == nullptr) return nullptr;
  fcntl(acceptor->events_->fd, F_SETFL, fcntl(acceptor->events_->fd, F_GETFL) | O_NONBLOCK);
  const bool listens = library.create_id(acceptor->events_, &acceptor->id_, nullptr, RDMA_PS_TCP) == 0 &&
                       library.bind_addr(acceptor->id_, const_cast<sockaddr*>(address.raw())) == 0 &&
                       library.listen(acceptor->id_, kVerbsBacklog) == 0;
  return listens ? std::move(acceptor) : nullptr;
}

VerbsAcceptor::~VerbsAcceptor() {
  if (id_ != nullptr) library_.destroy_id(id_);
  if (events_ != nullptr) library_.destroy_event_channel(events_);
}

std::unique_ptr<Wire> VerbsAcceptor::accept() {
  rdma_cm_event* event = nullptr;
  for (int turn = 0; turn < kMaxEvents; ++turn) {
    if (library_.get_cm_event(events_, &event) != 0) return nullptr;
    if (event->event != RDMA_CM_EVENT_CONNECT_REQUEST) {
      library_.ack_cm_event(event);
      continue;
    }
    rdma_cm_id* const id = event->id;
    rdma_conn_param asked = event->param.conn;
    std::array<uint8_t, sizeof(verbs::Greeting)> greeting{};
    asked.private_data_len = std::min(asked.private_data_len, static_cast<uint8_t>(greeting.size()));
    std::memcpy(greeting.data(), asked.private_data, asked.private_data_len);
    asked.private_data = greeting.data();
    library_.ack_cm_event(event);  // before the id moves to a channel of its own, which waits for that
    auto wire = std::make_unique<VerbsWire>();
    if (wire->accept(id, asked).empty()) return wire;
  }
  errno = EAGAIN;  // what is left keeps it ready
  return nullptr;
}

}  // namespace extmem::region
