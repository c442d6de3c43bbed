#include "base/keys.h"

#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <sys/random.h>

#include <bit>
#include <cerrno>
#include <cstring>

#include "base/assert.h"

namespace extmem {

static_assert(std::endian::native == std::endian::little, "wire structs are copied as they lie in memory");

namespace {

/// A message of known size, put together of its fields.
template <size_t Bytes>
class Fields {
 public:
  template <typename T>
  Fields& add(const T& value) {
    EXTMEM_ASSERT(size_ + sizeof value <= Bytes);
    std::memcpy(bytes_.data() + size_, &value, sizeof value);
    size_ += sizeof value;
    return *this;
  }
  std::span<const uint8_t> span() const { return {bytes_.data(), size_}; }

 private:
  std::array<uint8_t, Bytes> bytes_{};
  size_t size_ = 0;
};

}  // namespace

Mac hmac_sha256(std::span<const uint8_t> key, std::span<const uint8_t> message) {
  Mac mac{};
  unsigned bytes = 0;
  auto* done =
      HMAC(EVP_sha256(), key.data(), static_cast<int>(key.size()), message.data(), message.size(), mac.data(), &bytes);
  EXTMEM_ASSERT(done != nullptr && bytes == mac.size());
  return mac;
}

Key derive_client_key(const Key& cluster_key, uint64_t client, uint32_t client_generation) {
  Fields<13> message;
  return hmac_sha256(cluster_key, message.add('E').add(client).add(client_generation).span());
}

Mac compute_capability_mac(const Key& cluster_key, const protocol::Capability& capability) {
  Fields<41> message;
  message.add('R').add(uint64_t{capability.client}).add(uint32_t{capability.client_generation});
  message.add(uint32_t{capability.rights}).add(uint64_t{capability.region});
  message.add(uint64_t{capability.not_after}).add(uint32_t{capability.via}).add(uint32_t{capability.version});
  return hmac_sha256(cluster_key, message.span());
}

Mac compute_handshake_proof(const Key& client_key, Prover prover, const HandshakeFacts& facts) {
  Fields<73> message;
  message.add(static_cast<uint8_t>(prover)).add(facts.client_nonce).add(facts.server_nonce).add(facts.incarnation);
  return hmac_sha256(client_key, message.span());
}

bool macs_equal(const Mac& one, const Mac& other) { return CRYPTO_memcmp(one.data(), other.data(), one.size()) == 0; }

Nonce make_nonce() {
  Nonce nonce{};
  ssize_t got;
  do {
    got = getrandom(nonce.data(), nonce.size(), 0);
  } while (got < 0 && errno == EINTR);
  EXTMEM_ASSERT(got == static_cast<ssize_t>(nonce.size()));
  return nonce;
}

}  // namespace extmem
