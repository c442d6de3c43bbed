// A client that keeps to no rules: it proves who it is, as any must, and then reads and writes by whatever key it
// likes.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <memory>
#include <vector>

#include "base/verbs/queue_pair.h"
#include "contract/appliance_process.h"
#include "contract/test_client.h"

namespace extmem::contract {

class RawVerbsClient final : public verbs::QueuePair::Listener {
 public:
  RawVerbsClient(const ApplianceProcess& process, const fabric::Credentials& credentials);

  /// The key of the region's first chunk.
  uint32_t borrow(uint64_t region, uint32_t rights);
  /// One page of its memory to or from the beginning of what the key stands for; whether it was done.
  bool transfer(ibv_wr_opcode opcode, uint32_t key);
  /// Tells of a write that there was none of.
  void notify(uint32_t notice);
  /// Whether the other side ends the connection.
  bool wait_for_end();
  const std::vector<uint8_t>& page() const { return page_; }
  void fill_page(uint8_t byte) { std::fill(page_.begin(), page_.end(), byte); }
  const std::string& failure() const { return pair_.failure(); }

 private:
  void on_transfers_done(unsigned count) override { done_ += count; }
  bool on_notice(uint32_t) override { return false; }
  template <typename Condition>
  bool wait_for(Condition condition);
  void send(const void* data, size_t bytes);
  void receive(void* data, size_t bytes);
  protocol::ReplyHeader ask(protocol::Op op, uint64_t region, const void* payload, uint32_t bytes);

  const fabric::Credentials credentials_;
  verbs::QueuePair pair_;
  std::vector<uint8_t> page_ = std::vector<uint8_t>(protocol::kPageBytes);
  std::unique_ptr<verbs::Registration> registration_;
  unsigned done_ = 0;
};

}  // namespace extmem::contract
