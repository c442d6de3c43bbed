// Preloaded into a process by test/mount/budget.test.ts: counts what each of its threads takes from malloc, in a file
// that the test maps too. EXTMEM_ALLOCATIONS names it; it holds kThreads pairs of 64 bits, a thread's id and its count.
#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>
#include <cstdlib>

extern "C" {
void* __libc_malloc(size_t bytes);
void* __libc_calloc(size_t count, size_t bytes);
void* __libc_realloc(void* memory, size_t bytes);
void* __libc_memalign(size_t alignment, size_t bytes);
}

namespace {

constexpr size_t kThreads = 256;

struct Entry {
  std::atomic<uint64_t> thread;
  std::atomic<uint64_t> count;
};

std::atomic<Entry*> table{nullptr};
std::atomic<size_t> threads{0};
// In the executable's own block: a look-up that allocates would come back here.
__attribute__((tls_model("initial-exec"))) thread_local Entry* own = nullptr;

__attribute__((constructor)) void open_table() {
  const char* path = getenv("EXTMEM_ALLOCATIONS");
  const int fd = path == nullptr ? -1 : open(path, O_RDWR | O_CLOEXEC);
  if (fd < 0) return;
  void* memory = mmap(nullptr, kThreads * sizeof(Entry), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  close(fd);
  if (memory != MAP_FAILED) table.store(static_cast<Entry*>(memory));
}

void count() {
  Entry* entries = table.load(std::memory_order_relaxed);
  if (entries == nullptr) return;
  if (own == nullptr) {
    own = &entries[threads.fetch_add(1) % kThreads];
    own->thread.store(static_cast<uint64_t>(syscall(SYS_gettid)));
  }
  own->count.fetch_add(1, std::memory_order_relaxed);
}

}  // namespace

extern "C" {
void* malloc(size_t bytes) {
  count();
  return __libc_malloc(bytes);
}
void* calloc(size_t number, size_t bytes) {
  count();
  return __libc_calloc(number, bytes);
}
void* realloc(void* memory, size_t bytes) {
  count();
  return __libc_realloc(memory, bytes);
}
void* memalign(size_t alignment, size_t bytes) {
  count();
  return __libc_memalign(alignment, bytes);
}
void* aligned_alloc(size_t alignment, size_t bytes) { return memalign(alignment, bytes); }
int posix_memalign(void** memory, size_t alignment, size_t bytes) {
  *memory = memalign(alignment, bytes);
  return *memory == nullptr ? ENOMEM : 0;
}
}
