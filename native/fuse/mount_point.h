// ① Mounting: mount(2) as root, else fusermount3; unmounting; and the two cures for a connection that nobody serves any
// more.
#pragma once

#include <string>

namespace extmem::fuse {

/// A mounted FUSE file system's descriptor, or (fd < 0) an errno name and what to do about it.
struct MountResult {
  int fd = -1;
  std::string code;
  std::string message;
};

MountResult mount_fuse(const std::string& mount_point);

/// 0 or an errno. lazy: detached now, gone when its last user goes.
int unmount_fuse(const std::string& mount_point, bool lazy);

/// Aborts the connection mounted there (every request fails, D-state waiters wake), then detaches it. 0 or an errno.
int force_unmount(const std::string& mount_point);

/// As root: lifts the backing device's write-back limits, which for FUSE are 1 % and strict. A hint; nothing fails
/// without it.
void tune_backing_device(const std::string& mount_point);

}  // namespace extmem::fuse
