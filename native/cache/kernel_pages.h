// ② What the kernel's page cache holds of our files, as an upper bound: what it was given (answers to READ, the data of
// WRITE) less what it has been told to drop. The kernel also drops pages by itself and does not say so; then less is
// there than is counted here, never more.
//
// Counted by chunks of 2 MiB of a file. A chunk with pages in it is in one queue, in the order in which chunks were
// first given something: its head goes first when there is too much (fuse/kernel_reclaimer).
//
// Lock order: KernelFile::lock_, then the queue's. The table of files is for the control path, and is taken before
// both.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <unordered_map>
#include <vector>

#include "base/spin_lock.h"

namespace extmem::cache {

class KernelPages;

/// One inode that the kernel knows and has opened. It outlives File: closed files stay in the kernel's cache.
class KernelFile : public std::enable_shared_from_this<KernelFile> {
 public:
  static constexpr uint32_t kChunkPages = 512;

  KernelFile(KernelPages& all, uint64_t node) : node(node), all_(all) {}
  ~KernelFile();
  KernelFile(const KernelFile&) = delete;
  KernelFile& operator=(const KernelFile&) = delete;

  const uint64_t node;

 private:
  friend class KernelPages;
  struct Chunk {
    KernelFile* file;
    uint32_t index;
    bool queued = false;  // guarded by the file's lock
    bool linked = false;  // the three from here on by the queue's
    Chunk* previous = nullptr;
    Chunk* next = nullptr;
    std::array<uint64_t, kChunkPages / 64> given{};  // the file's lock
  };
  Chunk& chunk_at(uint32_t index);

  KernelPages& all_;
  SpinLock lock_;
  std::vector<std::unique_ptr<Chunk>> chunks_;
};

class KernelPages {
 public:
  /// Pages of one file that are to be dropped: not marked any more, but counted until they are settled.
  struct Taken {
    uint64_t node = 0;
    uint32_t first = 0;
    uint32_t span = 0;
    uint32_t pages = 0;
  };

  /// The file of a node, made when it is not known.
  std::shared_ptr<KernelFile> file(uint64_t node);
  /// The kernel has dropped the inode, and with it its pages.
  void forget(uint64_t node);

  /// Any reactor. Answers whether something was added.
  bool give(KernelFile& file, uint32_t first, uint32_t count);
  /// Before the kernel is told to drop [first, last] of a file.
  Taken take(uint64_t node, uint32_t first, uint32_t last);
  /// What has been there longest; nothing when nothing is there.
  std::optional<Taken> take_oldest();
  /// Whether take_oldest() has anything to take.
  bool any_marked();
  /// The kernel has dropped it.
  void settle(const Taken& taken) { pages_.fetch_sub(taken.pages, std::memory_order_relaxed); }

  uint64_t pages() const { return pages_.load(std::memory_order_relaxed); }

 private:
  friend class KernelFile;
  using Chunk = KernelFile::Chunk;
  uint32_t clear_locked(Chunk& chunk, uint32_t first, uint32_t last);
  void link(Chunk& chunk);
  void unlink(Chunk& chunk);
  void unlink_locked(Chunk& chunk);
  void drop_all(KernelFile& file);

  std::atomic<uint64_t> pages_{0};
  SpinLock queue_lock_;
  Chunk* oldest_ = nullptr;
  Chunk* newest_ = nullptr;
  std::mutex files_lock_;
  std::unordered_map<uint64_t, std::shared_ptr<KernelFile>> files_;
};

}  // namespace extmem::cache
