#include "fuse/worker.h"

#include <errno.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <unistd.h>

#include <cstring>

#include "base/trace.h"
#include "fuse/opcode_table.h"
#include "fuse/session.h"

namespace extmem::fuse {

RequestBuffer::RequestBuffer(std::vector<std::unique_ptr<std::byte[]>>& pool) : pool_(pool) {
  if (pool.empty()) {
    memory_.reset(new std::byte[kRequestBufferBytes]);  // not value-initialised: it is touched as far as requests reach
  } else {
    memory_ = std::move(pool.back());
    pool.pop_back();
  }
}

RequestBuffer::~RequestBuffer() {
  if (memory_ != nullptr && pool_.size() < kKeptBuffers) pool_.push_back(std::move(memory_));
}

Worker::Worker(Session& session, int fuse_fd, const Reactor::Options& reactor_options,
               const fabric::Fabric::Options& fabric_options)
    : session_(session),
      fuse_fd_(fuse_fd),
      reactor_(reactor_options),
      fabric_(fabric::Fabric::create(reactor_, session.directory(), fabric_options)),
      lane_{reactor_, *fabric_, nullptr, {}},
      flusher_(session.cache(), lane_) {
  lane_.flusher = &flusher_;
}

Worker::~Worker() {
  stop();
  close(fuse_fd_);
}

void Worker::start() {
  thread_ = std::thread([this] {
    prctl(PR_SET_NAME, "extmem-fuse");
    prctl(PR_SET_IO_FLUSHER, 1);  // we must make progress when memory is short because of our own mount; root only
    reactor_.watch(fuse_fd_, EPOLLIN, *this);
    reactor_.run();
    flusher_.stop();
    fabric_->close();
  });
}

void Worker::stop() {
  if (!thread_.joinable()) return;
  reactor_.stop();
  thread_.join();
}

void Worker::on_ready(uint32_t) {
  constexpr int kRequestsPerTurn = 16;
  for (int served = 0; served < kRequestsPerTurn && serve_one(); ++served) {
  }
}

bool Worker::serve_one() {
  RequestBuffer buffer = take_buffer();
  ssize_t bytes = read(fuse_fd_, buffer.data(), kRequestBufferBytes);
  if (bytes < 0) {
    int error = errno;
    if (error == EAGAIN || error == EINTR || error == ENOENT)
      return error != EAGAIN;  // ENOENT: aborted while being read
    reactor_.unwatch(fuse_fd_, *this);
    session_.end(error);
    return false;
  }
  if (static_cast<size_t>(bytes) < sizeof(fuse_in_header)) return true;
  const auto& header = *reinterpret_cast<const fuse_in_header*>(buffer.data());
  trace::mark(trace::Point::fuse_request, header.unique);
  counters.requests.fetch_add(1, std::memory_order_relaxed);
  Request request{header, {buffer.data() + sizeof header, static_cast<size_t>(bytes) - sizeof header}, buffer};
  const Opcode* opcode = find_opcode(header.opcode);
  if (opcode != nullptr && request.body.size() < opcode->body_bytes) {
    reply_error(header.unique, EINVAL);
  } else if (opcode != nullptr && opcode->handler != nullptr) {
    opcode->handler(*this, request);
  } else {
    handle_control(*this, request);
  }
  return true;
}

void Worker::reply_error(uint64_t unique, int error) {
  if (error != 0) counters.errors.fetch_add(1, std::memory_order_relaxed);
  fuse_out_header header{sizeof header, -error, unique};
  iovec segment{&header, sizeof header};
  send(&segment, 1);
}

void Worker::reply(uint64_t unique, const void* body, size_t bytes) {
  iovec segments[2] = {{}, {const_cast<void*>(body), bytes}};
  reply_segments(unique, segments, 2, bytes);
}

void Worker::reply_segments(uint64_t unique, iovec* segments, unsigned count, size_t body_bytes) {
  fuse_out_header header{static_cast<uint32_t>(sizeof header + body_bytes), 0, unique};
  segments[0] = {&header, sizeof header};
  send(segments, count);
  trace::mark(trace::Point::fuse_reply, unique);
}

void Worker::send(const iovec* segments, unsigned count) {
  // ENOENT: the caller was interrupted and is gone; ENODEV: so is the mount. Neither is ours to report.
  [[maybe_unused]] ssize_t written = writev(fuse_fd_, segments, static_cast<int>(count));
}

}  // namespace extmem::fuse
