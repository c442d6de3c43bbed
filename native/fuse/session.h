// ① A FUSE session: mounts, shakes hands (INIT), runs one worker per CPU, each with its channels to the kernel (over
// io_uring where that is wanted and to be had, else clones of /dev/fuse), and carries control requests to TypeScript
// and their replies back to the channel that they came by.
#pragma once

#include <functional>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "base/io_ring.h"
#include "cache/kernel_pages.h"
#include "cache/page_cache.h"
#include "fuse/control_sink.h"
#include "fuse/kernel_reclaimer.h"
#include "fuse/mount_point.h"
#include "fuse/notifier.h"
#include "fuse/uring_channel.h"
#include "fuse/worker.h"

namespace extmem::fuse {

/// automatic: where the kernel has it switched on, and without it where it cannot be had.
enum class UringUse : uint8_t { never, automatic, always };

class Session {
 public:
  struct Options {
    std::string mount_point;
    unsigned threads = 0;  ///< 0: one per CPU that we may use, at most 8
    UringUse uring = UringUse::never;
    uint64_t memory_limit_bytes = 0;  ///< of our frames and the kernel's pages of our files together; 0: none
    cache::PageCache::Options cache;
    fabric::Fabric::Options fabric;
  };
  Session(const Options& options, extent::ControlPlane& control_plane, ControlSink& sink);
  ~Session();

  /// Mounts and starts the workers. On failure fd < 0 with the reason.
  MountResult start();
  using Rings = std::vector<std::unique_ptr<IoRing>>;
  /// The same of a descriptor that INIT comes by; it is the session's from now on.
  MountResult serve(int fd, Rings rings = {});
  const char* kind() const { return over_uring_ ? "io_uring" : "/dev/fuse"; }
  /// Why io_uring is not used although it was wanted (automatic); empty: it is, or was not to be had here.
  const std::string& uring_refused() const { return uring_refused_; }
  /// As the kernel is: see Handshake.
  bool kernel_maps_direct() const { return kernel_maps_direct_; }
  bool kernel_drops_written() const { return kernel_drops_written_; }
  /// Any thread. False: no such request (answered already).
  bool reply(uint64_t id, int error, std::span<const uint8_t> body);
  /// Any thread: runs the job on the worker that looks after this node.
  void run_on_worker(uint64_t node, std::function<void(Worker&)> job);
  /// Any thread: this mount was fenced, and is another client from now on. Regions, room to carve from and files are
  /// void at once; done() runs on a reactor when every one of them has let go of what it did in the former name.
  void rejoin(const fabric::Credentials& credentials, std::function<void()> done);
  /// Stops the workers. The mount must be gone, or is aborted.
  void stop();

  Notifier& notifier() { return *notifier_; }
  /// The same as the notifier's, for its own caller; what the kernel drops of the file is not counted any more.
  void invalidate_inode(uint64_t node, int64_t offset, int64_t length, Notifier::Done done);
  cache::KernelPages& kernel_pages() { return kernel_pages_; }
  KernelReclaimer& reclaimer() { return *reclaimer_; }
  cache::PageCache& cache() { return cache_; }
  fabric::Directory& directory() { return directory_; }
  const Options& options() const { return options_; }
  /// Dotted names ("cache.hits") and values.
  std::vector<std::pair<std::string, double>> statistics();
  // The control thread: what is read and written by file (cache/operation_watch.h).
  void watch_operations(bool on);
  /// Since the last time, of all reactors. Answers how many operations more there were of files without room.
  uint64_t take_operations(std::vector<cache::FileOperations>& into);

  // For the workers.
  void take_control_request(Worker& worker, const Request& request);
  void end(int error);
  ControlSink& sink() { return sink_; }

 private:
  MountResult begin(Rings rings);
  Rings make_rings();
  void make_workers(Rings rings);
  int start_workers();
  int open_device() const;
  std::vector<uint16_t> queues_of(unsigned worker) const;
  /// After a start that failed half way: as if it had not been tried.
  void retreat();

  Options options_;
  ControlSink& sink_;
  std::vector<int> cpus_;
  unsigned worker_count_;
  fabric::Directory directory_;
  cache::PageCache cache_;
  cache::KernelPages kernel_pages_;
  std::vector<std::unique_ptr<Worker>> workers_;
  std::unique_ptr<Notifier> notifier_;
  std::unique_ptr<KernelReclaimer> reclaimer_;
  int device_fd_ = -1;
  bool over_uring_ = false;
  bool kernel_maps_direct_ = false;
  bool kernel_drops_written_ = false;
  std::string uring_refused_;
  std::atomic<bool> ended_{false};
  std::mutex pending_lock_;  // guards the two below; control path only
  std::unordered_map<uint64_t, Ticket> pending_;
  uint64_t next_id_ = 1;
};

}  // namespace extmem::fuse
