// The page cache against a plain byte array: random reads, writes, truncations, flushes and evictions through a real
// region server, with a cache so small that eviction works hard. EXTMEM_SEED repeats a run, EXTMEM_STEPS makes it
// longer.
#include <doctest/doctest.h>

#include <cstdlib>
#include <cstring>
#include <iostream>
#include <random>
#include <thread>

#include "cache/file_control.h"
#include "cache/flusher.h"
#include "cache/reader.h"
#include "cache/writer.h"
#include "native/cache_cluster.h"

namespace extmem::cache {
namespace {

constexpr uint64_t kNode = 7;
constexpr uint64_t kMaxBytes = 12ull << 20;

struct Model {
  std::vector<std::byte> bytes;
  void write(uint64_t offset, const std::vector<std::byte>& data) {
    if (offset + data.size() > bytes.size()) bytes.resize(offset + data.size());
    std::memcpy(bytes.data() + offset, data.data(), data.size());
  }
};

class Run {
 public:
  Run(PageCache& cache, Lane& lane, Cluster& cluster, uint64_t seed)
      : cache_(cache), lane_(lane), cluster_(cluster), random_(seed) {
    extent::FileAttributes attributes;
    attributes.ino = kNode;
    REQUIRE(install_file(cache, kNode, Delegation::write, extent::encode_record(attributes, {})) == 0);
    file_ = cache.find_file(kNode);
  }
  ~Run() { cache_.put_file(*file_); }

  Detached go(unsigned steps, Reactor& reactor) {
    for (unsigned step = 0; step < steps && wrong_.empty(); ++step) {
      switch (random_() % 16) {
        case 0:
          co_await truncate();
          break;
        case 1:
          done_.push_back({"flush", 0, UINT64_MAX});
          CHECK(co_await flush_file(cache_, lane_, *file_) == 0);
          break;
        case 2:
          done_.push_back({"drop", 0, UINT64_MAX});
          cache_.drop_clean(*file_, 0, UINT32_MAX);
          break;
        case 3:
          co_await punch();
          break;
        case 15:
          if (random_() % 4 == 0) cache_.set_pinned(*file_, random_() % 2 == 0);
          co_await check();
          break;
        case 4:
        case 5:
        case 6:
        case 7:
        case 8:
          co_await write();
          break;
        default:
          co_await check();
          break;
      }
    }
    CHECK(co_await flush_file(cache_, lane_, *file_) == 0);
    CHECK(file_->dirty_pages.load() == 0);
    cache_.set_pinned(*file_, false);
    CHECK(cache_.frames().pinned_count() == 0);
    cache_.drop_clean(*file_, 0, UINT32_MAX);
    for (uint64_t at = 0; at < model_.bytes.size() && wrong_.empty(); at += 1 << 20) {
      co_await compare(at, std::min<uint64_t>(1 << 20, model_.bytes.size() - at));
    }
    reactor.stop();
  }
  const std::string& wrong() const { return wrong_; }

 private:
  uint64_t below(uint64_t limit) { return limit == 0 ? 0 : random_() % limit; }
  /// Small and unaligned most often, whole megabytes sometimes.
  uint32_t length() {
    switch (random_() % 4) {
      case 0:
        return static_cast<uint32_t>(1 + below(1 << 20));
      case 1:
        return 4096 * static_cast<uint32_t>(1 + below(16));
      default:
        return static_cast<uint32_t>(1 + below(9000));
    }
  }

  Task<int> write() {
    uint32_t bytes = length();
    uint64_t limit = std::min<uint64_t>(model_.bytes.size() + (1 << 16), kMaxBytes - bytes);
    uint64_t offset = random_() % 3 == 0 ? std::min<uint64_t>(model_.bytes.size(), kMaxBytes - bytes) : below(limit);
    std::vector<std::byte> data(bytes);
    for (auto& byte : data) byte = static_cast<std::byte>(random_());
    model_.write(offset, data);
    done_.push_back({"write", offset, offset + bytes});
    Write write{offset, data};
    CHECK(co_await write_file(cache_, lane_, *file_, write) == 0);
    CHECK(file_->size.load() == model_.bytes.size());
    co_return 0;
  }

  Task<int> check() {
    if (model_.bytes.empty()) co_return 0;
    uint64_t offset = below(model_.bytes.size());
    co_return co_await compare(offset, std::min<uint64_t>(length(), model_.bytes.size() - offset));
  }

  Task<int> compare(uint64_t offset, uint64_t bytes) {
    PinnedPages pins(cache_.frames());
    if (!read_hit(cache_, lane_, *file_, offset, static_cast<uint32_t>(bytes), Reuse::ours, pins)) {
      int error = co_await read_pages(cache_, lane_, *file_, offset, static_cast<uint32_t>(bytes), Reuse::ours, pins);
      CHECK(error == 0);
      if (error != 0) co_return error;
    }
    read_ahead(cache_, lane_, *file_, offset, static_cast<uint32_t>(bytes));
    for (uint64_t at = offset; at < offset + bytes && wrong_.empty(); ++at) {
      auto page = static_cast<uint32_t>(at / kPageBytes - offset / kPageBytes);
      if (cache_.frames().data(pins[page])[at % kPageBytes] != model_.bytes[at])
        wrong_ = "byte " + std::to_string(at) + history(at);
    }
    co_return 0;
  }

