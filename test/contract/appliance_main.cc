// An appliance's native half in a process of its own, driven line by line over stdin and stdout: what the contract
// suite and the benchmarks talk to, kill, stop and restart.
#include <signal.h>
#include <sys/prctl.h>
#include <sys/resource.h>

#include <array>
#include <cstdio>
#include <iostream>
#include <mutex>
#include <sstream>
#include <string>

#include "base/keys.h"
#include "region/region_server.h"

namespace {

using extmem::region::RegionServer;
using extmem::region::Status;

class Driver {
 public:
  std::string execute(const std::string& line) {
    std::istringstream words(line);
    std::string verb;
    words >> verb;
    if (verb == "start") return start(words);
    if (!server_) return "error not started";
    if (verb == "links") {
      std::vector<std::string> addresses;
      for (std::string address; words >> address;) addresses.push_back(address);
      server_->set_link_addresses(addresses);
      return "0";
    }
    uint64_t id = 0, first = 0, second = 0;
    words >> id >> first >> second;
    if (verb == "create") return tell(server_->create_region(id, first, second != 0));
    if (verb == "resize") return tell(server_->resize_region(id, first));
    if (verb == "destroy") return tell(server_->destroy_region(id));
    if (verb == "punch") return tell(server_->punch_region(id, first, second));
    if (verb == "fence") {
      server_->fence_clients(std::array{extmem::region::ClientRange{.first = id, .last = first}});
      return "0";
    }
    if (verb == "access") {  // the region, the version, one client that keeps what it has (0: nobody)
      return tell(server_->set_access(id, static_cast<uint32_t>(first), std::array{second}));
    }
    return report(verb, id);
  }

 private:
  static std::string tell(Status status) { return std::to_string(static_cast<int>(status)); }

  std::string start(std::istringstream& words) {
    RegionServer::Options options;
    unsigned key_byte = 0;
    words >> options.listen_address >> options.port >> options.link_name >> key_byte >> options.incarnation >>
        options.donated_bytes >> options.threads >> options.poll_ns >> options.poll_shortest_ns;
    if (options.link_name == "-") options.link_name.clear();
    options.cluster_key.fill(static_cast<uint8_t>(key_byte));
    options.on_refused = [this](const std::string& peer, const std::string& why) {
      std::lock_guard guard(lock_);
      refusals_ += peer + ": " + why + "; ";
    };
    std::string error;
    server_ = RegionServer::create(options, error);
    return server_ ? std::to_string(server_->port()) : "error " + error;
  }

  std::string report(const std::string& verb, uint64_t id) {
    std::ostringstream out;
    if (verb == "memory") {
      const auto memory = server_->memory();
      out << memory.offered << ' ' << memory.reserved << ' ' << memory.resident;
    } else if (verb == "region") {
      const auto info = server_->region(id);
      if (!info) return "error no such region";
      out << info->bytes << ' ' << info->resident_bytes << ' ' << info->epoch;
    } else if (verb == "records") {
      for (auto& record : server_->list_records()) {
        out << record.region << ':' << record.ino << ':' << std::string(record.bytes.begin(), record.bytes.end())
            << ' ';
      }
    } else if (verb == "written") {
      for (const uint64_t chunk : server_->take_written(id)) out << chunk << ' ';
    } else if (verb == "refusals") {
      std::lock_guard guard(lock_);
      out << refusals_;
    } else if (verb == "connections") {
      out << server_->counters().connections;
    } else if (verb == "operations") {
      out << server_->counters().operations;
    } else if (verb == "serves_verbs") {
      out << server_->serves_verbs();
    } else if (verb == "overdue") {
      server_->end_overdue();
    } else if (verb == "cpu") {
      rusage usage{};
      getrusage(RUSAGE_SELF, &usage);
      out << usage.ru_utime.tv_sec * 1'000'000 + usage.ru_utime.tv_usec + usage.ru_stime.tv_sec * 1'000'000 +
                 usage.ru_stime.tv_usec;
    } else {
      return "error unknown command";
    }
    return out.str();
  }

  std::mutex lock_;
  std::string refusals_;
  std::unique_ptr<RegionServer> server_;
};

}  // namespace

int main() {
  prctl(PR_SET_PDEATHSIG, SIGKILL);  // a test that crashes leaves nothing behind
  Driver driver;
  for (std::string line; std::getline(std::cin, line);) std::cout << driver.execute(line) << std::endl;
}
