// Fuzzes what the mount makes of the requests that come by its channels: the opcode table, every opcode's own struct,
// the data path behind it, and INIT (fuse/). A whole session runs, with its page cache, over shared memory on a region
// server in this process; only the kernel and TypeScript are played here.
//
// Input: a byte of choices; then either what INIT is answered to, or requests: opcode, a byte of choices (see
// RequestChoice), the length of the body, the body. The kernel gives back file handles as it was given them, so these
// are put in here. Requests come by a descriptor as /dev/fuse has them, or as io_uring brings them, struct and payload
// apart and each in an allocation of its own, so that reading beyond either is seen.
//
// Every request must be answered, once, and with no more than it asked for.
#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <condition_variable>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "base/keys.h"
#include "cache/file_control.h"
#include "cache/flusher.h"
#include "cache/shared_turns.h"
#include "fuse/handshake.h"
#include "fuse/opcode_table.h"
#include "fuse/session.h"
#include "fuzz/fuzz_input.h"
#include "region/region_server.h"

using namespace extmem;
using namespace extmem::fuzz;
using cache::File;
using cache::Handle;

namespace {

constexpr uint64_t kClient = 42, kIncarnation = 77, kRegion = 1;
constexpr uint64_t kRegionBytes = 16 << 20;
constexpr int kAnswerMs = 15'000;

enum RequestChoice : uint8_t {
  kHandleBits = 0x03,    // which of the open files
  kNear = 0x04,          // offset and length are made small
  kWholePayload = 0x08,  // a write says how much really follows
  kAlone = 0x10,         // everything before it is answered first
};

Key cluster_key() {
  Key key;
  key.fill(0x5a);
  return key;
}

/// Who is to be told what, by the request's unique number; every request once.
class Answers {
 public:
  struct Expected {
    uint32_t opcode;
    size_t most;  // bytes of the body
  };
  void expect(uint64_t unique, Expected expected) {
    std::lock_guard guard(lock_);
    EXTMEM_ASSERT(expected_.emplace(unique, expected).second);
  }
  void come(uint64_t unique, int error, size_t bytes) {
    std::lock_guard guard(lock_);
    const auto found = expected_.find(unique);
    EXTMEM_ASSERT(found != expected_.end());
    EXTMEM_ASSERT(error >= 0 && error < 4096 && (error == 0 || bytes == 0));
    EXTMEM_ASSERT(bytes <= found->second.most);
    expected_.erase(found);
    changed_.notify_all();
  }
  /// Requests without an answer, in the order in which they were made.
  void come_first_of(uint32_t opcode) {
    uint64_t unique = 0;
    {
      std::lock_guard guard(lock_);
      for (auto& [number, expected] : expected_) {
        if (expected.opcode == opcode && unique == 0) unique = number;
      }
    }
    come(unique, 0, 0);
  }
  bool empty() {
    std::lock_guard guard(lock_);
    return expected_.empty();
  }
  void wait() {
    std::unique_lock guard(lock_);
    EXTMEM_ASSERT(changed_.wait_for(guard, std::chrono::milliseconds(kAnswerMs), [this] { return expected_.empty(); }));
  }

 private:
  std::mutex lock_;
  std::condition_variable changed_;
  std::map<uint64_t, Expected> expected_;
};

/// As uring_channel, without the ring.
class ApartChannel final : public fuse::Channel {
 public:
  explicit ApartChannel(Answers& answers) : answers_(answers) {}
  int open() override { return 0; }
  void close() override {}
  void answer(const fuse::Ticket& ticket, int error, iovec* segments, unsigned count, size_t body_bytes) override {
    size_t bytes = 0;
    uint8_t sum = 0;
    for (unsigned index = 1; index < count; ++index) {
      const auto* from = static_cast<const uint8_t*>(segments[index].iov_base);
      for (size_t place = 0; place < segments[index].iov_len; place += 64) sum ^= from[place];
      bytes += segments[index].iov_len;
    }
    read_.store(sum);
    EXTMEM_ASSERT(bytes == body_bytes);
    answers_.come(ticket.unique, error, bytes);
  }
  void answer_from_outside(const fuse::Ticket& ticket, int error, std::span<const uint8_t> body) override {
    answers_.come(ticket.unique, error, body.size());
  }

