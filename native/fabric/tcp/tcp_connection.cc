#include "fabric/tcp/tcp_connection.h"

#include <sys/socket.h>

#include <cerrno>
#include <cstring>

namespace extmem::fabric {

std::string TcpConnection::open(const Target& target, uint64_t deadline_ns) {
  auto address = parse_tcp_address(target.address, target.port);
  if (!address) return "connecting to " + target.address + ": not a numeric address";
  UniqueFd fd(socket(address->storage.ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd) return std::string("making a socket: ") + std::strerror(errno);
  set_tcp_options(fd.get(), kTcpUserTimeoutMs);
  const bool connected = connect(fd.get(), address->raw(), address->bytes) == 0;
  if (!connected && errno != EINPROGRESS) {
    return "connecting to " + target.address + " port " + std::to_string(target.port) + ": " + std::strerror(errno);
  }
  start(std::move(fd), connected, deadline_ns);
  return {};
}

}  // namespace extmem::fabric
