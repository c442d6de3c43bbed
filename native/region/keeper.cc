#include "region/keeper.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <algorithm>
#include <cstring>

#include "base/clock.h"

namespace extmem::region {

using store::Code;
using store::Verdict;

namespace {

/// Blocks that leave as one write.
constexpr size_t kRunBytes = 16 * BlockState::kBytes;
constexpr size_t kMaxWanted = 4096;

uint64_t hash_of(std::span<const uint8_t> data) { return XXH3_64bits(data.data(), data.size()); }

}  // namespace

std::unique_ptr<Keeper> Keeper::open(const Options& options, RegionTable& regions, MemoryAccount& account,
                                     std::string& error) {
  Verdict verdict;
  auto file = store::open_block_file(options.path, verdict);
  std::unique_ptr<store::Store> store;
  if (file) store = store::Store::open(std::move(file), options.store, verdict);
  if (store) return std::unique_ptr<Keeper>(new Keeper(std::move(store), options.lazily, regions, account));
  error = verdict.why;
  return nullptr;
}

Keeper::Keeper(std::unique_ptr<store::Store> store, bool lazily, RegionTable& regions, MemoryAccount& account)
    : store_(std::move(store)), lazily_(lazily), regions_(regions), account_(account) {}

Keeper::~Keeper() { stop(); }

// ---- coming back

std::vector<RestoredRegion> Keeper::restore() {
  std::vector<RestoredRegion> result;
  for (const auto& info : store_->regions()) {
    Status status = Status::ok;
    auto region = Region::create(
        {.id = info.region, .bytes = info.bytes, .thin = info.thin, .kept = true, .restored = true}, account_, status);
    if (!region) continue;  // it stays in the store, and is reported as not there
    const uint64_t blocks = region->blocks()->blocks();
    for (uint64_t block = store_->next_stored(info.region, 0, blocks); block < blocks;
         block = store_->next_stored(info.region, block + 1, blocks)) {
      region->blocks()->make_absent(block);
    }
    region->on_absent = [this](Region& asked, uint64_t block) {
      std::lock_guard guard(wanted_lock_);
      if (wanted_.size() >= kMaxWanted) return;  // who waits asks again
      const auto same = [&](auto& one) { return one.second == block && one.first.lock().get() == &asked; };
      if (std::any_of(wanted_.begin(), wanted_.end(), same)) return;
      wanted_.emplace_back(asked.weak_from_this(), block);
      wanted_changed_.notify_one();
    };
    restore_records(*region);
    regions_.insert(region);
    result.push_back({.region = info.region, .bytes = info.bytes, .exact = info.exact});
  }
  return result;
}

void Keeper::restore_records(Region& region) {
  std::vector<uint8_t> bytes;
  if (!store_->read_records(region.id(), bytes).ok()) return;  // the manager has them too
  std::span<const uint8_t> rest(bytes);
  while (rest.size() >= 16) {
    uint64_t ino, length;
    std::memcpy(&ino, rest.data(), 8);
    std::memcpy(&length, rest.data() + 8, 8);
    rest = rest.subspan(16);
    if (length > rest.size()) return;
    region.put_record(ino, {rest.begin(), rest.begin() + static_cast<ptrdiff_t>(length)});
    rest = rest.subspan(length);
  }
}

void Keeper::start() {
  bringer_ = std::thread([this] { bring_home(); });
}

void Keeper::stop() {
  {
    std::lock_guard guard(wanted_lock_);
    stopping_ = true;
    wanted_changed_.notify_all();
  }
  if (bringer_.joinable()) bringer_.join();
}

void Keeper::bring_home() {
  std::deque<std::shared_ptr<Region>> left;
  for (auto& region : regions_.all()) {
    if (!lazily_ && region->blocks() != nullptr && region->blocks()->absent_count() > 0) left.push_back(region);
  }
  for (;;) {
    std::pair<std::weak_ptr<Region>, uint64_t> next;
    {
      std::unique_lock guard(wanted_lock_);
      wanted_changed_.wait(guard, [&] { return stopping_ || !wanted_.empty() || !left.empty(); });
      if (stopping_) return;
      if (!wanted_.empty()) {
        next = std::move(wanted_.front());
        wanted_.pop_front();
      }
    }
    if (auto region = next.first.lock()) {
      load(*region, next.second);
    } else if (!left.empty() && !load_next_of(*left.front())) {
      left.pop_front();
    }
  }
}

bool Keeper::load_next_of(Region& region) {
  const uint64_t blocks = region.blocks()->blocks();
  for (uint64_t block = store_->next_stored(region.id(), 0, blocks); block < blocks;
       block = store_->next_stored(region.id(), block + 1, blocks)) {
    if (!region.blocks()->absent(block)) continue;
    load(region, block);
    return true;
  }
  return false;
}

void Keeper::load(Region& region, uint64_t block) {
  if (!region.blocks()->absent(block)) return;
  std::array<uint8_t, BlockState::kBytes> data;
  if (store_->read(region.id(), block, data).ok()) return region.fill(block, data);
  unreadable_.fetch_add(1);
  region.blocks()->mark_damaged(block);
  region.blocks()->make_present(block);
}

void Keeper::bring_edges(Region& region, uint64_t offset, uint64_t bytes) {
  if (bytes == 0 || region.blocks() == nullptr) return;
  for (uint64_t block : {offset / BlockState::kBytes, (offset + bytes - 1) / BlockState::kBytes}) {
    if (block < region.blocks()->blocks()) load(region, block);
  }
}

// ---- going out

Verdict Keeper::begin_serving() {
  std::lock_guard guard(jobs_lock_);
  for (const auto& info : store_->regions()) store_->set_exact(info.region, false);
  store_->set_life(0);
  return store_->commit();
}

Keeper::Urgent::Urgent(Keeper& keeper) : keeper_(keeper) {
  keeper_.urgent_.fetch_add(1);
  keeper_.jobs_lock_.lock();
}

Keeper::Urgent::~Urgent() {
  if (keeper_.urgent_.fetch_sub(1) == 1) keeper_.none_urgent_.notify_all();
  keeper_.jobs_lock_.unlock();
}

Verdict Keeper::persist(std::vector<uint64_t> ids, uint64_t ending, const std::function<void(const Progress&)>& tell) {
  Pass pass{.guard = std::unique_lock(jobs_lock_), .ending = ending != 0, .tell = tell};
  const uint64_t began = monotonic_ns(), before = persisted_bytes_.load();
  std::vector<std::shared_ptr<Region>> chosen;
  if (ids.empty()) chosen = regions_.all();
  for (uint64_t id : ids) {
    if (auto region = regions_.find(id)) chosen.push_back(std::move(region));
  }
  std::erase_if(chosen, [](auto& region) { return region->blocks() == nullptr; });
  for (auto& region : chosen) pass.progress.total_bytes += region->resident_bytes();
  for (auto& region : chosen) {
    if (Verdict verdict = persist_region(*region, pass); !verdict.ok()) return verdict;
  }
  if (ending != 0) store_->set_life(ending);
  Verdict verdict = store_->commit();
  // Small ones tell how long a barrier takes, not how long all would.
  if (persisted_bytes_.load() - before >= (uint64_t{16} << 20))
    persist_ns_.store((monotonic_ns() - began) * (uint64_t{1} << 20) / (persisted_bytes_.load() - before));
  return verdict;
}

Verdict Keeper::persist_region(Region& region, Pass& pass) {
  const Region::Changes changes = region.begin_persist();
  if (changes.bytes == 0) return {};  // destroyed meanwhile
  store_->keep_region(region.id(), changes.bytes, region.thin());
  Verdict verdict = put_blocks(region, changes, pass);
  if (verdict.ok() && !is_stored(region.id())) return {};  // destroyed, and settled
  if (verdict.ok()) verdict = put_records(region);
  if (!verdict.ok()) {
    for (uint64_t block : changes.blocks) region.blocks()->mark_changed(block * BlockState::kBytes, 1);
    for (uint64_t chunk : changes.chunks) region.mark_written(chunk * protocol::kLendBytes, 1);
    return verdict;
  }
  if (pass.ending && region.blocks()->damaged_pages() == 0) store_->set_exact(region.id(), true);
  return {};
}

Verdict Keeper::put_blocks(Region& region, const Region::Changes& changes, Pass& pass) {
  Run run;
  bool is_gone = false;
  auto put = [&](uint64_t block) {
    Verdict verdict = give_way(region, run, pass, is_gone);
    if (verdict.ok() && !is_gone) verdict = put_one(region, block, changes.unseen, run);
    pass.progress.done_bytes += BlockState::kBytes;
    if (pass.tell && pass.progress.done_bytes % (uint64_t{64} << 20) == 0) pass.tell(pass.progress);
    return verdict;
  };
  if (!changes.unseen) {
    for (uint64_t block : changes.blocks) {
      if (Verdict verdict = put(block); !verdict.ok() || is_gone) return verdict;
    }
    return flush(region, run);
  }
  // Whoever writes the memory itself marks the chunk, and in it everything that has memory, or had some, is looked at.
  // For the last time, when what is stored is to be all there is, nobody's marks are believed.
  const uint64_t blocks = region.blocks()->blocks();
  auto put_between = [&](uint64_t block, uint64_t end) {
    for (Verdict verdict; block < end; ++block) {
      block = std::min(region.next_with_memory(block), store_->next_stored(region.id(), block, end));
      if (block < end) verdict = put(block);
      if (!verdict.ok() || is_gone) return verdict;
    }
    return Verdict{};
  };
  constexpr uint64_t kChunkBlocks = protocol::kLendBytes / BlockState::kBytes;
  Verdict verdict;
  if (pass.ending) {
    verdict = put_between(0, blocks);
  } else {
    for (size_t index = 0; index < changes.chunks.size() && verdict.ok() && !is_gone; ++index) {
      const uint64_t first = changes.chunks[index] * kChunkBlocks;
      verdict = put_between(std::min(first, blocks), std::min(first + kChunkBlocks, blocks));
    }
  }
  if (!verdict.ok() || is_gone) return verdict;
  return flush(region, run);
}

/// Nothing that was copied is kept meanwhile: it may be freed.
Verdict Keeper::give_way(Region& region, Run& run, Pass& pass, bool& is_gone) {
  if (urgent_.load() == 0) return {};
  if (Verdict verdict = flush(region, run); !verdict.ok()) return verdict;
  none_urgent_.wait(pass.guard, [this] { return urgent_.load() == 0; });
  is_gone = !is_stored(region.id());
  return {};
}

Verdict Keeper::put_one(Region& region, uint64_t block, bool unseen, Run& run) {
  BlockState& state = *region.blocks();
  // What is still in the store only is there already; what is damaged must not take the place of what could be saved.
  if (state.absent(block) || state.damaged(block)) return {};
  if (!run.bytes.empty() &&
      (run.first + run.bytes.size() / BlockState::kBytes != block || run.bytes.size() >= kRunBytes)) {
    if (Verdict verdict = flush(region, run); !verdict.ok()) return verdict;
  }
  if (run.bytes.empty()) run.first = block;
  const size_t at = run.bytes.size();
  run.bytes.resize(at + BlockState::kBytes);
  const std::span<uint8_t> data(run.bytes.data() + at, BlockState::kBytes);
  if (!region.copy_block(block, data)) {
    run.bytes.resize(at);
    return {};  // destroyed, or cut by a client that holds it
  }
  if (!unseen) return {};
  auto& hashes = hashes_[region.id()];
  hashes.resize(state.blocks(), 0);
  const uint64_t hash = hash_of(data);
  if (hashes[block] == hash) {
    run.bytes.resize(at);
  } else {
    hashes[block] = hash;
  }
  return {};
}

Verdict Keeper::flush(Region& region, Run& run) {
  if (run.bytes.empty()) return {};
  Verdict verdict = store_->put(region.id(), run.first, run.bytes);
  const uint64_t blocks = run.bytes.size() / BlockState::kBytes;
  if (verdict.ok()) {
    persisted_blocks_.fetch_add(blocks);
    persisted_bytes_.fetch_add(run.bytes.size());
  } else if (auto hashes = hashes_.find(region.id()); hashes != hashes_.end()) {
    for (uint64_t block = run.first; block < run.first + blocks; ++block) hashes->second[block] = 0;
  }
  run.bytes.clear();
  return verdict;
}

Verdict Keeper::put_records(Region& region) {
  std::vector<RecordInfo> records;
  region.append_records(records);
  std::sort(records.begin(), records.end(), [](auto& one, auto& other) { return one.ino < other.ino; });
  std::vector<uint8_t> bytes;
  for (auto& record : records) {
    const uint64_t head[2] = {record.ino, record.bytes.size()};
    const auto* from = reinterpret_cast<const uint8_t*>(head);
    bytes.insert(bytes.end(), from, from + sizeof head);
    bytes.insert(bytes.end(), record.bytes.begin(), record.bytes.end());
  }
  const uint64_t hash = hash_of(bytes);
  auto [known, fresh] = record_hashes_.emplace(region.id(), hash);
  if (!fresh && known->second == hash) return {};
  Verdict verdict = store_->put_records(region.id(), bytes);
  known->second = verdict.ok() ? hash : ~hash;
  return verdict;
}

bool Keeper::is_stored(uint64_t region) const {
  const auto known = store_->regions();
  return std::any_of(known.begin(), known.end(), [&](auto& info) { return info.region == region; });
}

/// The memory is zero already. Blocks that are punched in part are stored as they are now: their other pages may be
/// newer than what was stored, which harms nobody.
Verdict Keeper::settle_freed(const std::vector<Piece>& pieces) {
  Urgent urgent(*this);
  for (const Piece& piece : pieces) {
    auto region = regions_.find(piece.region);
    if (!region || region->blocks() == nullptr || piece.bytes == 0 || !is_stored(piece.region)) continue;
    const uint64_t end = (piece.offset + piece.bytes + BlockState::kBytes - 1) / BlockState::kBytes;
    const uint64_t first_whole = (piece.offset + BlockState::kBytes - 1) / BlockState::kBytes;
    const uint64_t last_whole = (piece.offset + piece.bytes) / BlockState::kBytes;
    if (first_whole < last_whole) store_->clear(piece.region, first_whole, last_whole - first_whole);
    Run run;
    for (uint64_t block : {piece.offset / BlockState::kBytes, end - 1}) {
      if (block >= first_whole && block < last_whole) continue;
      Verdict verdict = put_one(*region, block, false, run);
      if (verdict.ok()) verdict = flush(*region, run);
      if (!verdict.ok()) return verdict;
    }
    // Blocks are looked at anew, whoever writes there next.
    if (auto hashes = hashes_.find(piece.region); hashes != hashes_.end()) {
      for (uint64_t block = piece.offset / BlockState::kBytes; block < end && block < hashes->second.size(); ++block)
        hashes->second[block] = 0;
    }
  }
  return store_->commit();
}

Verdict Keeper::remove(const std::vector<uint64_t>& ids) {
  Urgent urgent(*this);
  for (uint64_t id : ids) {
    store_->remove_region(id);
    hashes_.erase(id);
    record_hashes_.erase(id);
  }
  return store_->commit();
}

StoreStatus Keeper::status() const {
  const auto counters = store_->counters();
  StoreStatus status{.used_bytes = counters.used_bytes,
                     .limit_bytes = counters.limit_bytes,
                     .commits = counters.commits,
                     .written_bytes = counters.bytes_written,
                     .persisted_bytes = persisted_bytes_.load(),
                     .damaged_blocks = counters.damaged_blocks,
                     .ns_per_mebibyte = persist_ns_.load()};
  for (auto& region : regions_.all()) {
    if (region->blocks() == nullptr) continue;
    status.absent_bytes += region->blocks()->absent_count() * BlockState::kBytes;
    status.damaged_pages += region->blocks()->damaged_pages();
  }
  if (auto broken = store_->broken()) status.broken = broken->why;
  return status;
}

}  // namespace extmem::region