 private:
  Answers& answers_;
  std::atomic<uint8_t> read_{0};
};

/// TypeScript's part: room that there is none of any more, a manager that agrees to everything, and a name space that
/// answers with bytes.
class Control final : public extent::ControlPlane, public fuse::ControlSink {
 public:
  Control(Answers& answers) : answers_(answers) {}
  fuse::Session* session = nullptr;

  void ask(extent::ControlCall& call) override {
    if (call.kind == extent::ControlCall::Kind::provision) call.error = ENOSPC;
    call.answered();
  }
  void control_request(fuse::ControlRequest request) override {
    request.body.resize(std::min<size_t>(request.body.size(), 96));
    session->reply(request.id, request.body.size() % 3 == 0 ? ENOSYS : 0, request.body);
  }
  void interrupted(uint64_t) override { answers_.come_first_of(FUSE_INTERRUPT); }
  void forgotten(std::vector<std::pair<uint64_t, uint64_t>>) override { answers_.come_first_of(forgetting.load()); }
  void session_ended(int error) override { fail_invariant(__FILE__, __LINE__, strerror(error)); }
  /// FUSE_FORGET or FUSE_BATCH_FORGET: they are told alike, so that one is under way at a time.
  std::atomic<uint32_t> forgetting{FUSE_FORGET};

 private:
  Answers& answers_;
};

class Mount {
 public:
  Mount() : control_(answers_), channel_(answers_), session_(options(), control_, control_) {
    control_.session = &session_;
    serve_memory();
    int ends[2];
    EXTMEM_ASSERT(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, ends) == 0);
    const int room = 4 << 20;  // an answer of a whole MiB
    EXTMEM_ASSERT(setsockopt(ends[0], SOL_SOCKET, SO_SNDBUFFORCE, &room, sizeof room) == 0);
    kernel_ = ends[1];
    fuse_init_in in{};
    in.major = FUSE_KERNEL_VERSION;
    in.minor = FUSE_KERNEL_MINOR_VERSION;
    fuse_in_header header{};
    header.len = sizeof header + sizeof in;
    header.opcode = FUSE_INIT;
    std::vector<uint8_t> init;
    append(init, header);
    append(init, in);
    EXTMEM_ASSERT(write(kernel_, init.data(), init.size()) == static_cast<ssize_t>(init.size()));
    EXTMEM_ASSERT(session_.serve(ends[0]).fd >= 0);
    EXTMEM_ASSERT(read(kernel_, init.data(), init.size()) > 0);
  }

  Answers& answers() { return answers_; }
  fuse::Session& session() { return session_; }
  Control& control() { return control_; }
  fuse::Channel& channel() { return channel_; }
  int kernel() const { return kernel_; }
  cache::PageCache& cache() { return session_.cache(); }

  /// What was a file's is zeroed and given back.
  void recycle(const extent::Piece& piece) {
    const uint64_t offset = piece.copies[0].offset;  // none of these files has copies
    EXTMEM_ASSERT(server_->punch_region(kRegion, offset, piece.length) == protocol::Status::ok);
    cache().slabs().free(kRegion, offset, piece.length);
  }

 private:
  static std::string link_name() { return "extmem-fuzz-" + std::to_string(getpid()); }
  static fuse::Session::Options options() {
    fuse::Session::Options options;
    options.mount_point = "/proc/none";
    options.threads = 1;
    options.cache.cache_bytes = 8 << 20;
    options.cache.dirty_bytes = 4 << 20;
    options.fabric.credentials = {kClient, 1, derive_client_key(cluster_key(), kClient, 1)};
    options.fabric.host_id = "here";
    return options;
  }
  void serve_memory() {
    region::RegionServer::Options options;
    options.link_name = link_name();
    options.cluster_key = cluster_key();
    options.incarnation = kIncarnation;
    options.donated_bytes = kRegionBytes;
    std::string error;
    server_ = region::RegionServer::create(options, error);
    EXTMEM_ASSERT(server_ != nullptr);
    EXTMEM_ASSERT(server_->create_region(kRegion, kRegionBytes, false) == protocol::Status::ok);
    auto& directory = session_.directory();
    auto& appliance =
        directory.put_appliance("appliance", "here", "127.0.0.1", server_->port(), link_name(), kIncarnation);
    protocol::Capability capability{};
    capability.client = kClient;
    capability.client_generation = 1;
    capability.rights = 3;
    capability.region = kRegion;
    capability.mac = compute_capability_mac(cluster_key(), capability);
    cache().slabs().add_region(directory.put_region(kRegion, kRegionBytes, appliance, capability), {});
  }

