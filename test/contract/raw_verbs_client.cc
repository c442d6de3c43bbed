#include "contract/raw_verbs_client.h"

#include <arpa/inet.h>
#include <poll.h>

#include "base/assert.h"
#include "base/clock.h"
#include "fabric/client_handshake.h"

namespace extmem::contract {

namespace {
constexpr uint64_t kPatienceNs = 10'000'000'000;
constexpr int kPollMs = 5;
}  // namespace

RawVerbsClient::RawVerbsClient(const ApplianceProcess& process, const fabric::Credentials& credentials)
    : credentials_(credentials),
      pair_({.choose_domain = verbs::ProtectionDomain::create, .transfers = 16, .listener = this}) {
  const auto address = parse_tcp_address(host_address(), process.port());
  EXTMEM_ASSERT(pair_.connect(*address, 1000).empty());
  EXTMEM_ASSERT(wait_for([this] { return pair_.established(); }));
  fabric::ClientHandshake handshake(
      credentials, {.index = 0, .generation = fabric::next_link_generation(), .incarnation = process.incarnation()});
  send(&handshake.hello(), sizeof handshake.hello());
  protocol::ServerHello answer;
  receive(&answer, sizeof answer);
  EXTMEM_ASSERT(handshake.accept(answer) == Status::ok);
  send(&handshake.proof(), sizeof handshake.proof());
  protocol::ReplyHeader conclusion;
  receive(&conclusion, sizeof conclusion);
  EXTMEM_ASSERT(fabric::ClientHandshake::conclude(conclusion) == Status::ok);
  registration_ =
      verbs::Registration::create(pair_.domain(), {.memory = {reinterpret_cast<std::byte*>(page_.data()), page_.size()},
                                                   .iova = reinterpret_cast<uint64_t>(page_.data()),
                                                   .access = IBV_ACCESS_LOCAL_WRITE});
  EXTMEM_ASSERT(registration_ != nullptr);
}

template <typename Condition>
bool RawVerbsClient::wait_for(Condition condition) {
  const uint64_t deadline = monotonic_ns() + kPatienceNs;
  while (!condition() && pair_.failure().empty() && monotonic_ns() < deadline) {
    pollfd waiting{.fd = pair_.fd(), .events = POLLIN, .revents = 0};
    poll(&waiting, 1, kPollMs);
    pair_.serve_events();
    pair_.arm();
    pair_.poll();
  }
  return condition();
}

void RawVerbsClient::send(const void* data, size_t bytes) {
  const iovec segment{.iov_base = const_cast<void*>(data), .iov_len = bytes};
  EXTMEM_ASSERT(pair_.send(&segment, 1) == static_cast<ssize_t>(bytes));
}

void RawVerbsClient::receive(void* data, size_t bytes) {
  EXTMEM_ASSERT(wait_for([this] { return pair_.has_message(); }));
  const iovec segment{.iov_base = data, .iov_len = bytes};
  EXTMEM_ASSERT(pair_.receive(&segment, 1) == static_cast<ssize_t>(bytes));
}

protocol::ReplyHeader RawVerbsClient::ask(Op op, uint64_t region, const void* payload, uint32_t bytes) {
  protocol::RequestHeader header{};
  header.magic = protocol::kWireMagic;
  header.op = static_cast<uint8_t>(op);
  header.id = 1;
  header.region = region;
  header.length = bytes;
  std::vector<uint8_t> request(sizeof header + bytes);
  std::memcpy(request.data(), &header, sizeof header);
  if (bytes > 0) std::memcpy(request.data() + sizeof header, payload, bytes);
  send(request.data(), request.size());
  protocol::ReplyHeader reply;
  receive(&reply, sizeof reply);
  EXTMEM_ASSERT(reply.status == static_cast<uint8_t>(Status::ok));
  return reply;
}

uint32_t RawVerbsClient::borrow(uint64_t region, uint32_t rights) {
  const protocol::Capability capability = make_capability(credentials_, region, rights);
  ask(Op::attach, region, &capability, sizeof capability);
  return static_cast<uint32_t>(ask(Op::lend, region, nullptr, 0).value);
}

bool RawVerbsClient::transfer(ibv_wr_opcode opcode, uint32_t key) {
  ibv_sge segment{.addr = reinterpret_cast<uint64_t>(page_.data()),
                  .length = static_cast<uint32_t>(page_.size()),
                  .lkey = registration_->local_key()};
  ibv_send_wr request{};
  request.sg_list = &segment;
  request.num_sge = 1;
  request.opcode = opcode;
  request.wr.rdma.rkey = key;
  request.wr_id = verbs::QueuePair::kEndsTransfer;
  const unsigned before = done_;
  unsigned signalled = 0;
  return pair_.post_transfers(request, signalled) && wait_for([&] { return done_ > before; });
}

void RawVerbsClient::notify(uint32_t notice) {
  ibv_send_wr request{};
  request.opcode = IBV_WR_RDMA_WRITE_WITH_IMM;
  request.imm_data = htonl(notice);
  request.wr_id = verbs::QueuePair::kEndsTransfer;
  unsigned signalled = 0;
  EXTMEM_ASSERT(pair_.post_transfers(request, signalled));
}

bool RawVerbsClient::wait_for_end() {
  wait_for([] { return false; });
  return !pair_.failure().empty();
}

}  // namespace extmem::contract
