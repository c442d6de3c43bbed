#include "fuse/session.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>

#include "base/trace.h"
#include "fuse/opcode_table.h"

namespace extmem::fuse {

namespace {

constexpr unsigned kMaxWorkers = 8;
constexpr int kInitTimeoutMs = 5000;
constexpr uint32_t kKernelReadAheadBytes = 1 << 20;

constexpr uint64_t kWantedFlags = FUSE_ASYNC_READ | FUSE_BIG_WRITES | FUSE_ATOMIC_O_TRUNC | FUSE_POSIX_LOCKS |
                                  FUSE_FLOCK_LOCKS | FUSE_DO_READDIRPLUS | FUSE_READDIRPLUS_AUTO |
                                  FUSE_PARALLEL_DIROPS | FUSE_MAX_PAGES | FUSE_CACHE_SYMLINKS |
                                  FUSE_EXPLICIT_INVAL_DATA;

std::vector<int> usable_cpus() {
  cpu_set_t set;
  CPU_ZERO(&set);
  std::vector<int> cpus;
  if (sched_getaffinity(0, sizeof set, &set) != 0) return {-1};
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (CPU_ISSET(cpu, &set)) cpus.push_back(cpu);
  }
  return cpus;
}

template <typename Job>
class JobMessage final : public Message {
 public:
  explicit JobMessage(Job job) : job_(std::move(job)) {}
  void run() override {
    job_();
    delete this;
  }

 private:
  ~JobMessage() = default;
  Job job_;
};

}  // namespace

Session::Session(const Options& options, extent::ControlPlane& control_plane, ControlSink& sink)
    : options_(options), sink_(sink), cache_(options.cache, directory_, control_plane) {}

Session::~Session() {
  stop();
  if (device_fd_ >= 0) close(device_fd_);
}

MountResult Session::start() {
  MountResult mounted = mount_fuse(options_.mount_point);
  if (mounted.fd < 0) return mounted;
  device_fd_ = mounted.fd;
  std::string error;
  if (!initialize(device_fd_, error)) {
    unmount_fuse(options_.mount_point, true);
    return {-1, "EPROTO", error};
  }
  tune_backing_device(options_.mount_point);
  notifier_ = std::make_unique<Notifier>(device_fd_);
  std::vector<int> cpus = usable_cpus();
  unsigned count = options_.threads != 0 ? options_.threads : std::min<unsigned>(kMaxWorkers, cpus.size());
  for (unsigned index = 0; index < count; ++index) {
    int clone = open("/dev/fuse", O_RDWR | O_CLOEXEC | O_NONBLOCK);
    auto source = static_cast<uint32_t>(device_fd_);
    if (clone < 0 || ioctl(clone, FUSE_DEV_IOC_CLONE, &source) != 0) {
      if (clone >= 0) close(clone);
      clone = fcntl(device_fd_, F_DUPFD_CLOEXEC, 0);  // one queue either way; a clone only spares a lock
    }
    Reactor::Options reactor{.index = index, .cpu = cpus[index % cpus.size()]};
    workers_.push_back(std::make_unique<Worker>(*this, clone, reactor, options_.fabric));
  }
  for (auto& worker : workers_) worker->start();
  return mounted;
}

/// FUSE_INIT is the kernel's first request; answered before there is anybody to serve another.
bool Session::initialize(int fd, std::string& error) {
  std::vector<std::byte> buffer(kRequestBufferBytes);
  pollfd waiting{fd, POLLIN, 0};
  if (poll(&waiting, 1, kInitTimeoutMs) != 1) {
    error = "the kernel did not begin the FUSE session in time";
    return false;
  }
  ssize_t bytes = read(fd, buffer.data(), buffer.size());
  constexpr size_t kLeast = sizeof(fuse_in_header) + 16;  // major, minor, max_readahead, flags
  const auto& header = *reinterpret_cast<const fuse_in_header*>(buffer.data());
  if (bytes < static_cast<ssize_t>(kLeast) || header.opcode != FUSE_INIT) {
    error = "the kernel began the FUSE session with something else than INIT";
    return false;
  }
  fuse_init_in in{};
  std::memcpy(&in, buffer.data() + sizeof header, std::min(sizeof in, static_cast<size_t>(bytes) - sizeof header));
  if (in.major != FUSE_KERNEL_VERSION || in.minor < 31) {
    error = "the kernel speaks FUSE " + std::to_string(in.major) + "." + std::to_string(in.minor) +
            "; 7.31 (Linux 5.4) is needed";
    return false;
  }
  fuse_init_out out{};
  out.major = FUSE_KERNEL_VERSION;
  out.minor = FUSE_KERNEL_MINOR_VERSION;
  out.max_readahead = std::min(in.max_readahead, kKernelReadAheadBytes);
  out.flags = static_cast<uint32_t>(in.flags & kWantedFlags);
  out.max_background = 64;
  out.congestion_threshold = 48;
  out.max_write = kMaxWriteBytes;
  out.time_gran = 1;
  out.max_pages = kMaxWriteBytes / cache::kPageBytes;
  fuse_out_header reply{sizeof reply + sizeof out, 0, header.unique};
  iovec segments[2] = {{&reply, sizeof reply}, {&out, sizeof out}};
  if (writev(fd, segments, 2) < 0) {
    error = std::string("the kernel refused our INIT: ") + strerror(errno);
    return false;
  }
  return true;
}

