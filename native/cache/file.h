// ② A file as the mount holds it: its cached pages (a radix of 2 MiB leaves), its extents, size and times, what is
// dirty, who waits, and the sequence of write-back errors (errseq).
//
// Everything is guarded by `lock`, a spin lock held for short sections, unless it is atomic. Lock order: File::lock,
// then the frame pool's, then the slab allocator's.
#pragma once

#include <array>
#include <atomic>
#include <coroutine>
#include <cstdint>
#include <memory>
#include <set>
#include <vector>

#include "base/reactor.h"
#include "base/spin_lock.h"
#include "cache/kernel_pages.h"
#include "cache/read_ahead.h"
#include "extent/extent_map.h"
#include "extent/file_record.h"

namespace extmem::cache {

using protocol::Delegation;

inline constexpr uint32_t kLeafPages = protocol::kStripeUnitBytes / protocol::kPageBytes;

/// The frames of up to 512 adjacent pages. The first leaf of a small file has room for as many as the file needs.
struct Leaf {
  uint32_t capacity = 0;
  std::unique_ptr<uint32_t[]> frames;  // 0: absent
  std::array<uint64_t, kLeafPages / 64> dirty{};

  uint32_t get(uint32_t index) const { return index < capacity ? frames[index] : 0; }
  void put(uint32_t index, uint32_t frame);
};

/// A coroutine that waits until something changes in a range of pages. Enlisted under the file's lock, then awaited.
struct PageWaiter final : Message {
  PageWaiter(Reactor& reactor, uint32_t first, uint32_t last) : reactor(reactor), first(first), last(last) {}
  bool await_ready() const noexcept { return false; }
  void await_suspend(std::coroutine_handle<> waiting) noexcept { handle = waiting; }
  void await_resume() const noexcept {}
  void run() override { handle.resume(); }

  Reactor& reactor;
  uint32_t first, last;  // inclusive
  PageWaiter* next = nullptr;
  std::coroutine_handle<> handle;
};

/// While the manager frees a range, the file has no writers, and nobody fills or flushes its pages. They go when the
/// cut is made, and stay (dirty ones too) when it is not.
struct Cut {
  bool pending = false;  // no writer enters any more; those within go on
  bool active = false;   // none is within
  uint64_t offset = 0;   // whole pages
  uint64_t end = 0;
  uint64_t asked_offset = 0;  // to the byte; asked_end UINT64_MAX: a truncation
  uint64_t asked_end = 0;
  bool overlaps(uint64_t from, uint64_t to) const { return active && from < end && offset < to; }
};

/// Who of this mount's writers makes a shared file longer. All under the file's lock.
struct End {
  bool ours = false;    // the manager gave it to this mount: nobody else makes the file longer
  bool in_use = false;  // by one writer here, from before it asks the manager until its bytes and the size are there
  uint32_t wanted = 0;  // by others: it goes before the next writer here has it
};

class File {
 public:
  File(uint64_t node, uint32_t index) : node(node), index(index) {}

  const uint64_t node;
  const uint32_t index;  ///< in the PageCache's table
  std::atomic<uint32_t> references{1};
  std::atomic<uint32_t> handles{0};

  SpinLock lock;
  extent::ExtentMap extents;
  extent::FileAttributes attributes;               ///< all but size
  std::atomic<uint64_t> size{0};                   ///< written under the lock
  std::atomic<Delegation> mode{Delegation::none};  ///< none: void (renewal.h), nothing is read or written
  std::atomic<uint32_t> life{0};                   ///< grows when the handles opened until then are of no use any more
  std::atomic<int> broken_errno{0};                ///< what those answer
  std::atomic<bool> refuses_mapped{false};         ///< pages that mappings have dirtied are of a time before a fence
  uint64_t committed_change = 0;                   ///< the manager has the record up to here
  /// What of the extents is more than was asked for, to be given back at a close (trim_surplus): beyond the size, and
  /// beyond what the file had when it came here or was reserved.
  struct Surplus {
    uint64_t from = 0;     ///< not before this
    uint64_t known = 0;    ///< up to here somebody else may have a record with the extents
    bool trimmed = false;  ///< once: whoever appends again and again keeps it
    bool soiled = false;   ///< a write failed: bytes beyond the size may not be zero
  } surplus;
  std::atomic<bool> privileged{false};  ///< set-user-ID or set-group-ID, which a write may take away
  std::atomic<bool> locked{false};      ///< TypeScript holds POSIX locks for it: close must say so
  bool pinned = false;                  ///< its pages stay in our frames, as far as there is room for pinned ones

