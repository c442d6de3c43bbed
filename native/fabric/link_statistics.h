// What operations did, per appliance, transport and link. Each of these belongs to one reactor's peer, which alone
// writes it: counting takes no lock and no line of memory that another reactor writes. Whoever asks sums them up.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <string>

namespace extmem::fabric {

enum class TransportKind : uint8_t { automatic = 0, shm = 1, tcp = 2, verbs = 3, sim = 4 };

/// The same, summed up.
struct LinkTotals {
  static constexpr size_t kBuckets = 40;
  TransportKind transport = TransportKind::automatic;
  std::string address;  ///< address:port; empty: not over a network, or over none at all
  uint64_t operations = 0, bytes_read = 0, bytes_written = 0, failures = 0, refused = 0, retries = 0, connects = 0,
           losses = 0, connections = 0, latency_ns = 0;
  /// One-sided work of an RDMA device: how often it was rung, for how many requests, how many of them told of their
  /// end.
  uint64_t device_posts = 0, device_requests = 0, device_signals = 0;
  /// Bucket b counts operations that took [2^b, 2^(b+1)) ns.
  std::array<uint64_t, kBuckets> latency{};

  LinkTotals& operator+=(const LinkTotals& other) {
    for (auto member : {&LinkTotals::operations, &LinkTotals::bytes_read, &LinkTotals::bytes_written,
                        &LinkTotals::failures, &LinkTotals::refused, &LinkTotals::retries, &LinkTotals::connects,
                        &LinkTotals::losses, &LinkTotals::connections, &LinkTotals::latency_ns,
                        &LinkTotals::device_posts, &LinkTotals::device_requests, &LinkTotals::device_signals}) {
      this->*member += other.*member;
    }
    for (size_t bucket = 0; bucket < kBuckets; ++bucket) latency[bucket] += other.latency[bucket];
    return *this;
  }
};

class LinkStatistics {
 public:
  LinkStatistics(TransportKind transport, std::string address) : transport_(transport), address_(std::move(address)) {}

  bool is(TransportKind transport, const std::string& address) const {
    return transport_ == transport && address_ == address;
  }

  // The owner's.
  void count_read(uint64_t bytes) { add(bytes_read_, bytes); }
  void count_write(uint64_t bytes) { add(bytes_written_, bytes); }
  void count_done(uint64_t elapsed_ns) {
    add(operations_, 1);
    add(latency_ns_, elapsed_ns);
    const auto bucket = static_cast<size_t>(std::bit_width(elapsed_ns | 1) - 1);
    add(latency_[std::min(bucket, LinkTotals::kBuckets - 1)], 1);
  }
  void count_failure() {
    add(operations_, 1);
    add(failures_, 1);
  }
  /// Not tried at all: the appliance was known to be out of reach.
  void count_refused() { add(refused_, 1); }
  void count_retry() { add(retries_, 1); }
  void count_connected() {
    add(connects_, 1);
    connections_.store(1, std::memory_order_relaxed);
  }
  void count_posted(uint64_t requests, uint64_t signals) {
    add(device_posts_, 1);
    add(device_requests_, requests);
    add(device_signals_, signals);
  }
  void count_lost() { add(losses_, 1); }
  void count_disconnected() { connections_.store(0, std::memory_order_relaxed); }

  /// Any thread.
  void add_to(LinkTotals& totals) const {
    const auto sum = [](uint64_t& to, const std::atomic<uint64_t>& from) {
      to += from.load(std::memory_order_relaxed);
    };
    sum(totals.operations, operations_);
    sum(totals.bytes_read, bytes_read_);
    sum(totals.bytes_written, bytes_written_);
    sum(totals.failures, failures_);
    sum(totals.refused, refused_);
    sum(totals.retries, retries_);
    sum(totals.connects, connects_);
    sum(totals.losses, losses_);
    sum(totals.connections, connections_);
    sum(totals.latency_ns, latency_ns_);
    sum(totals.device_posts, device_posts_);
    sum(totals.device_requests, device_requests_);
    sum(totals.device_signals, device_signals_);
    for (size_t bucket = 0; bucket < latency_.size(); ++bucket) sum(totals.latency[bucket], latency_[bucket]);
  }
  TransportKind transport() const { return transport_; }
  const std::string& address() const { return address_; }

 private:
  /// One writer: no read-modify-write is needed.
  static void add(std::atomic<uint64_t>& counter, uint64_t amount) {
    counter.store(counter.load(std::memory_order_relaxed) + amount, std::memory_order_relaxed);
  }

  const TransportKind transport_;
  const std::string address_;
  alignas(64) std::atomic<uint64_t> operations_{0};
  std::atomic<uint64_t> bytes_read_{0}, bytes_written_{0}, failures_{0}, refused_{0}, retries_{0}, connects_{0},
      losses_{0}, connections_{0}, latency_ns_{0}, device_posts_{0}, device_requests_{0}, device_signals_{0};
  std::array<std::atomic<uint64_t>, LinkTotals::kBuckets> latency_{};
};

}  // namespace extmem::fabric
