// Memory that is there before it is needed. Who serves page faults and write-back must not have to ask for memory while
// doing so: what would have to be freed first may be waiting for it (coherence rules: it makes progress when memory is
// gone because of its own mount).
#pragma once

#include <errno.h>
#include <sys/mman.h>

#include <cstddef>
#include <cstdint>

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23  // Linux 5.14
#endif

namespace extmem {

/// Takes memory for the pages of a range. False: there is none to be had now. Kernels before 5.14 take it when it is
/// touched.
inline bool populate(void* begin, size_t bytes) {
  constexpr uintptr_t kPage = 4096;
  const auto first = reinterpret_cast<uintptr_t>(begin) / kPage * kPage;
  const auto end = (reinterpret_cast<uintptr_t>(begin) + bytes + kPage - 1) / kPage * kPage;
  return madvise(reinterpret_cast<void*>(first), end - first, MADV_POPULATE_WRITE) == 0 || errno == EINVAL;
}

/// And keeps it, as far as the limits allow (RLIMIT_MEMLOCK; CAP_IPC_LOCK).
inline void keep_resident(void* begin, size_t bytes) {
  populate(begin, bytes);
  mlock2(begin, bytes, MLOCK_ONFAULT);
}

}  // namespace extmem
