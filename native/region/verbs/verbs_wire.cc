#include "region/verbs/verbs_wire.h"

#include <cerrno>
#include <mutex>
#include <utility>

namespace extmem::region {

class VerbsWire::Chunk final : public LentChunk {
 public:
  Chunk(std::unique_ptr<verbs::Registration> registration, const Piece& piece, uint32_t notice)
      : key_(registration->remote_key()),
        notice_(notice),
        offset_(piece.offset),
        bytes_(piece.memory.size()),
        writable_(piece.writable),
        region_(piece.region),
        registration_(std::move(registration)) {}
  uint32_t key() const override { return key_; }
  uint32_t notice() const override { return notice_; }
  bool writable() const { return writable_; }
  void mark_written() const {
    if (auto region = region_.lock()) region->mark_written(offset_, bytes_);
  }
  void end() override {
    std::lock_guard guard(lock_);  // whoever comes second waits until it has ended
    registration_->end();
    // It may have been written without notice, or the notice may be lost with the connection.
    if (writable_ && !std::exchange(ended_, true)) mark_written();
  }

 private:
  const uint32_t key_, notice_;
  const uint64_t offset_, bytes_;
  const bool writable_;
  const std::weak_ptr<Written> region_;
  std::mutex lock_;
  std::unique_ptr<verbs::Registration> registration_;
  bool ended_ = false;
};

VerbsWire::VerbsWire()
    : pair_(std::make_unique<verbs::QueuePair>(verbs::QueuePair::Options{
          .choose_domain = verbs::ProtectionDomain::create, .transfers = 0, .listener = this})) {}

/// Takes what has come; afterwards fd() becomes ready with whatever comes next.
void VerbsWire::look() {
  if (pair_->poll()) return;
  do {
    pair_->serve_events();
  } while (pair_->arm() && pair_->poll());
}

ssize_t VerbsWire::receive(std::span<uint8_t> into) {
  if (!pair_->has_message()) look();
  const iovec segment{.iov_base = into.data(), .iov_len = into.size()};
  return pair_->receive(&segment, 1);
}

ssize_t VerbsWire::send(std::span<const uint8_t> data, bool) {
  const iovec segment{.iov_base = const_cast<uint8_t*>(data.data()), .iov_len = data.size()};
  const ssize_t sent = pair_->send(&segment, 1);
  if (sent >= 0 || errno != EAGAIN) return sent;
  look();  // for the credits
  return pair_->send(&segment, 1);
}

bool VerbsWire::drained() {
  if (!pair_->drained()) look();
  return pair_->drained() || !pair_->failure().empty();
}

void VerbsWire::cut(std::span<const uint8_t>) { pair_->end(); }

void VerbsWire::probe() {
  pair_->probe();
  look();
}

std::shared_ptr<LentChunk> VerbsWire::lend(const Piece& piece) {
  // Without local writing the device grants no remote writing either.
  const int access = IBV_ACCESS_REMOTE_READ | (piece.writable ? IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE : 0);
  auto registration =
      verbs::Registration::create(pair_->domain(), {.memory = piece.memory, .iova = piece.offset, .access = access});
  if (!registration) return nullptr;
  const uint32_t notice = piece.writable ? choose_notice() : 0;
  auto chunk = std::make_shared<Chunk>(std::move(registration), piece, notice);
  if (notice != 0) noticed_[notice - 1] = chunk;
  return chunk;
}

/// One whose chunk has gone is given anew: what a late notice tells of it is known since its end.
uint32_t VerbsWire::choose_notice() {
  constexpr int kTries = 8;
  for (int tries = 0; tries < kTries && !noticed_.empty(); ++tries) {
    last_chosen_ = (last_chosen_ + 1) % noticed_.size();
    if (noticed_[last_chosen_].expired()) return static_cast<uint32_t>(last_chosen_ + 1);
  }
  if (noticed_.size() == kMaxNotices) return 0;
  noticed_.emplace_back();
  return static_cast<uint32_t>(noticed_.size());
}

bool VerbsWire::on_notice(uint32_t notice) {
  if (notice == 0 || notice > noticed_.size()) return false;
  auto chunk = noticed_[notice - 1].lock();
  if (!chunk) return true;  // it has ended meanwhile, and is marked since
  if (chunk->writable()) chunk->mark_written();
  return chunk->writable();
}

}  // namespace extmem::region
