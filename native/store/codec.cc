#include "store/codec.h"

#include <openssl/evp.h>
#include <openssl/rand.h>
#include <zstd.h>

#include <cstring>
#include <memory>

#include "base/assert.h"
#include "base/keys.h"

namespace extmem::store {

namespace {

/// The fastest that still halves text and tables.
constexpr int kLevel = 1;

using Cipher = std::unique_ptr<EVP_CIPHER_CTX, decltype(&EVP_CIPHER_CTX_free)>;

Cipher make_cipher() {
  Cipher cipher(EVP_CIPHER_CTX_new(), EVP_CIPHER_CTX_free);
  EXTMEM_ASSERT(cipher != nullptr);
  return cipher;
}

/// What is authenticated beside the block: a block in another's place does not pass.
std::array<uint8_t, 16> bind(const Codec::Place& place) {
  std::array<uint8_t, 16> bytes;
  std::memcpy(bytes.data(), &place.region, 8);
  std::memcpy(bytes.data() + 8, &place.block, 8);
  return bytes;
}

}  // namespace

std::array<uint8_t, 32> Codec::key_check(std::span<const uint8_t> store_id) const {
  if (!options_.key) return {};
  return hmac_sha256(*options_.key, store_id);
}

std::span<const uint8_t> Codec::encode(const Place& place, std::span<const uint8_t> block, Entry& entry) {
  std::span<const uint8_t> data = block;
  if (options_.compress) {
    packed_.resize(ZSTD_compressBound(block.size()));
    const size_t bytes = ZSTD_compress(packed_.data(), packed_.size(), data.data(), data.size(), kLevel);
    // Less than a cell saved is nothing saved.
    if (!ZSTD_isError(bytes) && bytes + kCellBytes <= block.size()) {
      data = {packed_.data(), bytes};
      entry.flags |= kCompressed;
    }
  }
  if (!options_.key) return data;
  entry.flags |= kEncrypted;
  EXTMEM_ASSERT(RAND_bytes(entry.nonce.data(), static_cast<int>(entry.nonce.size())) == 1);
  sealed_.resize(data.size());
  const auto bound = bind(place);
  int bytes = 0;
  const Cipher cipher = make_cipher();
  const bool sealed =
      EVP_EncryptInit_ex(cipher.get(), EVP_aes_256_gcm(), nullptr, options_.key->data(), entry.nonce.data()) == 1 &&
      EVP_EncryptUpdate(cipher.get(), nullptr, &bytes, bound.data(), static_cast<int>(bound.size())) == 1 &&
      EVP_EncryptUpdate(cipher.get(), sealed_.data(), &bytes, data.data(), static_cast<int>(data.size())) == 1 &&
      EVP_EncryptFinal_ex(cipher.get(), sealed_.data() + bytes, &bytes) == 1 &&
      EVP_CIPHER_CTX_ctrl(cipher.get(), EVP_CTRL_GCM_GET_TAG, static_cast<int>(entry.tag.size()), entry.tag.data()) ==
          1;
  EXTMEM_ASSERT(sealed);
  return sealed_;
}

bool Codec::decode(const Place& place, const Entry& entry, std::span<const uint8_t> stored,
                   std::span<uint8_t> into) const {
  std::vector<uint8_t> opened;
  if ((entry.flags & kEncrypted) != 0) {
    if (!options_.key) return false;
    opened.resize(stored.size());
    const auto bound = bind(place);
    auto tag = entry.tag;
    int bytes = 0;
    const Cipher cipher = make_cipher();
    const bool genuine =
        EVP_DecryptInit_ex(cipher.get(), EVP_aes_256_gcm(), nullptr, options_.key->data(), entry.nonce.data()) == 1 &&
        EVP_DecryptUpdate(cipher.get(), nullptr, &bytes, bound.data(), static_cast<int>(bound.size())) == 1 &&
        EVP_DecryptUpdate(cipher.get(), opened.data(), &bytes, stored.data(), static_cast<int>(stored.size())) == 1 &&
        EVP_CIPHER_CTX_ctrl(cipher.get(), EVP_CTRL_GCM_SET_TAG, static_cast<int>(tag.size()), tag.data()) == 1 &&
        EVP_DecryptFinal_ex(cipher.get(), opened.data() + bytes, &bytes) == 1;
    if (!genuine) return false;
    stored = opened;
  }
  if ((entry.flags & kCompressed) != 0)
    return ZSTD_decompress(into.data(), into.size(), stored.data(), stored.size()) == into.size();
  if (stored.size() != into.size()) return false;
  std::memcpy(into.data(), stored.data(), stored.size());
  return true;
}

}  // namespace extmem::store
