// Pinned pages stay, whatever else wants frames; no more of them than may be; and unpinned they go.
#include <doctest/doctest.h>

#include "cache/file_control.h"
#include "cache/flusher.h"
#include "cache/reader.h"
#include "cache/writer.h"
#include "native/cache_cluster.h"

namespace extmem::cache {
namespace {

constexpr uint64_t kPinned = 7;
constexpr uint64_t kOther = 8;
constexpr uint64_t kPinLimit = 1 << 20;

File& make_file(PageCache& cache, uint64_t node) {
  extent::FileAttributes attributes;
  attributes.ino = node;
  REQUIRE(install_file(cache, node, Delegation::write, extent::encode_record(attributes, {})) == 0);
  return *cache.find_file(node);
}

Task<int> fill(PageCache& cache, Lane& lane, File& file, uint64_t bytes) {
  std::vector<std::byte> piece(1 << 18, std::byte{1});
  int error = 0;
  for (uint64_t at = 0; at < bytes && error == 0; at += piece.size()) {
    Write write{at, piece};
    error = co_await write_file(cache, lane, file, write);
  }
  if (error == 0) error = co_await flush_file(cache, lane, file);
  cache.drop_clean(file, 0, UINT32_MAX);
  co_return error;
}

struct Seen {
  PageCache::Residency small, large, after_others, unpinned;
  uint32_t counted_large = 0;
  int error = 0;
};

Detached play(PageCache& cache, Lane& lane, File& pinned, File& other, Seen& seen) {
  seen.error |= co_await fill(cache, lane, pinned, 2 * kPinLimit);
  seen.error |= co_await fill(cache, lane, other, 8 << 20);
  seen.error |= co_await warm_range(cache, lane, pinned, 0, kPinLimit / 2);
  cache.set_pinned(pinned, true);
  seen.small = cache.residency_of(pinned);
  seen.error |= co_await warm_range(cache, lane, pinned, 0, UINT32_MAX);
  seen.large = cache.residency_of(pinned);
  seen.counted_large = cache.frames().pinned_count();
  for (int round = 0; round < 3; ++round) seen.error |= co_await warm_range(cache, lane, other, 0, UINT32_MAX);
  seen.after_others = cache.residency_of(pinned);
  cache.set_pinned(pinned, false);
  for (int round = 0; round < 3; ++round) seen.error |= co_await warm_range(cache, lane, other, 0, UINT32_MAX);
  seen.unpinned = cache.residency_of(pinned);
  lane.reactor.stop();
}

TEST_CASE("pinned pages survive others that want their frames, up to the limit; unpinned they go") {
  Reactor reactor({});
  fabric::Directory directory;
  Cluster cluster(directory);
  PageCache::Options options{.cache_bytes = 3 << 20,
                             .dirty_bytes = 1 << 20,
                             .appliance_dirty_bytes = 1 << 20,
                             .pinned_bytes = kPinLimit,
                             .read_ahead_pages = 0};
  PageCache cache(options, directory, cluster);
  cluster.attach(cache.slabs());
  auto fabric = fabric::Fabric::create(reactor, directory, test_credentials());
  Lane lane{reactor, *fabric, nullptr, {}};
  File& pinned = make_file(cache, kPinned);
  File& other = make_file(cache, kOther);
  Seen seen;
  play(cache, lane, pinned, other, seen);
  reactor.run();
  CHECK(seen.error == 0);
  CHECK(seen.small.pinned_bytes == kPinLimit / 2);
  CHECK(seen.large.pinned_bytes == kPinLimit);
  CHECK(seen.counted_large == kPinLimit / kPageBytes);
  CHECK(seen.after_others.pinned_bytes == kPinLimit);
  CHECK(lane.counters.evictions.load() > 0);
  CHECK(seen.unpinned.pinned_bytes == 0);
  CHECK(seen.unpinned.cached_bytes < kPinLimit);
  CHECK(cache.frames().pinned_count() == 0);
  cache.put_file(pinned);
  cache.put_file(other);
  fabric->close();
}

}  // namespace
}  // namespace extmem::cache
