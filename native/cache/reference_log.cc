#include "cache/reference_log.h"

#include <errno.h>
#include <unistd.h>

#include <algorithm>

#include "base/clock.h"

namespace extmem::cache {

ReferenceLog::ReferenceLog(int fd) : fd_(fd), buffers_(std::make_unique<std::array<Buffer, 2>>()) {
  write_out(kReferenceLogHead.data(), kReferenceLogHead.size(), 0);
}

ReferenceLog::~ReferenceLog() {
  flush();
  close(fd_);
}

void ReferenceLog::flush() {
  write_out((*buffers_)[current_].data(), used_ * sizeof(Reference), used_);
  used_ = 0;
}

void ReferenceLog::note(Reference::Kind kind, uint64_t node, uint64_t page, uint64_t count) {
  Reference reference{};
  reference.node = node;
  reference.ns = monotonic_ns();
  reference.page = static_cast<uint32_t>(page);
  reference.count = static_cast<uint32_t>(std::min<uint64_t>(count, Reference::kToTheEnd)) & Reference::kToTheEnd;
  reference.kind = static_cast<uint8_t>(kind);
  const Buffer* full = nullptr;
  lock_.lock();
  if (used_ == kRecords && !writing_) {
    full = &(*buffers_)[current_];
    writing_ = true;
    current_ ^= 1;
    used_ = 0;
  }
  bool fits = used_ < kRecords;
  if (fits) (*buffers_)[current_][used_++] = reference;
  lock_.unlock();
  if (!fits) lost_.fetch_add(1, std::memory_order_relaxed);
  if (full == nullptr) return;
  write_out(full->data(), sizeof *full, kRecords);
  lock_.lock();
  writing_ = false;
  lock_.unlock();
}

void ReferenceLog::write_out(const void* data, size_t bytes, size_t records) {
  const auto* from = static_cast<const std::byte*>(data);
  while (bytes > 0 && !broken_.load(std::memory_order_relaxed)) {
    ssize_t written = write(fd_, from, bytes);
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) broken_.store(true, std::memory_order_relaxed);  // what follows a gap would be misread
    if (written > 0) {
      from += written;
      bytes -= static_cast<size_t>(written);
    }
  }
  if (bytes > 0) lost_.fetch_add(records, std::memory_order_relaxed);
}

}  // namespace extmem::cache
