#include "fuse/mount_point.h"

#include <errno.h>
#include <fcntl.h>
#include <spawn.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>
#include <fstream>
#include <sstream>
#include <vector>

extern char** environ;

namespace extmem::fuse {

namespace {

MountResult failure(const std::string& code, const std::string& message) { return {-1, code, message}; }

MountResult open_device() {
  int fd = open("/dev/fuse", O_RDWR | O_CLOEXEC | O_NONBLOCK);
  if (fd >= 0) return {fd, "", ""};
  if (errno == ENOENT) return failure("ENODEV", "there is no /dev/fuse: load the kernel's fuse module (modprobe fuse)");
  return failure("EACCES", std::string("cannot open /dev/fuse: ") + strerror(errno));
}

MountResult mount_as_root(const std::string& mount_point) {
  MountResult device = open_device();
  if (device.fd < 0) return device;
  char options[256];
  std::snprintf(options, sizeof options,
                "fd=%d,rootmode=40000,user_id=%u,group_id=%u,allow_other,default_permissions,max_read=1048576",
                device.fd, geteuid(), getegid());
  if (mount("extmem", mount_point.c_str(), "fuse.extmem", MS_NOSUID | MS_NODEV, options) == 0) return device;
  int error = errno;
  close(device.fd);
  if (error == EBUSY)
    return failure("EBUSY", mount_point + " is in use: unmount what is mounted there (extmem umount)");
  if (error == ENODEV) return failure("ENODEV", "the kernel does not know FUSE: load its module (modprobe fuse)");
  return failure("EIO", "cannot mount on " + mount_point + ": " + strerror(error));
}

int receive_descriptor(int socket) {
  char byte;
  iovec data{&byte, 1};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))];
  msghdr message{};
  message.msg_iov = &data;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof control;
  ssize_t received;
  do {
    received = recvmsg(socket, &message, MSG_CMSG_CLOEXEC);
  } while (received < 0 && errno == EINTR);
  cmsghdr* header = received > 0 ? CMSG_FIRSTHDR(&message) : nullptr;
  if (header == nullptr || header->cmsg_type != SCM_RIGHTS) return -1;
  int fd;
  std::memcpy(&fd, CMSG_DATA(header), sizeof fd);
  return fd;
}

int run_program(std::vector<std::string> arguments, const std::string& extra_environment, int& status) {
  std::vector<char*> argv;
  for (auto& argument : arguments) argv.push_back(argument.data());
  argv.push_back(nullptr);
  std::vector<char*> environment;
  for (char** entry = environ; *entry != nullptr; ++entry) environment.push_back(*entry);
  std::string extra = extra_environment;
  if (!extra.empty()) environment.push_back(extra.data());
  environment.push_back(nullptr);
  pid_t child;
  int error = posix_spawnp(&child, argv[0], nullptr, nullptr, argv.data(), environment.data());
  if (error != 0) return error;
  while (waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  return 0;
}

MountResult mount_by_helper(const std::string& mount_point) {
  int sockets[2];
  if (socketpair(AF_UNIX, SOCK_STREAM, 0, sockets) != 0) return failure("EIO", strerror(errno));
  fcntl(sockets[0], F_SETFD, FD_CLOEXEC);
  int status = 0;
  int error = run_program(
      {"fusermount3", "-o", "fsname=extmem,subtype=extmem,default_permissions,max_read=1048576", "--", mount_point},
      "_FUSE_COMMFD=" + std::to_string(sockets[1]), status);
  close(sockets[1]);
  int fd = error == 0 && status == 0 ? receive_descriptor(sockets[0]) : -1;
  close(sockets[0]);
  if (error == ENOENT) return failure("ENOENT", "fusermount3 is not installed: apt install fuse3, or mount as root");
  if (fd < 0) return failure("EPERM", "fusermount3 could not mount on " + mount_point + " (see its message above)");
  fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
  return {fd, "", ""};
}

/// "major:minor" of the file system mounted there, without touching it (it may be dead).
std::string device_of(const std::string& mount_point) {
  std::ifstream table("/proc/self/mountinfo");
  std::string line;
  std::string found;
  while (std::getline(table, line)) {
    std::istringstream words(line);
    std::string id, parent, device, root, where;
    words >> id >> parent >> device >> root >> where;
    if (where == mount_point) found = device;  // the last one is on top
  }
  return found;
}

bool write_text(const std::string& path, const std::string& text) {
  int fd = open(path.c_str(), O_WRONLY | O_CLOEXEC);
  if (fd < 0) return false;
  bool written = write(fd, text.data(), text.size()) == static_cast<ssize_t>(text.size());
  close(fd);
  return written;
}

}  // namespace

MountResult mount_fuse(const std::string& mount_point) {
  return geteuid() == 0 ? mount_as_root(mount_point) : mount_by_helper(mount_point);
}

int unmount_fuse(const std::string& mount_point, bool lazy) {
  if (geteuid() == 0) return umount2(mount_point.c_str(), lazy ? MNT_DETACH : 0) == 0 ? 0 : errno;
  int status = 0;
  std::vector<std::string> arguments{"fusermount3", "-u", "-q"};
  if (lazy) arguments.push_back("-z");
  arguments.push_back("--");
  arguments.push_back(mount_point);
  int error = run_program(arguments, "", status);
  if (error != 0) return error;
  return status == 0 ? 0 : EBUSY;
}

int force_unmount(const std::string& mount_point) {
  std::string device = device_of(mount_point);
  if (device.empty()) return EINVAL;
  std::string minor = device.substr(device.find(':') + 1);
  write_text("/sys/fs/fuse/connections/" + minor + "/abort", "1");
  if (geteuid() == 0) umount2(mount_point.c_str(), MNT_FORCE);
  return unmount_fuse(mount_point, true);
}

void tune_backing_device(const std::string& mount_point, uint64_t dirty_limit_bytes) {
  std::string device = device_of(mount_point);
  if (device.empty() || geteuid() != 0) return;
  std::string folder = "/sys/class/bdi/" + device + "/";
  if (dirty_limit_bytes == 0) {
    write_text(folder + "strict_limit", "0");
    write_text(folder + "max_ratio", "100");
  } else {
    // Where there is no max_bytes (before Linux 6.2), FUSE's own limit of one percent stays.
    write_text(folder + "max_bytes", std::to_string(dirty_limit_bytes));
    write_text(folder + "strict_limit", "1");
  }
}

}  // namespace extmem::fuse
