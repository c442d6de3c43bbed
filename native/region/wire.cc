#include "region/wire.h"

#include <sys/socket.h>

namespace extmem::region {

ssize_t SocketWire::receive(std::span<uint8_t> into) { return recv(fd_.get(), into.data(), into.size(), MSG_DONTWAIT); }

ssize_t SocketWire::send(std::span<const uint8_t> data, bool more_follows) {
  return ::send(fd_.get(), data.data(), data.size(), MSG_NOSIGNAL | MSG_DONTWAIT | (more_follows ? MSG_MORE : 0));
}

void SocketWire::cut(std::span<const uint8_t> last_words) {
  if (!last_words.empty()) send(last_words, false);
  shutdown(fd_.get(), SHUT_RDWR);
}

std::unique_ptr<Wire> SocketAcceptor::accept() {
  UniqueFd fd(accept4(fd_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
  if (!fd) return nullptr;
  if (tcp_) set_tcp_options(fd.get(), kTcpUserTimeoutMs);
  return std::make_unique<SocketWire>(std::move(fd));
}

}  // namespace extmem::region
