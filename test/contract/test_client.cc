#include "contract/test_client.h"

#include <cstdlib>
#include <utility>

#include "base/assert.h"
#include "base/clock.h"

namespace extmem::contract {

namespace {

constexpr const char* kHost = "this-host";

class Gate {
 public:
  void open() {
    std::lock_guard guard(lock_);
    opened_ = true;
    changed_.notify_all();
  }
  void wait() {
    std::unique_lock guard(lock_);
    changed_.wait(guard, [this] { return opened_; });
  }

 private:
  std::mutex lock_;
  std::condition_variable changed_;
  bool opened_ = false;
};

struct Work final : Message {
  std::function<void()> work;
  Gate gate;
  void run() override {
    work();
    gate.open();
  }
};

struct Waiting {
  Gate gate;
  size_t left = 0;
};

}  // namespace

Key cluster_key() {
  Key key;
  key.fill(kClusterKeyByte);
  return key;
}

fabric::Credentials make_credentials(uint64_t client, uint32_t generation) {
  return {
      .client = client, .client_generation = generation, .key = derive_client_key(cluster_key(), client, generation)};
}

protocol::Capability make_capability(const fabric::Credentials& credentials, uint64_t region, uint32_t rights) {
  protocol::Capability capability{};
  capability.client = credentials.client;
  capability.client_generation = credentials.client_generation;
  capability.rights = rights;
  capability.region = region;
  capability.mac = compute_capability_mac(cluster_key(), capability);
  return capability;
}

namespace {

/// EXTMEM_TEST_TRANSPORT leaves only those of one kind: where a machine is there for one of them.
std::vector<Transport> wanted_of(std::vector<Transport> all) {
  const char* wanted = std::getenv("EXTMEM_TEST_TRANSPORT");
  if (wanted == nullptr) return all;
  std::erase_if(all, [&](const Transport& one) { return std::string(one.name).find(wanted) == std::string::npos; });
  EXTMEM_ASSERT(!all.empty());
  return all;
}

}  // namespace

std::vector<Transport> plain_transports() {
  std::vector<Transport> all{{"shm", fabric::TransportKind::shm, nullptr},
                             {"tcp", fabric::TransportKind::tcp, nullptr}};
  if (has_verbs()) all.push_back({"verbs", fabric::TransportKind::verbs, nullptr});
  return wanted_of(std::move(all));
}

std::vector<Transport> all_transports() {
  constexpr const char* kFaults = "delay=0.1:300us,reorder=0.1,cut=0.002";
  std::vector<Transport> all = plain_transports();
  std::vector<Transport> faulty{{"fault(tcp)", fabric::TransportKind::tcp, kFaults}};
  if (has_verbs()) faulty.push_back({"fault(verbs)", fabric::TransportKind::verbs, kFaults});
  for (const Transport& one : wanted_of(std::move(faulty))) all.push_back(one);
  return all;
}

TestClient::TestClient(const Options& options) : options_(options) {
  for (unsigned index = 0; index < options.reactors; ++index) {
    Lane lane;
    lane.reactor = std::make_unique<Reactor>(Reactor::Options{.index = index});
    fabric::Fabric::Options fabric_options;
    fabric_options.credentials = options.credentials;
    fabric_options.transport = options.transport.kind;
    fabric_options.host_id = kHost;
    fabric_options.operation_deadline_ms = options.operation_deadline_ms;
    if (options.transport.faults != nullptr) {
      fabric_options.fault_seed = options.fault_seed;
      fabric_options.fault_plan = options.transport.faults;
    }
    lane.fabric = fabric::Fabric::create(*lane.reactor, directory_, fabric_options);
    lane.thread = std::thread([reactor = lane.reactor.get()] { reactor->run(); });
    lanes_.push_back(std::move(lane));
  }
}

TestClient::~TestClient() {
  close_fabrics();
  for (Lane& lane : lanes_) {
    lane.reactor->stop();
    lane.thread.join();
    lane.fabric.reset();
  }
}

void TestClient::close_fabrics() {
  for (unsigned index = 0; index < lanes_.size(); ++index) {
    on_reactor([](Reactor&, fabric::Fabric& fabric) { fabric.close(); }, index);
  }
}

fabric::LinkTotals TestClient::totals(fabric::Appliance& appliance) {
  std::lock_guard guard(appliance.lock);
  fabric::LinkTotals sum;
  for (auto& one : appliance.statistics) one->add_to(sum);
  return sum;
}

fabric::Appliance& TestClient::add_appliance(const ApplianceProcess& process, uint16_t port) {
  return directory_.put_appliance("appliance-" + process.link_name(), kHost, host_address(),
                                  port != 0 ? port : process.port(), process.link_name(), process.incarnation());
}

fabric::Appliance& TestClient::add_appliance(const ApplianceProcess& process, const std::vector<uint16_t>& ports) {
  std::vector<fabric::Endpoint> more;
  for (size_t index = 1; index < ports.size(); ++index)
    more.push_back({.address = host_address(), .port = ports[index]});
  return directory_.put_appliance("appliance-" + process.link_name(), "another-host", host_address(), ports[0], "",
                                  process.incarnation(), false, more);
}

fabric::Region& TestClient::add_region(fabric::Appliance& appliance, uint64_t id, uint64_t bytes, uint32_t rights) {
  return directory_.put_region(id, bytes, appliance, make_capability(options_.credentials, id, rights));
}

void TestClient::on_reactor(const std::function<void(Reactor&, fabric::Fabric&)>& work, unsigned reactor) {
  Lane& lane = lanes_[reactor];
  Work message;
  message.work = [&] { work(*lane.reactor, *lane.fabric); };
  lane.reactor->post(message);
  message.gate.wait();
}

Status TestClient::run(Operation& operation, unsigned reactor) {
  Gate gate;
  operation.context = &gate;
  operation.complete = [](Operation& done) { static_cast<Gate*>(done.context)->open(); };
  on_reactor([&](Reactor&, fabric::Fabric& fabric) { fabric.submit(operation); }, reactor);
  gate.wait();
  return operation.status;
}

void TestClient::run_all(std::vector<Operation>& operations, unsigned reactor) {
  if (operations.empty()) return;
  Waiting waiting;
  waiting.left = operations.size();
  on_reactor(
      [&](Reactor&, fabric::Fabric& fabric) {
        for (Operation& operation : operations) {
          operation.context = &waiting;
          operation.complete = [](Operation& done) {
            auto* all = static_cast<Waiting*>(done.context);
            if (--all->left == 0) all->gate.open();
          };
          fabric.submit(operation);
        }
      },
      reactor);
  waiting.gate.wait();
}

Status TestClient::read(fabric::Region& region, uint64_t offset, std::vector<uint8_t>& into, unsigned reactor) {
  iovec segment{.iov_base = into.data(), .iov_len = into.size()};
  Operation operation;
  operation.op = Op::read;
  operation.region = &region;
  operation.offset = offset;
  operation.segments = &segment;
  operation.segment_count = 1;
  operation.bytes = static_cast<uint32_t>(into.size());
  return run(operation, reactor);
}

Status TestClient::write(fabric::Region& region, uint64_t offset, const std::vector<uint8_t>& data, unsigned reactor) {
  iovec segment{.iov_base = const_cast<uint8_t*>(data.data()), .iov_len = data.size()};
  Operation operation;
  operation.op = Op::write;
  operation.region = &region;
  operation.offset = offset;
  operation.segments = &segment;
  operation.segment_count = 1;
  operation.bytes = static_cast<uint32_t>(data.size());
  return run(operation, reactor);
}

Status TestClient::put_record(fabric::Region& region, uint64_t ino, const std::string& text) {
  iovec segment{.iov_base = const_cast<char*>(text.data()), .iov_len = text.size()};
  Operation operation;
  operation.op = Op::put_record;
  operation.region = &region;
  operation.operand = ino;
  operation.segments = &segment;
  operation.segment_count = 1;
  operation.bytes = static_cast<uint32_t>(text.size());
  return run(operation);
}

}  // namespace extmem::contract
