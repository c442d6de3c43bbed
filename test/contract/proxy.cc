#include "contract/proxy.h"

#include <netinet/in.h>
#include <poll.h>
#include <unistd.h>

#include <array>

#include "base/assert.h"
#include "contract/appliance_process.h"

namespace extmem::contract {

struct Proxy::Link {
  UniqueFd client, server;
  bool held = false;  // under Proxy::lock_
  bool held_as_new = false;
  std::atomic<bool> lost{false};
  std::thread forth, back;
};

namespace {
constexpr int kPollMs = 20;
}

Proxy::Proxy(uint16_t target_port) : target_port_(target_port) {
  auto address = parse_tcp_address(host_address(), 0);
  listener_.reset(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  EXTMEM_ASSERT(bind(listener_.get(), address->raw(), address->bytes) == 0 && listen(listener_.get(), 64) == 0);
  sockaddr_in bound{};
  socklen_t bytes = sizeof bound;
  getsockname(listener_.get(), reinterpret_cast<sockaddr*>(&bound), &bytes);
  port_ = ntohs(bound.sin_port);
  acceptor_ = std::thread([this] { accept_all(); });
}

Proxy::~Proxy() {
  stopping_ = true;
  let_go();
  acceptor_.join();
  for (auto& link : links_) {
    shutdown(link->client.get(), SHUT_RDWR);
    shutdown(link->server.get(), SHUT_RDWR);
    link->forth.join();
    link->back.join();
  }
}

void Proxy::hold() {
  std::lock_guard guard(lock_);
  for (auto& link : links_) link->held = true;
}

void Proxy::hold_new() {
  std::lock_guard guard(lock_);
  holding_new_ = true;
}

void Proxy::let_new_go() {
  std::lock_guard guard(lock_);
  holding_new_ = false;
  for (auto& link : links_) link->held &= !link->held_as_new;
  changed_.notify_all();
}

void Proxy::mend() {
  std::lock_guard guard(lock_);
  for (auto& link : links_) link->lost = true;
  black_hole_ = false;
}

void Proxy::let_go() {
  std::lock_guard guard(lock_);
  holding_new_ = false;
  for (auto& link : links_) link->held = false;
  changed_.notify_all();
}

void Proxy::accept_all() {
  while (!stopping_) {
    pollfd waiting{.fd = listener_.get(), .events = POLLIN, .revents = 0};
    if (poll(&waiting, 1, kPollMs) <= 0) continue;
    auto link = std::make_unique<Link>();
    link->client.reset(accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC));
    link->server.reset(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    auto address = parse_tcp_address(host_address(), target_port_);
    if (connect(link->server.get(), address->raw(), address->bytes) != 0) continue;
    set_tcp_options(link->client.get(), 0);
    set_tcp_options(link->server.get(), 0);
    Link& kept = *link;
    std::lock_guard guard(lock_);
    kept.held = kept.held_as_new = holding_new_;
    kept.forth = std::thread([this, &kept] { forward(kept, kept.client.get(), kept.server.get(), true); });
    kept.back = std::thread([this, &kept] { forward(kept, kept.server.get(), kept.client.get(), false); });
    links_.push_back(std::move(link));
  }
}

void Proxy::forward(Link& link, int from, int to, bool from_client) {
  std::array<char, 65536> buffer;
  for (;;) {
    ssize_t got = recv(from, buffer.data(), buffer.size(), 0);
    if (black_hole_ || link.lost) {
      if (got <= 0) return;
      continue;
    }
    if (from_client) {
      std::unique_lock guard(lock_);
      changed_.wait(guard, [&] { return !link.held || stopping_; });
    }
    if (got <= 0) {
      shutdown(to, SHUT_WR);
      return;
    }
    for (ssize_t sent = 0; sent < got;) {
      ssize_t put = send(to, buffer.data() + sent, static_cast<size_t>(got - sent), MSG_NOSIGNAL);
      if (put <= 0) return;
      sent += put;
    }
  }
}

}  // namespace extmem::contract
