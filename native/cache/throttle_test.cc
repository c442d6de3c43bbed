// A writer that is over a limit waits for write-back without keeping its reactor from it.
#include <doctest/doctest.h>

#include <vector>

#include "cache/file_control.h"
#include "cache/flusher.h"
#include "native/cache_cluster.h"

namespace extmem::cache {
namespace {

constexpr uint64_t kNode = 7;

struct Progress {
  bool reactor_turned = false;
  bool turned_before_write = false;
  int error = -1;
};

Detached note_turn(Reactor& reactor, Progress& progress) {
  co_await Sleep(reactor, 1);
  progress.reactor_turned = true;
}

Detached write_back(PageCache& cache, Lane& lane, File& file) { co_await flush_file(cache, lane, file); }

/// The file's only dirty page is one that was written again while its older content is on its way: there is nothing to
/// write back, and what is on its way arrives only if the reactor goes on.
Detached write_thrice(PageCache& cache, Lane& lane, File& file, Progress& progress) {
  std::vector<std::byte> page(kPageBytes / 2, std::byte{1});  // half a page: through the cache in any case
  Write write{0, page};
  progress.error = co_await write_file(cache, lane, file, write);
  write_back(cache, lane, file);
  if (progress.error == 0) progress.error = co_await write_file(cache, lane, file, write);
  note_turn(lane.reactor, progress);
  if (progress.error == 0) progress.error = co_await write_file(cache, lane, file, write);
  progress.turned_before_write = progress.reactor_turned;
  co_await flush_file(cache, lane, file);
  lane.reactor.stop();
}

TEST_CASE("a writer over the dirty limit lets its reactor go on while what it waits for is on its way") {
  Reactor reactor({});
  fabric::Directory directory;
  Cluster cluster(directory);
  PageCache::Options options{
      .cache_bytes = 3 << 20, .dirty_bytes = kPageBytes, .appliance_dirty_bytes = kPageBytes, .read_ahead_pages = 0};
  PageCache cache(options, directory, cluster);
  cluster.attach(cache.slabs());
  auto fabric = fabric::Fabric::create(reactor, directory, test_credentials());
  Lane lane{reactor, *fabric, nullptr, {}};
  extent::FileAttributes attributes;
  attributes.ino = kNode;
  REQUIRE(install_file(cache, kNode, Delegation::write, extent::encode_record(attributes, {})) == 0);
  File* file = cache.find_file(kNode);
  Progress progress;
  write_thrice(cache, lane, *file, progress);
  reactor.run();
  CHECK(progress.error == 0);
  CHECK(progress.turned_before_write);
  CHECK(lane.counters.throttled.load() > 0);
  cache.put_file(*file);
  fabric->close();
}

}  // namespace
}  // namespace extmem::cache
