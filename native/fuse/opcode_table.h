// ① Every FUSE opcode in one table: its name, the smallest body that it must have (for those served here: their own
// struct), and who serves it: a handler of the data path here, or (handler null) TypeScript.
#pragma once

#include <cstddef>
#include <cstdint>

#include "fuse/worker.h"

namespace extmem::fuse {

struct Opcode {
  uint32_t code;
  const char* name;
  size_t body_bytes;
  void (*handler)(Worker&, Request&);
};

/// nullptr for opcodes that are not in the table (they go to TypeScript, which says ENOSYS).
const Opcode* find_opcode(uint32_t code);

// Data path (data_path.cc).
void handle_read(Worker& worker, Request& request);
void handle_write(Worker& worker, Request& request);
void handle_flush(Worker& worker, Request& request);
void handle_fsync(Worker& worker, Request& request);
void handle_fallocate(Worker& worker, Request& request);
void handle_lseek(Worker& worker, Request& request);
/// Before every write(2) the kernel asks for security.capability, which no file of ours has: answered here. Others go
/// to TypeScript.
void handle_getxattr(Worker& worker, Request& request);
// Session (session.cc).
void handle_forget(Worker& worker, Request& request);
void handle_batch_forget(Worker& worker, Request& request);
void handle_interrupt(Worker& worker, Request& request);
void handle_destroy(Worker& worker, Request& request);
/// Answers a nudge of a uring_channel; over /dev/fuse it needs no reply.
void handle_notify_reply(Worker& worker, Request& request);
/// To TypeScript.
void handle_control(Worker& worker, Request& request);

}  // namespace extmem::fuse
