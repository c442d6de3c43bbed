#include "fabric/verbs/local_memory.h"

#include <algorithm>
#include <map>
#include <utility>

#include "base/clock.h"

namespace extmem::fabric {

namespace {

/// Of the process. Devices are never given up: rdma_cm keeps their contexts open as well.
struct Announced {
  std::mutex lock;  // before any LocalMemory's
  std::map<std::byte*, size_t> ranges;
  std::map<ibv_context*, std::unique_ptr<LocalMemory>> devices;
};

Announced& announced() {
  static auto* all = new Announced;  // used by threads that may outlive main's statics
  return *all;
}

}  // namespace

void announce_memory(std::byte* begin, size_t bytes) {
  Announced& all = announced();
  std::lock_guard guard(all.lock);
  all.ranges[begin] = bytes;
  for (auto& [device, memory] : all.devices) memory->add(begin, bytes);
}

void withdraw_memory(std::byte* begin) {
  Announced& all = announced();
  std::lock_guard guard(all.lock);
  all.ranges.erase(begin);
  for (auto& [device, memory] : all.devices) memory->remove(begin);
}

LocalMemory* LocalMemory::of(ibv_context* device) {
  Announced& all = announced();
  std::lock_guard guard(all.lock);
  auto& known = all.devices[device];
  if (known) return known.get();
  auto domain = verbs::ProtectionDomain::create(device);
  if (!domain) return nullptr;
  known = std::make_unique<LocalMemory>(std::move(domain));
  for (auto& [begin, bytes] : all.ranges) known->add(begin, bytes);
  return known.get();
}

std::shared_ptr<verbs::ProtectionDomain> LocalMemory::domain_of(ibv_context* device) {
  LocalMemory* memory = of(device);
  return memory != nullptr ? memory->domain_ : nullptr;
}

/// With no place left it is not registered, and copied instead.
void LocalMemory::add(std::byte* begin, size_t bytes) {
  std::lock_guard guard(lock_);
  for (Range& range : ranges_) {
    if (range.begin.load(std::memory_order_relaxed) != nullptr) continue;
    range.blocks = std::vector<Block>((bytes + kBlockBytes - 1) / kBlockBytes);
    range.bytes.store(bytes, std::memory_order_relaxed);
    range.begin.store(begin, std::memory_order_release);  // the blocks are there for whoever sees it
    return;
  }
}

void LocalMemory::remove(std::byte* begin) {
  std::lock_guard guard(lock_);
  for (Range& range : ranges_) {
    if (range.begin.load(std::memory_order_relaxed) != begin) continue;
    range.begin.store(nullptr, std::memory_order_relaxed);
    range.blocks.clear();
  }
}

bool LocalMemory::find_key(const std::byte* begin, size_t& bytes, uint32_t& key) {
  for (Range& range : ranges_) {
    const std::byte* first = range.begin.load(std::memory_order_acquire);
    if (first == nullptr || begin < first || begin >= first + range.bytes.load(std::memory_order_relaxed)) continue;
    const auto offset = static_cast<size_t>(begin - first);
    const size_t index = offset / kBlockBytes;
    uint64_t found = range.blocks[index].key.load(std::memory_order_acquire);
    if ((found & kKnown) == 0 && may_register(found)) found = register_block(range, index);
    if ((found & kKnown) == 0) return false;
    bytes = std::min({bytes, (index + 1) * kBlockBytes - offset, range.bytes.load(std::memory_order_relaxed) - offset});
    key = static_cast<uint32_t>(found);
    return true;
  }
  return false;
}

bool LocalMemory::may_register(uint64_t key) { return key == 0 || (key & ~kRefused) + 1 < monotonic_ns() / kRestNs; }

uint64_t LocalMemory::register_block(Range& range, size_t index) {
  std::lock_guard guard(lock_);
  Block& block = range.blocks[index];
  const uint64_t before = block.key.load(std::memory_order_relaxed);
  if ((before & kKnown) != 0 || !may_register(before)) return before;
  std::byte* begin = range.begin.load(std::memory_order_relaxed) + index * kBlockBytes;
  const size_t bytes = std::min(kBlockBytes, range.bytes.load(std::memory_order_relaxed) - index * kBlockBytes);
  block.registration = verbs::Registration::create(
      domain_, {.memory = {begin, bytes}, .iova = reinterpret_cast<uint64_t>(begin), .access = IBV_ACCESS_LOCAL_WRITE});
  const uint64_t found =
      block.registration ? kKnown | block.registration->local_key() : kRefused | monotonic_ns() / kRestNs;
  block.key.store(found, std::memory_order_release);
  return found;
}

}  // namespace extmem::fabric
