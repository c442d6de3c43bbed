#include "region/region_server.h"

#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "base/assert.h"
#include "base/socket.h"
#include "region/keeper.h"
#include "region/service_thread.h"
#include "region/sums.h"
#include "region/verbs/verbs_acceptor.h"

namespace extmem::region {

namespace {

constexpr int kStreamBacklog = 256;

class Server final : public RegionServer {
 public:
  explicit Server(const Options& options) : service_(options) {}
  ~Server() override { close(); }

  bool open_store(const StoreOptions& options, std::string& error);
  bool open(const Options& options, std::string& error);
  uint16_t port() const override { return ports_[0]; }
  const std::vector<uint16_t>& ports() const override { return ports_; }
  bool serves_verbs() const override { return serves_verbs_; }

  Status create_region(uint64_t id, uint64_t bytes, bool thin) override;
  Status resize_region(uint64_t id, uint64_t bytes) override;
  Status destroy_region(uint64_t id) override;
  Status punch_region(uint64_t id, uint64_t offset, uint64_t bytes) override;
  void fence_clients(std::span<const ClientRange> clients) override;
  Status set_access(uint64_t region, uint32_t version, std::span<const uint64_t> keep) override;
  void end_overdue() override;
  void set_link_addresses(std::vector<std::string> addresses) override { service_.addresses.set(std::move(addresses)); }
  void offer_memory(uint64_t bytes) override { service_.account.offer(bytes); }
  std::vector<RegionInfo> list_regions() const override;
  std::optional<RegionInfo> region(uint64_t id) const override;
  std::vector<RecordInfo> list_records() const override;
  std::vector<uint64_t> take_written(uint64_t region) override;
  std::optional<Status> write(uint64_t region, uint64_t offset, std::span<const uint8_t> data) override;
  Status sum(uint64_t region, uint64_t offset, uint64_t bytes, std::vector<uint64_t>& sums) override;
  Status put_record(uint64_t region, uint64_t ino, std::vector<uint8_t> bytes) override;
  Status remove_record(uint64_t region, uint64_t ino) override;
  Memory memory() const override;
  Counters counters() const override;
  void close() override;

  uint64_t incarnation() const override { return service_.incarnation; }
  const std::vector<RestoredRegion>& restored() const override { return restored_; }
  std::optional<StoreStatus> store_status() const override;
  std::string persist(const std::vector<Piece>& pieces, Freed* freed,
                      const std::function<void(const PersistProgress&)>& tell) override;
  std::string persist_in_background() override;
  void end_background() override {
    if (keeper_) keeper_->end_background();
  }
  std::string persist_last(const std::function<void(const PersistProgress&)>& tell) override;
  std::string settle_freed(const std::vector<Piece>& pieces) override;
  std::string settle_destroyed(const std::vector<uint64_t>& regions) override;

 private:
  bool open_tcp(const ListenPoint& point, std::string& error);
  bool open_more(const ListenPoint& point, std::string& error);
  bool open_local(const Options& options, std::string& error);
  bool open_verbs(const std::string& address, uint16_t port);
  void listen(std::unique_ptr<Acceptor> acceptor);

