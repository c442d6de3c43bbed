// One read or write as work requests: where it must be cut, and what each piece gathers or scatters. No I/O; on its
// reactor's thread.
//
// A write is cut at boundaries of pages only, and where it begins within a page and goes on, at the next one: then each
// packet of a path whose packets hold a page lies within one, and a page is old or new whatever becomes of the writer.
#pragma once

#include <array>
#include <cstdint>
#include <span>

#include "base/verbs/verbs_library.h"
#include "fabric/transport.h"

namespace extmem::fabric {

class TransferPlan {
 public:
  struct Limits {
    unsigned segments;      ///< of one work request
    unsigned inline_bytes;  ///< a write of no more goes without registered memory
  };
  struct Chunk {
    uint32_t key;
  };
  /// How local memory is registered: see LocalMemory::find_key().
  using FindKey = bool (*)(void* context, const std::byte* begin, size_t& bytes, uint32_t& key);

  enum class Outcome : uint8_t {
    ok,
    copy,  ///< its memory is not registered, or is in too many pieces
  };
  /// `keys` are those of the chunks from the operation's first on. `segments` stand for the operation's own.
  Outcome build(const Operation& operation, std::span<const iovec> segments, std::span<const Chunk> keys,
                const Limits& limits, FindKey find_key, void* context);

  ibv_send_wr& first() { return requests_[0]; }
  unsigned count() const { return count_; }
  std::span<const ibv_send_wr> requests() const { return {requests_.data(), count_}; }

  /// Whether each page of the write would be changed by one packet only.
  static bool keeps_pages_whole(const Operation& operation, unsigned path_mtu);

 private:
  static constexpr unsigned kMaxRequests = 16;
  static constexpr unsigned kMaxSegments = 400;

  bool begin_request(const Operation& operation, uint64_t position, std::span<const Chunk> keys);
  static uint64_t next_cut(const Operation& operation, uint64_t position);

  std::array<ibv_send_wr, kMaxRequests> requests_;
  std::array<ibv_sge, kMaxSegments> segments_;
  unsigned count_ = 0;
  unsigned used_ = 0;
};

}  // namespace extmem::fabric
