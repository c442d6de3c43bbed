#include "cache/read_ahead.h"

#include <algorithm>
#include <cstdlib>

namespace extmem::cache {

namespace {

/// Requests of one reader overtake each other on their way here (two queues of the kernel): so far behind its stream's
/// end one still belongs to it.
constexpr uint32_t kOvertakenPages = 512;
/// Steps longer than this are not a stride.
constexpr int64_t kLongestStride = 4096;
constexpr uint32_t kMostStretches = 32;
/// One message, and no longer on its way than one page.
constexpr uint32_t kLeastPages = 4;

}  // namespace

ReadAhead::Window ReadAhead::advise(uint32_t first, uint32_t length, uint32_t most) {
  const uint32_t end = first + length;
  for (Stream& stream : streams_) {
    if (stream.trend == kNone) continue;
    Step step = along_trend(stream, first, end);
    if (step.continues) return follow(stream, step, first, end, most);
  }
  Stream& stream = candidate_for(first, end);
  const bool again = first == stream.first && stream.age != 0;
  stream.age = ++clock_;
  if (again) return {};
  stream.first = first;
  stream.end = end;
  stream.trend = stream.touches >= proofs() ? stream.coming : stream.coming == kNone ? voted_stride(first) : kNone;
  return stream.trend == kNone ? Window{} : extend(stream, most);
}

void ReadAhead::wasted(uint32_t page) {
  count(wasted_pages_, 1);
  for (Stream& stream : streams_) {
    if (stream.ahead == 0) continue;
    const int64_t beyond = int64_t{page} - stream.first;
    bool its_own = stream.trend == kOnwards     ? page >= stream.end && page - stream.end < stream.ahead
                   : stream.trend == kBackwards ? beyond < 0 && -beyond <= stream.ahead
                                                : beyond / stream.trend >= 1 && beyond / stream.trend <= stream.ahead;
    if (its_own) stream.window = stream.ahead = 0;
  }
}

/// Whether a request goes on where the stream was expected, or further on within what was fetched for it: what the
/// kernel has already, it does not ask for.
ReadAhead::Step ReadAhead::along_trend(const Stream& stream, uint32_t first, uint32_t end) {
  if (stream.trend == kOnwards) {
    if (first > stream.end + stream.ahead || first + kOvertakenPages < stream.end) return {};
    return {true, end > stream.end ? end - stream.end : 0};
  }
  if (stream.trend == kBackwards) {
    if (end + stream.ahead < stream.first || end > stream.first + kOvertakenPages) return {};
    return {true, first < stream.first ? stream.first - first : 0};
  }
  const int64_t distance = int64_t{first} - stream.first;
  const int64_t strides = distance / stream.trend;
  if (distance % stream.trend != 0 || strides < 0 || strides > int64_t{stream.ahead} + 1) return {};
  return {true, static_cast<uint32_t>(strides)};
}

ReadAhead::Window ReadAhead::follow(Stream& stream, Step step, uint32_t first, uint32_t end, uint32_t most) {
  stream.age = ++clock_;
  if (step.by == 0) return {};
  const uint32_t used = std::min(step.by, stream.ahead);
  const bool is_stride = stream.trend != kOnwards && stream.trend != kBackwards;
  count(used_pages_, is_stride ? used * (end - first) : used);
  stream.ahead -= used;
  stream.asked += is_stride ? end - first : step.by;
  stream.first = first;
  stream.end = end;
  return extend(stream, most);
}

/// The stream without a trend that this request touches; else a new one, in the place of the one that was silent for
/// longest.
ReadAhead::Stream& ReadAhead::candidate_for(uint32_t first, uint32_t end) {
  Stream* oldest = &streams_[0];
  for (Stream& stream : streams_) {
    if (stream.age < oldest->age) oldest = &stream;
    if (stream.age == 0 || stream.trend != kNone) continue;
    const Trend touching = first == stream.end ? kOnwards : end == stream.first ? kBackwards : kNone;
    if (touching != kNone) {
      stream.touches = stream.coming == touching ? stream.touches + 1 : 1;
      stream.coming = touching;
    }
    if (touching != kNone || first == stream.first) return stream;
  }
  *oldest = {};
  // A file read from its start is most often read to its end.
  if (first == 0) {
    oldest->coming = kOnwards;
    oldest->touches = 1;
  }
  return *oldest;
}

/// The step that most of the last were, the one to this request included.
ReadAhead::Trend ReadAhead::voted_stride(uint32_t first) {
  const int64_t distance = int64_t{first} - last_first_;
  last_first_ = first;
  steps_[step_count_++ % steps_.size()] = std::abs(distance) <= kLongestStride ? static_cast<int32_t>(distance) : 0;
  auto step = [&](uint32_t back) { return steps_[(step_count_ - back) % steps_.size()]; };
  for (uint32_t last = proofs(); last <= std::min<uint32_t>(step_count_, steps_.size()); last *= 2) {
    int32_t majority = 0;
    uint32_t votes = 0;  // Boyer and Moore: what is left when unlike pairs go
    for (uint32_t back = 1; back <= last; ++back) {
      if (votes == 0) majority = step(back);
      votes += step(back) == majority ? 1u : -1u;
    }
    uint32_t like = 0;
    for (uint32_t back = 1; back <= last; ++back) like += step(back) == majority ? 1 : 0;
    if (like > last / 2) return majority;
  }
  return kNone;
}

/// How many steps make a trend: the more, the more of what was read ahead went unused.
uint32_t ReadAhead::proofs() const { return wasted_pages_ > used_pages_ ? 8 : wasted_pages_ > used_pages_ / 4 ? 4 : 2; }

/// The window doubles, as long as it is no more than a quarter of what the stream has asked for: so much may be in vain
/// when it ends. No more than a few pages when most of what was read ahead of late was.
uint32_t ReadAhead::grown(const Stream& stream) const {
  const uint32_t least = std::max(2 * stream.length(), kLeastPages);
  if (wasted_pages_ > used_pages_) return least;
  return std::max(least, std::min(2 * stream.window, stream.asked / 4));
}

/// More, once half of what was fetched ahead is used up.
ReadAhead::Window ReadAhead::extend(Stream& stream, uint32_t most) {
  if (stream.trend != kOnwards && stream.trend != kBackwards) return extend_stride(stream, most);
  if (stream.window != 0 && stream.ahead > stream.window / 2) return {};
  stream.window = std::min(grown(stream), most);
  if (stream.window <= stream.ahead) return {};
  uint32_t more = stream.window - stream.ahead;
  if (stream.trend == kOnwards) {
    Window window{stream.end + stream.ahead, more, 1, 0};
    stream.ahead = stream.window;
    return window;
  }
  const uint32_t lowest = stream.first - std::min(stream.first, stream.ahead);  // that was fetched
  more = std::min(more, lowest);
  stream.ahead += more;
  return {lowest - more, more, more == 0 ? 0u : 1u, 0};
}

ReadAhead::Window ReadAhead::extend_stride(Stream& stream, uint32_t most) {
  auto stretches = [&] { return std::min(stream.window / stream.length(), kMostStretches); };
  if (stream.window != 0 && stream.ahead > stretches() / 2) return {};
  stream.window = std::min(grown(stream), most);
  uint32_t wanted = stretches();
  // Not past the start of the file.
  if (stream.trend < 0) wanted = std::min(wanted, stream.first / static_cast<uint32_t>(-stream.trend));
  if (wanted <= stream.ahead) return {};
  const int64_t next = int64_t{stream.first} + int64_t{stream.trend} * (stream.ahead + 1);
  Window window{static_cast<uint32_t>(next), stream.length(), wanted - stream.ahead, stream.trend};
  stream.ahead = wanted;
  return window;
}

void ReadAhead::count(uint32_t& counter, uint32_t pages) {
  constexpr uint32_t kRemembered = 4096;
  counter += pages;
  if (used_pages_ + wasted_pages_ < kRemembered) return;
  used_pages_ /= 2;
  wasted_pages_ /= 2;
}

}  // namespace extmem::cache
