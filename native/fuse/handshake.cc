#include "fuse/handshake.h"

#include <errno.h>
#include <poll.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "cache/page_cache.h"
#include "fuse/device_channel.h"
#include "fuse/uring_abi.h"

namespace extmem::fuse {

namespace {

constexpr int kInitTimeoutMs = 5000;
constexpr uint32_t kKernelReadAheadBytes = 1 << 20;

constexpr uint64_t kWantedFlags = FUSE_ASYNC_READ | FUSE_BIG_WRITES | FUSE_ATOMIC_O_TRUNC | FUSE_POSIX_LOCKS |
                                  FUSE_FLOCK_LOCKS | FUSE_DO_READDIRPLUS | FUSE_READDIRPLUS_AUTO |
                                  FUSE_PARALLEL_DIROPS | FUSE_MAX_PAGES | FUSE_CACHE_SYMLINKS |
                                  FUSE_EXPLICIT_INVAL_DATA;

/// Of flags2; younger than many headers.
constexpr uint64_t kDirectIoAllowMmap = 1ull << 36;
/// Linux 6.14; before 6.13 they were dropped only before the write.
constexpr uint32_t kDropsWrittenMinor = 42;

}  // namespace

Handshake shake_hands(int fd, bool offer_uring) {
  std::vector<std::byte> buffer(kRequestBufferBytes);
  pollfd waiting{fd, POLLIN, 0};
  if (poll(&waiting, 1, kInitTimeoutMs) != 1) return {.error = "the kernel did not begin the FUSE session in time"};
  ssize_t bytes = read(fd, buffer.data(), buffer.size());
  constexpr size_t kLeast = sizeof(fuse_in_header) + 16;  // major, minor, max_readahead, flags
  const auto& header = *reinterpret_cast<const fuse_in_header*>(buffer.data());
  if (bytes < static_cast<ssize_t>(kLeast) || header.opcode != FUSE_INIT)
    return {.error = "the kernel began the FUSE session with something else than INIT"};
  fuse_init_in in{};
  std::memcpy(&in, buffer.data() + sizeof header, std::min(sizeof in, static_cast<size_t>(bytes) - sizeof header));
  if (in.major != FUSE_KERNEL_VERSION || in.minor < 31) {
    return {.error = "the kernel speaks FUSE " + std::to_string(in.major) + "." + std::to_string(in.minor) +
                     "; 7.31 (Linux 5.4) is needed"};
  }
  bool extended = (in.flags & FUSE_INIT_EXT) != 0;
  uint64_t offered = in.flags | (extended ? static_cast<uint64_t>(in.flags2) << 32 : 0);
  bool uring = offer_uring && (offered & FUSE_OVER_IO_URING) != 0;
  uint64_t extensions = (offered & kDirectIoAllowMmap) | (uring ? FUSE_OVER_IO_URING : 0);
  uint64_t taken = (offered & kWantedFlags) | extensions | (extensions != 0 ? FUSE_INIT_EXT : 0);
  fuse_init_out out{};
  out.major = FUSE_KERNEL_VERSION;
  out.minor = FUSE_KERNEL_MINOR_VERSION;
  out.max_readahead = std::min(in.max_readahead, kKernelReadAheadBytes);
  out.flags = static_cast<uint32_t>(taken);
  out.flags2 = static_cast<uint32_t>(taken >> 32);
  out.max_background = 64;
  out.congestion_threshold = 48;
  out.max_write = kMaxWriteBytes;
  out.time_gran = 1;
  out.max_pages = kMaxWriteBytes / cache::kPageBytes;
  fuse_out_header reply{sizeof reply + sizeof out, 0, header.unique};
  iovec segments[2] = {{&reply, sizeof reply}, {&out, sizeof out}};
  if (writev(fd, segments, 2) < 0) return {.error = std::string("the kernel refused our INIT: ") + strerror(errno)};
  return {.error = "",
          .uring = uring,
          .maps_direct = (taken & kDirectIoAllowMmap) != 0,
          .drops_written = in.minor >= kDropsWrittenMinor};
}

}  // namespace extmem::fuse