  Answers answers_;
  Control control_;
  ApartChannel channel_;
  std::unique_ptr<region::RegionServer> server_;
  fuse::Session session_;
  int kernel_ = -1;
};

Mount& mount() {
  static Mount& mount = *new Mount;  // its threads run to the end
  return mount;
}

/// Runs a coroutine on the mount's worker, to its end.
template <typename Make>
void on_worker(Make make) {
  std::promise<void> done;
  struct Drive {
    static Detached run(fuse::Worker& worker, Make& make, std::promise<void>& done) {
      co_await make(worker);
      done.set_value();
    }
  };
  mount().session().run_on_worker(0, [&](fuse::Worker& worker) { Drive::run(worker, make, done); });
  done.get_future().get();
}

constexpr uint8_t kReadOnly = 2;  // of OpenFiles

/// The open files of one input, made anew for each.
class OpenFiles {
 public:
  OpenFiles() {
    add(cache::Delegation::write, O_RDWR, false);
    add(cache::Delegation::write, O_RDWR, true);
    add(cache::Delegation::read, O_RDONLY, false);
    add(cache::Delegation::shared, O_RDWR, true);
  }
  ~OpenFiles() {
    for (auto& handle : handles_) {
      give_back(*handle->file);
      mount().session().kernel_pages().forget(handle->file->node);
      mount().cache().forget_file(handle->file->node);
      mount().cache().put_file(*handle->file);
    }
  }
  uint64_t handle(uint8_t number) const { return reinterpret_cast<uint64_t>(handles_[number % handles_.size()].get()); }

 private:
  void add(cache::Delegation mode, uint32_t flags, bool direct) {
    static uint64_t node = 1;
    ++node;
    auto& cache = mount().cache();
    extent::FileAttributes attributes;
    attributes.ino = node;
    attributes.size = 5000;  // a hole
    EXTMEM_ASSERT(cache::install_file(cache, node, mode, extent::encode_record(attributes, {})) == 0);
    File* file = cache.find_file(node);
    handles_.push_back(std::make_unique<Handle>(Handle{.file = file,
                                                       .flags = flags,
                                                       .seen_errors = 0,
                                                       .life = file->life.load(),
                                                       .direct = direct,
                                                       .kernel = mount().session().kernel_pages().file(node)}));
  }

  /// As when the manager truncates it.
  void give_back(File& file) {
    on_worker([&](fuse::Worker& worker) -> Task<int> {
      auto& cache = mount().cache();
      EXTMEM_ASSERT(co_await cache::begin_cut(cache, worker.lane(), file, 0, UINT64_MAX) == 0);
      std::vector<extent::Piece> freed;
      for (uint64_t at = 0; at < file.extents.end();) {
        const auto piece = file.extents.resolve(at, file.extents.end() - at);
        if (!piece.is_hole()) freed.push_back(piece);
        at += piece.length;
      }
      extent::FileAttributes attributes = file.attributes;
      attributes.size = 0;
      ++attributes.change;
      EXTMEM_ASSERT(co_await cache::end_cut(cache, worker.lane(), file, extent::encode_record(attributes, {}), true) ==
                    0);
      co_await cache::reads_settled(worker.lane(), file);
      for (const auto& piece : freed) mount().recycle(piece);
      co_return 0;
    });
  }

  std::vector<std::unique_ptr<Handle>> handles_;
};

struct Made {
  uint8_t opcode;
  uint8_t choice;
  std::vector<uint8_t> body;
};

bool is_through_handle(uint32_t opcode) {
  return opcode == FUSE_READ || opcode == FUSE_WRITE || opcode == FUSE_FLUSH || opcode == FUSE_FSYNC ||
         opcode == FUSE_FALLOCATE || opcode == FUSE_LSEEK;
}

/// What only the kernel knows, and what makes of noise something that reaches the data path.
void complete(Made& request, const OpenFiles& files) {
  if (!is_through_handle(request.opcode)) return;
  auto& body = request.body;
  if (body.size() < sizeof(fuse_fsync_in)) return;  // the shortest of them: what is shorter is refused
  // Nothing that writes comes through a file that is open for reading.
  const bool writes = request.opcode == FUSE_WRITE || request.opcode == FUSE_FALLOCATE;
  const auto number = static_cast<uint8_t>(request.choice & kHandleBits);
  const uint64_t fh = files.handle(writes && number == kReadOnly ? 0 : number);
  std::memcpy(body.data(), &fh, sizeof fh);
  if (request.opcode == FUSE_FLUSH || request.opcode == FUSE_FSYNC) return;
  uint64_t offset;
  std::memcpy(&offset, body.data() + 8, sizeof offset);
  if ((request.choice & kNear) != 0) offset %= 1 << 20;
  std::memcpy(body.data() + 8, &offset, sizeof offset);
  if (request.opcode != FUSE_WRITE || (request.choice & kWholePayload) == 0 || body.size() < sizeof(fuse_write_in))
    return;
  const auto payload = static_cast<uint32_t>(body.size() - sizeof(fuse_write_in));
  std::memcpy(body.data() + offsetof(fuse_write_in, size), &payload, sizeof payload);
}

