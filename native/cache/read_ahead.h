// Read-ahead: which pages will be asked for next. Several streams per file, each with its stride; a window that doubles
// while the prediction holds and goes when it does not. The majority vote over recent strides follows Al Maruf and
// Chowdhury, "Effectively Prefetching Remote Memory with Leap" (USENIX ATC 2020).
#pragma once

#include <array>
#include <cstdint>

namespace extmem::cache {

class ReadAhead {
 public:
  /// Up to `count` stretches of `length` pages, `stride` pages apart, from `first` on.
  struct Window {
    uint64_t first = 0;
    uint32_t length = 0;
    uint32_t count = 0;
    int64_t stride = 0;
  };

  /// A request for `length` pages at `first` was made; what to fetch beyond it, at most max_pages in all. Under the
  /// file's lock.
  Window advise(uint64_t first, uint32_t length, uint32_t max_pages);
  void reset() { *this = ReadAhead(); }

 private:
  static constexpr uint32_t kFirstWindowPages = 32;
  static constexpr uint32_t kConfirmations = 2;
  struct Stream {
    uint64_t last_first = 0;  // of its last request
    uint64_t last_end = 0;
    uint64_t fetched_end = 0;  // forward sequential: everything before is fetched
    int64_t stride = 0;
    uint32_t confirmed = 0;
    uint32_t window_pages = 0;
    uint32_t age = 0;
    bool used = false;
  };
  Stream& find_stream(uint64_t first, uint32_t length);
  Window sequential(Stream& stream, uint32_t max_pages);
  Window strided(Stream& stream, uint64_t first, uint32_t length, uint32_t max_pages);

  std::array<Stream, 8> streams_{};
  uint32_t clock_ = 0;
};

}  // namespace extmem::cache
