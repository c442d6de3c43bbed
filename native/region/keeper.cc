#include "region/keeper.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <map>

#include "base/clock.h"

namespace extmem::region {

using store::Code;
using store::Verdict;

namespace {

/// Blocks that leave as one write.
constexpr size_t kRunBytes = 16 * BlockState::kBytes;
constexpr size_t kMaxWanted = 4096;
/// Of blocks that come home unasked: so many before it is looked whether somebody waits for others; so many are on
/// their way from the device meanwhile.
constexpr uint64_t kStretchBlocks = 8, kAheadBlocks = 256;
constexpr unsigned kMaxBringers = 4;
/// A block that the device cannot give so often is lost, and can be written anew.
constexpr unsigned kReadTries = 3;

uint64_t hash_of(std::span<const uint8_t> data) { return XXH3_64bits(data.data(), data.size()); }

}  // namespace

std::unique_ptr<Keeper> Keeper::open(const Options& options, RegionTable& regions, MemoryAccount& account,
                                     std::string& error) {
  Verdict verdict;
  auto file = store::open_block_file(options.path, verdict);
  std::unique_ptr<store::Store> store;
  if (file) store = store::Store::open(std::move(file), options.store, verdict);
  if (store) return std::unique_ptr<Keeper>(new Keeper(std::move(store), options, regions, account));
  error = verdict.why;
  return nullptr;
}

Keeper::Keeper(std::unique_ptr<store::Store> store, const Options& options, RegionTable& regions,
               MemoryAccount& account)
    : store_(std::move(store)),
      lazily_(options.lazily),
      regions_(regions),
      account_(account),
      pace_(options.bytes_per_second) {}

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
    answer_for(*region);
    restore_records(*region);
    regions_.insert(region);
    result.push_back({.region = info.region, .bytes = info.bytes, .exact = info.exact});
  }
  return result;
}

void Keeper::answer_for(Region& region) {
  region.on_absent = [this](Region& asked, uint64_t block) {
    std::lock_guard guard(wanted_lock_);
    if (wanted_.size() >= kMaxWanted) return;  // who waits asks again
    const auto same = [&](auto& one) { return one.second == block && one.first.lock().get() == &asked; };
    if (std::any_of(wanted_.begin(), wanted_.end(), same)) return;
    wanted_.emplace_back(asked.weak_from_this(), block);
    wanted_changed_.notify_one();
  };
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
  for (auto& region : regions_.all()) {
    if (!lazily_ && region->blocks() != nullptr && region->blocks()->absent_count() > 0)
      left_.push_back({.region = region});
  }
  // Where there are several, one waits for the device while another checks and copies.
  const unsigned threads = std::clamp(std::thread::hardware_concurrency(), 1U, kMaxBringers);
  while (bringers_.size() < threads) bringers_.emplace_back([this] { bring_home(); });
}

void Keeper::stop() {
  {
    std::lock_guard guard(wanted_lock_);
    stopping_ = true;
    wanted_changed_.notify_all();
  }
  for (std::thread& bringer : bringers_) bringer.join();
  bringers_.clear();
}

void Keeper::bring_home() {
  for (;;) {
    std::pair<std::weak_ptr<Region>, uint64_t> wanted;
    Stretch stretch;
    {
      std::unique_lock guard(wanted_lock_);
      wanted_changed_.wait(guard, [&] { return stopping_ || !wanted_.empty() || !left_.empty(); });
      if (stopping_) return;
      if (!wanted_.empty()) {
        wanted = std::move(wanted_.front());
        wanted_.pop_front();
      } else {
        stretch = take_stretch();
      }
    }
    if (auto region = wanted.first.lock(); region && load(*region, wanted.second) != Status::ok)
      region->blocks()->note_failed(wanted.second);
    if (!stretch.region) continue;
    store_->start_reading(stretch.region->id(), stretch.soon_first, stretch.soon_end);
    for (uint64_t block = stretch.first; block < stretch.end; ++block) load(*stretch.region, block);
  }
}

