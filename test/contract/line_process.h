// A program of the contract suite in a process of its own, driven line by line over its stdin and stdout.
#pragma once

#include <sys/types.h>

#include <string>

namespace extmem::contract {

class LineProcess {
 public:
  /// One of those that are built beside the tests (contract.<name>_main).
  explicit LineProcess(const std::string& name);
  ~LineProcess();
  LineProcess(const LineProcess&) = delete;

  /// One line there, one line back.
  std::string command(const std::string& line);
  void signal(int number);
  /// SIGKILL, and waits for its end.
  void kill();
  pid_t pid() const { return pid_; }

 private:
  pid_t pid_ = -1;
  int to_ = -1, from_ = -1;
};

}  // namespace extmem::contract