  /// It lies in regions of its own only: the manager fills its holes, nothing is carved for it here.
  std::atomic<bool> own_regions{false};
  std::atomic<bool> unannounced{false};  ///< the manager does not know it yet: fsync must wait until it does

  std::atomic<uint32_t> dirty_pages{0};  ///< dirty, redirtied, failed
  uint32_t writing_pages = 0;
  uint32_t cached_pages = 0;
  std::set<uint32_t> dirty_leaves;
  bool in_dirty_list = false;
  uint64_t dirty_since_ns = 0;
  std::atomic<uint32_t> active_writers{
      0};                               ///< writes in progress; grows under the lock, and not while a cut is pending
  std::atomic<uint32_t> slow_reads{0};  ///< reads that were not answered at once
  std::atomic<uint32_t> error_sequence{0};  ///< grows with every failed write-back (errseq_t)
  Cut cut;
  bool paused = false;   ///< the manager changes its extents: no writer enters meanwhile
  bool refused = false;  ///< the manager went while it was paused: writers fail until its record is known again
  End end;
  std::array<uint32_t, 2> reads_in_flight{};  ///< from regions, by the phase that they began in
  uint8_t read_phase = 0;
  uint32_t read_turns = 0;  ///< how often the phase has changed
  ReadAhead read_ahead;

  uint32_t frame_at(uint32_t page) const;
  void set_frame(uint32_t page, uint32_t frame);
  void mark_dirty(uint32_t page);
  void unmark_dirty(uint32_t page);
  /// First page at or after `page` that is marked dirty; UINT32_MAX when none is.
  uint32_t next_dirty(uint32_t page) const;
  /// Calls visit(page, frame) for every cached page in [first, last].
  template <typename Visit>
  void for_each_page(uint32_t first, uint32_t last, Visit visit);

  void enlist(PageWaiter& waiter) {
    waiter.next = waiters_;
    waiters_ = &waiter;
  }
  /// Wakes those who wait for a page in [first, last].
  void wake(uint32_t first, uint32_t last);

 private:
  static constexpr uint32_t kFan = 512;
  using Branch = std::array<std::unique_ptr<Leaf>, kFan>;
  Leaf* leaf_at(uint32_t leaf) const;
  Leaf& make_leaf(uint32_t leaf);

  std::vector<std::unique_ptr<Branch>> branches_;
  PageWaiter* waiters_ = nullptr;
};

/// A read from the file's regions, from before it looks where the bytes are until they are here. What a cut freed is
/// used again only after those that began before it (reads_settled, in shared_turns.h).
class ReadInFlight {
 public:
  explicit ReadInFlight(File& file);
  ReadInFlight(const ReadInFlight&) = delete;
  ReadInFlight& operator=(const ReadInFlight&) = delete;
  ~ReadInFlight();

 private:
  File& file_;
  uint8_t phase_;
};

/// An open file description.
struct Handle {
  File* file;
  uint32_t flags;
  uint32_t seen_errors;  ///< error_sequence that this handle has reported
  uint32_t life;         ///< the file's when it was opened
  bool direct;           ///< the kernel was told FOPEN_DIRECT_IO: it keeps nothing of what is written through this
  std::shared_ptr<KernelFile> kernel;

  bool broken() const { return life != file->life.load(std::memory_order_relaxed); }
};

template <typename Visit>
void File::for_each_page(uint32_t first, uint32_t last, Visit visit) {
  for (uint64_t leaf_index = first / kLeafPages; leaf_index <= last / kLeafPages; ++leaf_index) {
    if (leaf_index / kFan >= branches_.size()) return;
    Leaf* leaf = leaf_at(static_cast<uint32_t>(leaf_index));
    if (leaf == nullptr) continue;
    for (uint32_t at = 0; at < leaf->capacity; ++at) {
      auto page = static_cast<uint32_t>(leaf_index * kLeafPages + at);
      if (leaf->frames[at] != 0 && page >= first && page <= last) visit(page, leaf->frames[at]);
    }
  }
}

}  // namespace extmem::cache
