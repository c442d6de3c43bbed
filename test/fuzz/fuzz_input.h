// What the fuzz targets share: their input read from front to back (zeros once it is used up, so that every input means
// something), an invariant that stops the fuzzer, and mutations that put whole structs in.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <span>
#include <type_traits>
#include <vector>

#include "base/assert.h"

extern "C" size_t LLVMFuzzerMutate(uint8_t* data, size_t bytes, size_t max_bytes);

namespace extmem::fuzz {

class Input {
 public:
  Input(const uint8_t* data, size_t bytes) : rest_(data, bytes) {}
  bool empty() const { return rest_.empty(); }
  size_t left() const { return rest_.size(); }
  template <typename Integer>
  Integer take() {
    Integer value = 0;
    const auto bytes = take_bytes(sizeof value);
    std::memcpy(&value, bytes.data(), bytes.size());
    return value;
  }
  uint8_t byte() { return take<uint8_t>(); }
  /// As many as there are, up to so many.
  std::span<const uint8_t> take_bytes(size_t wanted) {
    const auto taken = rest_.first(std::min(wanted, rest_.size()));
    rest_ = rest_.subspan(taken.size());
    return taken;
  }

 private:
  std::span<const uint8_t> rest_;
};

template <typename Struct>
void append(std::vector<uint8_t>& to, const Struct& value) {
  static_assert(std::is_trivially_copyable_v<Struct>);
  const auto* bytes = reinterpret_cast<const uint8_t*>(&value);
  to.insert(to.end(), bytes, bytes + sizeof value);
}

/// Bytes that are told apart from those of the next seeds.
inline std::span<const uint8_t> pattern(uint64_t seed, size_t bytes) {
  static const std::vector<uint8_t> all = [] {
    std::vector<uint8_t> made((1 << 20) + 256);
    for (size_t place = 0; place < made.size(); ++place) made[place] = static_cast<uint8_t>(place * 7 + 1);
    return made;
  }();
  return std::span(all).subspan(seed * 31 % 256, bytes);
}

/// One of a few.
template <typename Random, typename Value, size_t kCount>
Value pick(Random& random, const Value (&values)[kCount]) {
  return values[random() % kCount];
}

/// Puts `piece` over or between the bytes of an input, after its first `kept` ones. Answers the new length.
inline size_t put_piece(uint8_t* data, size_t bytes, size_t max_bytes, const std::vector<uint8_t>& piece, size_t place,
                        bool between) {
  place = std::min(place, bytes);
  if (place + piece.size() > max_bytes) return bytes;
  if (between) {
    const size_t kept = std::min(bytes - place, max_bytes - place - piece.size());
    std::memmove(data + place + piece.size(), data + place, kept);
    std::copy(piece.begin(), piece.end(), data + place);
    return place + piece.size() + kept;
  }
  std::copy(piece.begin(), piece.end(), data + place);
  return std::max(bytes, place + piece.size());
}

}  // namespace extmem::fuzz