size_t most_of(const Made& request) {
  if (request.opcode != FUSE_READ || request.body.size() < sizeof(fuse_read_in)) return 4096;
  uint32_t size;
  std::memcpy(&size, request.body.data() + offsetof(fuse_read_in, size), sizeof size);
  return size;
}

void send_by_descriptor(const Made& request, const fuse_in_header& header) {
  std::vector<uint8_t> bytes;
  append(bytes, header);
  bytes.insert(bytes.end(), request.body.begin(), request.body.end());
  EXTMEM_ASSERT(send(mount().kernel(), bytes.data(), bytes.size(), 0) == static_cast<ssize_t>(bytes.size()));
}

void send_apart(const Made& request, const fuse_in_header& header) {
  mount().session().run_on_worker(0, [request, header](fuse::Worker& worker) {
    const fuse::Opcode* opcode = fuse::find_opcode(header.opcode);
    const std::span all(reinterpret_cast<const std::byte*>(request.body.data()), request.body.size());
    const auto operation = all.first(opcode == nullptr ? all.size() : std::min(opcode->body_bytes, all.size()));
    // Kept until the answer has come, as those of a ring are.
    static std::vector<std::unique_ptr<std::vector<std::byte>>> kept;
    auto keep = [](std::span<const std::byte> bytes) {
      kept.push_back(std::make_unique<std::vector<std::byte>>(bytes.begin(), bytes.end()));
      return std::span<const std::byte>(*kept.back());
    };
    static fuse::RequestBuffer::Pool pool;
    fuse::RequestBuffer buffer(pool, fuse::kMaxWriteBytes);
    fuse::Request taken{
        header, keep(operation), keep(all.subspan(operation.size())), {&mount().channel(), header.unique}, buffer};
    worker.take(taken, opcode);
    if (mount().answers().empty()) kept.clear();
  });
}

/// Everything that the mount wrote.
void take_answers(Answers& answers, bool to_the_end) {
  static std::vector<uint8_t> bytes(2 << 20);
  while (!to_the_end || !answers.empty()) {
    pollfd ready{.fd = mount().kernel(), .events = POLLIN, .revents = 0};
    // Some are told to TypeScript instead: looked for again after a while.
    poll(&ready, 1, to_the_end ? 10 : 0);
    const ssize_t got = recv(mount().kernel(), bytes.data(), bytes.size(), MSG_DONTWAIT);
    if (got < 0 && !to_the_end) return;
    if (got < 0) continue;
    fuse_out_header header;
    EXTMEM_ASSERT(got >= static_cast<ssize_t>(sizeof header));
    std::memcpy(&header, bytes.data(), sizeof header);
    EXTMEM_ASSERT(header.len == static_cast<size_t>(got));
    if (header.unique == 0) continue;  // a notice
    answers.come(header.unique, -header.error, static_cast<size_t>(got) - sizeof header);
  }
}

void serve_requests(Input& input, bool apart) {
  auto& answers = mount().answers();
  OpenFiles files;
  auto settle = [&] { apart ? answers.wait() : take_answers(answers, true); };
  static uint64_t unique = 0;
  while (!input.empty()) {
    Made request{.opcode = input.byte(), .choice = input.byte(), .body = {}};
    const auto body = input.take_bytes(input.take<uint16_t>());
    request.body.assign(body.begin(), body.end());
    complete(request, files);
    const bool forgets = request.opcode == FUSE_FORGET || request.opcode == FUSE_BATCH_FORGET;
    if ((request.choice & kAlone) != 0 || forgets) settle();
    if (forgets) mount().control().forgetting = request.opcode;
    fuse_in_header header{};
    header.len = static_cast<uint32_t>(sizeof header + request.body.size());
    header.opcode = request.opcode;
    header.unique = ++unique << 1;
    header.nodeid = request.choice;
    answers.expect(header.unique, {.opcode = request.opcode, .most = most_of(request)});
    apart ? send_apart(request, header) : send_by_descriptor(request, header);
    if (!apart) take_answers(answers, false);
    if (forgets) settle();
  }
  settle();
}

