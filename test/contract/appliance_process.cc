#include "contract/appliance_process.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <sstream>

#include "base/assert.h"

namespace extmem::contract {

namespace {

std::string binary_path() {
  const char* folder = std::getenv("EXTMEM_BIN");
  return std::string(folder != nullptr ? folder : "build/native/plain/bin") + "/contract.appliance_main";
}

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
  int to[2], from[2];
  EXTMEM_ASSERT(pipe2(to, O_CLOEXEC) == 0 && pipe2(from, O_CLOEXEC) == 0);
  const std::string path = binary_path();
  pid_ = fork();
  if (pid_ == 0) {
    dup2(to[0], STDIN_FILENO);
    dup2(from[1], STDOUT_FILENO);
    execl(path.c_str(), path.c_str(), nullptr);
    _exit(127);
  }
  close(to[0]);
  close(from[1]);
  to_ = to[1];
  from_ = from[0];
  std::ostringstream line;
  line << "start " << options_.address << ' ' << options_.port << ' ' << options_.link_name << ' '
       << unsigned{kClusterKeyByte} << ' ' << options_.incarnation << ' ' << options_.donated_bytes << ' '
       << options_.threads;
  const std::string answer = command(line.str());
  if (answer.rfind("error", 0) == 0) fail_invariant(__FILE__, __LINE__, answer.c_str());
  port_ = static_cast<uint16_t>(std::stoi(answer));
}

ApplianceProcess::~ApplianceProcess() {
  kill();
  close(to_);
  close(from_);
}

std::string ApplianceProcess::command(const std::string& line) {
  const std::string sent = line + "\n";
  EXTMEM_ASSERT(write(to_, sent.data(), sent.size()) == static_cast<ssize_t>(sent.size()));
  std::string answer;
  for (char letter; read(from_, &letter, 1) == 1 && letter != '\n';) answer += letter;
  return answer;
}

void ApplianceProcess::signal(int number) {
  ::kill(pid_, number);
  if (number == SIGSTOP) waitpid(pid_, nullptr, WUNTRACED);  // its threads go on for a moment
}

void ApplianceProcess::kill() {
  if (pid_ < 0) return;
  signal(SIGKILL);
  waitpid(pid_, nullptr, 0);
  pid_ = -1;
}

}  // namespace extmem::contract
