// A read of which part is here must not evict that part to make room for the rest.
#include "cache/reader.h"

#include <doctest/doctest.h>

#include "cache/file_control.h"
#include "cache/flusher.h"
#include "native/cache_cluster.h"

namespace extmem::cache {
namespace {

constexpr uint64_t kNode = 7;
constexpr uint32_t kHalf = 128;  // pages of half a request

struct Seen {
  int error = 0;
  uint64_t fills = 0;
};

Task<int> read_range(PageCache& cache, Lane& lane, File& file, uint32_t first, uint32_t count, Reuse reuse) {
  PinnedPages pins(cache.frames());
  co_return co_await read_pages(cache, lane, file, first * kPageBytes, static_cast<uint32_t>(count * kPageBytes), reuse,
                                pins);
}

Detached play(PageCache& cache, Lane& lane, File& file, Seen& seen) {
  std::vector<std::byte> piece(1 << 18, std::byte{1});
  for (uint64_t at = 0; at < 4 << 20; at += piece.size()) {
    Write write{at, piece};
    seen.error |= co_await write_file(cache, lane, file, write);
  }
  seen.error |= co_await flush_file(cache, lane, file);
  cache.drop_clean(file, 0, UINT32_MAX);
  // The cache is full, and the second half of what is then read is what goes next.
  for (uint32_t first = 2 * kHalf; first < 6 * kHalf; first += kHalf)
    seen.error |= co_await read_range(cache, lane, file, first, kHalf, Reuse::ours);
  seen.error |= co_await read_range(cache, lane, file, kHalf, kHalf, Reuse::kernel_keeps);
  uint64_t before = lane.counters.fills.load();
  seen.error |= co_await read_range(cache, lane, file, 0, 2 * kHalf, Reuse::kernel_keeps);
  seen.fills = lane.counters.fills.load() - before;
  lane.reactor.stop();
}

TEST_CASE("a read of which part is here keeps that part, however full the cache is") {
  Reactor reactor({});
  fabric::Directory directory;
  Cluster cluster(directory);
  PageCache::Options options{.cache_bytes = 4 * kHalf * kPageBytes,
                             .dirty_bytes = 1 << 20,
                             .appliance_dirty_bytes = 1 << 20,
                             .pinned_bytes = 0,
                             .read_ahead_pages = 0};
  PageCache cache(options, directory, cluster);
  cluster.attach(cache.slabs());
  auto fabric = fabric::Fabric::create(reactor, directory, test_credentials());
  Lane lane{reactor, *fabric, nullptr, {}};
  extent::FileAttributes attributes;
  attributes.ino = kNode;
  REQUIRE(install_file(cache, kNode, Delegation::write, extent::encode_record(attributes, {})) == 0);
  File* file = cache.find_file(kNode);
  Seen seen;
  play(cache, lane, *file, seen);
  reactor.run();
  CHECK(seen.error == 0);
  CHECK(seen.fills == kHalf);
  cache.put_file(*file);
  fabric->close();
}

}  // namespace
}  // namespace extmem::cache
