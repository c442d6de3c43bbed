#include "simulation/appliance.h"

#include <utility>

#include "region/connection.h"
#include "simulation/keys.h"

namespace extmem::simulation {

namespace {

constexpr uint64_t kDonatedBytes = 16ull << 30;
/// A region that is being changed: asked again after this.
constexpr uint64_t kBusyNs = 1'000'000;

/// The wire of a connection. Cut, it is at its end for its own side; the peer receives what was sent before.
class StreamWire final : public region::Wire {
 public:
  explicit StreamWire(std::shared_ptr<fabric::sim::Stream> stream, std::function<void()> on_cut)
      : stream_(std::move(stream)), on_cut_(std::move(on_cut)) {}
  int fd() const override { return -1; }
  int socket() const override { return -1; }
  bool tells_output() const override { return true; }
  ssize_t receive(std::span<uint8_t> into) override {
    if (is_cut_) return 0;
    const iovec segment{into.data(), into.size()};
    return stream_->receive({&segment, 1});
  }
  ssize_t send(std::span<const uint8_t> data, bool) override {
    const iovec segment{const_cast<uint8_t*>(data.data()), data.size()};
    return stream_->send({&segment, 1});
  }
  bool drained() override { return true; }
  void cut(std::span<const uint8_t> last_words) override {
    if (std::exchange(is_cut_, true)) return;
    if (!last_words.empty()) send(last_words, false);
    stream_->close();
    on_cut_();
  }
  std::string describe_peer() const override { return "host " + std::to_string(stream_->peer_host()); }
  std::string local_address() const override { return {}; }

 private:
  std::shared_ptr<fabric::sim::Stream> stream_;
  std::function<void()> on_cut_;
  bool is_cut_ = false;
};

}  // namespace

/// A connection and what it waits for.
class Appliance::Served final : public fabric::sim::StreamUser, public std::enable_shared_from_this<Served> {
 public:
  Served(Appliance& owner, uint64_t number, std::shared_ptr<fabric::sim::Stream> stream)
      : owner_(owner), number_(number), stream_(std::move(stream)) {}

  void begin() {
    auto on_cut = [this, weak = weak_from_this()] { come_back(0, weak); };
    connection_ = std::make_shared<region::Connection>(std::make_unique<StreamWire>(stream_, on_cut), *owner_.service_);
    stream_->set_user(this);
  }
  void end() {
    stream_->set_user(nullptr);
    stream_->close();
    if (auto connection = std::exchange(connection_, nullptr)) connection->end();
  }
  bool on_input() override { return wants_ == region::Connection::Wants::read && advance(); }
  void on_room() override { advance(); }

 private:
  /// Whether it wants more of what comes.
  bool advance() {
    if (!connection_) return false;
    wants_ = connection_->advance();
    if (wants_ == region::Connection::Wants::retry) come_back(kBusyNs, weak_from_this());
    if (wants_ == region::Connection::Wants::close) {
      owner_.remove(number_);
      return false;
    }
    if (wants_ != region::Connection::Wants::read) return false;
    if (stream_->readable()) stream_->announce();
    return true;
  }
  void come_back(uint64_t after_ns, const std::weak_ptr<Served>& weak) {
    owner_.network_.world().after(after_ns, [weak] {
      if (auto self = weak.lock()) self->advance();
    });
  }

  Appliance& owner_;
  const uint64_t number_;
  std::shared_ptr<fabric::sim::Stream> stream_;
  std::shared_ptr<region::Connection> connection_;
  region::Connection::Wants wants_ = region::Connection::Wants::read;
};

Appliance::Appliance(Network& network, unsigned index)
    : network_(network),
      index_(index),
      address_("appliance" + std::to_string(index)),
      host_(network.add_host(address_)),
      incarnation_(1000 * (index + 1)) {
  network_.listen(host_, [this](std::shared_ptr<fabric::sim::Stream> stream) {
    auto served = std::make_shared<Served>(*this, ++next_served_, std::move(stream));
    served_.emplace(next_served_, served);
    served->begin();
  });
  start();
}

Appliance::~Appliance() { stop(false); }

void Appliance::start() {
  region::RegionServer::Options options;
  options.cluster_key = cluster_key();
  options.incarnation = ++incarnation_;
  options.donated_bytes = kDonatedBytes;
  service_ = std::make_unique<region::Service>(options);
  network_.start_host(host_);
}

void Appliance::stop(bool silently) {
  if (!running()) return;
  network_.stop_host(host_, silently);
  for (auto& [number, served] : std::exchange(served_, {})) served->end();
  for (auto& region : service_->regions.all()) service_->regions.remove(region->id())->destroy();
  service_.reset();
}

void Appliance::remove(uint64_t number) {
  auto found = served_.find(number);
  if (found == served_.end()) return;
  const auto kept = std::move(found->second);
  served_.erase(found);
  kept->end();
}

bool Appliance::create_region(uint64_t id, uint64_t bytes) {
  region::Status status = region::Status::ok;
  auto region = region::Region::create({.id = id, .bytes = bytes, .thin = false}, service_->account, status);
  if (region) service_->regions.insert(std::move(region));
  return status == region::Status::ok;
}

void Appliance::fence(uint64_t client) {
  service_->links.fence({.first = client, .last = client});
  for (auto& region : service_->regions.all()) {
    region->revoke([this](uint64_t holder, const region::Grant&) { return service_->links.fenced(holder); });
  }
}

std::vector<region::RecordInfo> Appliance::records() const {
  std::vector<region::RecordInfo> records;
  for (auto& region : service_->regions.all()) region->append_records(records);
  return records;
}

}  // namespace extmem::simulation
