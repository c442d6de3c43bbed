// ① One reactor of the mount: pinned to a CPU, with its own clone of /dev/fuse, its own fabric connections and its own
// background flusher. The request that it took from the kernel it also finishes. Everything here belongs to its thread.
#pragma once

#include <linux/fuse.h>
#include <sys/uio.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <thread>
#include <vector>

#include "base/reactor.h"
#include "cache/flusher.h"
#include "cache/page_cache.h"
#include "fabric/transport.h"

namespace extmem::fuse {

class Session;

inline constexpr size_t kMaxWriteBytes = protocol::kMaxIoBytes;
/// fuse_in_header, fuse_write_in and a full payload, rounded up to pages as the kernel asks.
inline constexpr size_t kRequestBufferBytes = kMaxWriteBytes + 2 * 4096;

/// Memory for one request; back to its worker's pool when it dies (on that worker's thread).
class RequestBuffer {
 public:
  explicit RequestBuffer(std::vector<std::unique_ptr<std::byte[]>>& pool);
  RequestBuffer(RequestBuffer&& other) noexcept = default;
  RequestBuffer& operator=(RequestBuffer&&) = delete;
  ~RequestBuffer();
  std::byte* data() { return memory_.get(); }

 private:
  static constexpr size_t kKeptBuffers = 8;
  std::vector<std::unique_ptr<std::byte[]>>& pool_;
  std::unique_ptr<std::byte[]> memory_;
};

struct WorkerCounters {
  std::atomic<uint64_t> requests{0}, control{0}, reads{0}, read_bytes{0}, writes{0}, write_bytes{0}, syncs{0},
      errors{0};
};

class Worker final : public ReadyHandler {
 public:
  Worker(Session& session, int fuse_fd, const Reactor::Options& reactor_options,
         const fabric::Fabric::Options& fabric_options);
  ~Worker();
  void start();
  /// Any thread: ends the loop and joins the thread.
  void stop();
  void on_ready(uint32_t epoll_events) override;

  void reply_error(uint64_t unique, int error);
  void reply(uint64_t unique, const void* body, size_t bytes);
  /// segments[0] is left free for the header.
  void reply_segments(uint64_t unique, iovec* segments, unsigned count, size_t body_bytes);
  RequestBuffer take_buffer() { return RequestBuffer(buffers_); }

  Session& session() { return session_; }
  cache::Lane& lane() { return lane_; }
  Reactor& reactor() { return reactor_; }
  int fuse_fd() const { return fuse_fd_; }
  WorkerCounters counters;

 private:
  bool serve_one();
  void send(const iovec* segments, unsigned count);

  Session& session_;
  int fuse_fd_;
  Reactor reactor_;
  std::unique_ptr<fabric::Fabric> fabric_;
  cache::Lane lane_;
  cache::BackgroundFlusher flusher_;
  std::vector<std::unique_ptr<std::byte[]>> buffers_;
  std::thread thread_;
};

}  // namespace extmem::fuse