/// Of what is left, with wanted_lock_ held.
Keeper::Stretch Keeper::take_stretch() {
  Left& left = left_.front();
  const uint64_t blocks = left.region->blocks()->blocks();
  const uint64_t first = store_->next_stored(left.region->id(), left.next, blocks);
  const uint64_t soon = std::max(left.ahead, first);
  left.next = std::min(blocks, first + kStretchBlocks);
  left.ahead = std::min(blocks, first + kAheadBlocks);
  Stretch stretch{left.region, first, left.next, soon, left.ahead};
  if (left.next == blocks) left_.pop_front();
  return stretch;
}

/// ok: it is here, be it damaged.
Status Keeper::load(Region& region, uint64_t block) {
  while (region.blocks()->absent(block)) {
    const uint64_t drops = region.drops();
    std::array<uint8_t, BlockState::kBytes> data;
    const Verdict verdict = store_->read(region.id(), block, data);
    const bool is_lost = verdict.code == Code::damaged ||
                         (verdict.code == Code::io_error && region.blocks()->count_try(block) == kReadTries);
    if (!verdict.ok() && !is_lost) return Status::not_present;
    const auto found = verdict.ok() ? std::span<const uint8_t>(data) : std::span<const uint8_t>();
    if (const auto filled = region.fill(block, found, drops)) return *filled;
  }
  return Status::ok;
}

