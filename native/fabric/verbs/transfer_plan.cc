#include "fabric/verbs/transfer_plan.h"

#include <arpa/inet.h>

#include <algorithm>

#include "base/assert.h"
#include "base/verbs/queue_pair.h"

namespace extmem::fabric {

namespace {
constexpr uint64_t kPage = protocol::kPageBytes;
constexpr uint64_t kChunk = protocol::kLendBytes;
}  // namespace

bool TransferPlan::keeps_pages_whole(const Operation& operation, unsigned path_mtu) {
  if (path_mtu >= kPage) return true;
  const bool one_page = operation.offset / kPage == (operation.offset + operation.bytes - 1) / kPage;
  return one_page && operation.bytes <= path_mtu;
}

uint64_t TransferPlan::next_cut(const Operation& operation, uint64_t position) {
  const uint64_t chunk_end = (position / kChunk + 1) * kChunk;
  const bool within_page = position % kPage != 0 && operation.op == Op::write;
  return within_page ? std::min(chunk_end, (position / kPage + 1) * kPage) : chunk_end;
}

bool TransferPlan::begin_request(const Operation& operation, uint64_t position, std::span<const Chunk> keys) {
  if (count_ - last_.count == kMostRequests) return false;
  ibv_send_wr& request = requests_[count_];
  request = {};
  request.opcode = operation.op == Op::read ? IBV_WR_RDMA_READ : IBV_WR_RDMA_WRITE;
  request.sg_list = &segments_[used_];
  request.wr.rdma.remote_addr = position;
  request.wr.rdma.rkey = keys[position / kChunk - operation.offset / kChunk].key;
  if (count_ > 0) requests_[count_ - 1].next = &request;
  ++count_;
  return true;
}

/// The chunk's last request carries its notice: what was written before it has been placed by then.
void TransferPlan::end_chunk(const Operation& operation, uint64_t number, std::span<const Chunk> keys) {
  if (operation.op != Op::write || !operation.notify) return;
  requests_[count_ - 1].opcode = IBV_WR_RDMA_WRITE_WITH_IMM;
  requests_[count_ - 1].imm_data = htonl(keys[number - operation.offset / kChunk].notice);
  ++notices_;
}

void TransferPlan::cut_to(const Mark& mark) {
  count_ = mark.count;
  used_ = mark.used;
  notices_ = mark.notices;
  if (count_ > 0) requests_[count_ - 1].next = nullptr;
}

TransferPlan::Outcome TransferPlan::append(const Operation& operation, std::span<const iovec> segments,
                                           std::span<const Chunk> keys, const Limits& limits, FindKey find_key,
                                           void* context) {
  EXTMEM_ASSERT(has_room() && operation.bytes > 0);
  last_ = {.count = count_, .used = used_, .notices = notices_};
  const Outcome outcome = cut_up(operation, segments, keys, limits, find_key, context);
  if (outcome == Outcome::ok) {
    end_chunk(operation, (operation.offset + operation.bytes - 1) / kChunk, keys);
    requests_[count_ - 1].wr_id = verbs::QueuePair::kEndsTransfer;
  } else {
    remove_last();
  }
  return outcome;
}

TransferPlan::Outcome TransferPlan::cut_up(const Operation& operation, std::span<const iovec> segments,
                                           std::span<const Chunk> keys, const Limits& limits, FindKey find_key,
                                           void* context) {
  const bool is_inline = operation.op == Op::write && operation.bytes <= limits.inline_bytes;
  uint64_t position = operation.offset, cut = 0;
  for (const iovec& segment : segments) {
    auto* begin = static_cast<const std::byte*>(segment.iov_base);
    for (size_t left = segment.iov_len; left > 0;) {
      const bool full = position < cut && requests_[count_ - 1].num_sge == static_cast<int>(limits.segments);
      if (full && operation.op == Op::write && position % kPage != 0) return Outcome::copy;
      if (full || position >= cut) {
        if (count_ > last_.count && position % kChunk == 0) end_chunk(operation, position / kChunk - 1, keys);
        if (!begin_request(operation, position, keys)) return Outcome::copy;
        if (is_inline) requests_[count_ - 1].send_flags = IBV_SEND_INLINE;
        cut = next_cut(operation, position);
      }
      size_t bytes = std::min<size_t>(left, cut - position);
      uint32_t key = 0;
      if (used_ - last_.used == kMostSegments) return Outcome::copy;
      if (!is_inline && !find_key(context, begin, bytes, key)) return Outcome::copy;
      segments_[used_++] = {
          .addr = reinterpret_cast<uint64_t>(begin), .length = static_cast<uint32_t>(bytes), .lkey = key};
      ++requests_[count_ - 1].num_sge;
      begin += bytes;
      position += bytes;
      left -= bytes;
    }
  }
  return Outcome::ok;
}

}  // namespace extmem::fabric
