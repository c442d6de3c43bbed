#include "fabric/sim/sim_connection.h"

namespace extmem::fabric {

SimConnection::~SimConnection() { close(); }

void SimConnection::open(sim::Network& network, const Target& target, uint64_t deadline_ns) {
  earliest_deadline_ns_ = deadline_ns;
  stream_ = network.connect(target.from, target.address, *this);
}

void SimConnection::on_connected(bool accepted) {
  if (!accepted) return lose(Status::unreachable, "connecting failed: nobody listens there");
  begin_handshake();
}

bool SimConnection::on_input() {
  if (state_ == State::connecting) {
    lose(Status::unreachable, "the connection ended before it was there");
  } else {
    on_ready(EPOLLIN);
  }
  return true;
}

void SimConnection::on_room() { on_ready(EPOLLOUT); }

ssize_t SimConnection::send_message(msghdr& message) { return stream_->send({message.msg_iov, message.msg_iovlen}); }

ssize_t SimConnection::receive_message(msghdr& message) {
  return stream_->receive({message.msg_iov, message.msg_iovlen});
}

/// What is on its way arrives, however late: whoever gives an operation up must fence it.
void SimConnection::end_stream() {
  if (stream_) stream_->close();
}

}  // namespace extmem::fabric
