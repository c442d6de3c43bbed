// ① One reactor of the mount: pinned to a CPU, with its own channels to the kernel, its own fabric connections and its
// own background flusher. The request that it took from the kernel it also finishes. Everything here belongs to its
// thread.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <future>
#include <memory>
#include <thread>
#include <vector>

#include "base/reactor.h"
#include "cache/flusher.h"
#include "cache/page_cache.h"
#include "fabric/transport.h"
#include "fuse/channel.h"

namespace extmem::fuse {

class Session;
struct Opcode;

struct WorkerCounters {
  std::atomic<uint64_t> requests{0}, control{0}, reads{0}, read_bytes{0}, writes{0}, write_bytes{0}, syncs{0},
      errors{0}, ring_entries{0}, held_back{0};
};

class Worker {
 public:
  Worker(Session& session, const Reactor::Options& reactor_options, const fabric::Fabric::Options& fabric_options);
  ~Worker();
  /// Before start().
  void add_channel(std::unique_ptr<Channel> channel) { channels_.push_back(std::move(channel)); }
  /// Settles when every channel is open, or one cannot be (an errno).
  std::future<int> start();
  /// Any thread: ends the loop and joins the thread.
  void stop();

  /// A request from a channel; opcode: nullptr if it is not in the table.
  void take(Request& request, const Opcode* opcode);
  void reply_error(const Ticket& ticket, int error);
  void reply(const Ticket& ticket, const void* body, size_t bytes);
  /// segments[0] is left free for the channel.
  void reply_segments(const Ticket& ticket, iovec* segments, unsigned count, size_t body_bytes);

  Session& session() { return session_; }
  cache::Lane& lane() { return lane_; }
  Reactor& reactor() { return reactor_; }
  WorkerCounters counters;

 private:
  int open_channels();

  Session& session_;
  Reactor reactor_;
  std::unique_ptr<fabric::Fabric> fabric_;
  cache::Lane lane_;
  cache::BackgroundFlusher flusher_;
  std::vector<std::unique_ptr<Channel>> channels_;
  std::thread thread_;
};

}  // namespace extmem::fuse
