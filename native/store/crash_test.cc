// A loss of power after every single operation that the store gives to its device: with nothing, all, or torn,
// reordered scraps of what no barrier had made durable. Whatever is found again must be what the last barrier promised,
// or newer: page by page old or new, of this region and this place, never anything else.
#include <doctest/doctest.h>

#include <cstdlib>
#include <map>
#include <string>

#include "store/store.h"
#include "store/testing/device.h"

using namespace extmem::store;

namespace {

constexpr uint64_t kPage = 4096;
constexpr uint64_t kPagesPerBlock = kBlockBytes / kPage;
constexpr uint64_t kLimit = kDataStart + 56 * kBlockBytes;
constexpr uint64_t kRegionBlocks = 8;

/// What a page holds: whose, which, and how new it is; version 0 is zeros.
void stamp(std::span<uint8_t> page, uint64_t region, uint64_t number, uint64_t version) {
  if (version == 0) return std::fill(page.begin(), page.end(), 0);
  std::mt19937_64 random(region << 40 ^ number << 20 ^ version);
  for (size_t at = 0; at < page.size(); at += 8) {
    const uint64_t word = at == 0 ? region : at == 8 ? number : at == 16 ? version : random();
    std::memcpy(page.data() + at, &word, 8);
  }
}

/// What may be found after a crash: per region and page, versions and when each was put; and when barriers were done.
class Promises {
 public:
  struct Page {
    std::vector<std::pair<size_t, uint64_t>> versions;  // (when, version), the first one at birth
  };
  struct Life {
    size_t born, ended = SIZE_MAX;
    std::map<uint64_t, Page> pages;
  };

  void note(uint64_t region, uint64_t page, uint64_t version, size_t when) {
    lives[region].pages[page].versions.emplace_back(when, version);
  }
  size_t last_barrier(size_t cut) const {
    size_t last = 0;
    for (size_t barrier : barriers) {
      if (barrier <= cut) last = barrier;
    }
    return last;
  }
  bool allows(uint64_t region, uint64_t page, uint64_t version, size_t cut) const {
    const size_t barrier = last_barrier(cut);
    auto& pages = lives.at(region).pages;
    auto known = pages.find(page);
    if (known == pages.end()) return version == 0;
    bool allowed = version == 0;  // until it was put for the first time before a barrier
    for (auto& [when, put] : known->second.versions) {
      if (when > cut) break;
      if (when < barrier) allowed = false;
      allowed = allowed || put == version;
    }
    return allowed;
  }

  std::map<uint64_t, Life> lives;
  std::vector<size_t> barriers;
};

struct Workload {
  explicit Workload(Codec::Options codec) : options{.limit_bytes = kLimit, .codec = codec} {}

  void run(uint64_t seed) {
    Verdict verdict;
    store = Store::open(std::make_unique<OnDevice>(device), options, verdict);
    REQUIRE(verdict.ok());
    started = device.operations.size();
    std::mt19937_64 random(seed);
    for (int step = 0; step < 50; ++step) take_step(random);
    REQUIRE(store->commit().ok());
    promises.barriers.push_back(device.operations.size());
  }

  void take_step(std::mt19937_64& random) {
    const uint64_t choice = random() % 20;
    if (alive.size() < 2 || (choice == 0 && alive.size() < 5)) return bear();
    const uint64_t region = alive[random() % alive.size()];
    const uint64_t block = random() % kRegionBlocks;
    if (choice == 1 && alive.size() > 2) return end(region);
    if (choice <= 3) return clear(region, block);
    if (choice <= 6) {
      if (random() % 2 == 0) store->set_exact(region, random() % 2 == 0);
      REQUIRE(store->commit().ok());
      promises.barriers.push_back(device.operations.size());
      return;
    }
    put(region, block, 1 + random() % std::min<uint64_t>(4, kRegionBlocks - block), random);
  }

  void bear() {
    alive.push_back(next_region);
    promises.lives[next_region].born = device.operations.size();
    store->keep_region(next_region++, kRegionBlocks * kBlockBytes, false);
  }
  void end(uint64_t region) {
    promises.lives[region].ended = device.operations.size();
    store->remove_region(region);
    std::erase(alive, region);
  }
  void clear(uint64_t region, uint64_t block) {
    for (uint64_t page = block * kPagesPerBlock; page < (block + 1) * kPagesPerBlock; ++page) {
      promises.note(region, page, 0, device.operations.size());
      versions[{region, page}] = 0;
    }
    store->clear(region, block, 1);
  }
  /// Of the pages of these blocks, some are newer.
  void put(uint64_t region, uint64_t block, uint64_t blocks, std::mt19937_64& random) {
    std::vector<uint8_t> data(blocks * kBlockBytes);
    for (uint64_t page = 0; page < blocks * kPagesPerBlock; ++page) {
      const uint64_t number = block * kPagesPerBlock + page;
      uint64_t& version = versions[{region, number}];
      if (random() % 3 == 0) {
        version = ++next_version;
        promises.note(region, number, version, device.operations.size());
      }
      stamp(std::span(data).subspan(page * kPage, kPage), region, number, version);
    }
    REQUIRE(store->put(region, block, data).ok());
  }

