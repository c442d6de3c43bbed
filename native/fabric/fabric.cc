#include "base/assert.h"
#include "base/clock.h"
#include "base/trace.h"
#include "fabric/fault/fault_transport.h"
#include "fabric/router.h"
#include "fabric/verbs/verbs_connection.h"

namespace extmem::fabric {

namespace {

/// An operation that completes inside submit() may submit the next from there; beyond this depth the next waits
/// until the stack has been unwound.
constexpr unsigned kMaxDepth = 16;

Status validate(const Operation& operation) {
  uint64_t sum = 0;
  for (uint32_t index = 0; index < operation.segment_count; ++index) sum += operation.segments[index].iov_len;
  EXTMEM_ASSERT(operation.region != nullptr && operation.complete != nullptr && sum == operation.bytes);
  switch (operation.op) {
    case Op::read:
    case Op::write:
      return operation.bytes <= protocol::kMaxIoBytes ? Status::ok : Status::bad_request;
    case Op::put_record:
      return operation.bytes <= protocol::kMaxRecordBytes ? Status::ok : Status::bad_request;
    case Op::fetch_add:
    case Op::compare_swap:
    case Op::remove_record:
      return operation.bytes == 0 ? Status::ok : Status::bad_request;
    default:
      return Status::bad_request;
  }
}

}  // namespace

std::unique_ptr<Fabric> Fabric::create(Reactor& reactor, Directory& directory, const Options& options) {
  auto router = std::make_unique<Router>(reactor, directory, options);
  if (options.fault_seed == 0) return router;
  return std::make_unique<FaultTransport>(reactor, std::move(router), options.fault_seed, options.fault_plan);
}

Router::Router(Reactor& reactor, Directory& directory, const Options& options)
    : reactor_(reactor), directory_(directory), options_(options) {
  // Loads the libraries and looks for devices, once: not when the first operation waits for it.
  const bool may_use_verbs = options.transport == TransportKind::automatic || options.transport == TransportKind::verbs;
  if (may_use_verbs) VerbsConnection::possible();
}

Router::~Router() { close(); }

void Router::submit(Operation& operation) {
  if (depth_ >= kMaxDepth) return deferred_.push(operation);
  ++depth_;
  route(operation);
  --depth_;
  while (depth_ == 0 && !deferred_.empty()) {
    Operation& next = deferred_.pop();
    ++depth_;
    route(next);
    --depth_;
  }
}

void Router::route(Operation& operation) {
  operation.next = nullptr;
  operation.wire_id = 0;
  operation.attempts = 0;
  operation.started_ns = monotonic_ns();
  trace::mark(trace::Point::fabric_submit, operation.offset);
  Status status = closed_ ? Status::closed : validate(operation);
  if (status == Status::ok && operation.region->state.load(std::memory_order_acquire) == RegionState::lost) {
    status = Status::not_present;
  }
  if (status == Status::ok) return links_to(*operation.region->appliance).submit(operation);
  operation.status = status;
  operation.complete(operation);
}

Links& Router::links_to(Appliance& appliance) {
  if (appliance.index >= links_.size()) links_.resize(appliance.index + 1);
  auto& links = links_[appliance.index];
  if (!links) links = std::make_unique<Links>(reactor_, directory_, appliance, options_);
  return *links;
}

void Router::cut(Appliance& appliance) { links_to(appliance).cut(); }

std::string Router::failure(const Appliance& appliance) const {
  if (appliance.index >= links_.size() || !links_[appliance.index]) return {};
  return links_[appliance.index]->reason();
}

void Router::rejoin(const Credentials& credentials) {
  options_.credentials = credentials;
  for (size_t index = 0; index < links_.size(); ++index) {
    if (links_[index]) links_[index]->rejoin();
  }
}

void Router::close() {
  if (closed_) return;
  closed_ = true;
  for (size_t index = 0; index < links_.size(); ++index) {
    if (links_[index]) links_[index]->close();
  }
}

}  // namespace extmem::fabric
