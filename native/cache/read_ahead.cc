#include "cache/read_ahead.h"

#include <algorithm>
#include <cstdlib>

namespace extmem::cache {

ReadAhead::Window ReadAhead::advise(uint64_t first, uint32_t length, uint32_t max_pages) {
  if (max_pages == 0) return {};
  Stream& stream = find_stream(first, length);
  stream.age = ++clock_;
  if (!stream.used) {
    stream = {.last_first = first,
              .last_end = first + length,
              .fetched_end = first + length,
              .stride = 0,
              .confirmed = 0,
              .window_pages = 0,
              .age = clock_,
              .used = true};
    // A file read from its start is most often read to its end.
    if (first == 0) stream.confirmed = kConfirmations - 1;
    return {};
  }
  auto stride = static_cast<int64_t>(first - stream.last_first);
  bool sequential_hit = first == stream.last_end;
  if (stride == 0) return {};
  if (sequential_hit || stride == stream.stride) {
    ++stream.confirmed;
  } else {
    stream.confirmed = 0;
    stream.window_pages = 0;
    stream.fetched_end = first + length;
  }
  stream.stride = stride;
  stream.last_first = first;
  stream.last_end = first + length;
  if (stream.confirmed < kConfirmations) return {};
  return sequential_hit ? sequential(stream, max_pages) : strided(stream, first, length, max_pages);
}

/// The stream that this request continues: sequentially, by its stride, or (a new stride) the nearest one.
ReadAhead::Stream& ReadAhead::find_stream(uint64_t first, uint32_t length) {
  constexpr int64_t kReachPages = 2048;
  Stream* nearest = nullptr;
  Stream* oldest = &streams_[0];
  for (Stream& stream : streams_) {
    if (!stream.used) {
      if (oldest->used) oldest = &stream;
      continue;
    }
    auto distance = static_cast<int64_t>(first - stream.last_first);
    if (first == stream.last_end || (stream.stride != 0 && distance == stream.stride)) return stream;
    if (std::abs(distance) <= kReachPages + length && nearest == nullptr && stream.confirmed < kConfirmations)
      nearest = &stream;
    if (oldest->used && stream.age < oldest->age) oldest = &stream;
  }
  if (nearest != nullptr) return *nearest;
  oldest->used = false;
  return *oldest;
}

ReadAhead::Window ReadAhead::sequential(Stream& stream, uint32_t max_pages) {
  uint64_t ahead = stream.fetched_end > stream.last_end ? stream.fetched_end - stream.last_end : 0;
  if (stream.window_pages != 0 && ahead > stream.window_pages / 2) return {};
  stream.window_pages = std::min(stream.window_pages == 0 ? kFirstWindowPages : stream.window_pages * 2, max_pages);
  uint64_t from = std::max(stream.fetched_end, stream.last_end);
  uint64_t to = stream.last_end + stream.window_pages;
  if (to <= from) return {};
  stream.fetched_end = to;
  return {from, static_cast<uint32_t>(to - from), 1, 0};
}

ReadAhead::Window ReadAhead::strided(Stream& stream, uint64_t first, uint32_t length, uint32_t max_pages) {
  stream.window_pages = std::min(std::max(stream.window_pages * 2, 2 * length), max_pages);
  uint32_t count = std::clamp(stream.window_pages / std::max(length, 1u), 1u, 16u);
  // Backwards: do not run past the start of the file.
  if (stream.stride < 0)
    count = static_cast<uint32_t>(std::min<uint64_t>(count, first / static_cast<uint64_t>(-stream.stride)));
  if (count == 0) return {};
  return {first + static_cast<uint64_t>(stream.stride), length, count, stream.stride};
}

}  // namespace extmem::cache
