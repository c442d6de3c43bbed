// Starts, drives, stops and kills an appliance process (appliance_main.cc).
#pragma once

#include <cstdint>
#include <string>

#include "contract/line_process.h"

namespace extmem::contract {

constexpr uint8_t kClusterKeyByte = 7;

/// Where appliances of the tests listen: the address of an RDMA device, if the environment names one
/// (EXTMEM_TEST_VERBS), so that the same appliances are reached over verbs; else the loopback, which no such device
/// has.
std::string host_address();
/// Whether the suite runs over verbs too.
bool has_verbs();

class ApplianceProcess {
 public:
  struct Options {
    std::string address = host_address();
    uint16_t port = 0;
    std::string link_name{};  // chosen, unless "-" for none
    uint64_t incarnation = 1;
    uint64_t donated_bytes = uint64_t{1} << 30;
    unsigned threads = 1;
    uint64_t poll_ns = 200'000, poll_shortest_ns = 60'000;
  };
  ApplianceProcess() : ApplianceProcess(Options{}) {}
  explicit ApplianceProcess(const Options& options);
  /// One line there, one line back.
  std::string command(const std::string& line) { return process_.command(line); }
  int status(const std::string& line) { return std::stoi(command(line)); }
  void signal(int number) { process_.signal(number); }
  /// SIGKILL, and waits for its end.
  void kill() { process_.kill(); }
  pid_t pid() const { return process_.pid(); }

  uint16_t port() const { return port_; }
  const std::string& link_name() const { return options_.link_name; }
  uint64_t incarnation() const { return options_.incarnation; }

 private:
  Options options_;
  LineProcess process_{"appliance"};
  uint16_t port_ = 0;
};

}  // namespace extmem::contract
