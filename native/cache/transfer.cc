#include "cache/transfer.h"

#include <errno.h>

#include <algorithm>
#include <cstring>

namespace extmem::cache {

namespace {
constexpr uint32_t kPiecesPerRound = 8;
}

Task<int> transfer(Lane& lane, File& file, fabric::Op op, uint64_t offset, std::byte* data, uint32_t bytes) {
  for (uint32_t done = 0; done < bytes;) {
    std::array<fabric::Operation, kPiecesPerRound> operations{};
    std::array<iovec, kPiecesPerRound> segments;
    uint32_t count = 0;
    fabric::Batch batch(lane.fabric);
    for (; count < kPiecesPerRound && done < bytes;) {
      file.lock.lock();
      auto piece = file.extents.resolve(offset + done, bytes - done);
      file.lock.unlock();
      auto length = static_cast<uint32_t>(std::min<uint64_t>(piece.length, bytes - done));
      if (piece.is_hole()) {
        if (op == fabric::Op::write) co_return EIO;
        std::memset(data + done, 0, length);
        done += length;
        continue;
      }
      segments[count] = {data + done, length};
      fabric::Operation& operation = operations[count];
      operation.op = op;
      operation.region = piece.copies[0].region;
      operation.offset = piece.copies[0].offset;
      operation.segments = &segments[count];
      operation.segment_count = 1;
      operation.bytes = length;
      done += length;
      ++count;
    }
    for (uint32_t index = 0; index < count; ++index) batch.submit(operations[index]);
    co_await batch;
    for (uint32_t index = 0; index < count; ++index) {
      if (operations[index].status != fabric::Status::ok) co_return errno_of(operations[index].status);
    }
  }
  co_return 0;
}

}  // namespace extmem::cache
