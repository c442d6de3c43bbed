#include "fuse/device_channel.h"

#include <errno.h>
#include <unistd.h>

#include <algorithm>

#include "base/resident.h"
#include "fuse/opcode_table.h"
#include "fuse/session.h"
#include "fuse/worker.h"

namespace extmem::fuse {

RequestBuffer::RequestBuffer(Pool& pool, size_t bytes) : pool_(&pool) {
  if (pool.empty()) {
    memory_ = new std::byte[bytes];  // not value-initialised: it is touched as far as requests reach
  } else {
    memory_ = pool.back().release();
    pool.pop_back();
  }
}

RequestBuffer::~RequestBuffer() {
  if (pool_ == nullptr || memory_ == nullptr) return;
  std::unique_ptr<std::byte[]> memory(memory_);
  if (pool_->size() < kKeptBuffers) pool_->push_back(std::move(memory));
}

DeviceChannel::~DeviceChannel() { ::close(fd_); }

int DeviceChannel::open() {
  for (size_t index = 0; index < kResidentBuffers; ++index) {
    buffers_.emplace_back(new std::byte[kRequestBufferBytes]);
    keep_resident(buffers_.back().get(), kRequestBufferBytes);
  }
  worker_.reactor().watch(fd_, EPOLLIN, *this);
  return 0;
}

void DeviceChannel::close() { worker_.reactor().unwatch(fd_, *this); }

void DeviceChannel::on_ready(uint32_t) {
  constexpr int kRequestsPerTurn = 16;
  for (int served = 0; served < kRequestsPerTurn && serve_one(); ++served) {
  }
}

bool DeviceChannel::serve_one() {
  RequestBuffer buffer(buffers_, kRequestBufferBytes);
  ssize_t bytes = read(fd_, buffer.data(), kRequestBufferBytes);
  if (bytes < 0) {
    int error = errno;
    if (error == EAGAIN || error == EINTR || error == ENOENT)
      return error != EAGAIN;  // ENOENT: aborted while being read
    worker_.reactor().unwatch(fd_, *this);
    worker_.session().end(error);
    return false;
  }
  if (static_cast<size_t>(bytes) < sizeof(fuse_in_header)) return true;
  const auto& header = *reinterpret_cast<const fuse_in_header*>(buffer.data());
  std::span<const std::byte> body{buffer.data() + sizeof header, static_cast<size_t>(bytes) - sizeof header};
  const Opcode* opcode = find_opcode(header.opcode);
  size_t operation = opcode != nullptr ? std::min(opcode->body_bytes, body.size()) : body.size();
  Request request{header, body.first(operation), body.subspan(operation), {this, header.unique}, buffer};
  worker_.take(request, opcode);
  return true;
}

void DeviceChannel::answer(const Ticket& ticket, int error, iovec* segments, unsigned count, size_t body_bytes) {
  fuse_out_header header{static_cast<uint32_t>(sizeof header + body_bytes), -error, ticket.unique};
  segments[0] = {&header, sizeof header};
  // ENOENT: the caller was interrupted and is gone; ENODEV: so is the mount. Neither is ours to report.
  [[maybe_unused]] ssize_t written = writev(fd_, segments, static_cast<int>(count));
}

void DeviceChannel::answer_from_outside(const Ticket& ticket, int error, std::span<const uint8_t> body) {
  iovec segments[2] = {{}, {const_cast<uint8_t*>(body.data()), body.size()}};
  answer(ticket, error, segments, body.empty() ? 1 : 2, body.size());
}

}  // namespace extmem::fuse
