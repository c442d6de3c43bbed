// Fuzzes what the appliance makes of what a client sends: handshake, request frames, capability checks, records
// (region/connection.cc), over a socket and over a stream without one.
//
// Input: a byte of choices, a byte that says how the stream is cut into pieces, then the stream. Where the choice is an
// honest handshake, this harness makes it, because nobody can guess the proof, and attaches what there is a capability
// for; regions of which this client has none must stay as they are, whatever is sent, and those that it may only read.
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <memory>
#include <vector>

#include "base/keys.h"
#include "fuzz/fuzz_input.h"
#include "region/connection.h"

using namespace extmem;
using namespace extmem::fuzz;
using namespace extmem::region;
using protocol::Op;
using protocol::ReplyHeader;
using protocol::RequestHeader;

namespace {

constexpr uint64_t kIncarnation = 77;
constexpr uint64_t kWritable = 10, kReadable = 11, kThin = 12, kForeign = 13;
constexpr uint64_t kWritableBytes = 3 << 20, kThinBytes = 1 << 20, kSmallBytes = 8192;
constexpr uint64_t kDonatedBytes = 4 << 20;
constexpr size_t kHeaderBytes = 2;  // of the input

Key cluster_key() {
  Key key;
  key.fill(7);
  return key;
}

protocol::ClientHello make_hello() {
  protocol::ClientHello hello{};
  hello.magic = protocol::kWireMagic;
  hello.version = protocol::kProtocolVersion;
  hello.client = 1;
  hello.client_generation = 1;
  hello.link_generation = 1;
  hello.incarnation = kIncarnation;
  return hello;
}

protocol::Capability make_capability(uint64_t region, uint32_t rights) {
  protocol::Capability capability{};
  capability.client = 1;
  capability.client_generation = 1;
  capability.rights = rights;
  capability.region = region;
  capability.mac = compute_capability_mac(cluster_key(), capability);
  return capability;
}

/// The client's end of a connection.
class Link {
 public:
  virtual ~Link() = default;
  virtual std::unique_ptr<Wire> wire() = 0;
  virtual void send(std::span<const uint8_t> bytes) = 0;
  /// Everything that has come.
  virtual void receive(std::vector<uint8_t>& into) = 0;
  virtual void hang_up() = 0;
};

class SocketLink final : public Link {
 public:
  SocketLink() {
    int ends[2];
    EXTMEM_ASSERT(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, ends) == 0);
    ours_.reset(ends[0]);
    theirs_.reset(ends[1]);
  }
  std::unique_ptr<Wire> wire() override { return std::make_unique<SocketWire>(std::move(theirs_)); }
  void send(std::span<const uint8_t> bytes) override {
    // The appliance has ended it, or there is room: a piece is taken before the next is sent.
    [[maybe_unused]] ssize_t sent = ::send(ours_.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
  }
  void receive(std::vector<uint8_t>& into) override {
    std::array<uint8_t, 16 * 1024> piece;
    for (;;) {
      alignas(cmsghdr) std::array<uint8_t, CMSG_SPACE(sizeof(int))> control{};
      iovec segment{.iov_base = piece.data(), .iov_len = piece.size()};
      msghdr message{};
      message.msg_iov = &segment;
      message.msg_iovlen = 1;
      message.msg_control = control.data();
      message.msg_controllen = control.size();
      const ssize_t got = recvmsg(ours_.get(), &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
      if (got <= 0) return;
      into.insert(into.end(), piece.data(), piece.data() + got);
      const cmsghdr* rights = CMSG_FIRSTHDR(&message);
      if (rights == nullptr) continue;
      int fd;
      std::memcpy(&fd, CMSG_DATA(rights), sizeof fd);
      close(fd);
    }
  }
  void hang_up() override { ours_.reset(); }

 private:
  UniqueFd ours_, theirs_;
};

/// As a stream of messages is served: no socket, and memory that is lent.
class BufferLink final : public Link {
 public:
  struct State {
    std::vector<uint8_t> to_appliance, to_client;
    bool over = false;
  };
  std::unique_ptr<Wire> wire() override;
  void send(std::span<const uint8_t> bytes) override {
    state_->to_appliance.insert(state_->to_appliance.end(), bytes.begin(), bytes.end());
  }
  void receive(std::vector<uint8_t>& into) override {
    into.insert(into.end(), state_->to_client.begin(), state_->to_client.end());
    state_->to_client.clear();
  }
  void hang_up() override { state_->over = true; }

 private:
  std::shared_ptr<State> state_ = std::make_shared<State>();
};

class BufferWire final : public Wire, public Lender {
 public:
  explicit BufferWire(std::shared_ptr<BufferLink::State> state) : state_(std::move(state)) {}
  int fd() const override { return -1; }
  bool tells_output() const override { return false; }
  ssize_t receive(std::span<uint8_t> into) override {
    auto& from = state_->to_appliance;
    if (from.empty() && state_->over) return 0;
    errno = EAGAIN;
    if (from.empty()) return -1;
    const size_t taken = std::min(from.size(), into.size());
    std::copy_n(from.begin(), taken, into.begin());
    from.erase(from.begin(), from.begin() + static_cast<ptrdiff_t>(taken));
    return static_cast<ssize_t>(taken);
  }
  ssize_t send(std::span<const uint8_t> data, bool) override {
    constexpr size_t kRoom = 100'000;
    auto& to = state_->to_client;
    errno = EAGAIN;
    if (to.size() >= kRoom) return -1;
    const size_t taken = std::min(data.size(), kRoom - to.size());
    to.insert(to.end(), data.begin(), data.begin() + static_cast<ptrdiff_t>(taken));
    return static_cast<ssize_t>(taken);
  }
  bool drained() override { return true; }
  void cut(std::span<const uint8_t>) override { state_->over = true; }
  std::string describe_peer() const override { return "fuzz"; }
  std::string local_address() const override { return {}; }
  int socket() const override { return -1; }
  Lender* lender() override { return this; }
  std::shared_ptr<LentChunk> lend(const Piece&) override { return std::make_shared<Chunk>(); }

 private:
  struct Chunk final : LentChunk {
    uint32_t key() const override { return 5; }
    uint32_t notice() const override { return 6; }
    void end() override {}
  };
  std::shared_ptr<BufferLink::State> state_;
};

std::unique_ptr<Wire> BufferLink::wire() { return std::make_unique<BufferWire>(state_); }

/// What is said back is a row of replies, whatever was asked.
class Replies {
 public:
  void check(std::span<const uint8_t> said) {
    while (!said.empty()) {
      if (payload_left_ > 0) {
        const size_t taken = std::min<size_t>(payload_left_, said.size());
        payload_left_ -= static_cast<uint32_t>(taken);
        said = said.subspan(taken);
        continue;
      }
      const size_t taken = std::min(sizeof(ReplyHeader) - header_.size(), said.size());
      header_.insert(header_.end(), said.begin(), said.begin() + static_cast<ptrdiff_t>(taken));
      said = said.subspan(taken);
      if (header_.size() < sizeof(ReplyHeader)) return;
      ReplyHeader reply;
      std::memcpy(&reply, header_.data(), sizeof reply);
      header_.clear();
      EXTMEM_ASSERT(reply.magic == protocol::kWireMagic);
      EXTMEM_ASSERT(reply.status <= static_cast<uint8_t>(Status::closed));
      EXTMEM_ASSERT(reply.length == 0 || reply.op == static_cast<uint8_t>(Op::read));
      EXTMEM_ASSERT(reply.length <= protocol::kMaxIoBytes);
      payload_left_ = reply.length;
    }
  }

 private:
  std::vector<uint8_t> header_;
  uint32_t payload_left_ = 0;
};

class Bench {
 public:
  Bench() : service_(options()) {
    create(kWritable, kWritableBytes, false);
    create(kThin, kThinBytes, true);
    for (uint64_t id : {kReadable, kForeign}) {
      create(id, kSmallBytes, false);
      EXTMEM_ASSERT(service_.regions.find(id)->write(0, contents(id))->status == Status::ok);
    }
  }
  Service& service() { return service_; }

  /// What no client was allowed to change.
  void check_untouched(bool authenticated) {
    for (uint64_t id : {kReadable, kForeign}) {
      std::vector<uint8_t> found(kSmallBytes);
      EXTMEM_ASSERT(service_.regions.find(id)->read(0, found)->status == Status::ok);
      EXTMEM_ASSERT(std::ranges::equal(found, contents(id)));
    }
    std::vector<RecordInfo> records;
    for (auto& region : service_.regions.all()) region->append_records(records);
    for (const RecordInfo& record : records) {
      EXTMEM_ASSERT(authenticated && (record.region == kWritable || record.region == kThin));
    }
    EXTMEM_ASSERT(service_.connections == 0);
    EXTMEM_ASSERT(service_.account.reserved() <= kDonatedBytes);
  }

 private:
  static RegionServer::Options options() {
    RegionServer::Options options;
    options.cluster_key = cluster_key();
    options.incarnation = kIncarnation;
    options.donated_bytes = kDonatedBytes;
    return options;
  }
  void create(uint64_t id, uint64_t bytes, bool thin) {
    Status status = Status::ok;
    auto region = Region::create({.id = id, .bytes = bytes, .thin = thin}, service_.account, status);
    EXTMEM_ASSERT(region != nullptr);
    service_.regions.insert(std::move(region));
  }
  static std::span<const uint8_t> contents(uint64_t id) { return pattern(id, kSmallBytes); }

  Service service_;
};

uint32_t rights_on(uint64_t region) { return region == kWritable || region == kThin ? 3 : 1; }

std::vector<uint8_t> make_attach(uint64_t region) {
  std::vector<uint8_t> request;
  RequestHeader header{};
  header.magic = protocol::kWireMagic;
  header.op = static_cast<uint8_t>(Op::attach);
  header.region = region;
  header.length = sizeof(protocol::Capability);
  append(request, header);
  append(request, make_capability(region, rights_on(region)));
  return request;
}

class Conversation {
 public:
  Conversation(Service& service, Link& link)
      : link_(link), connection_(std::make_shared<Connection>(link.wire(), service)) {}

  bool open() const { return open_; }
  bool authenticated() const { return authenticated_; }

  /// The pieces are as large as the byte says; 0: as large as can be.
  void say(std::span<const uint8_t> bytes, uint8_t cuts) {
    constexpr size_t kLargest = 64 * 1024;
    std::minstd_rand sizes(cuts);
    while (!bytes.empty() && open_) {
      const size_t most = cuts == 0 ? kLargest : 1 + sizes() % (1 + cuts * 16);
      const auto piece = bytes.first(std::min({most, bytes.size(), kLargest}));
      link_.send(piece);
      bytes = bytes.subspan(piece.size());
      advance();
    }
  }
  void end() {
    link_.hang_up();
    if (open_) advance();
    EXTMEM_ASSERT(!open_);
    connection_->end();
  }
  void shake_hands() {
    const protocol::ClientHello hello = make_hello();
    std::vector<uint8_t> sent;
    append(sent, hello);
    say(sent, 0);
    protocol::ServerHello answer;
    EXTMEM_ASSERT(said_.size() == sizeof answer);
    std::memcpy(&answer, said_.data(), sizeof answer);
    protocol::ClientProof proof{};
    proof.magic = protocol::kWireMagic;
    proof.proof = compute_handshake_proof(
        derive_client_key(cluster_key(), 1, 1), Prover::client,
        {.client_nonce = hello.nonce, .server_nonce = answer.nonce, .incarnation = kIncarnation});
    sent.clear();
    append(sent, proof);
    authenticated_ = true;
    said_.clear();
    say(sent, 0);
    EXTMEM_ASSERT(open_ && connection_->authenticated());
  }
  void attach() {
    for (uint64_t region : {kWritable, kReadable, kThin}) say(make_attach(region), 0);
    EXTMEM_ASSERT(open_);
  }

 private:
  void advance() {
    // What waits for room goes on when there is some; nothing here makes anybody wait for a region.
    for (bool more = true; more && open_;) {
      const Connection::Wants wants = connection_->advance();
      EXTMEM_ASSERT(wants != Connection::Wants::retry);
      open_ = wants != Connection::Wants::close;
      const size_t before = said_.size();
      link_.receive(said_);
      more = wants == Connection::Wants::write || said_.size() > before;
      if (authenticated_) {
        replies_.check(said_);
        said_.clear();
      }
    }
  }

  Link& link_;
  std::shared_ptr<Connection> connection_;
  std::vector<uint8_t> said_;
  Replies replies_;
  bool open_ = true;
  bool authenticated_ = false;
};

/// A request as a client could send it, or nearly.
template <typename Random>
std::vector<uint8_t> make_request(Random& random) {
  constexpr uint32_t kLengths[] = {0, 1, 8, 56, 4095, 4096, 4097, 16384, 16385, 65536, 1 << 20, (1 << 20) + 1, 4 << 20};
  constexpr uint64_t kOffsets[] = {0, 8, 4096, 65, 1 << 20, 2 << 20, (3 << 20) - 4096, 3 << 20, UINT64_MAX};
  constexpr uint64_t kRegions[] = {kWritable, kWritable, kReadable, kThin, kForeign, 99};
  RequestHeader header{};
  header.magic = protocol::kWireMagic;
  header.op = static_cast<uint8_t>(1 + random() % 13);
  header.id = random();
  header.region = pick(random, kRegions);
  header.offset = pick(random, kOffsets);
  header.operand = pick(random, kOffsets);
  const auto op = static_cast<Op>(header.op);
  const bool carries = op == Op::read || op == Op::write || op == Op::put_record || random() % 8 == 0;
  if (carries) header.length = pick(random, kLengths);
  std::vector<uint8_t> request;
  if (op == Op::attach) {
    auto honest = make_attach(header.region == kForeign ? kReadable : header.region);
    if (random() % 4 == 0) honest[random() % honest.size()] ^= static_cast<uint8_t>(1u << random() % 8);
    return honest;
  }
  if (op == Op::compare_swap) header.length = 8;
  append(request, header);
  if (op != Op::read) request.resize(request.size() + std::min<uint32_t>(header.length, 8192), 0x3c);
  return request;
}

/// Where requests begin in an input, and where the next could.
std::vector<size_t> find_requests(std::span<const uint8_t> input) {
  std::vector<size_t> places;
  for (size_t place = kHeaderBytes;;) {
    places.push_back(place);
    RequestHeader header;
    if (place + sizeof header > input.size()) return places;
    std::memcpy(&header, input.data() + place, sizeof header);
    if (header.magic != protocol::kWireMagic) return places;
    place += sizeof header + (header.op == static_cast<uint8_t>(Op::read) ? 0 : header.length);
  }
}

}  // namespace

extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t bytes, size_t max_bytes, unsigned seed) {
  std::minstd_rand random(seed);
  if (random() % 2 == 0) return LLVMFuzzerMutate(data, bytes, max_bytes);
  std::vector<uint8_t> piece;
  if (random() % 16 == 0) {
    append(piece, make_hello());
    return put_piece(data, bytes, max_bytes, piece, kHeaderBytes, true);
  }
  std::vector<size_t> places = find_requests({data, bytes});
  return put_piece(data, bytes, max_bytes, make_request(random), places[random() % places.size()], random() % 4 != 0);
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t bytes) {
  Input input(data, bytes);
  const uint8_t choices = input.byte(), cuts = input.byte();
  Bench bench;
  std::unique_ptr<Link> link;
  if ((choices & 1) != 0) {
    link = std::make_unique<SocketLink>();
  } else {
    link = std::make_unique<BufferLink>();
  }
  Conversation conversation(bench.service(), *link);
  if ((choices & 2) == 0) conversation.shake_hands();
  if ((choices & 6) == 0) conversation.attach();
  conversation.say(input.take_bytes(input.left()), cuts);
  conversation.end();
  bench.check_untouched(conversation.authenticated());
  return 0;
}
