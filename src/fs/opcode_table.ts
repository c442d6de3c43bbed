/**
 * The operations of the control path: opcode of <linux/fuse.h>, the least that a body must have, and who handles it. What is not
 * here is ENOSYS, which tells the kernel not to ask again; the data path (READ, WRITE, FLUSH …) never comes by here.
 */
import { ExtmemError } from '../base/errors.js';
import { getattr, setattr, statfs } from './attributes.js';
import { opendir, readdir, readdirplus, releasedir, syncDirectory } from './directories.js';
import type { FileSystem, Reply, Request } from './file_system.js';
import { create, fallocate, open, release } from './files.js';
import { SETATTR_IN_BYTES } from './fuse_wire.js';
import { getlk, setlk, setlkw } from './locks.js';
import { link, lookup, mkdir, mknod, readlink, rename, rename2, rmdir, symlink, unlink } from './names.js';
import { getxattr, listxattr, removexattr, setxattr } from './xattrs.js';

export type Handler = (fs: FileSystem, request: Request) => Reply | Promise<Reply>;

interface Operation {
  name: string;
  minBodyBytes: number;
  handle: Handler;
}

/** Not ENOSYS: the kernel would take that for every ioctl, for ever. */
function ioctl(): never {
  throw new ExtmemError('ENOTTY', 'ioctl: there is none on this file system');
}

const operations: Record<string, { opcode: number; minBodyBytes: number; handle: Handler }> = {
  LOOKUP: { opcode: 1, minBodyBytes: 2, handle: lookup },
  GETATTR: { opcode: 3, minBodyBytes: 16, handle: getattr },
  SETATTR: { opcode: 4, minBodyBytes: SETATTR_IN_BYTES, handle: setattr },
  READLINK: { opcode: 5, minBodyBytes: 0, handle: readlink },
  SYMLINK: { opcode: 6, minBodyBytes: 3, handle: symlink },
  MKNOD: { opcode: 8, minBodyBytes: 18, handle: mknod },
  MKDIR: { opcode: 9, minBodyBytes: 10, handle: mkdir },
  UNLINK: { opcode: 10, minBodyBytes: 2, handle: unlink },
  RMDIR: { opcode: 11, minBodyBytes: 2, handle: rmdir },
  RENAME: { opcode: 12, minBodyBytes: 12, handle: rename },
  LINK: { opcode: 13, minBodyBytes: 10, handle: link },
  OPEN: { opcode: 14, minBodyBytes: 8, handle: open },
  STATFS: { opcode: 17, minBodyBytes: 0, handle: statfs },
  RELEASE: { opcode: 18, minBodyBytes: 24, handle: release },
  SETXATTR: { opcode: 21, minBodyBytes: 10, handle: setxattr },
  GETXATTR: { opcode: 22, minBodyBytes: 10, handle: getxattr },
  LISTXATTR: { opcode: 23, minBodyBytes: 8, handle: listxattr },
  REMOVEXATTR: { opcode: 24, minBodyBytes: 2, handle: removexattr },
  OPENDIR: { opcode: 27, minBodyBytes: 8, handle: opendir },
  READDIR: { opcode: 28, minBodyBytes: 40, handle: readdir },
  RELEASEDIR: { opcode: 29, minBodyBytes: 24, handle: releasedir },
  FSYNCDIR: { opcode: 30, minBodyBytes: 16, handle: syncDirectory },
  GETLK: { opcode: 31, minBodyBytes: 48, handle: getlk },
  SETLK: { opcode: 32, minBodyBytes: 48, handle: setlk },
  SETLKW: { opcode: 33, minBodyBytes: 48, handle: setlkw },
  CREATE: { opcode: 35, minBodyBytes: 18, handle: create },
  IOCTL: { opcode: 39, minBodyBytes: 0, handle: ioctl },
  FALLOCATE: { opcode: 43, minBodyBytes: 32, handle: fallocate },
  READDIRPLUS: { opcode: 44, minBodyBytes: 40, handle: readdirplus },
  RENAME2: { opcode: 45, minBodyBytes: 20, handle: rename2 },
};

const byOpcode: (Operation | undefined)[] = [];
for (const [name, { opcode, minBodyBytes, handle }] of Object.entries(operations)) byOpcode[opcode] = { name, minBodyBytes, handle };

export function findOperation(opcode: number): Operation | undefined {
  return byOpcode[opcode];
}

export function opcodeOf(name: string): number {
  const operation = operations[name];
  if (operation === undefined) throw new Error(`no such operation: ${name}`);
  return operation.opcode;
}
