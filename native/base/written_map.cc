#include "base/written_map.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <bit>

namespace extmem {

namespace {

constexpr uint64_t kChunk = protocol::kLendBytes;
constexpr uint64_t kWordBytes = 64 * kChunk;  // of the region, that one word stands for
/// Of the largest region (2^50 bytes): nobody has us map more.
constexpr int64_t kMaxMapBytes = 64 << 20;
static_assert(std::atomic<uint64_t>::is_always_lock_free && sizeof(std::atomic<uint64_t>) == sizeof(uint64_t));

}  // namespace

std::unique_ptr<WrittenMap> WrittenMap::create(uint64_t region_bytes) {
  const uint64_t words = (region_bytes + kWordBytes - 1) / kWordBytes;
  // Whole pages: one is enough for 64 GiB.
  const uint64_t bytes =
      (words * sizeof(uint64_t) + protocol::kPageBytes - 1) / protocol::kPageBytes * protocol::kPageBytes;
  UniqueFd fd(memfd_create("extmem-written", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (!fd || fchmod(fd.get(), 0600) != 0 || ftruncate(fd.get(), static_cast<off_t>(bytes)) != 0) return nullptr;
  if (fcntl(fd.get(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0) return nullptr;
  return open(std::move(fd));
}

std::unique_ptr<WrittenMap> WrittenMap::open(UniqueFd fd) {
  struct stat found {};
  const int seals = fcntl(fd.get(), F_GET_SEALS);
  if (seals < 0 || (seals & F_SEAL_SHRINK) == 0 || fstat(fd.get(), &found) != 0) return nullptr;
  if (found.st_size <= 0 || found.st_size > kMaxMapBytes) return nullptr;
  const auto bytes = static_cast<size_t>(found.st_size);
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd.get(), 0);
  if (memory == MAP_FAILED) return nullptr;
  // Zeros are atomics of value 0.
  const std::span all{static_cast<std::atomic<uint64_t>*>(memory), bytes / sizeof(uint64_t)};
  return std::make_unique<WrittenMap>(std::move(fd), all);
}

bool WrittenMap::is_of(int fd) const {
  struct stat own {
  }, other{};
  return fstat(fd_.get(), &own) == 0 && fstat(fd, &other) == 0 && own.st_ino == other.st_ino;
}

WrittenMap::~WrittenMap() { munmap(words_.data(), words_.size_bytes()); }

bool WrittenMap::covers(uint64_t region_bytes) const { return region_bytes <= words_.size() * kWordBytes; }

void WrittenMap::mark(uint64_t offset, uint64_t bytes) {
  if (bytes == 0) return;
  const uint64_t last = (offset + bytes - 1) / kChunk;
  for (uint64_t number = offset / kChunk; number <= last && number / 64 < words_.size(); ++number) {
    // Not only where it is clear: the look could pass by a store that is not visible yet, and whoever clears the bit
    // in between would not find that store.
    words_[number / 64].fetch_or(uint64_t{1} << number % 64, std::memory_order_seq_cst);
  }
}

void WrittenMap::take(std::vector<uint64_t>& into, uint64_t first, uint64_t end) {
  end = std::min<uint64_t>(end, words_.size() * 64);
  for (uint64_t index = first / 64; index * 64 < end; ++index) {
    if (words_[index].load(std::memory_order_relaxed) == 0) continue;  // set later, it is found the next time
    uint64_t meant = ~uint64_t{0};
    if (first > index * 64) meant <<= first % 64;
    if (end < (index + 1) * 64) meant &= ~(~uint64_t{0} << end % 64);
    uint64_t word = words_[index].fetch_and(~meant, std::memory_order_seq_cst) & meant;
    for (; word != 0; word &= word - 1) into.push_back(index * 64 + static_cast<uint64_t>(std::countr_zero(word)));
  }
}

}  // namespace extmem
