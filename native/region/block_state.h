// What the keeper must know of a region's blocks (64 KiB each) where there is a backing store: which were changed since
// they were last persisted, which are only in the store, and which pages of them are damaged there.
//
// Any thread, without a lock but for what is damaged or could not be brought, of which there is hardly ever any. A
// writer marks before it writes; whoever takes the marks (Region::begin_persist) does so while nobody writes.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <vector>

#include "base/clock.h"
#include "base/protocol.h"
#include "store/format.h"

namespace extmem::region {

class BlockState {
 public:
  static constexpr uint64_t kBytes = store::kBlockBytes;
  static constexpr uint64_t kPages = kBytes / protocol::kPageBytes;
  static constexpr uint64_t kPerChunk = protocol::kLendBytes / kBytes;
  enum class Presence : uint8_t { here, absent, damaged, failed };

  explicit BlockState(uint64_t bytes) : blocks_((bytes + kBytes - 1) / kBytes), changed_(blocks_), absent_(blocks_) {}

  uint64_t blocks() const { return blocks_; }

  void mark_changed(uint64_t offset, uint64_t bytes) {
    if (bytes == 0) return;
    for (uint64_t block = offset / kBytes; block <= (offset + bytes - 1) / kBytes; ++block) changed_.set(block);
  }
  bool changed(uint64_t block) const { return changed_.test(block); }
  /// Takes the marks of blocks from `first` up to `end`, and appends which had one.
  void take_changed(uint64_t first, uint64_t end, std::vector<uint64_t>& into) {
    changed_.take(first, std::min(end, blocks_), into);
  }

  /// Before anybody else knows the region, or while nobody uses it.
  void make_absent(uint64_t block) {
    if (absent_.set(block)) absent_count_.fetch_add(1);
  }
  bool absent(uint64_t block) const { return absent_count_.load() > 0 && absent_.test(block); }
  uint64_t absent_count() const { return absent_count_.load(); }
  void make_present(uint64_t block) {
    if (absent_.clear(block)) absent_count_.fetch_sub(1);
    take_failed(block);
  }
  /// Everything is here, and good.
  bool settled() const { return absent_count_.load() == 0 && damaged_count_.load() == 0; }

  /// An absent block could not be brought: who asks for it next is told so, and after that it is tried again.
  void note_failed(uint64_t block) {
    std::lock_guard guard(damaged_lock_);
    failed_[block] = monotonic_ns();
    failed_count_.store(failed_.size());
  }

  /// How often the device has failed to give it, with this time.
  unsigned count_try(uint64_t block) {
    std::lock_guard guard(damaged_lock_);
    return ++tries_[block];
  }

  void mark_damaged(uint64_t block) {
    std::lock_guard guard(damaged_lock_);
    for (uint64_t page = block * kPages; page < (block + 1) * kPages; ++page) damaged_.insert(page);
    damaged_count_.store(damaged_.size());
  }
  uint64_t damaged_pages() const { return damaged_count_.load(); }
  bool damaged(uint64_t block) const {
    if (damaged_count_.load() == 0) return false;
    std::lock_guard guard(damaged_lock_);
    auto first = damaged_.lower_bound(block * kPages);
    return first != damaged_.end() && *first < (block + 1) * kPages;
  }
  /// Pages that were replaced as a whole are good again.
  void mend(uint64_t offset, uint64_t bytes) {
    if (damaged_count_.load() == 0) return;
    std::lock_guard guard(damaged_lock_);
    const uint64_t first = (offset + protocol::kPageBytes - 1) / protocol::kPageBytes;
    const uint64_t end = (offset + bytes) / protocol::kPageBytes;
    if (first < end) damaged_.erase(damaged_.lower_bound(first), damaged_.lower_bound(end));
    damaged_count_.store(damaged_.size());
  }
  /// Of a range that is read, or replaced: then only pages that it covers in part matter. `block`: the absent one.
  Presence presence(uint64_t offset, uint64_t bytes, bool replaces, uint64_t& block) {
    if (settled() || bytes == 0) return Presence::here;
    for (block = offset / kBytes; block <= (offset + bytes - 1) / kBytes; ++block) {
      if (absent(block)) return take_failed(block) ? Presence::failed : Presence::absent;
    }
    return damaged_count_.load() > 0 && meets_damage(offset, bytes, replaces) ? Presence::damaged : Presence::here;
  }

 private:
  class Bits {
   public:
    explicit Bits(uint64_t count) : words_(std::make_unique<std::atomic<uint64_t>[]>(count / 64 + 1)) {}
    bool test(uint64_t at) const { return (words_[at / 64].load() >> at % 64 & 1) != 0; }
    /// Whether it was not set.
    bool set(uint64_t at) {
      const uint64_t bit = uint64_t{1} << at % 64;
      auto& word = words_[at / 64];
      return (word.load() & bit) == 0 && (word.fetch_or(bit) & bit) == 0;
    }
    /// A word at a time, so that a large region without marks is quickly looked through.
    void take(uint64_t first, uint64_t end, std::vector<uint64_t>& into) {
      for (uint64_t at = first; at < end;) {
        const uint64_t next = std::min(end, (at / 64 + 1) * 64);
        for (; words_[at / 64].load() != 0 && at < next; ++at) {
          if (clear(at)) into.push_back(at);
        }
        at = next;
      }
    }
    /// Whether it was set.
    bool clear(uint64_t at) {
      const uint64_t bit = uint64_t{1} << at % 64;
      return (words_[at / 64].fetch_and(~bit) & bit) != 0;
    }

   private:
    std::unique_ptr<std::atomic<uint64_t>[]> words_;
  };

  /// Of long ago, it was noted for somebody who asks no more.
  bool take_failed(uint64_t block) {
    if (failed_count_.load() == 0) return false;
    std::lock_guard guard(damaged_lock_);
    const auto failed = failed_.find(block);
    if (failed == failed_.end()) return false;
    const bool is_recent = monotonic_ns() - failed->second < kFailedNs;
    failed_.erase(failed);
    failed_count_.store(failed_.size());
    return is_recent;
  }

  bool meets_damage(uint64_t offset, uint64_t bytes, bool replaces) const {
    std::lock_guard guard(damaged_lock_);
    const uint64_t end = offset + bytes;
    for (auto page = damaged_.lower_bound(offset / protocol::kPageBytes);
         page != damaged_.end() && *page * protocol::kPageBytes < end; ++page) {
      const uint64_t begin = *page * protocol::kPageBytes;
      if (!replaces || begin < offset || begin + protocol::kPageBytes > end) return true;
    }
    return false;
  }

  static constexpr uint64_t kFailedNs = 1'000'000'000;

  const uint64_t blocks_;
  Bits changed_, absent_;
  std::atomic<uint64_t> absent_count_{0}, damaged_count_{0}, failed_count_{0};
  mutable std::mutex damaged_lock_;
  std::set<uint64_t> damaged_;           // pages
  std::map<uint64_t, uint64_t> failed_;  // blocks, and when
  std::map<uint64_t, unsigned> tries_;   // of blocks that the device did not give
};

}  // namespace extmem::region
