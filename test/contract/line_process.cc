#include "contract/line_process.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>

#include "base/assert.h"

namespace extmem::contract {

LineProcess::LineProcess(const std::string& name) {
  const char* folder = std::getenv("EXTMEM_BIN");
  const std::string path =
      std::string(folder != nullptr ? folder : "build/native/plain/bin") + "/contract." + name + "_main";
  int to[2], from[2];
  EXTMEM_ASSERT(pipe2(to, O_CLOEXEC) == 0 && pipe2(from, O_CLOEXEC) == 0);
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
}

LineProcess::~LineProcess() {
  kill();
  close(to_);
  close(from_);
}

std::string LineProcess::command(const std::string& line) {
  const std::string sent = line + "\n";
  EXTMEM_ASSERT(write(to_, sent.data(), sent.size()) == static_cast<ssize_t>(sent.size()));
  std::string answer;
  for (char letter; read(from_, &letter, 1) == 1 && letter != '\n';) answer += letter;
  return answer;
}

void LineProcess::signal(int number) {
  ::kill(pid_, number);
  if (number == SIGSTOP) waitpid(pid_, nullptr, WUNTRACED);  // its threads go on for a moment
}

void LineProcess::kill() {
  if (pid_ < 0) return;
  signal(SIGKILL);
  waitpid(pid_, nullptr, 0);
  pid_ = -1;
}

}  // namespace extmem::contract
