#include "region/verbs/verbs_wire.h"

#include <cerrno>
#include <mutex>

namespace extmem::region {

namespace {

class RegisteredChunk final : public LentChunk {
 public:
  explicit RegisteredChunk(std::unique_ptr<verbs::Registration> registration)
      : key_(registration->remote_key()), registration_(std::move(registration)) {}
  uint32_t key() const override { return key_; }
  void end() override {
    std::lock_guard guard(lock_);  // whoever comes second waits until it has ended
    registration_->end();
  }

 private:
  const uint32_t key_;
  std::mutex lock_;
  std::unique_ptr<verbs::Registration> registration_;
};

}  // namespace

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

std::shared_ptr<LentChunk> VerbsWire::lend(std::span<std::byte> memory, uint64_t offset, bool writable) {
  // Without local writing the device grants no remote writing either.
  const int access = IBV_ACCESS_REMOTE_READ | (writable ? IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE : 0);
  auto registration =
      verbs::Registration::create(pair_->domain(), {.memory = memory, .iova = offset, .access = access});
  return registration ? std::make_shared<RegisteredChunk>(std::move(registration)) : nullptr;
}

}  // namespace extmem::region
