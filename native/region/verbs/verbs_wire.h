// The appliance's end of a verbs connection: messages as a stream of bytes, and chunks lent to the client. Each
// connection has a protection domain of its own, so that a key is worth nothing on any other.
#pragma once

#include <vector>

#include "base/verbs/queue_pair.h"
#include "region/wire.h"

namespace extmem::region {

class VerbsWire final : public Wire, public Lender, public verbs::QueuePair::Listener {
 public:
  VerbsWire();
  /// Takes the id. Empty, or why it was turned away.
  std::string accept(rdma_cm_id* id, const rdma_conn_param& asked) { return pair_->accept(id, asked); }

  int fd() const override { return pair_->fd(); }
  bool tells_output() const override { return false; }
  ssize_t receive(std::span<uint8_t> into) override;
  ssize_t send(std::span<const uint8_t> data, bool more_follows) override;
  bool drained() override;
  void cut(std::span<const uint8_t> last_words) override;
  std::string describe_peer() const override { return pair_->describe_peer(); }
  std::string local_address() const override { return pair_->describe_local(); }
  int socket() const override { return -1; }
  Lender* lender() override { return this; }
  void probe() override;
  std::shared_ptr<LentChunk> lend(const Piece& piece) override;

 private:
  class Chunk;
  /// As many as a reply has room for (protocol.json).
  static constexpr size_t kMaxNotices = (1u << 20) - 1;

  void on_transfers_done(unsigned) override {}
  bool on_notice(uint32_t notice) override;
  uint32_t choose_notice();
  void look();

  std::unique_ptr<verbs::QueuePair> pair_;
  std::vector<std::weak_ptr<Chunk>> noticed_;  // by notice - 1
  size_t last_chosen_ = 0;
};

}  // namespace extmem::region
