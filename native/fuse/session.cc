#include "fuse/session.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <fstream>

#include "base/trace.h"
#include "cache/renewal.h"
#include "fuse/device_channel.h"
#include "fuse/handshake.h"
#include "fuse/opcode_table.h"

namespace extmem::fuse {

namespace {

constexpr unsigned kMaxWorkers = 8;
/// With a limit, of what it leaves to the kernel's pages this part may be dirty: what is dirty is dropped slowly, page
/// by page.
constexpr uint64_t kDirtyShare = 4;

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

/// The kernel has a queue for each of them, online or not.
unsigned possible_cpus() {
  std::ifstream list("/sys/devices/system/cpu/possible");  // as 0-7, or 0,2-3
  unsigned count = 0;
  for (unsigned first, last; list >> first; list.ignore()) {
    last = first;
    if (list.peek() == '-') list.ignore() >> last;
    count += last - first + 1;
  }
  return count;
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
    : options_(options),
      sink_(sink),
      cpus_(usable_cpus()),
      worker_count_(options.threads != 0 ? options.threads : std::min<unsigned>(kMaxWorkers, cpus_.size())),
      cache_(options.cache, directory_, control_plane) {}

Session::~Session() {
  stop();
  if (device_fd_ >= 0) close(device_fd_);
}

MountResult Session::start() {
  // The thread that answers control requests, and those made from here on: as the reactors (worker.cc). Root only.
  prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0);
  Rings rings;
  if (options_.uring != UringUse::never) rings = make_rings();
  if (rings.empty() && options_.uring == UringUse::always) return {-1, "EOPNOTSUPP", uring_refused_};
  bool may_retreat = !rings.empty() && options_.uring == UringUse::automatic;
  MountResult mounted = begin(std::move(rings));
  if (mounted.fd < 0 && may_retreat && over_uring_) return begin({});
  return mounted;
}

/// Before INIT, because what cannot be had is better not agreed on: then there is no way back but to mount again.
Session::Rings Session::make_rings() {
  Rings rings;
  for (unsigned index = 0; index < worker_count_; ++index) {
    int error;
    auto ring = IoRing::create(UringChannel::kRingSizes, error);
    if (ring == nullptr) {
      uring_refused_ = std::string("an io_uring cannot be made here: ") + strerror(error);
      return {};
    }
    rings.push_back(std::move(ring));
  }
  return rings;
}

MountResult Session::begin(Rings rings) {
  MountResult mounted = mount_fuse(options_.mount_point);
  return mounted.fd < 0 ? mounted : serve(mounted.fd, std::move(rings));
}

MountResult Session::serve(int fd, Rings rings) {
  device_fd_ = fd;
  Handshake handshake = shake_hands(device_fd_, !rings.empty());
  kernel_maps_direct_ = handshake.maps_direct;
  kernel_drops_written_ = handshake.drops_written;
  if (!rings.empty() && handshake.error.empty() && !handshake.uring) {
    uring_refused_ = "the kernel does not offer FUSE over io_uring";
    if (options_.uring == UringUse::always) handshake.error = uring_refused_;
  }
  over_uring_ = handshake.uring;
  if (!handshake.error.empty()) {
    retreat();
    return {-1, "EPROTO", handshake.error};
  }
  uint64_t limit = options_.memory_limit_bytes;
  tune_backing_device(options_.mount_point, limit == 0 ? 0 : (limit - options_.cache.cache_bytes) / kDirtyShare);
  notifier_ = std::make_unique<Notifier>(device_fd_);
  reclaimer_ = std::make_unique<KernelReclaimer>(device_fd_, kernel_pages_, cache_.frames(), limit);
  if (over_uring_) {
    make_workers(std::move(rings));
  } else {
    make_workers({});
  }
  int error = start_workers();
  if (error == 0) return {.fd = fd, .code = {}, .message = {}};
  uring_refused_ = std::string("the queues of FUSE over io_uring cannot be opened: ") + strerror(error);
  retreat();
  return {-1, "EOPNOTSUPP", uring_refused_};
}

void Session::make_workers(Rings rings) {
  for (unsigned index = 0; index < worker_count_; ++index) {
    Reactor::Options reactor{.index = index, .cpu = cpus_[index % cpus_.size()]};
    workers_.push_back(std::make_unique<Worker>(*this, reactor, options_.fabric));
    Worker& worker = *workers_.back();
    // Over io_uring, what is left for /dev/fuse is rare: one reader is enough.
    if (rings.empty() || index == 0) worker.add_channel(std::make_unique<DeviceChannel>(worker, open_device()));
    if (rings.empty()) continue;
    auto channel = std::make_unique<UringChannel>(worker, std::move(rings[index]), device_fd_, queues_of(index));
    worker.add_channel(std::move(channel));
  }
}

int Session::open_device() const {
  int clone = open("/dev/fuse", O_RDWR | O_CLOEXEC | O_NONBLOCK);
  auto source = static_cast<uint32_t>(device_fd_);
  if (clone >= 0 && ioctl(clone, FUSE_DEV_IOC_CLONE, &source) == 0) return clone;
  if (clone >= 0) close(clone);
  return fcntl(device_fd_, F_DUPFD_CLOEXEC, 0);  // one queue either way; a clone only spares a lock
}

/// The queue of the CPU that the worker is pinned to, and its share of those where no worker is.
std::vector<uint16_t> Session::queues_of(unsigned worker) const {
  size_t pinned = std::min<size_t>(worker_count_, cpus_.size());
  std::vector<uint16_t> queues;
  for (unsigned cpu = 0; cpu < possible_cpus(); ++cpu) {
    auto own =
        static_cast<size_t>(std::find(cpus_.begin(), cpus_.begin() + pinned, static_cast<int>(cpu)) - cpus_.begin());
    if ((own < pinned ? own : cpu % worker_count_) == worker) queues.push_back(static_cast<uint16_t>(cpu));
  }
  return queues;
}

/// 0, or the errno of a channel that could not be opened.
int Session::start_workers() {
  std::vector<std::future<int>> starting;
  for (auto& worker : workers_) starting.push_back(worker->start());
  int failure = 0;
  for (auto& opened : starting) {
    if (int error = opened.get(); error != 0) failure = error;
  }
  return failure;
}

void Session::retreat() {
  // The workers first: they would take the abort for the end of the session.
  workers_.clear();
  notifier_.reset();
  reclaimer_.reset();
  force_unmount(options_.mount_point);
  close(std::exchange(device_fd_, -1));
  std::lock_guard guard(pending_lock_);
  pending_.clear();
}

void Session::invalidate_inode(uint64_t node, int64_t offset, int64_t length, Notifier::Done done) {
  cache::KernelPages::Taken taken;
  if (offset >= 0) {
    uint64_t end = length > 0 ? static_cast<uint64_t>(offset + length) : UINT64_MAX;
    taken = kernel_pages_.take(node, cache::page_of(static_cast<uint64_t>(offset)),
                               end == UINT64_MAX ? UINT32_MAX : cache::page_of(end - 1));
  }
  notifier_->invalidate_inode(node, offset, length, [this, taken, done = std::move(done)](int error) {
    kernel_pages_.settle(taken);
    done(error);
  });
}

bool Session::reply(uint64_t id, int error, std::span<const uint8_t> body) {
  Ticket ticket;
  {
    std::lock_guard guard(pending_lock_);
    auto found = pending_.find(id);
    if (found == pending_.end()) return false;
    ticket = found->second;
    pending_.erase(found);
  }
  ticket.channel->answer_from_outside(ticket, error, error == 0 ? body : std::span<const uint8_t>());
  return true;
}

void Session::take_control_request(Worker& worker, const Request& request) {
  const fuse_in_header& header = request.header;
  trace::mark(trace::Point::control_upcall, header.unique);
  worker.counters.control.fetch_add(1, std::memory_order_relaxed);
  uint64_t id;
  {
    std::lock_guard guard(pending_lock_);
    id = next_id_++;
    pending_.emplace(id, request.ticket);
  }
  auto raw = [](std::span<const std::byte> bytes) { return reinterpret_cast<const uint8_t*>(bytes.data()); };
  std::vector<uint8_t> body(raw(request.operation), raw(request.operation) + request.operation.size());
  body.insert(body.end(), raw(request.payload), raw(request.payload) + request.payload.size());
  sink_.control_request(
      {id, header.unique, header.opcode, header.nodeid, header.uid, header.gid, header.pid, std::move(body)});
}

void Session::run_on_worker(uint64_t node, std::function<void(Worker&)> job) {
  Worker& worker = *workers_[node % workers_.size()];
  auto* message = new JobMessage([&worker, job = std::move(job)] { job(worker); });
  worker.reactor().post(*message);
}

void Session::rejoin(const fabric::Credentials& credentials, std::function<void()> done) {
  directory_.lose_all_regions();
  cache_.slabs().clear();
  for (cache::File* file : cache_.all_files()) {
    cache::make_void(*file);
    cache_.put_file(*file);
  }
  options_.fabric.credentials = credentials;
  auto left = std::make_shared<std::atomic<size_t>>(workers_.size());
  if (workers_.empty()) {  // not mounted yet
    directory_.fenced.store(false, std::memory_order_release);
    done();
  }
  for (auto& worker : workers_) {
    auto* message = new JobMessage([this, &worker = *worker, credentials, left, done] {
      worker.lane().fabric.rejoin(credentials);
      if (left->fetch_sub(1) > 1) return;
      directory_.close_lost_descriptors();
      directory_.fenced.store(false, std::memory_order_release);
      done();
    });
    worker->reactor().post(*message);
  }
}

void Session::end(int error) {
  if (!ended_.exchange(true)) sink_.session_ended(error);
}

void Session::stop() {
  if (notifier_ != nullptr) notifier_->stop();
  if (reclaimer_ != nullptr) reclaimer_->stop();
  for (auto& worker : workers_) worker->stop();
  cache_.end_notes();
}

void handle_control(Worker& worker, Request& request) { worker.session().take_control_request(worker, request); }

void handle_forget(Worker& worker, Request& request) {
  worker.session().sink().forgotten({{request.header.nodeid, request.as<fuse_forget_in>().nlookup}});
}

void handle_batch_forget(Worker& worker, Request& request) {
  const auto& in = request.as<fuse_batch_forget_in>();
  size_t room = request.payload.size() / sizeof(fuse_forget_one);
  const auto* each = reinterpret_cast<const fuse_forget_one*>(request.payload.data());
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

void handle_destroy(Worker& worker, Request& request) { worker.reply_error(request.ticket, 0); }

void handle_notify_reply(Worker& worker, Request& request) { worker.reply_error(request.ticket, 0); }

void Session::watch_operations(bool on) {
  for (auto& worker : workers_) {
    if (on)
      worker->lane().watch.begin();
    else
      worker->lane().watch.end();
  }
}

uint64_t Session::take_operations(std::vector<cache::FileOperations>& into) {
  uint64_t others = 0;
  for (auto& worker : workers_) others += worker->lane().watch.take(into);
  return others;
}

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
    add("fuse.heldBack", fuse.held_back);
    add("fuse.ringEntries", fuse.ring_entries);
    auto& lane = worker->lane().counters;
    add("cache.hits", lane.hits);
    add("cache.misses", lane.misses);
    add("cache.fills", lane.fills);
    add("cache.readAhead", lane.read_ahead);
    add("cache.readAheadUsed", lane.ahead_used);
    add("cache.readAheadWasted", lane.ahead_wasted);
    add("cache.evictions", lane.evictions);
    add("cache.writebacks", lane.writebacks);
    add("cache.writtenBackPages", lane.written_back_pages);
    add("cache.failedPages", lane.failed_pages);
    add("cache.throttled", lane.throttled);
    add("cache.directReads", lane.direct_reads);
    add("cache.directWrites", lane.direct_writes);
    add("cache.sharedReads", lane.shared_reads);
    add("cache.sharedWrites", lane.shared_writes);
    add("cache.copiesRetried", lane.copies_retried);
    add("cache.copiesDropped", lane.copies_dropped);
  }
  add("fuse.threads", workers_.size());
  add("cache.limitBytes", options_.cache.cache_bytes);
  add("cache.usedBytes", (cache_.frames().frame_count() - 1 - cache_.frames().free_count()) * cache::kPageBytes);
  add("cache.dirtyBytes", cache_.dirty_bytes());
  add("cache.residentBytes", uint64_t{cache_.frames().resident_count()} * cache::kPageBytes);
  add("cache.pinnedBytes", uint64_t{cache_.frames().pinned_count()} * cache::kPageBytes);
  add("cache.pinLimitBytes", options_.cache.pinned_bytes);
  add("cache.lostReferences", cache_.lost_references());
  add("kernel.limitBytes", options_.memory_limit_bytes);
  add("kernel.pageBytes", kernel_pages_.pages() * cache::kPageBytes);
  add("kernel.droppedBytes", (reclaimer_ == nullptr ? 0 : reclaimer_->dropped_pages()) * cache::kPageBytes);
  add("extent.freeBytes", cache_.slabs().free_bytes());
  add("extent.provisionedBytes", cache_.slabs().total_bytes());
  return rows;
}

}  // namespace extmem::fuse
