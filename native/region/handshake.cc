#include "region/handshake.h"

namespace extmem::region {

using protocol::Status;

protocol::ServerHello Handshake::answer(const protocol::ClientHello& hello) {
  hello_ = hello;
  protocol::ServerHello reply{};
  reply.magic = protocol::kWireMagic;
  reply.version = protocol::kProtocolVersion;
  reply.incarnation = incarnation_;
  if (hello.version != protocol::kProtocolVersion) {
    reply.status = static_cast<uint8_t>(Status::bad_version);
    return reply;
  }
  client_key_ = derive_client_key(cluster_key_, hello.client, hello.client_generation);
  nonce_ = make_nonce();
  reply.nonce = nonce_;
  // Also proved when the incarnation is not the one asked for: a client gives its regions up only on our word.
  reply.proof = compute_handshake_proof(
      client_key_, Prover::server, {.client_nonce = hello_.nonce, .server_nonce = nonce_, .incarnation = incarnation_});
  Status status = Status::ok;
  if (hello.incarnation != incarnation_) status = Status::stale_incarnation;
  if (hello.link >= kMaxLinks) status = Status::bad_request;
  reply.status = static_cast<uint8_t>(status);
  return reply;
}

bool Handshake::verify(const protocol::ClientProof& proof) const {
  const Mac expected = compute_handshake_proof(
      client_key_, Prover::client, {.client_nonce = hello_.nonce, .server_nonce = nonce_, .incarnation = incarnation_});
  return macs_equal(expected, proof.proof);
}

}  // namespace extmem::region
