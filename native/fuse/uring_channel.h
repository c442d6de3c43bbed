// ① Requests over io_uring: the kernel has a queue per CPU and puts each request into an entry of the queue of the CPU
// where it was made. This channel owns the queues of one worker, on one ring, and is what the worker's reactor waits
// in: a system call hands over the answers and waits for the next request.
//
// An entry is the kernel's (idle, or a request is on its way) or ours (held: from the request's arrival to its answer).
// A request for which there is no entry waits in the kernel, while the held ones may wait for a person's lock, or for
// an appliance that does not answer. So a queue does not run dry: when few entries are left with the kernel, it gets
// more. As the kernel looks for waiting requests only when an entry is answered, each new one is made to answer one
// first (nudge). Payloads are populated as far as requests reach, and given back when the burst that needed them is
// over.
//
// Belongs to the worker's thread; a held entry to whoever answers it.
#pragma once

#include <memory>
#include <vector>

#include "base/io_ring.h"
#include "base/reactor.h"
#include "fuse/channel.h"
#include "fuse/uring_abi.h"

namespace extmem::fuse {

class UringChannel;
class Worker;

struct RingEntry final : public Message {
  /// Answered by another thread: the owner hands it to the kernel.
  void run() override;

  UringChannel* channel = nullptr;
  std::byte* payload = nullptr;
  uint16_t queue = 0;  // in the channel's list
  enum class State : uint8_t { kernel, held, gone } state = State::kernel;
  bool grown = false;  // its payload has more than a few pages populated
  uint64_t commit_id = 0;
  uint64_t open_file = 0;  // while held: the node, if the request is made through an open file, which its caller keeps
  iovec places[2]{};
  fuse_uring_req_header header{};
};

class UringChannel final : public Channel, public Waiter, private Timer {
 public:
  static constexpr IoRing::Sizes kRingSizes{64, 1024};

  /// queues: numbers of the CPUs whose queues are this worker's. fuse_fd must stay open.
  UringChannel(Worker& worker, std::unique_ptr<IoRing> ring, int fuse_fd, const std::vector<uint16_t>& queues);

  int open() override;
  void close() override;
  void answer(const Ticket& ticket, int error, iovec* segments, unsigned count, size_t body_bytes) override;
  void answer_from_outside(const Ticket& ticket, int error, std::span<const uint8_t> body) override;
  bool wait(int timeout_ms) override;

  void commit(RingEntry& entry);

 private:
  struct Queue {
    uint16_t id;
    unsigned with_kernel = 0;
    unsigned entries = 0;
    unsigned fresh = 0;  // entries that were made while the queue was in use, and not nudged yet
  };
  /// Entries are made so many at a time.
  struct Batch {
    Batch();
    ~Batch();
    std::byte* payloads;
    std::unique_ptr<RingEntry[]> entries;
  };
  int open_queues();
  bool add_entries(uint16_t queue);
  void grow(uint16_t queue);
  void nudge_fresh();
  uint64_t open_file_of(const Queue& queue) const;
  void nudge(uint16_t cpu, uint64_t node);
  void submit(RingEntry& entry, fuse_uring_cmd command);
  bool reap();
  void complete(RingEntry& entry, int result);
  void take(RingEntry& entry);
  void note_payload(RingEntry& entry, size_t bytes);
  void on_timer() override { trim_due_ = true; }
  void trim();

  Worker& worker_;
  std::unique_ptr<IoRing> ring_;
  int fuse_fd_;
  std::vector<Queue> queues_;
  std::vector<std::unique_ptr<Batch>> batches_;
  bool epoll_ready_ = false;
  bool opening_ = false;
  bool fresh_ = false;  // in some queue
  uint64_t nudges_ = 0;
  int refused_ = 0;  // errno of an entry that was refused while opening
  size_t unsent_bytes_ = 0;
  unsigned grown_ = 0;
  bool trim_due_ = false;
};

}  // namespace extmem::fuse