  /// As the control plane does it: cut, new record without what was cut off, end.
  Task<int> cut(uint64_t offset, uint64_t end, uint64_t new_size) {
    CHECK(co_await begin_cut(cache_, lane_, *file_, offset, end) == 0);
    extent::FileAttributes attributes = file_->attributes;
    attributes.size = new_size;
    ++attributes.change;
    extent::ExtentMap kept;
    std::vector<extent::Piece> freed;
    uint64_t from = (offset + kPageBytes - 1) / kPageBytes * kPageBytes;
    uint64_t to = end == UINT64_MAX ? UINT64_MAX : end / kPageBytes * kPageBytes;
    for (uint64_t at = 0; at < file_->extents.end();) {
      uint64_t limit = at < from ? from - at : at < to ? to - at : UINT64_MAX;
      auto piece = file_->extents.resolve(at, std::min(limit, file_->extents.end() - at));
      bool keep = !piece.is_hole() && (at < from || at >= to);
      extent::Member member{piece.copies[0].region, piece.copies[0].offset};
      if (!piece.is_hole() && !keep) freed.push_back(piece);
      if (keep) kept.insert(at, piece.length, extent::one_column(piece.length, 1), {&member, 1});
      at += piece.length;
    }
    int error = co_await end_cut(cache_, lane_, *file_, extent::encode_record(attributes, kept), false);
    for (const auto& piece : freed) cluster_.recycle(piece);
    co_return error;
  }

  Task<int> truncate() {
    uint64_t size = random_() % 2 == 0 ? below(model_.bytes.size() + 1) : below(kMaxBytes);
    uint64_t old_size = model_.bytes.size();
    model_.bytes.resize(size);
    done_.push_back(
        {size < old_size ? "truncate" : "extend", std::min(size, old_size), size < old_size ? UINT64_MAX : size});
    CHECK(co_await cut(std::min(size, old_size), UINT64_MAX, size) == 0);
    co_return 0;
  }

  Task<int> punch() {
    if (model_.bytes.empty()) co_return 0;
    uint64_t offset = below(model_.bytes.size());
    uint64_t end = offset + length();
    for (uint64_t at = offset; at < std::min<uint64_t>(end, model_.bytes.size()); ++at) model_.bytes[at] = std::byte{0};
    done_.push_back({"punch", offset, end});
    CHECK(co_await cut(offset, end, model_.bytes.size()) == 0);
    co_return 0;
  }

  /// The last things done to a byte, newest first.
  std::string history(uint64_t at) const {
    std::string text;
    int shown = 0;
    for (auto done = done_.rbegin(); done != done_.rend() && shown < 8; ++done) {
      if (at < done->from || at >= done->to) continue;
      text +=
          "; " + std::string(done->what) + " [" + std::to_string(done->from) + ", " + std::to_string(done->to) + ")";
      ++shown;
    }
    return text;
  }

  struct Done {
    const char* what;
    uint64_t from, to;
  };
  PageCache& cache_;
  Lane& lane_;
  Cluster& cluster_;
  std::vector<Done> done_;
  std::mt19937_64 random_;
  File* file_;
  Model model_;
  std::string wrong_;
};

TEST_CASE("random operations read back what an in-memory file would") {
  const char* given = std::getenv("EXTMEM_SEED");
  uint64_t seed = given != nullptr ? std::strtoull(given, nullptr, 10) : std::random_device{}();
  const char* steps = std::getenv("EXTMEM_STEPS");
  std::cout << "seed " << seed << '\n';
  Reactor reactor({});
  fabric::Directory directory;
  Cluster cluster(directory);
  PageCache::Options options{.cache_bytes = 3 << 20,
                             .dirty_bytes = 1 << 20,
                             .appliance_dirty_bytes = 1 << 20,
                             .pinned_bytes = 1 << 19,
                             .read_ahead_pages = 64};
  PageCache cache(options, directory, cluster);
  cluster.attach(cache.slabs());
  auto fabric = fabric::Fabric::create(reactor, directory, test_credentials());
  Lane lane{reactor, *fabric, nullptr, {}};
  BackgroundFlusher flusher(cache, lane);
  lane.flusher = &flusher;
  {
    Run run(cache, lane, cluster, seed);
    run.go(steps != nullptr ? static_cast<unsigned>(std::atoi(steps)) : 2000, reactor);
    reactor.run();
    CHECK_MESSAGE(run.wrong().empty(), run.wrong(), " is wrong; seed ", seed);
    CHECK(lane.counters.evictions.load() > 0);
  }
  fabric->close();
  flusher.stop();
}

}  // namespace
}  // namespace extmem::cache
