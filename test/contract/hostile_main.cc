// A client that was let in over shared memory, in a process of its own, and does with what it was lent whatever the
// kernel lets it. Driven line by line; answers what came of it, an errno negated.
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <unistd.h>

#include <cerrno>
#include <iostream>
#include <map>
#include <sstream>
#include <string>

#include "contract/test_client.h"

using namespace extmem;
using namespace extmem::contract;

namespace {

sigjmp_buf bus_error;

long tell(long result) { return result < 0 ? -errno : result; }

class Hostile {
 public:
  std::string execute(const std::string& line) {
    std::istringstream words(line);
    std::string verb;
    words >> verb;
    if (verb == "join") return join(words);
    // As a user whom the appliance would lend nothing.
    if (verb == "drop") return std::to_string(tell(setresuid(65534, 65534, 65534)));
    uint64_t region = 0, first = 0, second = 0;
    words >> region >> first >> second;
    if (verb == "take") return take(region, first, static_cast<uint32_t>(second));
    if (verb == "keep") return keep(region);
    if (!descriptors_.contains(region)) return "no such region";
    return std::to_string(abuse(verb, region, first, second));
  }

 private:
  std::string join(std::istringstream& words) {
    uint64_t client = 0, incarnation = 0;
    uint16_t port = 0;
    std::string link;
    words >> client >> link >> port >> incarnation;
    client_ = std::make_unique<TestClient>(TestClient::Options{
        .transport = {"shm", fabric::TransportKind::shm, nullptr}, .credentials = make_credentials(client, 1)});
    appliance_ = &client_->directory().put_appliance("appliance", "this-host", "127.0.0.1", port, link, incarnation);
    return "0";
  }

  std::string take(uint64_t id, uint64_t bytes, uint32_t rights) {
    fabric::Region& region = client_->add_region(*appliance_, id, bytes, rights);
    std::vector<uint8_t> page(4096);
    const Status status = client_->read(region, 0, page);
    if (region.shm_fd < 0) return "not lent, status " + std::to_string(static_cast<int>(status));
    descriptors_[id] = fcntl(region.shm_fd, F_DUPFD_CLOEXEC, 0);
    bytes_[id] = bytes;
    return std::to_string(static_cast<int>(status));
  }

  std::string keep(uint64_t id) {
    const bool writable = (fcntl(descriptors_[id], F_GETFL) & O_ACCMODE) == O_RDWR;
    void* memory = mmap(nullptr, bytes_[id], PROT_READ | (writable ? PROT_WRITE : 0), MAP_SHARED, descriptors_[id], 0);
    if (memory == MAP_FAILED) return std::to_string(-errno);
    mapped_ = static_cast<volatile uint8_t*>(memory);
    return "0";
  }

  long abuse(const std::string& verb, uint64_t region, uint64_t first, uint64_t second) {
    int& fd = descriptors_[region];
    const auto at = static_cast<off_t>(first);
    if (verb == "write") {
      const std::vector<uint8_t> page(4096, static_cast<uint8_t>(second));
      return tell(pwrite(fd, page.data(), page.size(), at));
    }
    if (verb == "read") {
      uint8_t byte;
      return pread(fd, &byte, 1, at) == 1 ? byte : -1;
    }
    if (verb == "cut") return tell(ftruncate(fd, at));
    if (verb == "populate") return tell(fallocate(fd, 0, at, static_cast<off_t>(second)));
    if (verb == "seal") return tell(fcntl(fd, F_ADD_SEALS, static_cast<int>(first)));
    if (verb == "lease") return tell(fcntl(fd, F_SETLEASE, static_cast<int>(first)));
    if (verb == "load") return touch([&] { return mapped_[first]; });
    if (verb == "store")
      return touch([&] {
        mapped_[first] = static_cast<uint8_t>(second);
        return mapped_[first];
      });
    if (verb == "reopen") {
      const int fresh = open(("/proc/self/fd/" + std::to_string(fd)).c_str(), O_RDWR | O_CLOEXEC);
      if (fresh < 0) return -errno;
      fd = fresh;
      return 0;
    }
    return -ENOSYS;
  }

  /// What was loaded or stored; -EFAULT: the memory is not there any more.
  template <typename Access>
  static long touch(Access access) {
    if (sigsetjmp(bus_error, 1) != 0) return -EFAULT;
    return access();
  }

  std::unique_ptr<TestClient> client_;
  fabric::Appliance* appliance_ = nullptr;
  std::map<uint64_t, int> descriptors_;
  std::map<uint64_t, uint64_t> bytes_;
  volatile uint8_t* mapped_ = nullptr;
};

}  // namespace

int main() {
  prctl(PR_SET_PDEATHSIG, SIGKILL);  // a test that crashes leaves nothing behind
  signal(SIGBUS, [](int) { siglongjmp(bus_error, 1); });
  signal(SIGIO, SIG_IGN);  // a lease is to be given back: it is not
  Hostile hostile;
  for (std::string line; std::getline(std::cin, line);) std::cout << hostile.execute(line) << std::endl;
}
