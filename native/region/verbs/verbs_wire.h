// The appliance's end of a verbs connection: messages as a stream of bytes, and chunks lent to the client. Each
// connection has a protection domain of its own, so that a key is worth nothing on any other.
#pragma once

#include "base/verbs/queue_pair.h"
#include "region/wire.h"

namespace extmem::region {

class VerbsWire final : public Wire, public Lender {
 public:
  explicit VerbsWire(std::unique_ptr<verbs::QueuePair> pair) : pair_(std::move(pair)) {}

  int fd() const override { return pair_->fd(); }
  bool tells_output() const override { return false; }
  ssize_t receive(std::span<uint8_t> into) override;
  ssize_t send(std::span<const uint8_t> data, bool more_follows) override;
  bool drained() override;
  void cut(std::span<const uint8_t> last_words) override;
  std::string describe_peer() const override { return pair_->describe_peer(); }
  int socket() const override { return -1; }
  Lender* lender() override { return this; }
  std::shared_ptr<LentChunk> lend(std::span<std::byte> memory, uint64_t offset, bool writable) override;

 private:
  void look();

  std::unique_ptr<verbs::QueuePair> pair_;
};

}  // namespace extmem::region
