// Read-ahead: which pages will be asked for next. Several streams per file, each with its trend: onwards, backwards, or
// by a stride. Onwards and backwards are told by requests that touch; a stride is what most of the last steps between
// all other requests were, after Al Maruf and Chowdhury, "Effectively Prefetching Remote Memory with Leap" (USENIX ATC
// 2020), so that stray ones do not hide it. A stream's window grows as it is used up; what goes unused closes it, and
// makes the file's next streams prove themselves for longer.
#pragma once

#include <array>
#include <cstdint>
#include <limits>

namespace extmem::cache {

/// Belongs to one file, under its lock. All figures are pages.
class ReadAhead {
 public:
  /// Up to `count` stretches of `length` pages, `stride` apart, from `first` on.
  struct Window {
    uint32_t first = 0;
    uint32_t length = 0;
    uint32_t count = 0;
    int32_t stride = 0;
  };

  /// A request for `length` pages at `first` was made; what to fetch beyond it, so that at most `most` are ahead of the
  /// stream.
  Window advise(uint32_t first, uint32_t length, uint32_t most);
  /// A page that was read ahead has gone before anybody asked for it.
  void wasted(uint32_t page);
  void reset() { *this = ReadAhead(); }

 private:
  /// The distance from one request to the next, or one of these.
  using Trend = int32_t;
  static constexpr Trend kNone = 0;
  static constexpr Trend kOnwards = std::numeric_limits<Trend>::max();    ///< it begins where the last one ended
  static constexpr Trend kBackwards = std::numeric_limits<Trend>::min();  ///< it ends where the last one began

  struct Stream {
    uint32_t first = 0;  // of its last request
    uint32_t end = 0;
    uint32_t age = 0;      // of its last request by the clock; 0: not in use
    Trend trend = kNone;   // once it has proved itself
    Trend coming = kNone;  // what it may become: onwards or backwards,
    uint32_t touches = 0;  // after so many requests that touched
    uint32_t ahead = 0;    // fetched beyond it and not asked for yet; by a stride: stretches
    uint32_t window = 0;   // how much that may become
    uint32_t asked = 0;    // since it has a trend
    uint32_t length() const { return end - first; }
  };
  /// A stream goes on with a request, by so much, in the unit of Stream::ahead.
  struct Step {
    bool continues = false;
    uint32_t by = 0;
  };

  static Step along_trend(const Stream& stream, uint32_t first, uint32_t end);
  Window follow(Stream& stream, Step step, uint32_t first, uint32_t end, uint32_t most);
  Stream& candidate_for(uint32_t first, uint32_t end);
  Trend voted_stride(uint32_t first);
  uint32_t proofs() const;
  uint32_t grown(const Stream& stream) const;
  Window extend(Stream& stream, uint32_t most);
  Window extend_stride(Stream& stream, uint32_t most);
  void count(uint32_t& counter, uint32_t pages);

  std::array<Stream, 16> streams_{};
  uint32_t clock_ = 0;
  // Requests that neither follow a stream nor touch one: from each to the next. Step n is at n % size.
  std::array<int32_t, 8> steps_{};
  uint32_t step_count_ = 0;
  uint32_t last_first_ = 0;
  // Of the last pages that were read ahead: those asked for, and those not. Both are halved as they grow.
  uint32_t used_pages_ = 0;
  uint32_t wasted_pages_ = 0;
};

}  // namespace extmem::cache
