// ② What it means that a piece of a file has copies: which of them is read, that all are written, and that the manager
// says which count no more when one did not take a write. What has one copy goes the same way.
//
// A write is done when every copy that counts took it. A copy that did not is marked missing by the manager, which has
// told everybody else when it answers: so nobody reads what missed a write.
#pragma once

#include <array>
#include <span>

#include "base/task.h"
#include "cache/page_cache.h"

namespace extmem::cache {

/// A read of one piece. What it fills belongs to the caller.
struct PieceRead {
  extent::Piece piece{};     ///< a hole: nothing is read
  uint64_t file_offset = 0;  ///< of the piece: neighbours are read from different copies
  fabric::Operation operation{};

  uint32_t tried = 0;  ///< bits: copies that were asked
  bool open = false;   ///< not answered yet by any
  bool failed() const { return !piece.is_hole() && operation.status != fabric::Status::ok; }
};

/// Reads them all, each from the copy that is nearest, and from another when that does not answer; in one round trip
/// where all do. `operation` has segments and bytes.
Task<int> read_pieces(Lane& lane, std::span<PieceRead> reads);

/// A write of one piece, to all its copies.
struct PieceWrite {
  extent::Piece piece{};
  uint64_t file_offset = 0;
  uint32_t bytes = 0;
  std::array<fabric::Operation, protocol::kMaxCopies> operations{};
  fabric::Status status = fabric::Status::ok;  ///< of them all, after settle_writes()
};

/// To every copy that counts; the operations are complete when the batch is.
void submit_write(fabric::Batch& batch, PieceWrite& write, std::span<const iovec> segments);

/// After the batch: where a copy did not take it and another did, asks the manager to count the first no more. Sets
/// `status`: ok when every copy that counts by then has it.
Task<int> settle_writes(PageCache& cache, Lane& lane, File& file, std::span<PieceWrite> writes);

/// The region that dirty pages of a piece are accounted to: of an appliance that answers, if there is one.
const fabric::Region& home_of(const extent::Piece& piece);

/// A copy that counts is where something can be written to: none is when all are lost, or away.
struct Standing {
  bool lost = true;  ///< for good, all of it
  bool down = true;  ///< or on appliances that do not answer
};
Standing standing_of(const extent::Piece& piece);

}  // namespace extmem::cache
