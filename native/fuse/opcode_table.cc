#include "fuse/opcode_table.h"

#include <algorithm>
#include <array>

namespace extmem::fuse {

namespace {

constexpr Opcode kOpcodes[] = {
    {FUSE_LOOKUP, "LOOKUP", 1, nullptr},
    {FUSE_FORGET, "FORGET", sizeof(fuse_forget_in), handle_forget},
    {FUSE_GETATTR, "GETATTR", sizeof(fuse_getattr_in), nullptr},
    {FUSE_SETATTR, "SETATTR", sizeof(fuse_setattr_in), nullptr},
    {FUSE_READLINK, "READLINK", 0, nullptr},
    {FUSE_SYMLINK, "SYMLINK", 2, nullptr},
    {FUSE_MKNOD, "MKNOD", sizeof(fuse_mknod_in), nullptr},
    {FUSE_MKDIR, "MKDIR", sizeof(fuse_mkdir_in), nullptr},
    {FUSE_UNLINK, "UNLINK", 1, nullptr},
    {FUSE_RMDIR, "RMDIR", 1, nullptr},
    {FUSE_RENAME, "RENAME", sizeof(fuse_rename_in), nullptr},
    {FUSE_LINK, "LINK", sizeof(fuse_link_in), nullptr},
    {FUSE_OPEN, "OPEN", sizeof(fuse_open_in), nullptr},
    {FUSE_READ, "READ", sizeof(fuse_read_in), handle_read},
    {FUSE_WRITE, "WRITE", sizeof(fuse_write_in), handle_write},
    {FUSE_STATFS, "STATFS", 0, nullptr},
    {FUSE_RELEASE, "RELEASE", sizeof(fuse_release_in), nullptr},
    {FUSE_FSYNC, "FSYNC", sizeof(fuse_fsync_in), handle_fsync},
    {FUSE_SETXATTR, "SETXATTR", 8, nullptr},
    {FUSE_GETXATTR, "GETXATTR", sizeof(fuse_getxattr_in), handle_getxattr},
    {FUSE_LISTXATTR, "LISTXATTR", sizeof(fuse_getxattr_in), nullptr},
    {FUSE_REMOVEXATTR, "REMOVEXATTR", 1, nullptr},
    {FUSE_FLUSH, "FLUSH", sizeof(fuse_flush_in), handle_flush},
    {FUSE_OPENDIR, "OPENDIR", sizeof(fuse_open_in), nullptr},
    {FUSE_READDIR, "READDIR", sizeof(fuse_read_in), nullptr},
    {FUSE_RELEASEDIR, "RELEASEDIR", sizeof(fuse_release_in), nullptr},
    {FUSE_FSYNCDIR, "FSYNCDIR", sizeof(fuse_fsync_in), nullptr},
    {FUSE_GETLK, "GETLK", sizeof(fuse_lk_in), nullptr},
    {FUSE_SETLK, "SETLK", sizeof(fuse_lk_in), nullptr},
    {FUSE_SETLKW, "SETLKW", sizeof(fuse_lk_in), nullptr},
    {FUSE_CREATE, "CREATE", sizeof(fuse_create_in), nullptr},
    {FUSE_INTERRUPT, "INTERRUPT", sizeof(fuse_interrupt_in), handle_interrupt},
    {FUSE_DESTROY, "DESTROY", 0, handle_destroy},
    {FUSE_NOTIFY_REPLY, "NOTIFY_REPLY", 0, handle_notify_reply},
    {FUSE_BATCH_FORGET, "BATCH_FORGET", sizeof(fuse_batch_forget_in), handle_batch_forget},
    {FUSE_FALLOCATE, "FALLOCATE", sizeof(fuse_fallocate_in), handle_fallocate},
    {FUSE_READDIRPLUS, "READDIRPLUS", sizeof(fuse_read_in), nullptr},
    {FUSE_RENAME2, "RENAME2", sizeof(fuse_rename2_in), nullptr},
    {FUSE_LSEEK, "LSEEK", sizeof(fuse_lseek_in), handle_lseek},
};

constexpr size_t kTableSize = 64;
constexpr auto kByCode = [] {
  std::array<const Opcode*, kTableSize> table{};
  for (const Opcode& opcode : kOpcodes) table[opcode.code] = &opcode;
  return table;
}();

}  // namespace

const Opcode* find_opcode(uint32_t code) { return code < kTableSize ? kByCode[code] : nullptr; }

}  // namespace extmem::fuse
