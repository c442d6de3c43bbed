// ② The page cache of one mount: the files, the frames, and the checked transitions of pages. What takes time (reading,
// writing back, cutting) are coroutines in reader, writer, flusher and cutter; here nothing waits.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <unordered_map>
#include <vector>

#include "base/trace.h"
#include "cache/file.h"
#include "cache/frame_pool.h"
#include "cache/operation_watch.h"
#include "cache/reference_log.h"
#include "extent/control_plane.h"
#include "extent/slab_allocator.h"
#include "fabric/transport.h"

namespace extmem::cache {

/// One request spans at most this many pages (1 MiB, unaligned).
inline constexpr uint32_t kRequestPages = protocol::kMaxIoBytes / protocol::kPageBytes + 1;

/// Counted by one reactor, read by anybody.
struct LaneCounters {
  std::atomic<uint64_t> hits{0}, misses{0}, fills{0}, read_ahead{0}, ahead_used{0}, ahead_wasted{0}, evictions{0},
      writebacks{0}, written_back_pages{0}, failed_pages{0}, throttled{0}, direct_reads{0}, direct_writes{0},
      shared_reads{0}, shared_writes{0}, copies_retried{0}, copies_dropped{0};
  static void add(std::atomic<uint64_t>& counter, uint64_t amount = 1) {
    counter.store(counter.load(std::memory_order_relaxed) + amount, std::memory_order_relaxed);
  }
};

class BackgroundFlusher;

/// What a reactor brings to every operation: itself, its fabric, its counters.
struct Lane {
  Reactor& reactor;
  fabric::Fabric& fabric;
  BackgroundFlusher* flusher = nullptr;
  LaneCounters counters;
  OperationWatch watch{};
};

/// References to frames; they stay as they are until released.
class PinnedPages {
 public:
  explicit PinnedPages(FramePool& frames) : frames_(&frames) {}
  PinnedPages(const PinnedPages&) = delete;
  PinnedPages& operator=(const PinnedPages&) = delete;
  ~PinnedPages() { release(); }
  void add(uint32_t frame) { list_[count_++] = frame; }
  void release() {
    for (uint32_t index = 0; index < count_; ++index) frames_->release(list_[index]);
    count_ = 0;
  }
  uint32_t count() const { return count_; }
  uint32_t operator[](uint32_t index) const { return list_[index]; }

 private:
  FramePool* frames_;
  uint32_t count_ = 0;
  std::array<uint32_t, kRequestPages> list_;
};

class PageCache {
 public:
  struct Options {
    uint64_t cache_bytes = 256ull << 20;
    uint64_t dirty_bytes = 128ull << 20;
    uint64_t appliance_dirty_bytes = 64ull << 20;
    uint64_t pinned_bytes = 64ull << 20;  ///< of the cache, at most so much can be pinned
    uint32_t read_ahead_pages = 1024;
    uint64_t flush_age_ns = 100'000'000;
    int reference_log_fd = -1;  ///< where requests are noted; -1: nowhere
  };
  PageCache(const Options& options, fabric::Directory& directory, extent::ControlPlane& control_plane);
  ~PageCache();

  // Files. find() and make() take a reference; put_file() drops it. A file lives while it is referenced, and while it
  // is registered.
  File* find_file(uint64_t node);
  File& make_file(uint64_t node);
  void put_file(File& file);
  void forget_file(uint64_t node);
  std::vector<File*> all_files();  ///< each with a reference

