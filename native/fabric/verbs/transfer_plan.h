// Reads and writes as one chain of work requests: where each must be cut, and what each piece gathers or scatters. No
// I/O; on its reactor's thread.
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
    uint32_t notice;  ///< what tells the appliance that it was written
  };
  /// How local memory is registered: see LocalMemory::find_key().
  using FindKey = bool (*)(void* context, const std::byte* begin, size_t& bytes, uint32_t& key);

  enum class Outcome : uint8_t {
    ok,
    copy,  ///< its memory is not registered, or is in too many pieces
  };
  /// Whether any operation finds room.
  bool has_room() const { return count_ + kMostRequests <= kRequests && used_ + kMostSegments <= kSegments; }
  /// Appends one operation, or nothing. `keys` are those of the chunks from the operation's first on. `segments` stand
  /// for the operation's own. Needs has_room().
  Outcome append(const Operation& operation, std::span<const iovec> segments, std::span<const Chunk> keys,
                 const Limits& limits, FindKey find_key, void* context);

  /// Takes the operation that was appended last away again.
  void remove_last() { cut_to(last_); }
  void clear() { cut_to({}); }
  ibv_send_wr& first() { return requests_[0]; }
  unsigned count() const { return count_; }
  /// Requests that write with notice.
  unsigned notices() const { return notices_; }
  std::span<const ibv_send_wr> requests() const { return {requests_.data(), count_}; }

  /// Whether each page of the write would be changed by one packet only.
  static bool keeps_pages_whole(const Operation& operation, unsigned path_mtu);

 private:
  /// Of one operation.
  static constexpr unsigned kMostRequests = 16;
  static constexpr unsigned kMostSegments = 400;
  static constexpr unsigned kRequests = 64;
  static constexpr unsigned kSegments = 800;
  struct Mark {
    unsigned count = 0, used = 0, notices = 0;
  };

  Outcome cut_up(const Operation& operation, std::span<const iovec> segments, std::span<const Chunk> keys,
                 const Limits& limits, FindKey find_key, void* context);
  bool begin_request(const Operation& operation, uint64_t position, std::span<const Chunk> keys);
  void end_chunk(const Operation& operation, uint64_t number, std::span<const Chunk> keys);
  void cut_to(const Mark& mark);
  static uint64_t next_cut(const Operation& operation, uint64_t position);

  std::array<ibv_send_wr, kRequests> requests_;
  std::array<ibv_sge, kSegments> segments_;
  unsigned count_ = 0;
  unsigned used_ = 0;
  unsigned notices_ = 0;
  Mark last_;  // before the last operation
};

}  // namespace extmem::fabric
