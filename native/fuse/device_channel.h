// ① Requests from a descriptor of /dev/fuse: read(2) takes one, writev(2) answers it, straight from where the data
// lies. All descriptors of a mount share one queue.
#pragma once

#include "base/reactor.h"
#include "fuse/channel.h"

namespace extmem::fuse {

class Worker;

/// fuse_in_header, fuse_write_in and a full payload, rounded up to pages as the kernel asks.
inline constexpr size_t kRequestBufferBytes = kMaxWriteBytes + 2 * 4096;

class DeviceChannel final : public Channel, public ReadyHandler {
 public:
  /// Takes the descriptor over.
  DeviceChannel(Worker& worker, int fd) : worker_(worker), fd_(fd) {}
  ~DeviceChannel() override;

  int open() override;
  void close() override;
  void answer(const Ticket& ticket, int error, iovec* segments, unsigned count, size_t body_bytes) override;
  void answer_from_outside(const Ticket& ticket, int error, std::span<const uint8_t> body) override;
  void on_ready(uint32_t epoll_events) override;

 private:
  bool serve_one();

  Worker& worker_;
  int fd_;
  RequestBuffer::Pool buffers_;
};

}  // namespace extmem::fuse
