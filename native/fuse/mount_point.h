// ① Mounting: mount(2) as root, else fusermount3; unmounting; and the two cures for a connection that nobody serves any
// more.
#pragma once

#include <cstdint>
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

/// As root: how much the kernel may keep dirty of the mount before writers through mappings wait. dirty_limit_bytes 0:
/// what it lets every file system (for FUSE it begins with 1 %, strictly). A hint; nothing fails without it.
void tune_backing_device(const std::string& mount_point, uint64_t dirty_limit_bytes);

}  // namespace extmem::fuse