void begin_session(Input& input) {
  int ends[2];
  EXTMEM_ASSERT(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, ends) == 0);
  const bool offer = (input.byte() & 1) != 0;
  const auto bytes = input.take_bytes(input.left());
  EXTMEM_ASSERT(send(ends[1], bytes.data(), bytes.size(), 0) == static_cast<ssize_t>(bytes.size()));
  const auto handshake = fuse::shake_hands(ends[0], offer);
  std::array<uint8_t, 4096> answer;
  const bool answered = recv(ends[1], answer.data(), answer.size(), MSG_DONTWAIT) > 0;
  EXTMEM_ASSERT(answered == handshake.error.empty());
  EXTMEM_ASSERT(offer || !handshake.uring);
  close(ends[0]);
  close(ends[1]);
}

/// A request as the kernel makes it, or nearly.
template <typename Random>
std::vector<uint8_t> make_request(Random& random) {
  constexpr uint8_t kDataPath[] = {FUSE_READ,  FUSE_WRITE, FUSE_WRITE,     FUSE_READ,   FUSE_FLUSH,
                                   FUSE_FSYNC, FUSE_LSEEK, FUSE_FALLOCATE, FUSE_FORGET, FUSE_BATCH_FORGET};
  constexpr uint64_t kOffsets[] = {0, 1, 4095, 4096, 5000, 65536, 1 << 20, uint64_t{1} << 44, UINT64_MAX};
  constexpr uint32_t kSizes[] = {0, 1, 100, 4096, 5000, 131072, 1 << 20, (1 << 20) + 1, UINT32_MAX};
  const uint8_t opcode = random() % 4 == 0 ? static_cast<uint8_t>(random() % 56) : pick(random, kDataPath);
  std::vector<uint8_t> body;
  const fuse::Opcode* known = fuse::find_opcode(opcode);
  if (opcode == FUSE_READ || opcode == FUSE_WRITE) {
    fuse_write_in in{};
    in.offset = pick(random, kOffsets);
    in.size = pick(random, kSizes);
    in.flags = random() % 4 == 0 ? O_APPEND : random() % 4 == 0 ? O_DIRECT : 0;
    in.write_flags = static_cast<uint32_t>(random() % 8 == 0 ? random() % 8 : 0);
    append(body, in);  // fuse_read_in is as long, and begins alike
    if (opcode == FUSE_WRITE) body.resize(body.size() + random() % 9000, 0x77);
  } else if (opcode == FUSE_FALLOCATE) {
    append(body, fuse_fallocate_in{0, pick(random, kOffsets), pick(random, kOffsets),
                                   static_cast<uint32_t>(random() % 4), 0});
  } else if (opcode == FUSE_LSEEK) {
    append(body, fuse_lseek_in{0, pick(random, kOffsets), static_cast<uint32_t>(random() % 6), 0});
  } else {
    body.resize((known == nullptr ? 0 : known->body_bytes) + random() % 64);
  }
  if (random() % 8 == 0) body.resize(random() % (body.size() + 1));
  std::vector<uint8_t> request{opcode, static_cast<uint8_t>(random())};
  append(request, static_cast<uint16_t>(body.size()));
  request.insert(request.end(), body.begin(), body.end());
  return request;
}

std::vector<size_t> find_requests(std::span<const uint8_t> input) {
  std::vector<size_t> places;
  for (size_t place = 1;;) {
    places.push_back(place);
    if (place + 4 > input.size()) return places;
    place += 4u + input[place + 2] + input[place + 3] * 256u;
  }
}

}  // namespace

extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t bytes, size_t max_bytes, unsigned seed) {
  std::minstd_rand random(seed);
  if (random() % 3 == 0) return LLVMFuzzerMutate(data, bytes, max_bytes);
  const auto places = find_requests({data, bytes});
  return put_piece(data, bytes, max_bytes, make_request(random), places[random() % places.size()], true);
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t bytes) {
  Input input(data, bytes);
  const uint8_t choices = input.byte();
  if (choices % 8 == 7) {
    begin_session(input);
  } else {
    serve_requests(input, choices % 2 == 0);
  }
  return 0;
}
