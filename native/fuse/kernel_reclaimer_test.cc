// The reclaimer drops what was given first, down to its low mark, and does not look for what others are dropping. The
// kernel is a pipe here: what would be dropped is read from it.
#include "fuse/kernel_reclaimer.h"

#include <doctest/doctest.h>
#include <linux/fuse.h>
#include <unistd.h>

#include <vector>

namespace extmem::fuse {
namespace {

constexpr uint32_t kChunk = cache::KernelFile::kChunkPages;
constexpr uint64_t kChunkBytes = kChunk * cache::kPageBytes;

struct Kernel {
  int ends[2];
  Kernel() { REQUIRE(pipe(ends) == 0); }
  ~Kernel() {
    close(ends[0]);
    close(ends[1]);
  }
  /// The next notice; waits for it.
  fuse_notify_inval_inode_out next() {
    struct {
      fuse_out_header header;
      fuse_notify_inval_inode_out body;
    } notice;
    REQUIRE(read(ends[0], &notice, sizeof notice) == sizeof notice);
    CHECK(notice.header.error == FUSE_NOTIFY_INVAL_INODE);
    return notice.body;
  }
};

TEST_CASE("over the high mark the oldest chunks are dropped, down to the low mark") {
  Kernel kernel;
  cache::FramePool frames(1 << 20);
  cache::KernelPages pages;
  auto file = pages.file(7);
  KernelReclaimer reclaimer(kernel.ends[1], pages, frames, 8 * kChunkBytes);
  for (uint32_t chunk = 0; chunk < 7; ++chunk) {
    pages.give(*file, chunk * kChunk, kChunk);
    reclaimer.look();
  }
  CHECK_FALSE(reclaimer.must_wait());
  pages.give(*file, 7 * kChunk, kChunk);
  CHECK_FALSE(reclaimer.must_wait());
  reclaimer.look();
  for (int64_t chunk = 0; chunk < 2; ++chunk) {
    auto notice = kernel.next();
    CHECK(notice.ino == 7);
    CHECK(notice.off == chunk * static_cast<int64_t>(kChunkBytes));
    CHECK(notice.len == static_cast<int64_t>(kChunkBytes));
  }
  reclaimer.stop();
  CHECK(reclaimer.dropped_pages() == 2 * kChunk);
  CHECK(pages.pages() == 6 * kChunk);
}

TEST_CASE("pages that somebody else is dropping are waited for, not looked for") {
  Kernel kernel;
  cache::FramePool frames(1 << 20);
  cache::KernelPages pages;
  KernelReclaimer reclaimer(kernel.ends[1], pages, frames, 2 * kChunkBytes);
  pages.give(*pages.file(7), 0, 3 * kChunk);
  auto taken = pages.take(7, 0, UINT32_MAX);
  CHECK(reclaimer.must_wait());
  reclaimer.look();
  CHECK(reclaimer.dropped_pages() == 0);
  pages.settle(taken);
  CHECK_FALSE(reclaimer.must_wait());
}

}  // namespace
}  // namespace extmem::fuse