Status Keeper::bring_edges(Region& region, uint64_t offset, uint64_t bytes) {
  if (bytes == 0 || region.blocks() == nullptr) return Status::ok;
  // What is punched as a whole need not be known.
  for (uint64_t at : {offset, offset + bytes}) {
    const uint64_t block = at / BlockState::kBytes;
    if (at % BlockState::kBytes == 0 || block >= region.blocks()->blocks()) continue;
    if (const Status status = load(region, block); status != Status::ok) return status;
  }
  return Status::ok;
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

/// For as long as somebody waits for this one, what nobody waits for rests. Made and ended with jobs_lock_ held.
class Keeper::Asked {
 public:
  Asked(Keeper& keeper, bool background) : keeper_(keeper), background_(background) {}
  ~Asked() {
    if (!background_ && keeper_.asked_.fetch_sub(1) == 1) keeper_.none_urgent_.notify_all();
  }
  Asked(const Asked&) = delete;

 private:
  Keeper& keeper_;
  const bool background_;
};

Verdict Keeper::persist(const Job& job, const std::function<void(const Progress&)>& tell) {
  if (!job.background) asked_.fetch_add(1);  // before the locks: whoever has them gives way
  const auto awaited = job.background ? std::unique_lock<std::mutex>() : std::unique_lock<std::mutex>(awaited_lock_);
  Pass pass{.guard = std::unique_lock(jobs_lock_), .job = job, .tell = tell};
  const Asked asked(*this, job.background);
  const uint64_t began = monotonic_ns(), before = persisted_bytes_.load();
  pass.paced_bytes = before;
  pass.committed_ns = began;
  const Chosen chosen = choose(job);
  for (const Meant& meant : chosen) pass.progress.total_bytes += meant.region->resident_bytes();
  for (const Meant& meant : chosen) {
    if (Verdict verdict = persist_region(meant, pass); !verdict.ok()) return verdict;
  }
  if (job.ending != 0) store_->set_life(job.ending);
  Verdict verdict = store_->commit();
  if (job.freed != nullptr && verdict.ok()) give_memory_back(chosen, pass);
  // Small ones tell how long a barrier takes, not how long all would.
  const uint64_t put = persisted_bytes_.load() - before;
  if (job.freed == nullptr && put >= (uint64_t{16} << 20))
    persist_ns_.store((monotonic_ns() - began - pass.rested_ns) * (uint64_t{1} << 20) / put);
  return verdict;
}

/// In order, those made one that meet in a group of so many blocks.
Keeper::Ranges Keeper::merge(Ranges ranges, uint64_t group) {
  std::sort(ranges.begin(), ranges.end());
  Ranges merged;
  for (const auto& range : ranges) {
    if (merged.empty() || (merged.back().second - 1) / group < range.first / group) {
      merged.push_back(range);
    } else {
      merged.back().second = std::max(merged.back().second, range.second);
    }
  }
  return merged;
}

/// The regions that are meant, and of each which blocks.
Keeper::Chosen Keeper::choose(const Job& job) const {
  std::map<uint64_t, Ranges> meant;
  for (const Piece& piece : job.pieces) {
    const uint64_t end = piece.offset + std::min(piece.bytes, UINT64_MAX - piece.offset - BlockState::kBytes);
    if (piece.bytes > 0)
      meant[piece.region].push_back(
          {piece.offset / BlockState::kBytes, (end + BlockState::kBytes - 1) / BlockState::kBytes});
  }
  Chosen chosen;
  for (auto& region : regions_.all()) {
    if (region->blocks() == nullptr) continue;
    const auto ranges = meant.find(region->id());
    if (job.pieces.empty())
      chosen.push_back({.region = region, .ranges = {{0, UINT64_MAX}}});
    else if (ranges != meant.end())
      chosen.push_back({.region = region, .ranges = merge(std::move(ranges->second), 1)});
    else
      continue;
    if (job.freed != nullptr) chosen.back().given = region->unshared();
  }
  return chosen;
}

Verdict Keeper::persist_region(const Meant& meant, Pass& pass) {
  Region& region = *meant.region;
  pass.is_exact = pass.job.ending != 0 || meant.given;
  // Where clients write by themselves, whole chunks are looked at: each once.
  for (const auto& [first, end] : region.unseen() ? merge(meant.ranges, BlockState::kPerChunk) : meant.ranges) {
    if (Verdict verdict = persist_range(region, first, end, pass); !verdict.ok()) return verdict;
    if (pass.halt == Halt::gone || !is_stored(region.id())) return {};
  }
  if (Verdict verdict = put_records(region); !verdict.ok()) return verdict;
  if (pass.job.ending != 0 && region.blocks()->damaged_pages() == 0) store_->set_exact(region.id(), true);
  return {};
}

/// Blocks from `first` up to `end`. Interrupted, it gives back the marks that it has not come to: whoever persists
/// meanwhile finds them.
Verdict Keeper::persist_range(Region& region, uint64_t first, uint64_t end, Pass& pass) {
  constexpr uint64_t kCommitEveryNs = 2'000'000'000;
  for (;;) {
    const Region::Changes changes = region.begin_persist(first, end);
    pass.halt = changes.bytes == 0 ? Halt::gone : Halt::no;
    if (pass.halt == Halt::gone) return {};
    store_->keep_region(region.id(), changes.bytes, region.thin());
    if (Verdict verdict = put_blocks(region, changes, pass); !verdict.ok()) {
      give_back(region, changes, 0);
      return verdict;
    }
    if (pass.halt != Halt::interrupted) return {};
    give_back(region, changes, pass.reached);
    first = pass.reached;
    rest(pass);
    if (background_ended_.load()) return {};
    if (monotonic_ns() - pass.committed_ns < kCommitEveryNs) continue;
    // Slow as it is meant to be, it may take long: what it has done is not lost with the rest.
    if (Verdict verdict = store_->commit(); !verdict.ok()) return verdict;
    pass.committed_ns = monotonic_ns();
  }
}

/// From that block on.
void Keeper::give_back(Region& region, const Region::Changes& changes, uint64_t from) {
  for (uint64_t block : changes.blocks) {
    if (block >= from) region.blocks()->mark_changed(block * BlockState::kBytes, 1);
  }
  for (uint64_t chunk : changes.chunks) {
    if ((chunk + 1) * BlockState::kPerChunk > from) region.mark_written(chunk * protocol::kLendBytes, 1);
  }
}

Verdict Keeper::put_blocks(Region& region, const Region::Changes& changes, Pass& pass) {
  Run run;
  // Between two for whom others wait it comes on by so much, or it never would: also where it has to begin a chunk
  // anew.
  pass.patience = changes.unseen ? 2 * BlockState::kPerChunk : kRunBytes / BlockState::kBytes;
  auto put = [&](uint64_t block) {
    Verdict verdict = give_way(region, run, block, pass);
    if (!verdict.ok() || pass.halt != Halt::no) return verdict;
    verdict = put_one(region, block, changes.unseen, run);
    pass.progress.done_bytes += BlockState::kBytes;
    if (pass.tell && pass.progress.done_bytes % (uint64_t{64} << 20) == 0) pass.tell(pass.progress);
    return verdict;
  };
  if (!changes.unseen) {
    for (uint64_t block : changes.blocks) {
      if (Verdict verdict = put(block); !verdict.ok() || pass.halt != Halt::no) return verdict;
    }
    return flush(region, run);
  }
  // Whoever writes the memory itself marks the chunk, and in it everything that has memory, or had some, is looked at.
  const uint64_t blocks = region.blocks()->blocks();
  auto put_between = [&](uint64_t block, uint64_t end) {
    for (Verdict verdict; block < end; ++block) {
      block = std::min(region.next_with_memory(block), store_->next_stored(region.id(), block, end));
      if (block < end) verdict = put(block);
      if (!verdict.ok() || pass.halt != Halt::no) return verdict;
    }
    return Verdict{};
  };
  Verdict verdict;
  if (pass.is_exact) {
    verdict = put_between(changes.first, changes.end);
  } else {
    for (size_t index = 0; index < changes.chunks.size() && verdict.ok() && pass.halt == Halt::no; ++index) {
      const uint64_t first = changes.chunks[index] * BlockState::kPerChunk;
      verdict = put_between(std::min(first, blocks), std::min(first + BlockState::kPerChunk, blocks));
      const bool is_told = std::binary_search(changes.told.begin(), changes.told.end(), changes.chunks[index]);
      if (is_told && pass.halt == Halt::no)
        region.usage().note_told(changes.chunks[index]);  // given back, it comes again
    }
  }
  if (!verdict.ok() || pass.halt != Halt::no) return verdict;
  return flush(region, run);
}

/// Before that block: if somebody is to go first, or what was put is not paid for. Nothing that was copied is kept
/// meanwhile: it may be freed.
Verdict Keeper::give_way(Region& region, Run& run, uint64_t block, Pass& pass) {
  const bool background = pass.job.background;
  if (background) {
    const uint64_t put = persisted_bytes_.load(), now = monotonic_ns();
    if (const uint64_t owed_ns = pace_.take(put - pass.paced_bytes, now); owed_ns > 0) pass.resume_ns = now + owed_ns;
    pass.paced_bytes = put;
  }
  const bool is_early = background && (pass.resume_ns != 0 || background_ended_.load());
  const bool lets_asked_go = background && pass.patience == 0;
  if (!others_go_first(lets_asked_go) && !is_early) {
    pass.patience -= std::min<uint64_t>(pass.patience, 1);
    return {};
  }
  if (Verdict verdict = flush(region, run); !verdict.ok()) return verdict;
  if (background) {
    pass.halt = Halt::interrupted;
    pass.reached = block;
    return {};
  }
  none_urgent_.wait(pass.guard, [this] { return !others_go_first(false); });
  if (!is_stored(region.id())) pass.halt = Halt::gone;
  return {};
}

bool Keeper::others_go_first(bool asked_too) const { return urgent_.load() > 0 || (asked_too && asked_.load() > 0); }

void Keeper::rest(Pass& pass) {
  const uint64_t began = monotonic_ns();
  for (uint64_t now = began; !background_ended_.load(); now = monotonic_ns()) {
    if (others_go_first(true)) {
      none_urgent_.wait(pass.guard, [this] { return !others_go_first(true); });
    } else if (now < pass.resume_ns) {
      none_urgent_.wait_for(pass.guard, std::chrono::nanoseconds(pass.resume_ns - now),
                            [this] { return background_ended_.load(); });
    } else {
      break;
    }
  }
  pass.resume_ns = 0;
  pass.paced_bytes = persisted_bytes_.load();
  pass.rested_ns += monotonic_ns() - began;
}

void Keeper::end_background() {
  const Urgent urgent(*this);
  background_ended_.store(true);
  none_urgent_.notify_all();
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
