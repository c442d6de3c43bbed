#include "fabric/sim/network.h"

#include <algorithm>
#include <cerrno>

#include "base/assert.h"
#include "base/clock.h"

namespace extmem::fabric::sim {

namespace {

/// How often what could not get through is sent again.
constexpr uint64_t kRetransmitNs = 200 * kMillisecond;

}  // namespace

Stream::Stream(Network& network, HostId host, HostId peer_host, size_t window_bytes)
    : network_(network), host_(host), peer_host_(peer_host), window_bytes_(window_bytes) {}

void Stream::set_user(StreamUser* user) {
  user_ = user;
  if (user != nullptr && readable()) announce();
}

ssize_t Stream::send(std::span<const iovec> segments) {
  if (closed_ || reset_) {
    errno = EPIPE;
    return -1;
  }
  if (unread_bytes_ >= window_bytes_) {
    wants_room_ = true;
    errno = EAGAIN;
    return -1;
  }
  size_t room = window_bytes_ - unread_bytes_;
  std::vector<uint8_t> bytes;
  for (const iovec& segment : segments) {
    const size_t taken = std::min(room, segment.iov_len);
    const auto* data = static_cast<const uint8_t*>(segment.iov_base);
    bytes.insert(bytes.end(), data, data + taken);
    room -= taken;
  }
  const auto sent = static_cast<ssize_t>(bytes.size());
  unread_bytes_ += bytes.size();
  if (sent > 0) transmit(std::move(bytes));
  return sent;
}

ssize_t Stream::receive(std::span<const iovec> segments) {
  if (input_.empty() && ended_) return 0;
  if (input_.empty()) {
    errno = reset_ ? ECONNRESET : EAGAIN;
    return -1;
  }
  size_t got = 0;
  for (const iovec& segment : segments) {
    const size_t taken = std::min(segment.iov_len, input_.size());
    const auto end = input_.begin() + static_cast<ptrdiff_t>(taken);
    std::copy(input_.begin(), end, static_cast<uint8_t*>(segment.iov_base));
    input_.erase(input_.begin(), end);
    got += taken;
  }
  if (auto peer = peer_.lock()) peer->freed(got);
  return static_cast<ssize_t>(got);
}

void Stream::freed(size_t bytes) {
  unread_bytes_ -= bytes;
  if (!std::exchange(wants_room_, false)) return;
  network_.world().after(0, [self = shared_from_this()] {
    if (self->user_ != nullptr) self->user_->on_room();
  });
}

void Stream::close() {
  if (std::exchange(closed_, true)) return;
  user_ = nullptr;
  transmit({});
}

void Stream::transmit(std::vector<uint8_t> bytes) {
  uint64_t due = network_.arrival_ns(host_, peer_host_);
  if (!flight_.empty()) due = std::max(due, flight_.back().due_ns);
  flight_.push_back({.due_ns = due, .bytes = std::move(bytes)});
  if (!pumping_) pump();
}

/// What is due arrives; for what is not, or cannot get through now, it comes again.
void Stream::pump() {
  World& world = network_.world();
  while (!flight_.empty() && flight_.front().due_ns <= world.now_ns() && !network_.is_cut(host_, peer_host_)) {
    auto bytes = std::move(flight_.front().bytes);
    flight_.pop_front();
    const auto peer = peer_.lock();
    if (peer && !peer->closed_ && !peer->reset_) {
      peer->deliver(std::move(bytes));
    } else if (!closed_) {
      bounce();
    }
  }
  pumping_ = !flight_.empty();
  if (!pumping_) return;
  const bool is_late = flight_.front().due_ns <= world.now_ns();
  world.at(is_late ? world.now_ns() + kRetransmitNs : flight_.front().due_ns,
           [self = shared_from_this()] { self->pump(); });
}

void Stream::deliver(std::vector<uint8_t> bytes) {
  if (bytes.empty()) ended_ = true;
  input_.insert(input_.end(), bytes.begin(), bytes.end());
  announce();
}

/// Nobody has the other end any more: its host says so, if it can.
void Stream::bounce() {
  const bool answers = network_.hosts_[peer_host_].state != Network::Host::State::silent;
  if (!answers || network_.is_cut(peer_host_, host_)) return;
  network_.world().at(network_.arrival_ns(peer_host_, host_), [self = shared_from_this()] { self->take_reset(); });
}

void Stream::take_reset() {
  if (closed_) return;
  reset_ = true;
  announce();
}

void Stream::announce() {
  if (user_ == nullptr || std::exchange(announced_, true)) return;
  network_.world().after(0, [self = shared_from_this()] {
    self->announced_ = false;
    if (self->user_ == nullptr || !self->readable()) return;
    const bool again = self->user_->on_input();
    if (again && self->readable()) self->announce();
  });
}

HostId Network::add_host(const std::string& address) {
  hosts_.push_back({});
  hosts_.back().address = address;
  return static_cast<HostId>(hosts_.size() - 1);
}

uint64_t Network::arrival_ns(HostId from, HostId to) {
  uint64_t takes = weather_.least_ns + world_.below(weather_.spread_ns);
  if (auto slow = slow_.find({from, to}); slow != slow_.end()) takes += world_.below(slow->second);
  if (auto once = delays_.extract({from, to})) takes += once.mapped();
  return world_.now_ns() + takes;
}

std::shared_ptr<Stream> Network::make_stream(HostId host, HostId peer) {
  auto stream =
      std::make_shared<Stream>(*this, host, peer, world_.between(weather_.least_window, weather_.most_window));
  auto& streams = hosts_[host].streams;
  std::erase_if(streams, [](auto& one) { return one.expired(); });
  streams.push_back(stream);
  return stream;
}

std::shared_ptr<Stream> Network::connect(HostId from, const std::string& address, StreamUser& user) {
  const auto found = std::find_if(hosts_.begin(), hosts_.end(), [&](auto& host) { return host.address == address; });
  EXTMEM_ASSERT(found != hosts_.end());
  const auto to = static_cast<HostId>(found - hosts_.begin());
  auto asking = make_stream(from, to);
  asking->user_ = &user;
  world_.at(arrival_ns(from, to), [this, from, to, asking] { accept(from, to, asking); });
  return asking;
}

void Network::accept(HostId from, HostId to, std::shared_ptr<Stream> asking) {
  if (asking->closed_) return;
  const Host& host = hosts_[to];
  if (is_cut(from, to) || is_cut(to, from) || host.state == Host::State::silent) {
    world_.after(kRetransmitNs, [this, from, to, asking] { accept(from, to, asking); });
    return;
  }
  const bool accepted = host.state == Host::State::up && host.accept;
  if (accepted) {
    auto taken = make_stream(to, from);
    taken->peer_ = asking;
    asking->peer_ = taken;
    host.accept(taken);
  }
  world_.at(arrival_ns(to, from), [asking, accepted] {
    if (asking->user_ != nullptr) asking->user_->on_connected(accepted);
  });
}

void Network::send_message(HostId from, HostId to, std::function<void()> deliver) {
  Channel& channel = channels_[{from, to}];
  uint64_t due = arrival_ns(from, to);
  if (!channel.flight.empty()) due = std::max(due, channel.flight.back().due_ns);
  channel.flight.push_back({.due_ns = due, .life = hosts_[to].life, .deliver = std::move(deliver)});
  if (!channel.pumping) pump({from, to});
}

void Network::pump(Way way) {
  Channel& channel = channels_[way];
  while (!channel.flight.empty() && channel.flight.front().due_ns <= world_.now_ns() && !cuts_.contains(way)) {
    Message message = std::move(channel.flight.front());
    channel.flight.pop_front();
    const Host& host = hosts_[way.second];
    if (host.state == Host::State::up && host.life == message.life) message.deliver();
  }
  channel.pumping = !channel.flight.empty();
  if (!channel.pumping) return;
  const bool is_late = channel.flight.front().due_ns <= world_.now_ns();
  world_.at(is_late ? world_.now_ns() + kRetransmitNs : channel.flight.front().due_ns, [this, way] { pump(way); });
}

void Network::cut(HostId from, HostId to, bool is_cut) {
  if (is_cut) {
    cuts_.insert({from, to});
  } else {
    cuts_.erase({from, to});
  }
}

void Network::slow(HostId from, HostId to, uint64_t extra_ns) {
  if (extra_ns > 0) {
    slow_[{from, to}] = extra_ns;
  } else {
    slow_.erase({from, to});
  }
}

void Network::reset_streams(HostId one, HostId other) {
  for (auto [host, peer] : {Way{one, other}, Way{other, one}}) {
    for (auto& weak : hosts_[host].streams) {
      auto stream = weak.lock();
      if (stream && stream->peer_host_ == peer) stream->take_reset();
    }
  }
}

void Network::stop_host(HostId id, bool silently) {
  Host& host = hosts_[id];
  host.state = silently ? Host::State::silent : Host::State::no_program;
  ++host.life;
  for (auto& weak : host.streams) {
    auto stream = weak.lock();
    if (!stream) continue;
    stream->user_ = nullptr;
    if (silently) {
      stream->closed_ = true;  // without telling anybody
    } else {
      stream->close();
    }
  }
}

void Network::heal() {
  cuts_.clear();
  slow_.clear();
  delays_.clear();
}

}  // namespace extmem::fabric::sim
