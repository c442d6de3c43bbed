#include "cache/kernel_pages.h"

#include <algorithm>
#include <bit>

namespace extmem::cache {

namespace {

constexpr uint32_t kChunkPages = KernelFile::kChunkPages;

/// Calls visit(chunk index, first page in it, last page in it) for every chunk of [first, last].
template <typename Visit>
void for_each_chunk(uint32_t first, uint32_t last, Visit visit) {
  for (uint32_t index = first / kChunkPages; index <= last / kChunkPages; ++index) {
    uint32_t from = index == first / kChunkPages ? first % kChunkPages : 0;
    uint32_t to = index == last / kChunkPages ? last % kChunkPages : kChunkPages - 1;
    visit(index, from, to);
  }
}

/// The bits of [from, to] that lie in this word of a chunk.
uint64_t mask_of(uint32_t word, uint32_t from, uint32_t to) {
  uint32_t low = std::max(from, word * 64) - word * 64;
  uint32_t high = std::min(to, word * 64 + 63) - word * 64;
  return (~0ull >> (63 - high)) & (~0ull << low);
}

}  // namespace

KernelFile::~KernelFile() { all_.drop_all(*this); }

KernelFile::Chunk& KernelFile::chunk_at(uint32_t index) {
  if (index >= chunks_.size()) chunks_.resize(index + 1);
  if (chunks_[index] == nullptr) chunks_[index].reset(new Chunk{.file = this, .index = index});
  return *chunks_[index];
}

std::shared_ptr<KernelFile> KernelPages::file(uint64_t node) {
  std::lock_guard guard(files_lock_);
  auto& place = files_[node];
  if (place == nullptr) place = std::make_shared<KernelFile>(*this, node);
  return place;
}

void KernelPages::forget(uint64_t node) {
  std::shared_ptr<KernelFile> gone;  // ends after the lock is released
  std::lock_guard guard(files_lock_);
  auto found = files_.find(node);
  if (found == files_.end()) return;
  gone = std::move(found->second);
  files_.erase(found);
}

bool KernelPages::give(KernelFile& file, uint32_t first, uint32_t count) {
  uint32_t added = 0;
  file.lock_.lock();
  for_each_chunk(first, first + count - 1, [&](uint32_t index, uint32_t from, uint32_t to) {
    Chunk& chunk = file.chunk_at(index);
    for (uint32_t word = from / 64; word <= to / 64; ++word) {
      uint64_t mask = mask_of(word, from, to);
      added += static_cast<uint32_t>(std::popcount(mask & ~chunk.given[word]));
      chunk.given[word] |= mask;
    }
    if (!chunk.queued) link(chunk);
    chunk.queued = true;
  });
  if (added > 0) pages_.fetch_add(added, std::memory_order_relaxed);
  file.lock_.unlock();
  return added > 0;
}

KernelPages::Taken KernelPages::take(uint64_t node, uint32_t first, uint32_t last) {
  Taken taken{node, first, last - first + 1, 0};
  std::shared_ptr<KernelFile> file;
  {
    std::lock_guard guard(files_lock_);
    auto found = files_.find(node);
    if (found == files_.end()) return taken;
    file = found->second;
  }
  file->lock_.lock();
  uint32_t end = static_cast<uint32_t>(file->chunks_.size()) * kChunkPages;
  if (first < end) {
    for_each_chunk(first, std::min(last, end - 1), [&](uint32_t index, uint32_t from, uint32_t to) {
      if (file->chunks_[index] != nullptr) taken.pages += clear_locked(*file->chunks_[index], from, to);
    });
  }
  file->lock_.unlock();
  return taken;
}

std::optional<KernelPages::Taken> KernelPages::take_oldest() {
  for (;;) {
    queue_lock_.lock();
    Chunk* chunk = oldest_;
    if (chunk == nullptr) {
      queue_lock_.unlock();
      return std::nullopt;
    }
    // Null while the file is being destroyed, which takes its chunks out itself.
    std::shared_ptr<KernelFile> file = chunk->file->weak_from_this().lock();
    if (file == nullptr) unlink_locked(*chunk);
    uint32_t index = chunk->index;
    queue_lock_.unlock();
    if (file == nullptr) continue;
    file->lock_.lock();
    uint32_t pages = clear_locked(*chunk, 0, kChunkPages - 1);
    file->lock_.unlock();
    if (pages > 0) return Taken{file->node, index * kChunkPages, kChunkPages, pages};
  }
}

bool KernelPages::any_marked() {
  queue_lock_.lock();
  bool any = oldest_ != nullptr;
  queue_lock_.unlock();
  return any;
}

/// Answers how many were marked. A chunk in which nothing is left leaves the queue.
uint32_t KernelPages::clear_locked(Chunk& chunk, uint32_t first, uint32_t last) {
  uint32_t cleared = 0;
  for (uint32_t word = first / 64; word <= last / 64; ++word) {
    uint64_t mask = mask_of(word, first, last);
    cleared += static_cast<uint32_t>(std::popcount(chunk.given[word] & mask));
    chunk.given[word] &= ~mask;
  }
  bool empty = std::all_of(chunk.given.begin(), chunk.given.end(), [](uint64_t word) { return word == 0; });
  if (empty && chunk.queued) {
    unlink(chunk);
    chunk.queued = false;
  }
  return cleared;
}

void KernelPages::link(Chunk& chunk) {
  queue_lock_.lock();
  chunk.previous = newest_;
  chunk.next = nullptr;
  (newest_ != nullptr ? newest_->next : oldest_) = &chunk;
  newest_ = &chunk;
  chunk.linked = true;
  queue_lock_.unlock();
}

void KernelPages::unlink(Chunk& chunk) {
  queue_lock_.lock();
  unlink_locked(chunk);
  queue_lock_.unlock();
}

void KernelPages::unlink_locked(Chunk& chunk) {
  if (!chunk.linked) return;
  (chunk.previous != nullptr ? chunk.previous->next : oldest_) = chunk.next;
  (chunk.next != nullptr ? chunk.next->previous : newest_) = chunk.previous;
  chunk.linked = false;
}

/// Of a file that nobody else knows any more.
void KernelPages::drop_all(KernelFile& file) {
  uint64_t pages = 0;
  for (auto& chunk : file.chunks_) {
    if (chunk == nullptr) continue;
    unlink(*chunk);
    for (uint64_t word : chunk->given) pages += static_cast<uint32_t>(std::popcount(word));
  }
  pages_.fetch_sub(pages, std::memory_order_relaxed);
}

}  // namespace extmem::cache
