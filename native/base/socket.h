// Descriptors and sockets of the data plane: owned descriptors, numeric addresses, the options that both ends set.
#pragma once

#include <sys/socket.h>

#include <cstdint>
#include <optional>
#include <string>
#include <utility>

namespace extmem {

class UniqueFd {
 public:
  UniqueFd() = default;
  explicit UniqueFd(int fd) : fd_(fd) {}
  UniqueFd(UniqueFd&& other) noexcept : fd_(other.release()) {}
  UniqueFd& operator=(UniqueFd&& other) noexcept {
    if (this != &other) reset(other.release());
    return *this;
  }
  ~UniqueFd() { reset(); }

  int get() const { return fd_; }
  explicit operator bool() const { return fd_ >= 0; }
  int release() { return std::exchange(fd_, -1); }
  void reset(int fd = -1);

 private:
  int fd_ = -1;
};

struct SocketAddress {
  sockaddr_storage storage{};
  socklen_t bytes = 0;
  const sockaddr* raw() const { return reinterpret_cast<const sockaddr*>(&storage); }
};

/// Numeric IPv4 or IPv6 only: names are resolved by whoever configures us, never on the data path.
std::optional<SocketAddress> parse_tcp_address(const std::string& address, uint16_t port);
/// Abstract, so that it is bound to the network namespace and leaves no file behind. The name without its leading NUL.
std::optional<SocketAddress> make_abstract_address(const std::string& name);
/// "10.0.0.7" or "unix:uid=1000": who is there, without the port, so that refusals can be told once per peer.
std::string describe_peer(int fd);
/// The address that this end of a network socket has; empty: it has none.
std::string describe_local(int fd);

/// What the kernel waits for an acknowledgement, of data or of a keep-alive, before it calls a connection dead: with
/// what keep-alive adds, below the 3 s in which a cut must be noticed.
constexpr unsigned kTcpUserTimeoutMs = 2000;
/// No delay, keep-alive, and a bound on how long sent bytes may go unacknowledged (0: none).
void set_tcp_options(int fd, unsigned user_timeout_ms);
/// Closing is to drop what has not been sent: it may be an operation that was given up.
void drop_unsent_on_close(int fd);

}  // namespace extmem
