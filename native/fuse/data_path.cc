// ① The data path's requests: READ, WRITE, FLUSH, FSYNC, FALLOCATE, LSEEK, GETXATTR. A read that hits replies from
// where it stands; everything that may wait is a coroutine on the same reactor.
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <string_view>
#include <vector>

#include "base/clock.h"
#include "cache/direct_io.h"
#include "cache/file_control.h"
#include "cache/reader.h"
#include "cache/renewal.h"
#include "cache/shared_io.h"
#include "fuse/kernel_reclaimer.h"
#include "fuse/opcode_table.h"
#include "fuse/session.h"

namespace extmem::fuse {

namespace {

using cache::Delegation;
using cache::File;
using cache::Handle;
using cache::PinnedPages;

/// The kernel gives back what openHandle answered; TypeScript closes it after the kernel's last use of it.
Handle& handle_of(uint64_t fh) { return *reinterpret_cast<Handle*>(fh); }

/// An operation in progress keeps its file.
class FileUse {
 public:
  FileUse(cache::PageCache& cache, File& file) : cache_(cache), file_(file) { file.references.fetch_add(1); }
  FileUse(const FileUse&) = delete;
  FileUse& operator=(const FileUse&) = delete;
  ~FileUse() { cache_.put_file(file_); }

 private:
  cache::PageCache& cache_;
  File& file_;
};

/// A read that is not answered at once.
class SlowRead {
 public:
  explicit SlowRead(File& file) : file_(file) { file_.slow_reads.fetch_add(1); }
  SlowRead(const SlowRead&) = delete;
  SlowRead& operator=(const SlowRead&) = delete;
  ~SlowRead() { file_.slow_reads.fetch_sub(1); }

