#include "move/copier.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <utility>

#include "base/assert.h"
#include "base/clock.h"

namespace extmem::move {

namespace {

constexpr uint64_t kPage = protocol::kPageBytes;
constexpr uint64_t kChunkBytes = protocol::kMaxIoBytes;
/// Enough to keep a network of 100 Gbit/s and the store of what came busy.
constexpr unsigned kWorkers = 4;
/// Of one of an operation's two attempts: another source is to have its turn before all is too late.
constexpr uint64_t kAttemptMs = 500;
/// A region that is being moved by its own appliance, or brought home, is asked again so often.
constexpr uint64_t kBusyNs = 1'000'000;

bool is_zero(const uint8_t* page) { return page[0] == 0 && std::memcmp(page, page + 1, kPage - 1) == 0; }

}  // namespace

struct Copier::Buffer {
  std::unique_ptr<uint8_t[]> bytes = std::make_unique_for_overwrite<uint8_t[]>(kChunkBytes);
};

Copier::Copier(region::RegionServer& server, const Options& options, const std::vector<Origin>& origins)
    : server_(server), limit_ms_(options.limit_ms), reactor_(Reactor::Options{}) {
  for (const Origin& origin : origins) {
    EXTMEM_ASSERT(!origin.endpoints.empty());
    const fabric::Endpoint& first = origin.endpoints.front();
    directory_.put_appliance(origin.id, "", first.address, first.port, "", origin.incarnation, false,
                             {origin.endpoints.begin() + 1, origin.endpoints.end()});
  }
  fabric::Fabric::Options fabric_options;
  fabric_options.credentials = options.credentials;
  fabric_options.transport = fabric::TransportKind::tcp;
  fabric_options.operation_deadline_ms = kAttemptMs;
  fabric_ = fabric::Fabric::create(reactor_, directory_, fabric_options);
}

Copier::~Copier() { fabric_->close(); }

CopyOutcome Copier::copy(const std::vector<CopyPiece>& pieces) {
  deadline_ns_ = monotonic_ns() + limit_ms_ * 1'000'000;
  for (const CopyPiece& piece : pieces) {
    EXTMEM_ASSERT(piece.offset % kPage == 0 && piece.bytes % kPage == 0);
    for (const Source& source : piece.sources) {
      fabric::Appliance* appliance = directory_.find_appliance(source.origin);
      EXTMEM_ASSERT(appliance != nullptr);
      directory_.put_region(source.region, source.region_bytes, *appliance, source.capability);
    }
    for (uint64_t at = 0; at < piece.bytes; at += kChunkBytes)
      chunks_.push_back({.piece = &piece, .at = at, .bytes = std::min(kChunkBytes, piece.bytes - at)});
  }
  struct Begin final : Message {
    explicit Begin(Copier& copier) : copier(copier) {}
    void run() override {
      const auto wanted = static_cast<unsigned>(std::min<size_t>(kWorkers, copier.chunks_.size()));
      copier.workers_ = wanted;
      if (wanted == 0) copier.reactor_.stop();
      for (unsigned index = 0; index < wanted; ++index) copier.work();
    }
    Copier& copier;
  } begin(*this);
  reactor_.post(begin);
  reactor_.run();
  fabric_->close();
  return outcome_;
}

void Copier::stop() {
  if (!stopping_.exchange(true)) reactor_.post(stop_message_);
}

Detached Copier::work() {
  Buffer buffer;
  while (outcome_.code == CopyOutcome::Code::ok && next_ < chunks_.size()) {
    const Chunk chunk = chunks_[next_++];
    const bool is_read = co_await read(chunk, buffer);
    if (!is_read) break;
    const bool is_stored = co_await store(chunk, buffer);
    if (!is_stored) break;
  }
  if (--workers_ == 0) reactor_.stop();
}

Task<bool> Copier::read(const Chunk& chunk, Buffer& buffer) {
  std::string why = "it has no source";
  for (const Source& source : chunk.piece->sources) {
    if (outcome_.code != CopyOutcome::Code::ok || is_late()) co_return false;
    iovec segment{.iov_base = buffer.bytes.get(), .iov_len = chunk.bytes};
    fabric::Operation operation;
    operation.op = protocol::Op::read;
    operation.region = directory_.find_region(source.region);
    operation.offset = source.offset + chunk.at;
    operation.segments = &segment;
    operation.segment_count = 1;
    operation.bytes = static_cast<uint32_t>(chunk.bytes);
    fabric::Batch batch(*fabric_);
    batch.submit(operation);
    co_await batch;
    if (operation.status == protocol::Status::ok) co_return true;
    why = "region " + std::to_string(source.region) + " of appliance " + source.origin + " cannot be read (status " +
          std::to_string(static_cast<unsigned>(operation.status)) + ")";
  }
  fail(CopyOutcome::Code::unreadable, std::move(why));
  co_return false;
}

/// Page by page what is not zero, as much at once as lies together.
Task<bool> Copier::store(const Chunk& chunk, Buffer& buffer) {
  const uint8_t* bytes = buffer.bytes.get();
  for (uint64_t at = 0; at < chunk.bytes;) {
    uint64_t end = at;
    while (end < chunk.bytes && !is_zero(bytes + end)) end += kPage;
    if (end == at) {
      at += kPage;
      continue;
    }
    const bool is_stored = co_await store_run(chunk, {bytes + at, end - at}, at);
    if (!is_stored) co_return false;
    at = end;
  }
  co_return true;
}

Task<bool> Copier::store_run(const Chunk& chunk, std::span<const uint8_t> data, uint64_t at) {
  const CopyPiece& piece = *chunk.piece;
  while (outcome_.code == CopyOutcome::Code::ok && !is_late()) {
    const auto status = server_.write(piece.region, piece.offset + chunk.at + at, data);
    if (status == protocol::Status::ok) co_return true;
    if (status.has_value()) {
      fail(CopyOutcome::Code::unwritable, "region " + std::to_string(piece.region) + " cannot be written (status " +
                                              std::to_string(static_cast<unsigned>(*status)) + ")");
      co_return false;
    }
    co_await Sleep(reactor_, kBusyNs);
  }
  co_return false;
}

bool Copier::is_late() {
  if (monotonic_ns() < deadline_ns_) return false;
  fail(CopyOutcome::Code::late, "it was not done within " + std::to_string(limit_ms_) + " ms");
  return true;
}

/// The first counts. What waits for an answer ends now.
void Copier::fail(CopyOutcome::Code code, std::string why) {
  if (outcome_.code != CopyOutcome::Code::ok) return;
  outcome_ = {.code = code, .why = std::move(why)};
  fabric_->close();
}

}  // namespace extmem::move