  const Store::Options options;
  Device device{kLimit};
  std::unique_ptr<Store> store;
  size_t started = 0;
  Promises promises;
  std::vector<uint64_t> alive;
  uint64_t next_region = 1, next_version = 0;
  std::map<std::pair<uint64_t, uint64_t>, uint64_t> versions;
};

/// Empty, or what of a recovered region is wrong.
std::string check_region(Store& store, const Promises& promises, uint64_t region, size_t cut) {
  std::vector<uint8_t> block(kBlockBytes), expected(kPage);
  for (uint64_t index = 0; index < kRegionBlocks; ++index) {
    if (Verdict verdict = store.read(region, index, std::span<uint8_t, kBlockBytes>(block)); !verdict.ok())
      return verdict.why;
    for (uint64_t page = 0; page < kPagesPerBlock; ++page) {
      const auto found = std::span(block).subspan(page * kPage, kPage);
      const uint64_t number = index * kPagesPerBlock + page;
      uint64_t version = 0;
      std::memcpy(&version, found.data() + 16, sizeof version);
      stamp(expected, region, number, version);
      const std::string where = "page " + std::to_string(number) + " of region " + std::to_string(region);
      if (std::memcmp(found.data(), expected.data(), kPage) != 0) return where + " is garbage, or another's";
      if (!promises.allows(region, number, version, cut))
        return where + " has version " + std::to_string(version) + ", which it had not then";
    }
  }
  return {};
}

std::string check(const Workload& workload, std::vector<uint8_t> image, size_t cut) {
  Verdict verdict;
  auto store = Store::open(std::make_unique<Device>(kLimit, std::move(image)), workload.options, verdict);
  if (!store) return "it is not taken up: " + verdict.why;
  const Promises& promises = workload.promises;
  const size_t barrier = promises.last_barrier(cut);
  std::map<uint64_t, bool> found;
  for (auto& info : store->regions()) {
    found[info.region] = true;
    auto life = promises.lives.find(info.region);
    if (life == promises.lives.end() || life->second.born > cut) return "a region that there never was";
    if (life->second.ended < barrier) return "a region that was destroyed";
    if (info.bytes != kRegionBlocks * kBlockBytes) return "a region of another length";
    if (std::string wrong = check_region(*store, promises, info.region, cut); !wrong.empty()) return wrong;
  }
  for (auto& [region, life] : promises.lives) {
    if (life.born < barrier && life.ended > cut && !found[region])
      return "region " + std::to_string(region) + " is missing";
  }
  // It must be usable too.
  store->keep_region(1'000'000, kBlockBytes, false);
  std::vector<uint8_t> block(kBlockBytes, 7);
  if (!store->put(1'000'000, 0, block).ok() || !store->commit().ok()) return "it cannot be written to";
  return {};
}

#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
constexpr size_t kCutStep = 11;  // a hundred times slower with a sanitizer, which is after other things
#else
constexpr size_t kCutStep = 1;
#endif

void crash_everywhere(Codec::Options codec) {
  const char* asked = std::getenv("EXTMEM_SEED");
  const uint64_t seed = asked != nullptr ? std::strtoull(asked, nullptr, 10) : 20;
  CAPTURE(seed);
  Workload workload(codec);
  workload.run(seed);
  std::mt19937_64 random(seed);
  const size_t count = workload.device.operations.size();
  REQUIRE(count > 80);
  using Left = Device::Left;
  for (size_t cut = workload.started; cut <= count; cut += kCutStep) {
    for (Left left : {Left::nothing, Left::everything, Left::all_but_last, Left::scraps, Left::scraps}) {
      CAPTURE(cut);
      CAPTURE(static_cast<int>(left));
      const std::string wrong = check(workload, workload.device.after_crash(cut, left, random), cut);
      REQUIRE_MESSAGE(wrong.empty(), wrong);
    }
  }
}

}  // namespace

TEST_CASE("after a crash at any operation, torn, lost or reordered, pages are old or new") { crash_everywhere({}); }

TEST_CASE("the same compressed and encrypted") {
  Codec::Key key;
  key.fill(9);
  crash_everywhere({.compress = true, .key = key});
}

TEST_CASE("the check sees a store that forgets its barriers") {
  // Without them, what the superblock names may not be there: some crash must show it, or this test could not fail.
  Workload workload({});
  workload.run(20);
  std::erase_if(workload.device.operations, [](auto& operation) { return operation.is_sync; });
  std::mt19937_64 random(1);
  size_t wrong = 0;
  for (size_t cut = 20; cut <= workload.device.operations.size(); cut += 5) {
    wrong +=
        check(workload, workload.device.after_crash(cut, Device::Left::scraps, random), SIZE_MAX - 1).empty() ? 0 : 1;
  }
  CHECK(wrong > 0);
}

TEST_CASE("a crash of the very first start leaves something that can be started again") {
  Device device(kLimit);
  Verdict verdict;
  Store::open(std::make_unique<OnDevice>(device), {.limit_bytes = kLimit, .codec = {}}, verdict);
  REQUIRE(verdict.ok());
  std::mt19937_64 random(3);
  for (size_t cut = 0; cut <= device.operations.size(); ++cut) {
    // A torn superblock is told apart from somebody else's data by what follows in check(): it opens, or says damaged.
    auto image = device.after_crash(cut, Device::Left::nothing, random);
    auto store = Store::open(std::make_unique<Device>(kLimit, image), {.limit_bytes = kLimit, .codec = {}}, verdict);
    CHECK(store != nullptr);
  }
}
