#include "cache/transfer.h"

#include <errno.h>

#include <algorithm>
#include <cstring>

#include "cache/copies.h"

namespace extmem::cache {

namespace {

constexpr uint32_t kPiecesPerRound = 8;

extent::Piece piece_at(File& file, uint64_t offset, uint64_t bytes) {
  file.lock.lock();
  auto piece = file.extents.resolve(offset, bytes);
  file.lock.unlock();
  piece.length = std::min(piece.length, bytes);
  return piece;
}

}  // namespace

Task<int> read_range(Lane& lane, File& file, uint64_t offset, std::byte* data, uint32_t bytes) {
  for (uint32_t done = 0; done < bytes;) {
    std::array<PieceRead, kPiecesPerRound> reads{};
    std::array<iovec, kPiecesPerRound> segments;
    uint32_t count = 0;
    while (count < kPiecesPerRound && done < bytes) {
      PieceRead& read = reads[count];
      read.piece = piece_at(file, offset + done, bytes - done);
      read.file_offset = offset + done;
      const auto length = static_cast<uint32_t>(read.piece.length);
      segments[count] = {data + done, length};
      read.operation.segments = &segments[count];
      read.operation.segment_count = 1;
      read.operation.bytes = length;
      done += length;
      if (read.piece.is_hole()) {
        std::memset(segments[count].iov_base, 0, length);
      } else {
        ++count;
      }
    }
    if (int error = co_await read_pieces(lane, std::span(reads).first(count)); error != 0) co_return error;
  }
  co_return 0;
}

Task<int> write_range(PageCache& cache, Lane& lane, File& file, uint64_t offset, const std::byte* data,
                      uint32_t bytes) {
  auto* source = const_cast<std::byte*>(data);  // only sent, never written to
  for (uint32_t done = 0; done < bytes;) {
    std::array<PieceWrite, kPiecesPerRound> writes{};
    std::array<iovec, kPiecesPerRound> segments;
    uint32_t count = 0;
    for (; count < kPiecesPerRound && done < bytes; ++count) {
      PieceWrite& write = writes[count];
      write.piece = piece_at(file, offset + done, bytes - done);
      if (write.piece.is_hole()) co_return EIO;
      write.file_offset = offset + done;
      write.bytes = static_cast<uint32_t>(write.piece.length);
      segments[count] = {source + done, write.bytes};
      done += write.bytes;
    }
    fabric::Batch batch(lane.fabric);
    for (uint32_t index = 0; index < count; ++index) submit_write(batch, writes[index], {&segments[index], 1});
    co_await batch;
    int error = co_await settle_writes(cache, lane, file, std::span(writes).first(count));
    if (error != 0) co_return error;
  }
  co_return 0;
}

}  // namespace extmem::cache