 private:
  File& file_;
};

/// The kernel has more of our files than the limit lets it: whoever makes it take more waits, as long as what is being
/// dropped does not wait for this very request.
Task<int> hold_back(Worker& worker, const File& file, uint64_t offset, uint32_t bytes) {
  constexpr uint64_t kTurnNs = 500'000;
  constexpr int kTurns = 1000;
  auto& reclaimer = worker.session().reclaimer();
  uint32_t first = cache::page_of(offset);
  uint32_t count = cache::pages_spanned(offset, bytes);
  worker.counters.held_back.fetch_add(1, std::memory_order_relaxed);
  for (int turn = 0; turn < kTurns && reclaimer.must_wait() && !reclaimer.waits_for(file.node, first, count); ++turn)
    co_await Sleep(worker.reactor(), kTurnNs);
  co_return 0;
}

/// Whether the kernel's page cache takes part in what goes through the handle.
bool kernel_keeps(const Handle& handle, uint32_t flags) { return !handle.direct && (flags & O_DIRECT) == 0; }

/// Answers whether the kernel has too much now.
bool give_kernel(Worker& worker, Handle& handle, uint64_t offset, uint32_t bytes) {
  auto& session = worker.session();
  if (!session.kernel_pages().give(*handle.kernel, cache::page_of(offset), cache::pages_spanned(offset, bytes)))
    return false;
  session.reclaimer().look();
  return session.reclaimer().must_wait();
}

void reply_pages(Worker& worker, const Ticket& ticket, uint64_t offset, uint32_t bytes, const PinnedPages& pins) {
  auto& frames = worker.session().cache().frames();
  iovec segments[1 + cache::kRequestPages];
  unsigned count = 1;
  auto at = static_cast<uint32_t>(offset % cache::kPageBytes);
  for (uint32_t index = 0, left = bytes; left > 0; ++index) {
    auto length = std::min<uint32_t>(left, cache::kPageBytes - at);
    std::byte* data = frames.data(pins[index]) + at;
    iovec& last = segments[count - 1];
    if (count > 1 && static_cast<std::byte*>(last.iov_base) + last.iov_len == data) {
      last.iov_len += length;
    } else {
      segments[count++] = {data, length};
    }
    left -= length;
    at = 0;
  }
  worker.reply_segments(ticket, segments, count, bytes);
}

/// Whether an operation may begin: the handle is good, and the file is ours.
bool is_held(const Handle& handle) { return !handle.broken() && !cache::is_void(*handle.file); }

/// Until when a call that began then waits for a file that a fence has made void.
uint64_t void_deadline(uint64_t begun_ns) {
  constexpr uint64_t kWholeNs = 4'500'000'000;
  return std::min(monotonic_ns() + cache::kVoidPatienceNs, begun_ns + kWholeNs);
}

/// A read that the fence of this mount came in between of: once the file is held again, what it is now.
Detached serve_anew(Worker& worker, Ticket ticket, const Handle& handle, uint64_t offset, uint32_t bytes,
                    uint64_t begun_ns) {
  auto& cache = worker.session().cache();
  File& file = *handle.file;
  FileUse use(cache, file);
  SlowRead slow(file);
  int error = co_await cache::until_held(cache, worker.lane(), handle, void_deadline(begun_ns));
  if (error != 0) co_return worker.reply_error(ticket, error);
  uint64_t size = file.size.load();
  bytes = offset < size ? static_cast<uint32_t>(std::min<uint64_t>(bytes, size - offset)) : 0;
  if (bytes == 0) co_return worker.reply(ticket, nullptr, 0);
  if (file.mode.load() == Delegation::shared) {
    std::vector<std::byte> data(bytes);
    error = co_await cache::read_through(cache, worker.lane(), file, offset, data.data(), bytes);
    if (error == 0) co_return worker.reply(ticket, data.data(), bytes);
  } else {
    PinnedPages pins(cache.frames());
    error = co_await cache::read_pages(cache, worker.lane(), file, offset, bytes, cache::Reuse::ours, pins);
    if (error == 0) co_return reply_pages(worker, ticket, offset, bytes, pins);
  }
  worker.reply_error(ticket, error);
}

void fail_read(Worker& worker, const Ticket& ticket, const Handle& handle, uint64_t offset, uint32_t bytes, int error,
               uint64_t begun_ns) {
  if (!cache::is_unsettled(worker.session().cache(), *handle.file)) return worker.reply_error(ticket, error);
  serve_anew(worker, ticket, handle, offset, bytes, begun_ns);
}

Detached serve_miss(Worker& worker, Ticket ticket, const Handle& handle, uint64_t offset, uint32_t bytes,
                    cache::Reuse reuse) {
  auto& cache = worker.session().cache();
  File& file = *handle.file;
  FileUse use(cache, file);
  SlowRead slow(file);
  const uint64_t begun_ns = monotonic_ns();
  PinnedPages pins(cache.frames());
  int error = co_await cache::read_pages(cache, worker.lane(), file, offset, bytes, reuse, pins);
  if (error != 0) {
    fail_read(worker, ticket, handle, offset, bytes, error, begun_ns);
  } else {
    reply_pages(worker, ticket, offset, bytes, pins);
  }
}

/// On this host: from the region to the request's own memory, from which the kernel takes it.
Detached serve_direct_read(Worker& worker, Ticket ticket, const Handle& handle, uint64_t offset, uint32_t bytes,
                           cache::Reuse reuse, RequestBuffer buffer) {
  auto& cache = worker.session().cache();
  File& file = *handle.file;
  FileUse use(cache, file);
  SlowRead slow(file);
  if (co_await cache::read_direct(cache, worker.lane(), file, offset, buffer.data(), bytes)) {
    worker.reply(ticket, buffer.data(), bytes);
  } else {
    serve_miss(worker, ticket, handle, offset, bytes, reuse);
  }
}

Detached serve_shared_read(Worker& worker, Ticket ticket, const Handle& handle, uint64_t offset, uint32_t bytes,
                           RequestBuffer buffer) {
  auto& cache = worker.session().cache();
  File& file = *handle.file;
  FileUse use(cache, file);
  SlowRead slow(file);
  const uint64_t begun_ns = monotonic_ns();
  int error = co_await cache::read_through(cache, worker.lane(), file, offset, buffer.data(), bytes);
  if (error != 0) {
    fail_read(worker, ticket, handle, offset, bytes, error, begun_ns);
  } else {
    worker.reply(ticket, buffer.data(), bytes);
  }
}

/// The kernel reads beyond the end where another mount has cut the file. It takes the first short answer for the end
/// and ignores those to requests that it had sent before that: the one in which the end is must be answered first.
Detached serve_beyond_end(Worker& worker, Ticket ticket, File& file) {
  FileUse use(worker.session().cache(), file);
  constexpr uint64_t kTurnNs = 1'000'000;
  constexpr int kTurns = 100;
  for (int turn = 0; turn == 0 || (turn < kTurns && file.slow_reads.load() > 0); ++turn) {
    co_await Sleep(worker.reactor(), kTurnNs);
  }
  worker.reply(ticket, nullptr, 0);
}

/// co_await: the kernel drops its pages of a range. Never from a request that it may hold pages locked for.
class KernelDrop final : public Message {
 public:
  KernelDrop(Worker& worker, uint64_t node, uint64_t offset, uint64_t bytes)
      : worker_(worker), node_(node), offset_(offset), bytes_(bytes) {}
  bool await_ready() const noexcept { return false; }
  void await_suspend(std::coroutine_handle<> handle) {
    handle_ = handle;
    worker_.session().notifier().invalidate_inode(node_, static_cast<int64_t>(offset_), static_cast<int64_t>(bytes_),
                                                  [this](int) { worker_.reactor().post(*this); });
  }
  void await_resume() const noexcept {}
  void run() override { handle_.resume(); }

