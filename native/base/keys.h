// Keys and proofs of the data plane: HMAC-SHA-256 over packed little-endian integers. The manager computes the same in
// TypeScript; test/contract/keys.json holds vectors that both sides are tested against.
#pragma once

#include <array>
#include <cstdint>
#include <span>

#include "base/protocol.h"

namespace extmem {

using Key = std::array<uint8_t, protocol::kMacBytes>;
using Mac = std::array<uint8_t, protocol::kMacBytes>;
using Nonce = std::array<uint8_t, protocol::kNonceBytes>;

Mac hmac_sha256(std::span<const uint8_t> key, std::span<const uint8_t> message);

/// The key of one generation of a client: HMAC(cluster key, 'E' | client u64 | client_generation u32).
Key derive_client_key(const Key& cluster_key, uint64_t client, uint32_t client_generation);

/// HMAC(cluster key, 'R' | client | client_generation | rights | region | not_after | via | version).
Mac compute_capability_mac(const Key& cluster_key, const protocol::Capability& capability);

enum class Prover : uint8_t { client = 'C', server = 'S' };

struct HandshakeFacts {
  const Nonce& client_nonce;
  const Nonce& server_nonce;
  uint64_t incarnation;
};

/// HMAC(client key, 'C' or 'S' | client nonce | server nonce | incarnation).
Mac compute_handshake_proof(const Key& client_key, Prover prover, const HandshakeFacts& facts);

/// In constant time.
bool macs_equal(const Mac& one, const Mac& other);

/// From getrandom(2).
Nonce make_nonce();

}  // namespace extmem
