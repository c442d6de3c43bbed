// ① The narrow contract between a worker and the two ways in which the kernel's requests come to it: a descriptor of
// /dev/fuse (device_channel), and an io_uring with a queue per CPU (uring_channel). What came in by a channel is
// answered by that channel, once.
#pragma once

#include <linux/fuse.h>
#include <sys/uio.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "base/protocol.h"

namespace extmem::fuse {

class Channel;
struct RingEntry;

inline constexpr size_t kMaxWriteBytes = protocol::kMaxIoBytes;
/// Of a channel: that many requests with a full payload are served without asking for memory.
inline constexpr unsigned kResidentBuffers = 4;

/// Whom to answer.
struct Ticket {
  Channel* channel;
  uint64_t unique;
  RingEntry* entry = nullptr;  ///< of a uring_channel
};

/// Memory of kMaxWriteBytes that goes with one request: what came with it lies there, and its answer may be made there,
/// which spares a copy where that is the memory that the kernel reads. Back to its pool, if it has one, when it dies
/// (on its worker's thread).
class RequestBuffer {
 public:
  using Pool = std::vector<std::unique_ptr<std::byte[]>>;
  RequestBuffer(Pool& pool, size_t bytes);
  /// Memory that belongs to the ticket.
  explicit RequestBuffer(std::byte* memory) : memory_(memory) {}
  RequestBuffer(RequestBuffer&& other) noexcept : pool_(other.pool_), memory_(other.memory_) {
    other.memory_ = nullptr;
  }
  RequestBuffer& operator=(RequestBuffer&&) = delete;
  ~RequestBuffer();
  std::byte* data() { return memory_; }

 private:
  static constexpr size_t kKeptBuffers = 8;
  Pool* pool_ = nullptr;
  std::byte* memory_;
};

/// A request as it came from the kernel. The handler may keep the buffer; the rest points into memory that is the
/// request's until it is answered.
struct Request {
  const fuse_in_header& header;
  std::span<const std::byte> operation;  ///< the opcode's own struct
  std::span<const std::byte> payload;    ///< what follows it: data, names
  Ticket ticket;
  RequestBuffer& buffer;

  template <typename Struct>
  const Struct& as() const {
    return *reinterpret_cast<const Struct*>(operation.data());
  }
};

class Channel {
 public:
  virtual ~Channel() = default;
  /// On the worker's thread, before anything else: from now on requests are handed to the worker. 0 or an errno.
  virtual int open() = 0;
  /// On the worker's thread, when its loop has ended.
  virtual void close() = 0;
  /// On the worker's thread. error 0 with the body in segments[1] to segments[count - 1] (segments[0] is left free for
  /// the channel's header), or a positive errno without one.
  virtual void answer(const Ticket& ticket, int error, iovec* segments, unsigned count, size_t body_bytes) = 0;
  /// The same from any thread.
  virtual void answer_from_outside(const Ticket& ticket, int error, std::span<const uint8_t> body) = 0;
};

}  // namespace extmem::fuse