bool Session::reply(uint64_t id, int error, std::span<const uint8_t> body) {
  Pending pending;
  {
    std::lock_guard guard(pending_lock_);
    auto found = pending_.find(id);
    if (found == pending_.end()) return false;
    pending = found->second;
    pending_.erase(found);
  }
  fuse_out_header header{static_cast<uint32_t>(sizeof header + (error == 0 ? body.size() : 0)), -error, pending.unique};
  iovec segments[2] = {{&header, sizeof header}, {const_cast<uint8_t*>(body.data()), body.size()}};
  [[maybe_unused]] ssize_t written = writev(pending.fd, segments, error == 0 && !body.empty() ? 2 : 1);
  return true;
}

void Session::take_control_request(Worker& worker, const fuse_in_header& header, std::span<const std::byte> body) {
  trace::mark(trace::Point::control_upcall, header.unique);
  worker.counters.control.fetch_add(1, std::memory_order_relaxed);
  uint64_t id;
  {
    std::lock_guard guard(pending_lock_);
    id = next_id_++;
    pending_.emplace(id, Pending{worker.fuse_fd(), header.unique});
  }
  const auto* raw = reinterpret_cast<const uint8_t*>(body.data());
  sink_.control_request({id, header.unique, header.opcode, header.nodeid, header.uid, header.gid, header.pid,
                         std::vector<uint8_t>(raw, raw + body.size())});
}

void Session::run_on_worker(uint64_t node, std::function<void(Worker&)> job) {
  Worker& worker = *workers_[node % workers_.size()];
  auto* message = new JobMessage([&worker, job = std::move(job)] { job(worker); });
  worker.reactor().post(*message);
}

void Session::end(int error) {
  if (!ended_.exchange(true)) sink_.session_ended(error);
}

void Session::stop() {
  if (notifier_ != nullptr) notifier_->stop();
  for (auto& worker : workers_) worker->stop();
}

void handle_control(Worker& worker, Request& request) {
  worker.session().take_control_request(worker, request.header, request.body);
}

void handle_forget(Worker& worker, Request& request) {
  worker.session().sink().forgotten({{request.header.nodeid, request.as<fuse_forget_in>().nlookup}});
}

void handle_batch_forget(Worker& worker, Request& request) {
  const auto& in = request.as<fuse_batch_forget_in>();
  size_t room = (request.body.size() - sizeof in) / sizeof(fuse_forget_one);
  const auto* each = reinterpret_cast<const fuse_forget_one*>(request.body.data() + sizeof in);
  std::vector<std::pair<uint64_t, uint64_t>> nodes;
  for (size_t index = 0; index < std::min<size_t>(in.count, room); ++index) {
    nodes.emplace_back(each[index].nodeid, each[index].nlookup);
  }
  worker.session().sink().forgotten(std::move(nodes));
}

void handle_interrupt(Worker& worker, Request& request) {
  // Requests of the data path end by their deadline; those that wait for a person's lock are TypeScript's.
  worker.session().sink().interrupted(request.as<fuse_interrupt_in>().unique);
}

void handle_destroy(Worker& worker, Request& request) { worker.reply_error(request.header.unique, 0); }

std::vector<std::pair<std::string, double>> Session::statistics() {
  std::vector<std::pair<std::string, double>> rows;
  auto add = [&](const char* name, uint64_t value) {
    for (auto& row : rows) {
      if (row.first == name) {
        row.second += static_cast<double>(value);
        return;
      }
    }
    rows.emplace_back(name, static_cast<double>(value));
  };
  for (auto& worker : workers_) {
    auto& fuse = worker->counters;
    add("fuse.requests", fuse.requests);
    add("fuse.control", fuse.control);
    add("fuse.reads", fuse.reads);
    add("fuse.readBytes", fuse.read_bytes);
    add("fuse.writes", fuse.writes);
    add("fuse.writeBytes", fuse.write_bytes);
    add("fuse.syncs", fuse.syncs);
    add("fuse.errors", fuse.errors);
    auto& lane = worker->lane().counters;
    add("cache.hits", lane.hits);
    add("cache.misses", lane.misses);
    add("cache.fills", lane.fills);
    add("cache.prefetched", lane.prefetched);
    add("cache.prefetchHits", lane.prefetch_hits);
    add("cache.prefetchWasted", lane.prefetch_wasted);
    add("cache.evictions", lane.evictions);
    add("cache.writebacks", lane.writebacks);
    add("cache.writtenBackPages", lane.written_back_pages);
    add("cache.failedPages", lane.failed_pages);
    add("cache.throttled", lane.throttled);
    add("cache.directReads", lane.direct_reads);
    add("cache.directWrites", lane.direct_writes);
    add("cache.sharedReads", lane.shared_reads);
    add("cache.sharedWrites", lane.shared_writes);
  }
  add("fuse.threads", workers_.size());
  add("cache.limitBytes", options_.cache.cache_bytes);
  add("cache.usedBytes", (cache_.frames().frame_count() - 1 - cache_.frames().free_count()) * cache::kPageBytes);
  add("cache.dirtyBytes", cache_.dirty_bytes());
  add("extent.freeBytes", cache_.slabs().free_bytes());
  add("extent.provisionedBytes", cache_.slabs().total_bytes());
  return rows;
}

}  // namespace extmem::fuse
