#include "contract/appliance_process.h"

#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <sstream>

#include "base/assert.h"

namespace extmem::contract {

namespace {

std::string fresh_link_name() {
  static std::atomic<unsigned> count{0};
  return "extmem-contract-" + std::to_string(getpid()) + "-" + std::to_string(++count);
}

}  // namespace

bool has_verbs() { return std::getenv("EXTMEM_TEST_VERBS") != nullptr; }

std::string host_address() {
  const char* address = std::getenv("EXTMEM_TEST_VERBS");
  return address != nullptr ? address : "127.0.0.1";
}

ApplianceProcess::ApplianceProcess(const Options& options) : options_(options) {
  if (options_.link_name.empty()) options_.link_name = fresh_link_name();
  std::ostringstream line;
  line << "start " << options_.address << ' ' << options_.port << ' ' << options_.link_name << ' '
       << unsigned{kClusterKeyByte} << ' ' << options_.incarnation << ' ' << options_.donated_bytes << ' '
       << options_.threads << ' ' << options_.poll_ns << ' ' << options_.poll_shortest_ns;
  const std::string answer = command(line.str());
  if (answer.rfind("error", 0) == 0) fail_invariant(__FILE__, __LINE__, answer.c_str());
  port_ = static_cast<uint16_t>(std::stoi(answer));
}

}  // namespace extmem::contract
