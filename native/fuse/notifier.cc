#include "fuse/notifier.h"

#include <errno.h>
#include <linux/fuse.h>
#include <unistd.h>

#include <cstring>

namespace extmem::fuse {

namespace {

template <typename Struct>
void append(std::string& bytes, const Struct& value) {
  bytes.append(reinterpret_cast<const char*>(&value), sizeof value);
}

std::string frame(int code, const std::string& body) {
  fuse_out_header header{static_cast<uint32_t>(sizeof header + body.size()), code, 0};
  std::string bytes;
  append(bytes, header);
  return bytes + body;
}

}  // namespace

Notifier::Notifier(int fd) : fd_(fd), thread_([this] { run(); }) {}

Notifier::~Notifier() { stop(); }

void Notifier::invalidate_inode(uint64_t node, int64_t offset, int64_t length, Done done) {
  std::string body;
  append(body, fuse_notify_inval_inode_out{node, offset, length});
  enqueue({frame(FUSE_NOTIFY_INVAL_INODE, body), std::move(done)});
}

void Notifier::invalidate_entry(uint64_t parent, std::string name, Done done) {
  std::string body;
  append(body, fuse_notify_inval_entry_out{parent, static_cast<uint32_t>(name.size()), 0});
  body.append(name).push_back('\0');
  enqueue({frame(FUSE_NOTIFY_INVAL_ENTRY, body), std::move(done)});
}

void Notifier::enqueue(Notice notice) {
  {
    std::lock_guard guard(lock_);
    if (!stopping_) {
      queue_.push_back(std::move(notice));
      changed_.notify_one();
      return;
    }
  }
  notice.done(ENODEV);
}

void Notifier::run() {
  std::unique_lock guard(lock_);
  for (;;) {
    changed_.wait(guard, [this] { return stopping_ || !queue_.empty(); });
    if (queue_.empty()) return;
    Notice notice = std::move(queue_.front());
    queue_.pop_front();
    guard.unlock();
    ssize_t written = write(fd_, notice.bytes.data(), notice.bytes.size());
    int error = written < 0 ? errno : 0;
    notice.done(error == ENOENT || error == ENOTDIR ? 0 : error);
    guard.lock();
  }
}

void Notifier::stop() {
  {
    std::lock_guard guard(lock_);
    stopping_ = true;
    changed_.notify_one();
  }
  if (thread_.joinable()) thread_.join();
}

}  // namespace extmem::fuse
