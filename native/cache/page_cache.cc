#include "cache/page_cache.h"

#include <errno.h>

#include <cstring>

namespace extmem::cache {

PageCache::PageCache(const Options& options, fabric::Directory& directory, extent::ControlPlane& control_plane)
    : options_(options), directory_(directory), control_plane_(control_plane), frames_(options.cache_bytes) {
  if (options.reference_log_fd >= 0) references_ = std::make_unique<ReferenceLog>(options.reference_log_fd);
}

PageCache::~PageCache() {
  for (auto& [node, file] : files_) delete file;
  for (auto& block : file_blocks_) delete[] block.load();
}

File* PageCache::find_file(uint64_t node) {
  std::lock_guard guard(files_lock_);
  auto found = files_.find(node);
  if (found == files_.end()) return nullptr;
  found->second->references.fetch_add(1);
  return found->second;
}

File& PageCache::make_file(uint64_t node) {
  std::lock_guard guard(files_lock_);
  auto [place, added] = files_.try_emplace(node, nullptr);
  if (added) {
    uint32_t index = next_index_;
    if (!free_indexes_.empty()) {
      index = free_indexes_.back();
      free_indexes_.pop_back();
    } else {
      ++next_index_;
      EXTMEM_ASSERT(next_index_ < file_blocks_.size() * kFileBlock);
    }
    auto& block = file_blocks_[index / kFileBlock];
    if (block.load() == nullptr)
      block.store(
          new std::atomic<File*>[kFileBlock] {}, std::memory_order_release);
    place->second = new File(node, index);
    block.load()[index % kFileBlock].store(place->second, std::memory_order_release);
  }
  place->second->references.fetch_add(1);
  return *place->second;
}

void PageCache::put_file(File& file) {
  if (file.references.fetch_sub(1, std::memory_order_acq_rel) == 1) destroy(file);
}

void PageCache::forget_file(uint64_t node) {
  File* file = nullptr;
  {
    std::lock_guard guard(files_lock_);
    auto found = files_.find(node);
    if (found == files_.end()) return;
    file = found->second;
    files_.erase(found);
  }
  note(Reference::Kind::drop, *file, 0, Reference::kToTheEnd);
  discard(*file);
  put_file(*file);
}

void PageCache::destroy(File& file) {
  discard(file);
  std::lock_guard guard(files_lock_);
  file_blocks_[file.index / kFileBlock].load()[file.index % kFileBlock].store(nullptr, std::memory_order_release);
  free_indexes_.push_back(file.index);
  delete &file;
}

std::vector<File*> PageCache::all_files() {
  std::lock_guard guard(files_lock_);
  std::vector<File*> files;
  files.reserve(files_.size());
  for (auto& [node, file] : files_) {
    file->references.fetch_add(1);
    files.push_back(file);
  }
  return files;
}

bool PageCache::pin_locked(File& file, uint32_t first, uint32_t count, PinnedPages& pins) {
  for (uint32_t page = first; page < first + count; ++page) {
    uint32_t index = file.frame_at(page);
    if (index == 0 || frames_[index].state == PageState::filling) {
      pins.release();
      return false;
    }
    frames_[index].references.fetch_add(1, std::memory_order_relaxed);
    pins.add(index);
  }
  return true;
}

void PageCache::pin_present_locked(File& file, uint32_t first, uint32_t count, PinnedPages& pins) {
  for (uint32_t page = first; page < first + count; ++page) {
    uint32_t index = file.frame_at(page);
    if (index == 0 || frames_[index].state == PageState::filling) continue;
    frames_[index].references.fetch_add(1, std::memory_order_relaxed);
    pins.add(index);
  }
}

void PageCache::set_state_locked(File& file, uint32_t page, uint32_t frame, PageState to) {
  Frame& meta = frames_[frame];
  EXTMEM_ASSERT(may_become(meta.state, to));
  trace::mark(trace::Point::page_state, static_cast<uint64_t>(page) << 8 | static_cast<uint64_t>(to));
  meta.state = to;
  meta.file = file.index;
  meta.page = page;
}

void PageCache::drop_locked(File& file, uint32_t page, uint32_t frame) {
  Frame& meta = frames_[frame];
  meta.flags.fetch_and(static_cast<uint8_t>(~Frame::kReported));  // other content
  if (meta.state == PageState::dirty || meta.state == PageState::failed) {
    uncount_dirty_locked(file, page, meta);
  } else {
    frames_.unlist(frame);
  }
  set_state_locked(file, page, frame, PageState::absent);
  file.set_frame(page, 0);
  frames_.release(frame);
}

void PageCache::count_dirty_locked(File& file, uint32_t page, const Frame& meta) {
  directory_.appliance(meta.appliance).dirty_bytes.fetch_add(kPageBytes, std::memory_order_relaxed);
  dirty_pages_.fetch_add(1, std::memory_order_relaxed);
  file.dirty_pages.fetch_add(1, std::memory_order_relaxed);
  file.mark_dirty(page);
}

void PageCache::uncount_dirty_locked(File& file, uint32_t page, const Frame& meta) {
  file.unmark_dirty(page);
  file.dirty_pages.fetch_sub(1, std::memory_order_relaxed);
  dirty_pages_.fetch_sub(1, std::memory_order_relaxed);
  directory_.appliance(meta.appliance).dirty_bytes.fetch_sub(kPageBytes, std::memory_order_relaxed);
}

void PageCache::redirtied_locked(File& file, uint32_t page, uint32_t frame) {
  count_dirty_locked(file, page, frames_[frame]);
}

void PageCache::begin_writing_locked(File& file, uint32_t page, uint32_t frame) {
  set_state_locked(file, page, frame, PageState::writing);
  frames_[frame].references.fetch_add(1, std::memory_order_relaxed);
  uncount_dirty_locked(file, page, frames_[frame]);
  ++file.writing_pages;
}

bool PageCache::end_writing_locked(File& file, uint32_t page, uint32_t sent_frame, WriteBack outcome) {
  --file.writing_pages;
  uint32_t frame = file.frame_at(page);
  Frame& sent = frames_[sent_frame];
  bool is_news = outcome != WriteBack::done && (sent.flags.fetch_or(Frame::kReported) & Frame::kReported) == 0;
  if (frame != sent_frame) {
    set_state_locked(file, page, frame,
                     PageState::dirty);  // redirtied: the newer content is to be written, whatever became of this one
  } else if (outcome == WriteBack::failed) {
    set_state_locked(file, page, frame, PageState::failed);
    count_dirty_locked(file, page, sent);
  } else if (outcome == WriteBack::lost) {
    set_state_locked(file, page, frame, PageState::absent);
    file.set_frame(page, 0);
    frames_.release(frame);
  } else {
    sent.flags.fetch_and(static_cast<uint8_t>(~Frame::kReported));
    set_state_locked(file, page, frame, PageState::clean);
    list_clean_locked(file, frame, FramePool::End::cold);
  }
  frames_.release(sent_frame);
  return is_news;
}

void PageCache::dirty_locked(File& file, uint32_t page, uint32_t frame, const fabric::Region& region) {
  Frame& meta = frames_[frame];
  meta.flags.fetch_and(static_cast<uint8_t>(~Frame::kReported));  // other content
  if (meta.state == PageState::dirty || meta.state == PageState::redirtied) return;
  bool was_failed = meta.state == PageState::failed;
  if (meta.state == PageState::clean) frames_.unlist(frame);
  set_state_locked(file, page, frame, PageState::dirty);
  if (was_failed) return;  // counted already
  meta.appliance = static_cast<uint16_t>(region.appliance->index);
  count_dirty_locked(file, page, meta);
}

void PageCache::list_clean_locked(File& file, uint32_t frame, FramePool::End end) {
  auto most = static_cast<uint32_t>(options_.pinned_bytes / kPageBytes);
  if (!file.pinned || !frames_.pin(frame, most)) frames_.list(frame, end);
}

void PageCache::set_pinned(File& file, bool pinned) {
  file.lock.lock();
  file.pinned = pinned;
  file.for_each_page(0, UINT32_MAX, [&](uint32_t, uint32_t frame) {
    bool clean = frames_[frame].state == PageState::clean;
    if (pinned && clean) {
      frames_.unlist(frame);
      list_clean_locked(file, frame, FramePool::End::hot);
    } else if (!pinned && frames_.unpin(frame) && clean) {
      frames_.list(frame, FramePool::End::hot);
    }
  });
  file.lock.unlock();
}

PageCache::Residency PageCache::residency_of(File& file) {
  Residency found;
  file.lock.lock();
  file.for_each_page(0, UINT32_MAX, [&](uint32_t, uint32_t frame) {
    found.cached_bytes += kPageBytes;
    if ((frames_[frame].flags.load(std::memory_order_relaxed) & Frame::kPinned) != 0) found.pinned_bytes += kPageBytes;
  });
  file.lock.unlock();
  return found;
}

uint32_t PageCache::take_frame(Lane& lane) {
  for (int attempt = 0; attempt < 64; ++attempt) {
    if (uint32_t frame = frames_.allocate(); frame != 0) return frame;
    if (!evict_one(lane)) return 0;
  }
  return 0;
}

bool PageCache::evict_one(Lane& lane) {
  // A listed frame keeps its file alive (destroy() drops the frames first, and that needs the pool's lock, held in
  // keep()).
  File* file = nullptr;
  auto victim = frames_.pick_victim([&](uint32_t index) {
    file = file_at(index);
    uint32_t references = file->references.load();
    while (references != 0 && !file->references.compare_exchange_weak(references, references + 1)) {
    }
    if (references == 0) file = nullptr;  // being destroyed, which frees the frame
  });
  if (victim.frame == 0) return false;
  if (file == nullptr) return true;
  file->lock.lock();
  Frame& meta = frames_[victim.frame];
  bool idle =
      file->frame_at(victim.page) == victim.frame && meta.state == PageState::clean && meta.references.load() == 1;
  if (idle) {
    if (frames_.unmark_ahead(victim.frame)) {
      lane.counters.add(lane.counters.ahead_wasted);
      file->read_ahead.wasted(victim.page);
    }
    drop_locked(*file, victim.page, victim.frame);
    lane.counters.add(lane.counters.evictions);
  }
  file->lock.unlock();
  put_file(*file);
  return true;
}

uint32_t PageCache::drop_clean(File& file, uint32_t first, uint32_t last) {
  uint32_t dropped = 0;
  note(Reference::Kind::drop, file, first, uint64_t{last} + 1 - first);
  file.lock.lock();
  file.for_each_page(first, last, [&](uint32_t page, uint32_t frame) {
    // What is being read just now may be old.
    if (frames_[frame].state == PageState::filling) frames_[frame].flags.fetch_or(Frame::kStale);
    if (frames_[frame].state != PageState::clean) return;
    drop_locked(file, page, frame);
    ++dropped;
  });
  file.read_ahead.reset();
  file.lock.unlock();
  return dropped;
}

void PageCache::discard(File& file) {
  file.lock.lock();
  file.for_each_page(0, UINT32_MAX, [&](uint32_t page, uint32_t frame) {
    PageState state = frames_[frame].state;
    if (state == PageState::clean || state == PageState::dirty || state == PageState::failed)
      drop_locked(file, page, frame);
  });
  file.lock.unlock();
}

int errno_of(fabric::Status status) {
  switch (status) {
    case fabric::Status::ok:
      return 0;
    case fabric::Status::no_space:
      return ENOSPC;
    case fabric::Status::forbidden:
      return EACCES;
    default:
      return EIO;
  }
}

}  // namespace extmem::cache
