// CRC-32C (Castagnoli), as iSCSI and ext4 use it: by the processor's own instruction where it has it.
#pragma once

#include <cstdint>
#include <span>

namespace extmem::store {

uint32_t crc32c(std::span<const uint8_t> data, uint32_t before = 0);

}  // namespace extmem::store
