// Which chunks of a region (kLendBytes each) have been written since somebody last asked: one bit for each, in a memfd
// of its own, which clients on this host that store by themselves are given as well. Its size is sealed, so that nobody
// can take it from under another.
//
// A bit is set after the store, so that whoever clears it and then reads finds what was stored, or the bit again. Who
// may die in between (a client that stores by itself) sets it before the store too. Lock-free; any thread.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "base/protocol.h"
#include "base/socket.h"

namespace extmem {

class WrittenMap {
 public:
  /// Null: no memory, or no descriptors.
  static std::unique_ptr<WrittenMap> create(uint64_t region_bytes);
  /// The client's side. Null: that is no such map, or there is no memory.
  static std::unique_ptr<WrittenMap> open(UniqueFd fd);
  WrittenMap(UniqueFd fd, std::span<std::atomic<uint64_t>> words) : fd_(std::move(fd)), words_(words) {}
  ~WrittenMap();
  WrittenMap(const WrittenMap&) = delete;

  int fd() const { return fd_.get(); }
  /// Whether that descriptor is this map's.
  bool is_of(int fd) const;
  bool covers(uint64_t region_bytes) const;
  /// What lies beyond the map is left out.
  void mark(uint64_t offset, uint64_t bytes);
  /// Clears the marks of the chunks from `first` up to `end`; appends the numbers of those that were marked.
  void take(std::vector<uint64_t>& into, uint64_t first = 0, uint64_t end = UINT64_MAX);

 private:
  const UniqueFd fd_;
  const std::span<std::atomic<uint64_t>> words_;
};

}  // namespace extmem
