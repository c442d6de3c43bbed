// A network that is not there: hosts, and streams of bytes between them, in simulated time (world.h). What a stream
// promises is what TCP does: in order, or not at all; what is sent while the way is cut arrives when it is healed; what
// was on its way when its sender closed, or died, arrives all the same, however late.
//
// One thread. Nothing is told from within the caller.
#pragma once

#include <sys/socket.h>

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "fabric/sim/world.h"

namespace extmem::fabric::sim {

using HostId = uint32_t;

/// Who has one end of a stream.
class StreamUser {
 public:
  /// Of who asked for it: it is there, or nobody listens.
  virtual void on_connected(bool /* accepted */) {}
  /// There is something to receive, or the end. Answers whether to be told again while there is.
  virtual bool on_input() = 0;
  /// There is room again after there was none.
  virtual void on_room() = 0;

 protected:
  ~StreamUser() = default;
};

class Network;

/// One end. What is under way holds on to it, so that it may be closed at any time.
class Stream : public std::enable_shared_from_this<Stream> {
 public:
  Stream(Network& network, HostId host, HostId peer_host, size_t window_bytes);

  void set_user(StreamUser* user);
  // As send(2) and recv(2) without waiting, errno included.
  ssize_t send(std::span<const iovec> segments);
  ssize_t receive(std::span<const iovec> segments);
  /// Nothing is told any more. The other end receives what was sent, and then the end.
  void close();
  bool readable() const { return !input_.empty() || ended_ || reset_; }
  /// The user wants to be told of input again.
  void announce();
  HostId peer_host() const { return peer_host_; }

 private:
  friend class Network;
  struct Segment {
    uint64_t due_ns;
    std::vector<uint8_t> bytes;  // none: the end
  };
  void transmit(std::vector<uint8_t> bytes);
  void pump();
  void deliver(std::vector<uint8_t> bytes);
  void bounce();
  void take_reset();
  void freed(size_t bytes);

  Network& network_;
  const HostId host_, peer_host_;
  const size_t window_bytes_;
  std::weak_ptr<Stream> peer_;
  StreamUser* user_ = nullptr;
  std::deque<Segment> flight_;
  bool pumping_ = false;
  size_t unread_bytes_ = 0;  // sent, and not received by the peer's user
  bool wants_room_ = false;
  std::deque<uint8_t> input_;
  bool ended_ = false, reset_ = false, closed_ = false, announced_ = false;
};

class Network {
 public:
  struct Weather {
    uint64_t least_ns = 20'000;  ///< one way
    uint64_t spread_ns = 200'000;
    size_t least_window = 64 << 10, most_window = 2 << 20;
  };
  using Accept = std::function<void(std::shared_ptr<Stream>)>;

  Network(World& world, const Weather& weather) : world_(world), weather_(weather) {}
  World& world() { return world_; }

  HostId add_host(const std::string& address);
  void listen(HostId host, Accept accept) { hosts_[host].accept = std::move(accept); }
  /// user is told what came of it.
  std::shared_ptr<Stream> connect(HostId from, const std::string& address, StreamUser& user);
  /// A message between programs that do not speak the wire protocol here: in order between two hosts, held back while
  /// the way is cut, lost when the receiving program is not the one that ran when it was sent.
  void send_message(HostId from, HostId to, std::function<void()> deliver);

  // What goes wrong.
  void cut(HostId from, HostId to, bool is_cut);
  bool is_cut(HostId from, HostId to) const { return cuts_.contains({from, to}); }
  /// Everything that way takes so much longer.
  void slow(HostId from, HostId to, uint64_t extra_ns);
  /// What is sent next that way, on whichever stream, and all behind it on that stream.
  void delay_next(HostId from, HostId to, uint64_t extra_ns) { delays_[{from, to}] = extra_ns; }
  /// All streams between the two end.
  void reset_streams(HostId one, HostId other);
  /// The program on it ends; silently: the host too, so that nobody is told.
  void stop_host(HostId host, bool silently);
  void start_host(HostId host) { hosts_[host].state = Host::State::up; }
  void heal();

 private:
  friend class Stream;
  struct Host {
    enum class State : uint8_t { up, no_program, silent } state = State::up;
    std::string address;
    Accept accept;
    uint64_t life = 0;
    std::vector<std::weak_ptr<Stream>> streams;
  };
  struct Message {
    uint64_t due_ns;
    uint64_t life;
    std::function<void()> deliver;
  };
  struct Channel {
    std::deque<Message> flight;
    bool pumping = false;
  };
  using Way = std::pair<HostId, HostId>;

  uint64_t arrival_ns(HostId from, HostId to);
  void accept(HostId from, HostId to, std::shared_ptr<Stream> asking);
  void pump(Way way);
  std::shared_ptr<Stream> make_stream(HostId host, HostId peer);

  World& world_;
  const Weather weather_;
  std::vector<Host> hosts_;
  std::set<Way> cuts_;
  std::map<Way, uint64_t> slow_, delays_;
  std::map<Way, Channel> channels_;
};

}  // namespace extmem::fabric::sim
