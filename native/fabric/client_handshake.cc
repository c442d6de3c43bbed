#include "fabric/client_handshake.h"

#include <algorithm>

#include "base/clock.h"

namespace extmem::fabric {

ClientHandshake::ClientHandshake(const Credentials& credentials, const Link& link) : key_(credentials.key) {
  hello_.magic = protocol::kWireMagic;
  hello_.version = protocol::kProtocolVersion;
  hello_.client = credentials.client;
  hello_.client_generation = credentials.client_generation;
  hello_.link = link.index;
  hello_.link_generation = link.generation;
  hello_.incarnation = link.incarnation;
  hello_.nonce = make_nonce();
}

Status ClientHandshake::accept(const protocol::ServerHello& answer) {
  const auto status = static_cast<Status>(answer.status);
  if (answer.magic != protocol::kWireMagic) return Status::bad_version;
  if (answer.version != protocol::kProtocolVersion || status == Status::bad_version) return Status::bad_version;
  const HandshakeFacts facts{
      .client_nonce = hello_.nonce, .server_nonce = answer.nonce, .incarnation = answer.incarnation};
  if (!macs_equal(answer.proof, compute_handshake_proof(key_, Prover::server, facts))) return Status::denied;
  if (answer.incarnation != hello_.incarnation) return Status::stale_incarnation;
  if (status != Status::ok) return status;
  proof_.magic = protocol::kWireMagic;
  proof_.proof = compute_handshake_proof(key_, Prover::client, facts);
  return Status::ok;
}

Status ClientHandshake::conclude(const protocol::ReplyHeader& answer) {
  if (answer.magic != protocol::kWireMagic || answer.op != static_cast<uint8_t>(Op::ping) || answer.length != 0 ||
      answer.status > static_cast<uint8_t>(Status::forbidden)) {
    return Status::bad_version;
  }
  return static_cast<Status>(answer.status);
}

uint32_t next_link_generation() {
  static std::atomic<uint32_t> last{0};
  const auto seconds = static_cast<uint32_t>(wall_ns() / 1'000'000'000);
  uint32_t before = last.load(std::memory_order_relaxed);
  uint32_t next;
  do {
    next = std::max(before + 1, seconds);
  } while (!last.compare_exchange_weak(before, next, std::memory_order_relaxed));
  return next;
}

}  // namespace extmem::fabric
