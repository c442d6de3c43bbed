/** Locks of the kernel's processes: fcntl (GETLK, SETLK, SETLKW) and flock, which the kernel sends as SETLK with a flag. */
import type { Lock } from '../base/messages.js';
import type { FileSystem, Reply, Request } from './file_system.js';
import { decodeLock, encodeLock, readHandle } from './fuse_wire.js';

export function getlk(fs: FileSystem, { node, body }: Request): Reply | Promise<Reply> {
  fs.checkHandle(readHandle(body, 0));
  const asked = decodeLock(body, node);
  const conflict = fs.client.locks.getlk(asked);
  return conflict instanceof Promise ? conflict.then((lock) => answerOf(asked, lock)) : answerOf(asked, conflict);
}

function answerOf(asked: Lock, conflict: Lock | undefined): Reply {
  return encodeLock(conflict ?? { ...asked, type: 'unlock' });
}

export function setlk(fs: FileSystem, { node, body, unique }: Request): Reply | Promise<Reply> {
  fs.checkHandle(readHandle(body, 0));
  return fs.client.locks.setlk(decodeLock(body, node), false, unique);
}

export function setlkw(fs: FileSystem, { node, body, unique }: Request): Reply | Promise<Reply> {
  fs.checkHandle(readHandle(body, 0));
  return fs.client.locks.setlk(decodeLock(body, node), true, unique);
}
