// What a block goes through on its way to the store and back: compression (zstd), then encryption (AES-256-GCM, bound
// to the region and the block that it belongs to). Either may be off. A store that was written with compression is read
// without being told so; one that is encrypted needs its key.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "store/format.h"

namespace extmem::store {

class Codec {
 public:
  using Key = std::array<uint8_t, 32>;
  struct Options {
    bool compress = false;
    std::optional<Key> key;
  };
  struct Place {
    uint64_t region, block;
  };

  explicit Codec(const Options& options) : options_(options) {}

  bool encrypts() const { return options_.key.has_value(); }
  /// Tells a store's key from others without telling it.
  std::array<uint8_t, 32> key_check(std::span<const uint8_t> store_id) const;
  /// Sets flags, nonce and tag of the entry. What is answered holds until the next call. One thread at a time.
  std::span<const uint8_t> encode(const Place& place, std::span<const uint8_t> block, Entry& entry);
  /// False: not what was encoded there. Any thread.
  bool decode(const Place& place, const Entry& entry, std::span<const uint8_t> stored, std::span<uint8_t> into) const;

 private:
  const Options options_;
  std::vector<uint8_t> packed_, sealed_;
};

}  // namespace extmem::store
