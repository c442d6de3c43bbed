// ① A FUSE session on /dev/fuse: mounts, shakes hands (INIT), runs one worker per CPU, and carries control requests to
// TypeScript and their replies back to the descriptor that read them.
#pragma once

#include <functional>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "cache/page_cache.h"
#include "fuse/control_sink.h"
#include "fuse/mount_point.h"
#include "fuse/notifier.h"
#include "fuse/worker.h"

namespace extmem::fuse {

class Session {
 public:
  struct Options {
    std::string mount_point;
    unsigned threads = 0;  ///< 0: one per CPU that we may use, at most 8
    cache::PageCache::Options cache;
    fabric::Fabric::Options fabric;
  };
  Session(const Options& options, extent::ControlPlane& control_plane, ControlSink& sink);
  ~Session();

  /// Mounts and starts the workers. On failure fd < 0 with the reason.
  MountResult start();
  /// Any thread. False: no such request (answered already).
  bool reply(uint64_t id, int error, std::span<const uint8_t> body);
  /// Any thread: runs the job on the worker that looks after this node.
  void run_on_worker(uint64_t node, std::function<void(Worker&)> job);
  /// Stops the workers. The mount must be gone, or is aborted.
  void stop();

  Notifier& notifier() { return *notifier_; }
  cache::PageCache& cache() { return cache_; }
  fabric::Directory& directory() { return directory_; }
  const Options& options() const { return options_; }
  /// Dotted names ("cache.hits") and values.
  std::vector<std::pair<std::string, double>> statistics();

  // For the workers.
  void take_control_request(Worker& worker, const fuse_in_header& header, std::span<const std::byte> body);
  void end(int error);
  ControlSink& sink() { return sink_; }

 private:
  struct Pending {
    int fd;
    uint64_t unique;
  };
  bool initialize(int fd, std::string& error);

  Options options_;
  ControlSink& sink_;
  fabric::Directory directory_;
  cache::PageCache cache_;
  std::vector<std::unique_ptr<Worker>> workers_;
  std::unique_ptr<Notifier> notifier_;
  int device_fd_ = -1;
  std::atomic<bool> ended_{false};
  std::mutex pending_lock_;  // guards the two below; control path only
  std::unordered_map<uint64_t, Pending> pending_;
  uint64_t next_id_ = 1;
};

}  // namespace extmem::fuse
