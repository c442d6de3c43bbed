#include "region/region.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <string>
#include <utility>

#include "base/protocol.h"
#include "region/region_hold.h"

#ifndef F_SEAL_FUTURE_WRITE
#define F_SEAL_FUTURE_WRITE 0x0010
#endif

namespace extmem::region {

namespace {

constexpr uint64_t kPage = protocol::kPageBytes;
constexpr uint64_t kMaxRegionBytes = uint64_t{1} << 50;
/// A move copies from the end and cuts the old memfd as it goes, so that it needs only this much more memory.
constexpr uint64_t kMoveChunkBytes = 64u << 20;
constexpr size_t kCopyBytes = 1u << 20;

uint64_t round_to_page(uint64_t bytes) { return (bytes + kPage - 1) / kPage * kPage; }

/// With what the table needs for it: empty records are not free.
uint64_t record_cost(const std::vector<uint8_t>& bytes) { return bytes.size() + 96; }

UniqueFd make_memfd(uint64_t id, uint64_t bytes) {
  char name[40];
  std::snprintf(name, sizeof name, "extmem-region-%016llx", static_cast<unsigned long long>(id));
  UniqueFd fd(memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (!fd) return fd;
  // 0600: another user who is handed a read-only descriptor cannot reopen it for writing.
  if (fchmod(fd.get(), 0600) != 0 || ftruncate(fd.get(), static_cast<off_t>(bytes)) != 0) fd.reset();
  return fd;
}

/// Copies [begin, end) where there is data; false: no memory.
bool copy_data(int from, int to, uint64_t begin, uint64_t end, std::vector<uint8_t>& buffer) {
  while (begin < end) {
    off_t data = lseek(from, static_cast<off_t>(begin), SEEK_DATA);
    if (data < 0 || static_cast<uint64_t>(data) >= end) return data >= 0 || errno == ENXIO;
    off_t hole = lseek(from, data, SEEK_HOLE);
    uint64_t stop = hole < 0 ? end : std::min<uint64_t>(end, static_cast<uint64_t>(hole));
    for (begin = static_cast<uint64_t>(data); begin < stop;) {
      ssize_t got = pread(from, buffer.data(), std::min<uint64_t>(buffer.size(), stop - begin), off_t(begin));
      if (got <= 0 || pwrite(to, buffer.data(), static_cast<size_t>(got), static_cast<off_t>(begin)) != got)
        return false;
      begin += static_cast<uint64_t>(got);
    }
  }
  return true;
}

/// Without waiting: a holder may have a lease on it, which it need not give back for 45 s.
UniqueFd reopen(int fd, int flags) {
  return UniqueFd(open(("/proc/self/fd/" + std::to_string(fd)).c_str(), flags | O_CLOEXEC | O_NONBLOCK));
}

}  // namespace

std::shared_ptr<Region> Region::create(const Shape& shape, MemoryAccount& account, Status& status) {
  if (shape.bytes == 0 || shape.bytes > kMaxRegionBytes) {
    status = Status::bad_request;
    return nullptr;
  }
  const uint64_t reserved = shape.thin ? 0 : round_to_page(shape.bytes);
  if (shape.restored) {
    account.count(reserved);
  } else if (!account.reserve(reserved)) {
    status = Status::no_space;
    return nullptr;
  }
  UniqueFd fd = make_memfd(shape.id, shape.bytes);
  auto written = WrittenMap::create(shape.bytes);
  if (!fd || !written) {
    account.release(reserved);
    status = Status::no_space;
    return nullptr;
  }
  status = Status::ok;
  return std::make_shared<Region>(shape, account, std::move(fd), std::move(written));
}

Region::Region(const Shape& shape, MemoryAccount& account, UniqueFd fd, std::unique_ptr<WrittenMap> written)
    : id_(shape.id),
      thin_(shape.thin),
      account_(account),
      fd_(std::move(fd)),
      bytes_(shape.bytes),
      written_(written.get()),
      blocks_(shape.kept ? std::make_unique<BlockState>(shape.bytes) : nullptr),
      usage_(shape.bytes) {
  written_maps_.push_back(std::move(written));
}

Region::~Region() {
  if (!destroyed_) destroy_held();
}

Status Region::check_range(uint64_t offset, uint64_t bytes) const {
  if (destroyed_) return Status::not_present;
  if (offset > bytes_ || bytes > bytes_ - offset) return Status::out_of_range;
  return Status::ok;
}

BlockState::Presence Region::presence(uint64_t offset, uint64_t bytes, bool replaces) {
  if (!blocks_) return BlockState::Presence::here;
  uint64_t block = 0;
  const auto found = blocks_->presence(offset, bytes, replaces, block);
  if (found == BlockState::Presence::absent) on_absent(*this, block);
  return found;
}

/// Held. nullopt: it is being fetched from the store.
std::optional<Outcome> Region::check(uint64_t offset, uint64_t bytes, bool replaces) {
  if (Status status = check_range(offset, bytes); status != Status::ok) return outcome(status);
  switch (presence(offset, bytes, replaces)) {
    case BlockState::Presence::here:
      return outcome(Status::ok);
    case BlockState::Presence::absent:
      return std::nullopt;
    case BlockState::Presence::damaged:
    case BlockState::Presence::failed:
      break;
  }
  return outcome(Status::not_present);
}

std::optional<Outcome> Region::check_read(uint64_t offset, uint64_t bytes) {
  Use use(*this);
  if (!use) return std::nullopt;
  auto checked = check(offset, bytes, false);
  // Its bytes are promised before they are sent: what a holder of the descriptor has cut off is not.
  struct stat found {};
  if (checked && checked->status == Status::ok &&
      (fstat(fd_.get(), &found) != 0 || static_cast<uint64_t>(found.st_size) < offset + bytes))
    return outcome(Status::not_present);
  return checked;
}

std::optional<Outcome> Region::check_write(uint64_t offset, uint64_t bytes) {
  Use use(*this);
  if (!use) return std::nullopt;
  return check(offset, bytes, true);
}

std::optional<Outcome> Region::read(uint64_t offset, std::span<uint8_t> into) {
  Use use(*this);
  if (!use) return std::nullopt;
  if (auto checked = check(offset, into.size(), false); !checked || checked->status != Status::ok) return checked;
  ssize_t got = pread(fd_.get(), into.data(), into.size(), static_cast<off_t>(offset));
  // Short: a holder of the descriptor has cut it. What is gone is gone, and is never told as zeros.
  return outcome(got == static_cast<ssize_t>(into.size()) ? Status::ok : Status::not_present);
}

std::optional<ssize_t> Region::send(int socket, uint64_t offset, size_t bytes) {
  Use use(*this);
  if (!use) return std::nullopt;
  if (check_range(offset, bytes) != Status::ok) return 0;
  // Checked when it was promised; the memory may have been given back since.
  const auto found = presence(offset, bytes, false);
  if (found == BlockState::Presence::absent) return std::nullopt;
  if (found != BlockState::Presence::here) return 0;
  off_t position = static_cast<off_t>(offset);
  return sendfile(socket, fd_.get(), &position, bytes);
}

std::optional<Outcome> Region::write(uint64_t offset, std::span<const uint8_t> data) {
  Use use(*this);
  if (!use) return std::nullopt;
  if (auto checked = check(offset, data.size(), true); !checked || checked->status != Status::ok) return checked;
  return outcome(write_held(offset, data));
}

Status Region::write_held(uint64_t offset, std::span<const uint8_t> data) {
  if (Status status = check_range(offset, data.size()); status != Status::ok || data.empty()) return status;
  if (blocks_) blocks_->mark_changed(offset, data.size());
  const Status status = thin_ ? write_thin(offset, data) : write_memory(offset, data);
  if (blocks_ && status == Status::ok) blocks_->mend(offset, data.size());
  return status;
}

Status Region::write_memory(uint64_t offset, std::span<const uint8_t> data) {
  const Status status = store(offset, data);
  mark_written(offset, data.size());  // also what was stored in part
  return status;
}

Status Region::store(uint64_t offset, std::span<const uint8_t> data) {
  while (!data.empty()) {
    ssize_t put = pwrite(fd_.get(), data.data(), data.size(), static_cast<off_t>(offset));
    if (put < 0 && errno == EINTR) continue;
    if (put <= 0) return errno == ENOSPC || errno == ENOMEM ? Status::no_space : Status::not_present;
    data = data.subspan(static_cast<size_t>(put));
    offset += static_cast<uint64_t>(put);
  }
  return Status::ok;
}

Status Region::write_thin(uint64_t offset, std::span<const uint8_t> data) {
  std::lock_guard guard(thin_lock_);
  uint64_t reserved = round_to_page(offset + data.size()) - offset / kPage * kPage;
  if (!account_.reserve(reserved)) {
    // Near the limit it is worth looking what of it is there already: overwriting must go on working.
    reserved = missing_bytes(offset, data.size());
    if (!account_.reserve(reserved)) return Status::no_space;
  }
  Status status = write_memory(offset, data);
  account_.release(reserved);
  recount_thin();
  return status;
}

uint64_t Region::missing_bytes(uint64_t offset, uint64_t bytes) const {
  uint64_t begin = offset / kPage * kPage;
  const uint64_t end = std::min(round_to_page(offset + bytes), bytes_);
  uint64_t missing = 0;
  while (begin < end) {
    off_t data = lseek(fd_.get(), static_cast<off_t>(begin), SEEK_DATA);
    uint64_t hole_end = data < 0 ? end : std::min<uint64_t>(end, static_cast<uint64_t>(data));
    missing += hole_end - begin;
    if (hole_end == end) break;
    off_t hole = lseek(fd_.get(), data, SEEK_HOLE);
    begin = hole < 0 ? end : static_cast<uint64_t>(hole);
  }
  return round_to_page(missing);
}

void Region::recount_thin() {
  const uint64_t now = resident_bytes();
  account_.count(now - thin_counted_);  // wraps when it shrank, as unsigned sums may
  thin_counted_ = now;
}

uint64_t Region::resident_bytes() const {
  struct stat status {};
  if (!fd_ || fstat(fd_.get(), &status) != 0) return 0;
  return static_cast<uint64_t>(status.st_blocks) * 512;
}

std::optional<Outcome> Region::populate(uint64_t offset, uint64_t bytes) {
  Use use(*this);
  if (!use) return std::nullopt;
  if (Status status = check_range(offset, bytes); status != Status::ok) return outcome(status);
  if (thin_ || !is_all_here()) return outcome(Status::denied);
  if (bytes == 0 ||
      fallocate(fd_.get(), FALLOC_FL_KEEP_SIZE, static_cast<off_t>(offset), static_cast<off_t>(bytes)) == 0)
    return outcome(Status::ok);
  return outcome(errno == ENOSPC || errno == ENOMEM ? Status::no_space : Status::not_present);
}

std::optional<Outcome> Region::fetch_add(uint64_t offset, uint64_t addend) {
  return update_word(offset, addend, nullptr);
}

std::optional<Outcome> Region::compare_swap(uint64_t offset, uint64_t expected, uint64_t desired) {
  return update_word(offset, desired, &expected);
}

std::optional<Outcome> Region::update_word(uint64_t offset, uint64_t operand, const uint64_t* expected) {
  Use use(*this);
  if (!use) return std::nullopt;
  if (auto checked = check(offset, sizeof operand, false); !checked || checked->status != Status::ok) return checked;
  if (offset % sizeof operand != 0) return outcome(Status::bad_request);
  usage_.note_written(offset, sizeof operand);
  std::lock_guard guard(atomics_lock_);
  uint64_t old = 0;
  if (pread(fd_.get(), &old, sizeof old, static_cast<off_t>(offset)) != sizeof old) return outcome(Status::not_present);
  if (expected != nullptr && *expected != old) return outcome(Status::ok, old);
  const uint64_t next = expected != nullptr ? operand : old + operand;
  std::array<uint8_t, sizeof next> data;
  std::memcpy(data.data(), &next, sizeof next);
  return outcome(write_held(offset, data), old);
}

std::optional<Region::HandOver> Region::hand_over(uint64_t client, const Grant& grant) {
  const bool writable = (grant.rights & static_cast<uint32_t>(protocol::Right::write)) != 0;
  Use use(*this);
  if (!use) return std::nullopt;
  if (destroyed_) return HandOver{outcome(Status::not_present), {}, {}};
  // What is not all here, or not all good, is asked for by messages.
  if (thin_ || !is_all_here()) return HandOver{outcome(Status::denied), {}, {}};
  std::lock_guard guard(holders_lock_);
  // Sealed only now: a region that nobody holds can then grow in place.
  if (!grow_sealed_ && fcntl(fd_.get(), F_ADD_SEALS, F_SEAL_GROW) != 0)
    return HandOver{outcome(Status::denied), {}, {}};
  grow_sealed_ = true;
  // Opened anew, never duplicated: flags of a shared file description (O_APPEND, say) would be the client's to set.
  UniqueFd fd = reopen(fd_.get(), writable ? O_RDWR : O_RDONLY);
  UniqueFd written = writable ? reopen(written_.load(std::memory_order_relaxed)->fd(), O_RDWR) : UniqueFd();
  if (!fd || (writable && !written)) return HandOver{outcome(Status::denied), {}, {}};
  // What it was handed by an older grant it may have kept: that is what is looked for when things are taken back.
  auto [holder, is_first] = holders_.try_emplace(client, grant);
  if (!is_first) holder->second = holder->second.sooner(grant);
  if (writable) unseen_.store(true);
  given_.fetch_add(1);
  return HandOver{outcome(Status::ok), std::move(fd), std::move(written)};
}

std::optional<Region::Loan> Region::lend(uint64_t number, bool writable, Lender& lender,
                                         std::weak_ptr<Borrower> borrower) {
  Use use(*this);
  if (!use) return std::nullopt;
  const uint64_t begin = number * protocol::kLendBytes;
  if (destroyed_) return Loan{.outcome = outcome(Status::not_present), .chunk = nullptr};
  if (number > kMaxRegionBytes / protocol::kLendBytes || begin >= bytes_)
    return Loan{.outcome = outcome(Status::out_of_range), .chunk = nullptr};
  if (thin_ || !is_all_here()) return Loan{.outcome = outcome(Status::bad_request), .chunk = nullptr};
  if (writable) unseen_.store(true);
  given_.fetch_add(1);
  const uint64_t bytes = std::min<uint64_t>(protocol::kLendBytes, round_to_page(bytes_) - begin);
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd_.get(), static_cast<off_t>(begin));
  if (memory == MAP_FAILED) return Loan{.outcome = outcome(Status::no_space), .chunk = nullptr};
  auto chunk = lender.lend({.memory = {static_cast<std::byte*>(memory), bytes},
                            .offset = begin,
                            .writable = writable,
                            .region = weak_from_this()});
  munmap(memory, bytes);  // a registration holds the pages by itself
  if (!chunk) return Loan{.outcome = outcome(Status::no_space), .chunk = nullptr};
  std::lock_guard guard(lent_lock_);
  auto& known = lent_[number];
  std::erase_if(known, [](auto& one) { return one.chunk.expired(); });
  known.push_back({.chunk = chunk, .borrower = std::move(borrower)});
  return Loan{.outcome = outcome(Status::ok), .chunk = std::move(chunk), .bytes = bytes};
}

/// Held exclusively, and before the memory changes hands.
void Region::end_lending(uint64_t offset, uint64_t bytes) {
  std::vector<std::pair<uint64_t, Lent>> ending;
  {
    std::lock_guard guard(lent_lock_);
    auto entry = lent_.lower_bound(offset / protocol::kLendBytes);
    while (entry != lent_.end() && entry->first * protocol::kLendBytes < offset + bytes) {
      for (auto& one : entry->second) ending.emplace_back(entry->first, std::move(one));
      entry = lent_.erase(entry);
    }
  }
  for (auto& [number, one] : ending) {
    auto chunk = one.chunk.lock();
    if (!chunk) continue;  // its connection ended it before it let go of it
    chunk->end();
    if (auto borrower = one.borrower.lock()) borrower->note_ended(id_, number);
  }
}

/// Held exclusively. Whether a client has a descriptor, or a mapping of one, or is lent a part.
bool Region::is_held() {
  std::vector<uint64_t> lent;
  append_lent(lent, 0, UINT64_MAX);
  if (!lent.empty()) return true;
  std::lock_guard guard(holders_lock_);
  if (holders_.empty()) return false;
  // Nobody says that it has closed a descriptor; but a lease is given only to who alone has the file open.
  const UniqueFd only = reopen(fd_.get(), O_RDWR);
  if (!only) return true;
  fcntl(only.get(), F_SETSIG, SIGURG);  // who opens it just now would have us killed by SIGIO
  if (fcntl(only.get(), F_SETLEASE, F_WRLCK) != 0) return true;
  fcntl(only.get(), F_SETLEASE, F_UNLCK);  // not only with the last copy of it, which a process just forked may have
  holders_.clear();
  return false;
}

bool Region::is_lent(uint64_t number) {
  std::lock_guard guard(lent_lock_);
  auto entry = lent_.find(number);
  if (entry == lent_.end()) return false;
  std::erase_if(entry->second, [](auto& one) { return one.chunk.expired(); });
  return !entry->second.empty();
}

void Region::raise_access_version(uint32_t version) {
  for (uint32_t before = access_version(); before < version;) {
    if (access_version_.compare_exchange_weak(before, version, std::memory_order_acq_rel)) return;
  }
}

void Region::revise_holders(const AccessChange& change) {
  {
    std::lock_guard guard(holders_lock_);
    for (auto& [client, grant] : holders_) {
      if (grant.version < change.version && change.keeps(client)) grant.version = change.version;
    }
  }
  revoke([&change](uint64_t, const Grant& grant) { return grant.version < change.version; });
}

void Region::revoke(const std::function<bool(uint64_t client, const Grant& grant)>& meant) {
  bool others_hold = false;
  {
    // None of them can become a holder after this look: their connections are dead, or have nothing to show for it.
    std::lock_guard guard(holders_lock_);
    const auto is_meant = [&meant](const auto& holder) { return meant(holder.first, holder.second); };
    if (std::none_of(holders_.begin(), holders_.end(), is_meant)) return;
    others_hold = !std::all_of(holders_.begin(), holders_.end(), is_meant);
  }
  Exclusive exclusive(*this);
  if (!destroyed_ && !move_to_fresh(bytes_, others_hold)) destroy_held();  // half a region is worse than none
}

/// Whether no write(2) to the memfd is taken any more. A holder that may write can seal it against seals.
bool Region::stop_writers() {
  if (fcntl(fd_.get(), F_ADD_SEALS, F_SEAL_FUTURE_WRITE) == 0) return true;
  const int seals = fcntl(fd_.get(), F_GET_SEALS);
  return seals >= 0 && (seals & (F_SEAL_WRITE | F_SEAL_FUTURE_WRITE)) != 0;
}

/// The old memfd refuses honest writers first (they come and ask again), is copied, and ends up empty: mappings of it
/// fault and descriptors of it read short. Where they cannot be refused, what they write meanwhile would be lost
/// without a word: false.
bool Region::move_to_fresh(uint64_t bytes, bool others_hold) {
  end_lending(0, bytes_);
  if (!stop_writers() && others_hold) return false;
  UniqueFd fresh = make_memfd(id_, bytes);
  if (!fresh) return false;
  std::vector<uint8_t> buffer(kCopyBytes);
  for (uint64_t end = std::min(bytes, bytes_); end > 0;) {
    const uint64_t begin = (end - 1) / kMoveChunkBytes * kMoveChunkBytes;
    if (!copy_data(fd_.get(), fresh.get(), begin, end, buffer)) return false;
    // Where a holder has sealed it against that, the old memory lives as long as that holder.
    [[maybe_unused]] int cut = ftruncate(fd_.get(), static_cast<off_t>(begin));
    end = begin;
  }
  fd_ = std::move(fresh);
  bytes_ = bytes;
  ++epoch_;
  grow_sealed_ = false;
  std::lock_guard guard(holders_lock_);
  holders_.clear();
  return true;
}

void Region::mark_written(uint64_t offset, uint64_t bytes) {
  WrittenMap* map = written_.load(std::memory_order_acquire);
  for (WrittenMap* marked = nullptr; marked != map; map = written_.load(std::memory_order_seq_cst)) {
    map->mark(offset, bytes);
    marked = map;
  }
}

std::vector<uint64_t> Region::take_written() {
  std::vector<uint64_t> chunks;
  written_.load(std::memory_order_acquire)->take(chunks);
  return chunks;
}

/// Whoever marked the former map looks afterwards whether it still is the last, and marks this one too if not.
bool Region::cover_written(uint64_t bytes) {
  WrittenMap* former = written_.load(std::memory_order_relaxed);
  if (former->covers(bytes)) return true;
  auto larger = WrittenMap::create(bytes);
  if (!larger) return false;
  written_.store(larger.get(), std::memory_order_seq_cst);
  std::vector<uint64_t> chunks;
  former->take(chunks);
  for (uint64_t number : chunks) larger->mark(number * protocol::kLendBytes, 1);
  written_maps_.push_back(std::move(larger));
  return true;
}

Status Region::resize(uint64_t bytes) {
  if (bytes == 0 || bytes > kMaxRegionBytes) return Status::bad_request;
  Exclusive exclusive(*this);
  if (destroyed_) return Status::not_present;
  if (blocks_ && bytes > blocks_->blocks() * BlockState::kBytes) return Status::bad_request;
  if (!cover_written(bytes)) return Status::no_space;
  const uint64_t before = round_to_page(bytes_), after = round_to_page(bytes);
  if (!thin_ && after > before && !account_.reserve(after - before)) return Status::no_space;
  bool done = false;
  if (bytes > bytes_ && grow_sealed_) {
    done = move_to_fresh(bytes, true);
    if (!done) destroy_held();
  } else {
    if (bytes < bytes_) end_lending(bytes, bytes_ - bytes);
    done = ftruncate(fd_.get(), static_cast<off_t>(bytes)) == 0;
    if (done) {
      bytes_ = bytes;
      ++epoch_;
    }
  }
  if (!done) {
    if (!thin_ && after > before) account_.release(after - before);
    return destroyed_ ? Status::not_present : Status::no_space;
  }
  if (!thin_ && after < before) account_.release(before - after);
  if (thin_) recount_thin();
  return Status::ok;
}

std::optional<Status> Region::punch(uint64_t offset, uint64_t bytes) {
  Exclusive exclusive(*this);
  if (Status status = check_range(offset, bytes); status != Status::ok || bytes == 0) return status;
  if (blocks_) {
    // What would come home over a part of it that is punched.
    if (offset % BlockState::kBytes != 0 && blocks_->absent(offset / BlockState::kBytes)) return std::nullopt;
    const uint64_t behind = offset + bytes;
    if (behind % BlockState::kBytes != 0 && blocks_->absent(behind / BlockState::kBytes)) return std::nullopt;
    blocks_->mark_changed(offset, bytes);
    for (uint64_t block = (offset + BlockState::kBytes - 1) / BlockState::kBytes;
         (block + 1) * BlockState::kBytes <= offset + bytes; ++block) {
      blocks_->make_present(block);
    }
    blocks_->mend(offset, bytes);
  }
  constexpr uint64_t kChunk = protocol::kLendBytes;
  const uint64_t end = offset + bytes;
  const uint64_t first_whole = (offset + kChunk - 1) / kChunk * kChunk;
  const uint64_t last_whole = end == bytes_ ? end : end / kChunk * kChunk;
  Status status = Status::ok;
  if (first_whole >= last_whole && offset / kChunk == (end - 1) / kChunk) {
    status = clear_within_chunk(offset, bytes);
  } else {
    if (offset < first_whole) status = clear_within_chunk(offset, first_whole - offset);
    if (status == Status::ok && first_whole < last_whole) {
      end_lending(first_whole, last_whole - first_whole);
      status = free_memory(first_whole, last_whole - first_whole);
    }
    if (status == Status::ok && last_whole < end) status = clear_within_chunk(last_whole, end - last_whole);
  }
  if (thin_) recount_thin();
  return status;
}

/// Of a chunk that is lent, its memory stays (it is reserved all the same): whoever uses the rest of it would otherwise
/// lose its connection with each small file that is deleted there.
Status Region::clear_within_chunk(uint64_t offset, uint64_t bytes) {
  if (!is_lent(offset / protocol::kLendBytes)) return free_memory(offset, bytes);
  static const std::array<uint8_t, 64 * 1024> zeros{};
  for (Status status = Status::ok; bytes > 0;) {
    const uint64_t piece = std::min<uint64_t>(bytes, zeros.size());
    if ((status = write_memory(offset, {zeros.data(), piece})) != Status::ok) return status;
    offset += piece;
    bytes -= piece;
  }
  return Status::ok;
}

Status Region::free_memory(uint64_t offset, uint64_t bytes) {
  const int mode = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
  const int done = fallocate(fd_.get(), mode, static_cast<off_t>(offset), static_cast<off_t>(bytes));
  mark_written(offset, bytes);
  return done == 0 ? Status::ok : Status::not_present;
}

void Region::destroy() {
  Exclusive exclusive(*this);
  if (!destroyed_) destroy_held();
}

void Region::destroy_held() {
  end_lending(0, bytes_);
  fcntl(fd_.get(), F_ADD_SEALS, F_SEAL_FUTURE_WRITE);
  // Emptied before it is closed: a client that keeps the descriptor would otherwise keep the memory.
  [[maybe_unused]] int cut = ftruncate(fd_.get(), 0);
  fd_.reset();
  account_.release(thin_ ? thin_counted_ : round_to_page(bytes_));
  thin_counted_ = 0;
  destroyed_ = true;
  ++epoch_;
  std::lock_guard guard(records_lock_);
  for (auto& [ino, bytes] : records_) account_.release_record(record_cost(bytes));
  records_.clear();
}

RegionInfo Region::info() const {
  std::shared_lock shared(hold_);
  const uint64_t absent = blocks_ ? std::min(blocks_->absent_count() * BlockState::kBytes, bytes_) : 0;
  return {.id = id_,
          .bytes = bytes_,
          .resident_bytes = resident_bytes(),
          .thin = thin_,
          .epoch = epoch_,
          .absent_bytes = absent,
          .damaged_pages = blocks_ ? blocks_->damaged_pages() : 0,
          .access_version = access_version(),
          .given = given_.load(std::memory_order_relaxed) > 0,
          .usage = usage_.seen()};
}

std::optional<Outcome> Region::put_record(uint64_t ino, std::vector<uint8_t>&& bytes) {
  Use use(*this);
  if (!use) return std::nullopt;
  if (bytes.size() > protocol::kMaxRecordBytes) return outcome(Status::bad_request);
  if (destroyed_) return outcome(Status::not_present);
  std::lock_guard guard(records_lock_);
  auto known = records_.find(ino);
  const uint64_t before = known == records_.end() ? 0 : record_cost(known->second);
  const uint64_t after = record_cost(bytes);
  if (after > before && !account_.reserve_record(after - before)) return outcome(Status::no_space);
  if (after < before) account_.release_record(before - after);
  records_[ino] = std::move(bytes);
  return outcome(Status::ok);
}

std::optional<Outcome> Region::remove_record(uint64_t ino) {
  Use use(*this);
  if (!use) return std::nullopt;
  if (destroyed_) return outcome(Status::not_present);
  std::lock_guard guard(records_lock_);
  auto known = records_.find(ino);
  if (known == records_.end()) return outcome(Status::ok);  // sent twice after a lost reply: done is done
  account_.release_record(record_cost(known->second));
  records_.erase(known);
  return outcome(Status::ok);
}

/// What is lent for one-sided access may be written without notice, or the notice may still be on its way.
void Region::append_lent(std::vector<uint64_t>& into, uint64_t first, uint64_t end) {
  std::lock_guard guard(lent_lock_);
  for (auto& [number, loans] : lent_) {
    if (number < first || number >= end) continue;
    if (std::any_of(loans.begin(), loans.end(), [](auto& one) { return !one.chunk.expired(); })) into.push_back(number);
  }
}

void Region::append_records(std::vector<RecordInfo>& into) const {
  std::lock_guard guard(records_lock_);
  for (auto& [ino, bytes] : records_) into.push_back({.region = id_, .ino = ino, .bytes = bytes});
}

}  // namespace extmem::region