  // Pages; the File's lock is held for all of these.
  /// Pins [first, first+count) if every page is there; else pins nothing.
  bool pin_locked(File& file, uint32_t first, uint32_t count, PinnedPages& pins);
  /// Pins those of [first, first+count) that are there.
  void pin_present_locked(File& file, uint32_t first, uint32_t count, PinnedPages& pins);
  void set_state_locked(File& file, uint32_t page, uint32_t frame, PageState to);
  /// Takes a page out of the cache; it must not be filling or being written.
  void drop_locked(File& file, uint32_t page, uint32_t frame);
  /// A page becomes dirty for that appliance, whatever it was (not while filling).
  void dirty_locked(File& file, uint32_t page, uint32_t frame, const fabric::Region& region);
  /// Counts a page that became redirtied (its state is set already).
  void redirtied_locked(File& file, uint32_t page, uint32_t frame);
  /// A dirty page is handed to write-back / comes back from it. The frame that was sent may have been replaced
  /// meanwhile.
  void begin_writing_locked(File& file, uint32_t page, uint32_t frame);
  /// lost: its region is gone for good, and so is the page. Answers whether this is a failure that errseq does not have
  /// yet.
  enum class WriteBack : uint8_t { done, failed, lost };
  bool end_writing_locked(File& file, uint32_t page, uint32_t sent_frame, WriteBack outcome);
  /// A page is clean and may be evicted, unless its file is pinned.
  void list_clean_locked(File& file, uint32_t frame, FramePool::End end);

  /// A frame with one reference, by eviction if need be; 0: everything is dirty or in use.
  uint32_t take_frame(Lane& lane);
  /// Drops the clean pages of [first, last]; returns how many.
  uint32_t drop_clean(File& file, uint32_t first, uint32_t last);
  /// From now on what is cached of the file stays, or may go again.
  void set_pinned(File& file, bool pinned);
  /// How much of a file is here, and how much of that is pinned.
  struct Residency {
    uint64_t cached_bytes = 0;
    uint64_t pinned_bytes = 0;
  };
  Residency residency_of(File& file);
  /// Drops everything, dirty pages too (their data is lost on purpose). Pages in flight stay.
  void discard(File& file);

  /// Of a request, or of what became of pages otherwise (reference_log.h).
  void note(Reference::Kind kind, const File& file, uint64_t page, uint64_t count) {
    if (references_ != nullptr) [[unlikely]]
      references_->note(kind, file.node, page, count);
  }
  /// Nobody asks for anything any more.
  void end_notes() {
    if (references_ != nullptr) references_->flush();
  }
  uint64_t lost_references() const { return references_ == nullptr ? 0 : references_->lost(); }

  uint64_t dirty_bytes() const { return dirty_pages_.load(std::memory_order_relaxed) * kPageBytes; }

  const Options& options() const { return options_; }
  FramePool& frames() { return frames_; }
  extent::SlabAllocator& slabs() { return slabs_; }
  fabric::Directory& directory() { return directory_; }
  extent::ControlPlane& control_plane() { return control_plane_; }
  std::atomic<bool> provisioning{false};  ///< a request for more room is under way

 private:
  bool evict_one(Lane& lane);
  void count_dirty_locked(File& file, uint32_t page, const Frame& meta);
  void uncount_dirty_locked(File& file, uint32_t page, const Frame& meta);

  Options options_;
  fabric::Directory& directory_;
  extent::ControlPlane& control_plane_;
  FramePool frames_;
  std::unique_ptr<ReferenceLog> references_;
  extent::SlabAllocator slabs_;
  std::vector<fabric::Appliance*> appliances_by_index_;
  std::atomic<uint64_t> dirty_pages_{0};

  std::mutex files_lock_;  // guards the two below; taken before no other lock but read under the pool's by index (see
                           // evict_one)
  std::unordered_map<uint64_t, File*> files_;
  static constexpr uint32_t kFileBlock = 1024;
  std::array<std::atomic<std::atomic<File*>*>, 16384> file_blocks_{};  // File by index
  std::vector<uint32_t> free_indexes_;
  uint32_t next_index_ = 1;

  File* file_at(uint32_t index) {
    return file_blocks_[index / kFileBlock].load(std::memory_order_acquire)[index % kFileBlock].load(
        std::memory_order_acquire);
  }
  void destroy(File& file);
};

/// First page of a byte range, and how many pages it touches.
inline uint32_t page_of(uint64_t offset) { return static_cast<uint32_t>(offset / kPageBytes); }
inline uint32_t pages_spanned(uint64_t offset, uint64_t bytes) {
  return bytes == 0 ? 0 : page_of(offset + bytes - 1) - page_of(offset) + 1;
}

/// Status of an operation → errno of the call that waited for it.
int errno_of(fabric::Status status);

}  // namespace extmem::cache
