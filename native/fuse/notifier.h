// ① Invalidation notices to the kernel. They leave from a thread of their own: a notice can wait for a page that is
// locked by a request, and from a thread that should serve that request it would wait for ever (coherence.md).
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <mutex>
#include <string>
#include <thread>

namespace extmem::fuse {

class Notifier {
 public:
  using Done = std::function<void(int error)>;  ///< on the notifier's thread; ENOENT (not cached) is success

  explicit Notifier(int fd);
  ~Notifier();
  /// offset < 0: attributes only; length 0: to the end.
  void invalidate_inode(uint64_t node, int64_t offset, int64_t length, Done done);
  void invalidate_entry(uint64_t parent, std::string name, Done done);
  void stop();

 private:
  struct Notice {
    std::string bytes;
    Done done;
  };
  void enqueue(Notice notice);
  void run();

  int fd_;
  std::mutex lock_;
  std::condition_variable changed_;
  std::deque<Notice> queue_;
  bool stopping_ = false;
  std::thread thread_;
};

}  // namespace extmem::fuse
