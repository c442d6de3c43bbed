#include "fuse/worker.h"

#include <errno.h>
#include <sys/prctl.h>

#include "base/trace.h"
#include "fuse/opcode_table.h"
#include "fuse/session.h"

namespace extmem::fuse {

Worker::Worker(Session& session, const Reactor::Options& reactor_options, const fabric::Fabric::Options& fabric_options)
    : session_(session),
      reactor_(reactor_options),
      fabric_(fabric::Fabric::create(reactor_, session.directory(), fabric_options)),
      lane_{reactor_, *fabric_, nullptr, {}},
      flusher_(session.cache(), lane_) {
  lane_.flusher = &flusher_;
}

Worker::~Worker() { stop(); }

std::future<int> Worker::start() {
  std::promise<int> opened;
  std::future<int> outcome = opened.get_future();
  thread_ = std::thread([this, opened = std::move(opened)]() mutable {
    prctl(PR_SET_NAME, "extmem-fuse");
    prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0);  // progress where our own mount took the memory; root only
    opened.set_value(open_channels());
    reactor_.run();
    for (auto& channel : channels_) channel->close();
    flusher_.stop();
    fabric_->close();
  });
  return outcome;
}

int Worker::open_channels() {
  for (auto& channel : channels_) {
    int error = channel->open();
    if (error != 0) return error;
  }
  return 0;
}

void Worker::stop() {
  if (!thread_.joinable()) return;
  reactor_.stop();
  thread_.join();
}

void Worker::take(Request& request, const Opcode* opcode) {
  trace::mark(trace::Point::fuse_request, request.header.unique);
  counters.requests.fetch_add(1, std::memory_order_relaxed);
  bool served_here = opcode != nullptr && opcode->handler != nullptr;
  size_t bytes = request.operation.size() + (served_here ? 0 : request.payload.size());
  if (opcode != nullptr && bytes < opcode->body_bytes) {
    reply_error(request.ticket, EINVAL);
  } else if (served_here) {
    opcode->handler(*this, request);
  } else {
    handle_control(*this, request);
  }
}

void Worker::reply_error(const Ticket& ticket, int error) {
  if (error != 0) counters.errors.fetch_add(1, std::memory_order_relaxed);
  iovec segment{};
  ticket.channel->answer(ticket, error, &segment, 1, 0);
}

void Worker::reply(const Ticket& ticket, const void* body, size_t bytes) {
  iovec segments[2] = {{}, {const_cast<void*>(body), bytes}};
  reply_segments(ticket, segments, 2, bytes);
}

void Worker::reply_segments(const Ticket& ticket, iovec* segments, unsigned count, size_t body_bytes) {
  ticket.channel->answer(ticket, 0, segments, count, body_bytes);
  trace::mark(trace::Point::fuse_reply, ticket.unique);
}

}  // namespace extmem::fuse
