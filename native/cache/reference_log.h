// What was asked of the page cache: a record for each request, in the order in which they were taken up. For studies of
// eviction (cache/eviction_bench.cc reads it). A mount has one only where it was given a file for it (--reference-log).
//
// Any thread. Records go into one of two buffers; whoever finds it full writes it out, while the others go on with the
// second. Nothing waits for the disk but who writes to it: what does not fit meanwhile is counted, not kept.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>

#include "base/spin_lock.h"

namespace extmem::cache {

/// In the file as in memory, after a head of the same size.
struct Reference {
  enum class Kind : uint8_t {
    read,         ///< through the kernel's page cache, which keeps what it is given
    direct_read,  ///< past it
    write,
    drop,  ///< the pages are no more: the file was removed, cut, or is no longer held
  };
  static constexpr uint32_t kToTheEnd = (1u << 24) - 1;  // as count

  uint64_t node;
  uint64_t ns;  // monotonic
  uint32_t page;
  uint32_t count : 24;
  uint32_t kind : 8;
};
static_assert(sizeof(Reference) == 24);

inline constexpr std::array<char, sizeof(Reference)> kReferenceLogHead{"extmem references 1\n"};

class ReferenceLog {
 public:
  /// Owns the descriptor from now on.
  explicit ReferenceLog(int fd);
  ReferenceLog(const ReferenceLog&) = delete;
  ReferenceLog& operator=(const ReferenceLog&) = delete;
  ~ReferenceLog();

  void note(Reference::Kind kind, uint64_t node, uint64_t page, uint64_t count);
  /// Writes out what is held; nobody notes anything meanwhile.
  void flush();
  /// What could not be kept: the disk was too slow for it, or full.
  uint64_t lost() const { return lost_.load(std::memory_order_relaxed); }

 private:
  static constexpr size_t kRecords = 1 << 14;
  using Buffer = std::array<Reference, kRecords>;
  void write_out(const void* data, size_t bytes, size_t records);

  const int fd_;
  SpinLock lock_;  // guards the four below; the buffer that is not the current one belongs to who set writing_
  std::unique_ptr<std::array<Buffer, 2>> buffers_;
  size_t current_ = 0;
  size_t used_ = 0;
  bool writing_ = false;
  std::atomic<bool> broken_{false};
  std::atomic<uint64_t> lost_{0};
};

}  // namespace extmem::cache