 private:
  Worker& worker_;
  uint64_t node_, offset_, bytes_;
  std::coroutine_handle<> handle_;
};

/// An append went where the end is, which the kernel may believe elsewhere: it must not keep what it has of either
/// place. Of a handle that it does not keep pages for (direct) before it is answered; else it keeps a page locked till
/// then.
Task<int> drop_appended(Worker& worker, const Handle& handle, uint64_t believed, const cache::Write& write) {
  bool elsewhere = believed != write.offset;
  bool shared = handle.file->mode.load() == Delegation::shared;
  uint64_t from = std::min(believed, write.offset);
  uint64_t bytes = std::max(believed, write.offset) + write.data.size() - from;
  if (handle.direct && (elsewhere || shared || !worker.session().kernel_drops_written())) {
    co_await KernelDrop(worker, handle.file->node, from, bytes);
  } else if (elsewhere) {
    worker.session().notifier().invalidate_inode(handle.file->node, static_cast<int64_t>(from),
                                                 static_cast<int64_t>(bytes), [](int) {});
  }
  co_return 0;
}

/// An operation that a fence of this mount has spoilt or kept from beginning: anew, once the file is held again.
template <typename Operate>
Task<int> again_when_held(cache::PageCache& cache, cache::Lane& lane, const Handle& handle, uint64_t begun_ns,
                          Operate operate) {
  const uint64_t deadline = void_deadline(begun_ns);
  for (;;) {
    int error = co_await cache::until_held(cache, lane, handle, deadline);
    if (error != 0) co_return error;
    error = co_await operate();
    if (error == 0 || !cache::is_unsettled(cache, *handle.file)) co_return error;
  }
}

bool may_try_again(cache::PageCache& cache, const Handle& handle) {
  return handle.broken() || cache::is_unsettled(cache, *handle.file);
}

Detached serve_write(Worker& worker, Ticket ticket, const Handle& handle, fuse_write_in in, const std::byte* data,
                     [[maybe_unused]] RequestBuffer buffer, bool too_much) {
  auto& cache = worker.session().cache();
  File& file = *handle.file;
  FileUse use(cache, file);
  const uint64_t begun_ns = monotonic_ns();
  if (too_much) co_await hold_back(worker, file, in.offset, in.size);
  bool mapped = (in.write_flags & FUSE_WRITE_CACHE) != 0;
  cache::Write write{in.offset, {data, in.size}, mapped ? cache::Origin::mapping : cache::Origin::application};
  write.appends = !mapped && (in.flags & O_APPEND) != 0;
  write.holds_pages = mapped || !handle.direct;
  write.drops_privileges = (in.write_flags & FUSE_WRITE_KILL_SUIDGID) != 0;
  write.handle = &handle;
  auto put = [&] { return cache::write_file(cache, worker.lane(), file, write); };
  // What the kernel brings of mappings may have been stored before a fence: it is not to replace what others wrote
  // since, and msync says so. It cannot wait either: the notice that takes these pages away waits for it.
  int error = EIO;
  if (is_held(handle) && !(mapped && file.refuses_mapped.load())) error = co_await put();
  if (error != 0 && !mapped && !write.told && may_try_again(cache, handle))
    error = co_await again_when_held(cache, worker.lane(), handle, begun_ns, put);
  if (error == 0 && write.appends) error = co_await drop_appended(worker, handle, in.offset, write);
  if (error != 0) {
    worker.reply_error(ticket, error);
  } else {
    fuse_write_out out{in.size, 0};
    worker.reply(ticket, &out, sizeof out);
  }
}

/// Not again when held: what was not written back before a fence is gone, and this is where it is told (take_error).
Detached serve_sync(Worker& worker, Ticket ticket, Handle& handle, bool closing, uint64_t owner) {
  auto& cache = worker.session().cache();
  File& file = *handle.file;
  FileUse use(cache, file);
  worker.counters.syncs.fetch_add(1, std::memory_order_relaxed);
  const uint64_t deadline = void_deadline(monotonic_ns());
  int error = is_held(handle) ? 0 : co_await cache::until_held(cache, worker.lane(), handle, deadline);
  // POSIX locks go with the close, also of a handle that is good for nothing else.
  if (error == 0 || (closing && file.locked.load() && !cache::is_void(file))) {
    int synced = co_await cache::sync_file(cache, worker.lane(), file, closing, owner);
    if (error == 0) error = synced;
  }
  if (cache::is_unsettled(cache, file)) {
    int unheld = co_await cache::until_held(cache, worker.lane(), handle, deadline);
    if (error == 0) error = unheld;
  }
  int reported = cache::take_error(handle);
  worker.reply_error(ticket, error != 0 ? error : reported);
}

Detached serve_allocate(Worker& worker, Ticket ticket, const Handle& handle, fuse_fallocate_in in) {
  auto& cache = worker.session().cache();
  File& file = *handle.file;
  FileUse use(cache, file);
  const uint64_t begun_ns = monotonic_ns();
  bool keep_size = (in.mode & FALLOC_FL_KEEP_SIZE) != 0;
  auto allocate = [&] { return cache::allocate_range(cache, worker.lane(), file, in.offset, in.length, keep_size); };
  int error = EIO;
  if (is_held(handle)) error = co_await allocate();
  if (error != 0 && may_try_again(cache, handle))
    error = co_await again_when_held(cache, worker.lane(), handle, begun_ns, allocate);
  worker.reply_error(ticket, error);
}

void reply_seek(Worker& worker, const Ticket& ticket, File& file, const fuse_lseek_in& in) {
  file.lock.lock();
  uint64_t size = file.size.load();
  std::optional<uint64_t> found;
  if (in.offset < size && in.whence == SEEK_DATA) found = file.extents.next_data(in.offset);
  if (in.offset < size && in.whence == SEEK_HOLE) found = std::min(file.extents.next_hole(in.offset), size);
  file.lock.unlock();
  if (in.whence != SEEK_DATA && in.whence != SEEK_HOLE) return worker.reply_error(ticket, EINVAL);
  if (!found || *found > size || (in.whence == SEEK_DATA && *found >= size)) return worker.reply_error(ticket, ENXIO);
  fuse_lseek_out out{*found};
  worker.reply(ticket, &out, sizeof out);
}

Detached seek_when_held(Worker& worker, Ticket ticket, const Handle& handle, fuse_lseek_in in) {
  auto& cache = worker.session().cache();
  FileUse use(cache, *handle.file);
  int error = co_await cache::until_held(cache, worker.lane(), handle, void_deadline(monotonic_ns()));
  if (error != 0) co_return worker.reply_error(ticket, error);
  reply_seek(worker, ticket, *handle.file, in);
}

void answer_read(Worker& worker, Ticket ticket, const Handle& handle, const fuse_read_in& in, uint32_t bytes,
                 RequestBuffer& buffer) {
  File& file = *handle.file;
  auto& watch = worker.lane().watch;
  if (file.mode.load(std::memory_order_relaxed) == Delegation::shared) {
    watch.note_read(file.node, in.offset, bytes, false);
    serve_shared_read(worker, ticket, handle, in.offset, bytes, std::move(buffer));
    return;
  }
  auto& cache = worker.session().cache();
  auto reuse = (in.flags & O_DIRECT) != 0 ? cache::Reuse::ours : cache::Reuse::kernel_keeps;
  auto kind = reuse == cache::Reuse::ours ? cache::Reference::Kind::direct_read : cache::Reference::Kind::read;
  cache.note(kind, file, cache::page_of(in.offset), cache::pages_spanned(in.offset, bytes));
  if (cache::may_read_direct(cache, file, in.offset, bytes)) {
    watch.note_read(file.node, in.offset, bytes, false);
    serve_direct_read(worker, ticket, handle, in.offset, bytes, reuse, std::move(buffer));
    return;
  }
  FileUse use(cache, file);  // past the reply, with which the last handle may go
  PinnedPages pins(cache.frames());
  const bool hit = cache::read_hit(cache, worker.lane(), file, in.offset, bytes, reuse, pins);
  watch.note_read(file.node, in.offset, bytes, hit);
  if (hit) {
    reply_pages(worker, ticket, in.offset, bytes, pins);
    pins.release();  // read-ahead may take these very frames
  } else {
    serve_miss(worker, ticket, handle, in.offset, bytes, reuse);
  }
  cache::read_ahead(cache, worker.lane(), file, in.offset, bytes);
}

Detached serve_held_back(Worker& worker, Ticket ticket, const Handle& handle, fuse_read_in in, uint32_t bytes,
                         RequestBuffer buffer) {
  File& file = *handle.file;
  FileUse use(worker.session().cache(), file);
  co_await hold_back(worker, file, in.offset, bytes);
  if (is_held(handle)) {
    answer_read(worker, ticket, handle, in, bytes, buffer);
  } else {
    serve_anew(worker, ticket, handle, in.offset, bytes, monotonic_ns());
  }
}

}  // namespace

void handle_read(Worker& worker, Request& request) {
  fuse_read_in in = request.as<fuse_read_in>();
  Ticket ticket = request.ticket;
  Handle& handle = handle_of(in.fh);
  File& file = *handle.file;
  uint64_t size = file.size.load(std::memory_order_relaxed);
  worker.counters.reads.fetch_add(1, std::memory_order_relaxed);
  if (!is_held(handle)) {
    serve_anew(worker, ticket, handle, in.offset, std::min<uint32_t>(in.size, kMaxWriteBytes), monotonic_ns());
    return;
  }
  if (in.offset >= size) {
    serve_beyond_end(worker, ticket, file);
    return;
  }
  if (in.size == 0) return worker.reply(ticket, nullptr, 0);
  auto bytes = static_cast<uint32_t>(std::min<uint64_t>({in.size, size - in.offset, kMaxWriteBytes}));
  worker.counters.read_bytes.fetch_add(bytes, std::memory_order_relaxed);
  if (kernel_keeps(handle, in.flags) && give_kernel(worker, handle, in.offset, bytes)) {
    serve_held_back(worker, ticket, handle, in, bytes, std::move(request.buffer));
  } else {
    answer_read(worker, ticket, handle, in, bytes, request.buffer);
  }
}

void handle_write(Worker& worker, Request& request) {
  fuse_write_in in = request.as<fuse_write_in>();
  Ticket ticket = request.ticket;
  if (request.payload.size() < in.size || in.size > kMaxWriteBytes) return worker.reply_error(ticket, EINVAL);
  if (in.offset > cache::kMaxFileBytes - in.size) return worker.reply_error(ticket, EFBIG);
  worker.counters.writes.fetch_add(1, std::memory_order_relaxed);
  worker.counters.write_bytes.fetch_add(in.size, std::memory_order_relaxed);
  Handle& handle = handle_of(in.fh);
  if (handle.file->mode.load(std::memory_order_relaxed) != Delegation::shared)
    worker.session().cache().note(cache::Reference::Kind::write, *handle.file, cache::page_of(in.offset),
                                  cache::pages_spanned(in.offset, in.size));
  const bool mapped = (in.write_flags & FUSE_WRITE_CACHE) != 0;
  worker.lane().watch.note_write(handle.file->node, in.offset, in.size, mapped);
  // What a mapping has dirtied was given before.
  bool kept = !mapped && kernel_keeps(handle, in.flags) && in.size > 0;
  bool too_much = kept && give_kernel(worker, handle, in.offset, in.size);
  serve_write(worker, ticket, handle, in, request.payload.data(), std::move(request.buffer), too_much);
}

void handle_flush(Worker& worker, Request& request) {
  const auto& in = request.as<fuse_flush_in>();
  Handle& handle = handle_of(in.fh);
  bool writer = (handle.flags & O_ACCMODE) != O_RDONLY;
  if (!writer && !handle.broken() && !handle.file->locked.load()) return worker.reply_error(request.ticket, 0);
  serve_sync(worker, request.ticket, handle, true, in.lock_owner);
}

void handle_fsync(Worker& worker, Request& request) {
  serve_sync(worker, request.ticket, handle_of(request.as<fuse_fsync_in>().fh), false, 0);
}

void handle_fallocate(Worker& worker, Request& request) {
  const auto& in = request.as<fuse_fallocate_in>();
  if ((in.mode & ~static_cast<uint32_t>(FALLOC_FL_KEEP_SIZE)) != 0) return handle_control(worker, request);
  const bool fits = in.length <= cache::kMaxFileBytes && in.offset <= cache::kMaxFileBytes - in.length;
  if (in.length == 0 || !fits) return worker.reply_error(request.ticket, EFBIG);
  serve_allocate(worker, request.ticket, handle_of(in.fh), in);
}

void handle_getxattr(Worker& worker, Request& request) {
  std::string_view name(reinterpret_cast<const char*>(request.payload.data()), request.payload.size());
  if (name.starts_with("security.")) return worker.reply_error(request.ticket, ENODATA);
  handle_control(worker, request);
}

void handle_lseek(Worker& worker, Request& request) {
  const auto& in = request.as<fuse_lseek_in>();
  const Handle& handle = handle_of(in.fh);
  if (is_held(handle)) {
    reply_seek(worker, request.ticket, *handle.file, in);
  } else {
    seek_when_held(worker, request.ticket, handle, in);
  }
}

}  // namespace extmem::fuse
