// What the kernel's <linux/fuse.h> says of FUSE over io_uring (Linux 6.14), under the kernel's names, for headers that
// are older.
//   INIT: the kernel offers FUSE_OVER_IO_URING in flags2, the daemon answers with it. From then on the kernel keeps
//   every request back until each queue, one per possible CPU, has an entry.
//   FUSE_IO_URING_CMD_REGISTER: an entry of a queue, by the addresses of its header and its payload; completes when a
//   request was put into them. FUSE_IO_URING_CMD_COMMIT_AND_FETCH: the answer lies there; completes with the next
//   request. FORGET, INTERRUPT and notices stay on /dev/fuse.
#pragma once

#include <linux/fuse.h>
#include <stdint.h>

#ifndef FUSE_OVER_IO_URING
#define FUSE_OVER_IO_URING (1ULL << 41)
#endif

#ifndef FUSE_URING_IN_OUT_HEADER_SZ
#define FUSE_URING_IN_OUT_HEADER_SZ 128
#define FUSE_URING_OP_IN_OUT_SZ 128

struct fuse_uring_ent_in_out {
  uint64_t flags;
  uint64_t commit_id;   // names the request when it is answered
  uint32_t payload_sz;  // bytes used of the payload, both ways
  uint32_t padding;
  uint64_t reserved;
};

struct fuse_uring_req_header {
  char in_out[FUSE_URING_IN_OUT_HEADER_SZ];  // fuse_in_header, answered by fuse_out_header
  char op_in[FUSE_URING_OP_IN_OUT_SZ];       // the opcode's own struct, as fuse_read_in
  struct fuse_uring_ent_in_out ring_ent_in_out;
};

enum fuse_uring_cmd {
  FUSE_IO_URING_CMD_INVALID = 0,
  FUSE_IO_URING_CMD_REGISTER = 1,
  FUSE_IO_URING_CMD_COMMIT_AND_FETCH = 2,
};

struct fuse_uring_cmd_req {  // in the submission entry's command area
  uint64_t flags;
  uint64_t commit_id;
  uint16_t qid;
  uint8_t padding[6];
};
#endif