  Service service_;
  std::vector<uint16_t> ports_;
  bool serves_verbs_ = false;
  std::vector<std::unique_ptr<ServiceThread>> threads_;
  std::unique_ptr<Keeper> keeper_;  // null: there is no store
  std::vector<RestoredRegion> restored_;
  size_t next_thread_ = 0;  // the first serving thread's: it accepts
};

std::string describe_failure(const std::string& what, const std::string& advice) {
  return what + ": " + std::strerror(errno) + "; " + advice;
}

}  // namespace

std::unique_ptr<RegionServer> RegionServer::create(const Options& options, std::string& error, bool* store_failed) {
  auto server = std::make_unique<Server>(options);
  if (!options.store.path.empty() && !server->open_store(options.store, error)) {
    if (store_failed != nullptr) *store_failed = true;
    return nullptr;
  }
  for (const AccessVersion& access : options.access) server->set_access(access.region, access.version, {});
  if (!server->open(options, error)) return nullptr;
  return server;
}

namespace {

bool Server::open(const Options& options, std::string& error) {
  for (unsigned index = 0; index < std::max(1u, options.threads); ++index) {
    threads_.push_back(
        std::make_unique<ServiceThread>(service_, PollWindow(options.poll_ns, options.poll_shortest_ns)));
  }
  if (!open_tcp({.address = options.listen_address, .port = options.port}, error)) return false;
  serves_verbs_ = open_verbs(options.listen_address, port());
  for (const ListenPoint& point : options.more_points) {
    if (!open_more(point, error)) return false;
    if (!open_verbs(point.address, ports_.back())) serves_verbs_ = false;
  }
  if (!options.link_name.empty() && !open_local(options, error)) return false;
  for (auto& thread : threads_) thread->start();
  if (keeper_) keeper_->start();
  return true;
}

bool Server::open_store(const StoreOptions& options, std::string& error) {
  Keeper::Options asked{.path = options.path,
                        .store = {.limit_bytes = options.limit_bytes},
                        .lazily = options.lazily,
                        .bytes_per_second = options.bytes_per_second};
  asked.store.codec.compress = options.compress;
  if (!options.key.empty()) {
    auto& key = asked.store.codec.key.emplace();
    EXTMEM_ASSERT(options.key.size() == key.size());
    std::copy(options.key.begin(), options.key.end(), key.begin());
  }
  keeper_ = Keeper::open(asked, service_.regions, service_.account, error);
  if (!keeper_) return false;
  const uint64_t ended = keeper_->ended_incarnation();
  restored_ = keeper_->restore();
  if (ended != 0 && std::all_of(restored_.begin(), restored_.end(), [](auto& one) { return one.exact; }))
    service_.incarnation = ended;
  // Whatever is acknowledged from now on is newer than what is stored.
  error = keeper_->begin_serving().why;
  return error.empty();
}

/// One port for all addresses is easier on firewalls, where it can be had.
bool Server::open_more(const ListenPoint& point, std::string& error) {
  if (point.port == 0 && open_tcp({.address = point.address, .port = port()}, error)) return true;
  return open_tcp(point, error);
}

bool Server::open_tcp(const ListenPoint& point, std::string& error) {
  const std::string place = point.address + " port " + std::to_string(point.port);
  auto address = parse_tcp_address(point.address, point.port);
  if (!address) {
    error = "listening on " + place + ": not a numeric address; give an IPv4 or IPv6 address of this machine";
    return false;
  }
  UniqueFd fd(socket(address->storage.ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  const int one = 1;
  if (fd) setsockopt(fd.get(), SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
  if (!fd || bind(fd.get(), address->raw(), address->bytes) != 0 || ::listen(fd.get(), kStreamBacklog) != 0) {
    error = describe_failure("listening on " + place, "choose another address or port");
    return false;
  }
  sockaddr_storage bound{};
  socklen_t bytes = sizeof bound;
  getsockname(fd.get(), reinterpret_cast<sockaddr*>(&bound), &bytes);
  // sin_port and sin6_port lie at the same place.
  uint16_t port_be;
  std::memcpy(&port_be, reinterpret_cast<char*>(&bound) + sizeof(sa_family_t), sizeof port_be);
  ports_.push_back(__builtin_bswap16(port_be));
  listen(std::make_unique<SocketAcceptor>(std::move(fd), true));
  return true;
}

bool Server::open_local(const Options& options, std::string& error) {
  auto address = make_abstract_address(options.link_name);
  if (!address) {
    error = "listening on the link " + options.link_name + ": the name is too long; use at most 100 characters";
    return false;
  }
  UniqueFd fd(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd || bind(fd.get(), address->raw(), address->bytes) != 0 || ::listen(fd.get(), kStreamBacklog) != 0) {
    error =
        describe_failure("listening on the link " + options.link_name, "is another appliance of that name running?");
    return false;
  }
  listen(std::make_unique<SocketAcceptor>(std::move(fd), false));
  return true;
}

/// On tcp's address and port, where an RDMA device has it. Everything goes by tcp otherwise.
bool Server::open_verbs(const std::string& address, uint16_t port) {
  auto acceptor = VerbsAcceptor::create(*parse_tcp_address(address, port));
  if (!acceptor) return false;
  listen(std::move(acceptor));
  return true;
}

void Server::listen(std::unique_ptr<Acceptor> acceptor) {
  threads_[0]->listen(std::move(acceptor), [this](std::unique_ptr<Wire> accepted) {
    threads_[next_thread_++ % threads_.size()]->adopt(std::move(accepted));
  });
}

Status Server::create_region(uint64_t id, uint64_t bytes, bool thin) {
  if (service_.regions.find(id)) return Status::bad_request;
  Status status = Status::ok;
  auto region =
      Region::create({.id = id, .bytes = bytes, .thin = thin, .kept = keeper_ != nullptr}, service_.account, status);
  if (region && keeper_) keeper_->answer_for(*region);
  if (region) service_.regions.insert(std::move(region));
  return status;
}

Status Server::resize_region(uint64_t id, uint64_t bytes) {
  auto region = service_.regions.find(id);
  return region ? region->resize(bytes) : Status::not_present;
}

Status Server::destroy_region(uint64_t id) {
  auto region = service_.regions.remove(id);
  if (!region) return Status::not_present;
  region->destroy();
  return Status::ok;
}

Status Server::punch_region(uint64_t id, uint64_t offset, uint64_t bytes) {
  auto region = service_.regions.find(id);
  if (!region) return Status::not_present;
  for (;;) {  // an edge that was brought may be given back before it is punched
    if (const Status status = keeper_ ? keeper_->bring_edges(*region, offset, bytes) : Status::ok; status != Status::ok)
      return status;
    if (const auto status = region->punch(offset, bytes)) return *status;
  }
}

void Server::fence_clients(std::span<const ClientRange> clients) {
  // First the connections: afterwards no descriptor can be handed to them any more.
  size_t met = 0;
  for (const ClientRange& range : clients) met += service_.links.fence(range);
  auto fenced = [this](uint64_t client, const Grant&) { return service_.links.fenced(client); };
  for (auto& region : service_.regions.all()) region->revoke(fenced);
  service_.fenced_clients.fetch_add(met, std::memory_order_relaxed);
}

Status Server::set_access(uint64_t region_id, uint32_t version, std::span<const uint64_t> keep) {
  auto region = service_.regions.find(region_id);
  if (!region) return Status::not_present;
  const AccessChange change{.region = region_id, .version = version, .keeps = [keep](uint64_t client) {
                              return std::find(keep.begin(), keep.end(), client) != keep.end();
                            }};
  region->raise_access_version(version);
  for (auto& connection : service_.links.connections()) connection->revise(change);
  region->revise_holders(change);
  return Status::ok;
}

void Server::end_overdue() {
  const uint64_t now = wall_ms();
  for (auto& connection : service_.links.connections()) connection->end_overdue(now);
  for (auto& region : service_.regions.all()) {
    region->revoke([now](uint64_t, const Grant& grant) { return grant.ended(now); });
  }
}

std::vector<RegionInfo> Server::list_regions() const {
  std::vector<RegionInfo> result;
  for (auto& region : service_.regions.all()) result.push_back(region->info());
  return result;
}

std::optional<RegionInfo> Server::region(uint64_t id) const {
  auto region = service_.regions.find(id);
  return region ? std::optional(region->info()) : std::nullopt;
}

std::vector<RecordInfo> Server::list_records() const {
  std::vector<RecordInfo> result;
  for (auto& region : service_.regions.all()) region->append_records(result);
  return result;
}

std::vector<uint64_t> Server::take_written(uint64_t region_id) {
  auto region = service_.regions.find(region_id);
  return region ? region->take_written() : std::vector<uint64_t>();
}

std::optional<Status> Server::write(uint64_t region_id, uint64_t offset, std::span<const uint8_t> data) {
  auto region = service_.regions.find(region_id);
  if (!region) return Status::not_present;
  const auto outcome = region->write(offset, data);
  return outcome ? std::optional(outcome->status) : std::nullopt;
}

Status Server::sum(uint64_t region_id, uint64_t offset, uint64_t bytes, std::vector<uint64_t>& sums) {
  auto region = service_.regions.find(region_id);
  return region ? sum_region(*region, offset, bytes, sums) : Status::not_present;
}

Status Server::put_record(uint64_t region_id, uint64_t ino, std::vector<uint8_t> bytes) {
  auto region = service_.regions.find(region_id);
  if (!region) return Status::not_present;
  // Busy only while this thread changes the region, which it does not; try_lock_shared may fail spuriously.
  for (;;) {
    if (auto outcome = region->put_record(ino, std::move(bytes))) return outcome->status;
  }
}

Status Server::remove_record(uint64_t region_id, uint64_t ino) {
  auto region = service_.regions.find(region_id);
  if (!region) return Status::not_present;
  for (;;) {
    if (auto outcome = region->remove_record(ino)) return outcome->status;
  }
}

Memory Server::memory() const {
  Memory memory{.offered = service_.account.offered(), .reserved = service_.account.reserved(), .resident = 0};
  for (auto& region : service_.regions.all()) memory.resident += region->info().resident_bytes;
  return memory;
}

Counters Server::counters() const {
  return {.connections = service_.connections.load(std::memory_order_relaxed),
          .refused = service_.refusals.count(),
          .operations = service_.operations.load(std::memory_order_relaxed),
          .bytes_read = service_.bytes_read.load(std::memory_order_relaxed),
          .bytes_written = service_.bytes_written.load(std::memory_order_relaxed),
          .fenced_clients = service_.fenced_clients.load(std::memory_order_relaxed)};
}

std::optional<StoreStatus> Server::store_status() const {
  return keeper_ ? std::optional(keeper_->status()) : std::nullopt;
}

std::string Server::persist(const std::vector<Piece>& pieces, Freed* freed,
                            const std::function<void(const PersistProgress&)>& tell) {
  return keeper_ ? keeper_->persist({.pieces = pieces, .freed = freed}, tell).why : "there is no backing store";
}

std::string Server::persist_in_background() {
  return keeper_ ? keeper_->persist({.background = true}, nullptr).why : "there is no backing store";
}

std::string Server::persist_last(const std::function<void(const PersistProgress&)>& tell) {
  if (!keeper_) return "there is no backing store";
  for (auto& thread : threads_) thread->stop();
  keeper_->stop();  // what comes home now would find the memory sealed
  // Whoever was given memory on this host writes there no more.
  for (auto& region : service_.regions.all()) region->end_writing();
  keeper_->end_background();
  return keeper_->persist({.ending = service_.incarnation}, tell).why;
}

std::string Server::settle_freed(const std::vector<Piece>& pieces) {
  return keeper_ ? keeper_->settle_freed(pieces).why : "";
}

std::string Server::settle_destroyed(const std::vector<uint64_t>& regions) {
  return keeper_ ? keeper_->remove(regions).why : "";
}

void Server::close() {
  end_background();
  if (keeper_) keeper_->stop();
  for (auto& thread : threads_) thread->stop();
  threads_.clear();
  for (auto& region : service_.regions.all()) destroy_region(region->id());
}

}  // namespace

}  // namespace extmem::region
