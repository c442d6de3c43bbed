#include "base/keys.h"

#include <doctest/doctest.h>

#include <cstdlib>
#include <fstream>
#include <numeric>
#include <sstream>
#include <string>

using namespace extmem;

namespace {

template <typename Bytes>
std::string to_hex(const Bytes& bytes) {
  static constexpr char kDigits[] = "0123456789abcdef";
  std::string text;
  for (uint8_t byte : bytes) {
    text += kDigits[byte >> 4];
    text += kDigits[byte & 15];
  }
  return text;
}

template <typename Bytes>
Bytes counting_from(uint8_t first) {
  Bytes bytes;
  std::iota(bytes.begin(), bytes.end(), first);
  return bytes;
}

/// Integers of 64 bits as decimal strings: JavaScript's numbers do not hold them.
std::string make_vectors() {
  const Key cluster_key = counting_from<Key>(0);
  const Nonce client_nonce = counting_from<Nonce>(64), server_nonce = counting_from<Nonce>(128);
  std::ostringstream out;
  out << "{\n  \"clusterKey\": \"" << to_hex(cluster_key) << "\",\n  \"vectors\": [\n";
  const struct {
    uint64_t client;
    uint32_t generation, rights;
    uint64_t region, incarnation, not_after;
    uint32_t via, version;
  } cases[] = {{1, 1, 3, 10, 7, 1'700'000'000'123, 0x102, 4},
               {0x0123456789abcdef, 0xfedcba98, 1, 0xffffffffffffffff, 0x8000000000000001, 0xfedcba9876543210,
                0xffffffff, 0xffffffff},
               {0, 0, 0, 0, 0, 0, 0, 0}};
  bool first = true;
  for (auto& one : cases) {
    const Key key = derive_client_key(cluster_key, one.client, one.generation);
    protocol::Capability capability{};
    capability.client = one.client;
    capability.client_generation = one.generation;
    capability.rights = one.rights;
    capability.region = one.region;
    capability.not_after = one.not_after;
    capability.via = one.via;
    capability.version = one.version;
    const HandshakeFacts facts{
        .client_nonce = client_nonce, .server_nonce = server_nonce, .incarnation = one.incarnation};
    out << (first ? "" : ",\n") << "    {\n      \"client\": \"" << one.client
        << "\",\n      \"clientGeneration\": " << one.generation << ",\n      \"rights\": " << one.rights
        << ",\n      \"region\": \"" << one.region << "\",\n      \"notAfter\": \"" << one.not_after
        << "\",\n      \"via\": " << one.via << ",\n      \"version\": " << one.version
        << ",\n      \"incarnation\": \"" << one.incarnation << "\",\n      \"clientNonce\": \"" << to_hex(client_nonce)
        << "\",\n      \"serverNonce\": \"" << to_hex(server_nonce) << "\",\n      \"clientKey\": \"" << to_hex(key)
        << "\",\n      \"capabilityMac\": \"" << to_hex(compute_capability_mac(cluster_key, capability))
        << "\",\n      \"clientProof\": \"" << to_hex(compute_handshake_proof(key, Prover::client, facts))
        << "\",\n      \"serverProof\": \"" << to_hex(compute_handshake_proof(key, Prover::server, facts))
        << "\"\n    }";
    first = false;
  }
  out << "\n  ]\n}\n";
  return out.str();
}

}  // namespace

TEST_CASE("hmac_sha256 agrees with RFC 4231, case 2") {
  const std::string key = "Jefe", message = "what do ya want for nothing?";
  const auto bytes = [](const std::string& text) {
    return std::span(reinterpret_cast<const uint8_t*>(text.data()), text.size());
  };
  CHECK(to_hex(hmac_sha256(bytes(key), bytes(message))) ==
        "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843");
}

TEST_CASE("keys and proofs are those of test/contract/keys.json, which the manager is tested against too") {
  const char* root = std::getenv("EXTMEM_ROOT");
  const std::string path = std::string(root != nullptr ? root : ".") + "/test/contract/keys.json";
  if (std::getenv("EXTMEM_WRITE_VECTORS") != nullptr) std::ofstream(path) << make_vectors();
  std::ostringstream kept;
  kept << std::ifstream(path).rdbuf();
  CHECK(kept.str() == make_vectors());
}

TEST_CASE("nonces differ") { CHECK(make_nonce() != make_nonce()); }
