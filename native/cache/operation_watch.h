// ② What is read and written, by file, for whoever watches (C12): requests of the kernel, their bytes, how many reads
// were answered from our frames at once, and which chunks (2 MiB) were used most. Off, it costs a look at a pointer;
// on, a short section under a lock that only the watcher shares with this reactor. It never allocates on a reactor.
//
// Each reactor notes in a table of its own, which has room for so many files between two looks; what others do then is
// counted without saying of which file.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "base/spin_lock.h"

namespace extmem::cache {

struct FileOperations {
  static constexpr uint32_t kHot = 8;
  /// A chunk, and how often it was used: never less than it was, and more only by what was counted of a chunk that it
  /// took the place of.
  struct Hot {
    uint64_t chunk = 0, operations = 0;
  };
  uint64_t node = 0;  ///< 0: none
  uint64_t reads = 0, read_bytes = 0;
  uint64_t hits = 0;  ///< of the reads
  uint64_t writes = 0, written_bytes = 0;
  uint64_t mapped_writes = 0;  ///< of the writes, what mappings had stored
  std::array<Hot, kHot> hot{};

  void use(uint64_t offset);
  void add(const FileOperations& other);
};

class OperationWatch {
 public:
  static constexpr uint32_t kFiles = 256;

  // The watcher's thread.
  void begin();
  void end() { table_.store(nullptr, std::memory_order_release); }
  /// Adds what was noted since the last look to those of the same file, and answers how many operations more there
  /// were.
  uint64_t take(std::vector<FileOperations>& into);

  // The reactor.
  void note_read(uint64_t node, uint64_t offset, uint32_t bytes, bool hit);
  void note_write(uint64_t node, uint64_t offset, uint32_t bytes, bool mapped);

 private:
  struct Table {
    SpinLock lock;
    std::array<FileOperations, kFiles> files{};
    uint64_t others = 0;
    FileOperations* find(uint64_t node);
  };

  std::atomic<Table*> table_{nullptr};  // null: nobody watches
  std::unique_ptr<Table> kept_;         // once there, it stays: a reactor may be noting in it
};

}  // namespace extmem::cache
