/**
 * Attributes: getattr, setattr (mode, owner, times, size) and statfs. Size and times of a file that is written here are native's
 * and come first; a size is changed through the manager (client/cuts.ts).
 */
import type { Attr, SetAttr, Time } from '../base/messages.js';
import type { FileSystem, Reply, Request } from './file_system.js';
import { decodeSetattr, encodeAttr, encodeStatfs, FATTR, readHandle, type SetattrIn } from './fuse_wire.js';

export function getattr(fs: FileSystem, { node }: Request): Reply | Promise<Reply> {
  const { held, manager } = fs.client;
  const attr = fs.client.knownAttr(node);
  if (attr !== undefined) return encodeAttr(fs.current(attr), fs.attrMs(node, true));
  // Open files go on while the manager is dead: what was last known of them is what they are, as far as anybody can tell.
  const file = held.get(node);
  if (file !== undefined && !manager.alive) return encodeAttr(fs.current(file.attr), 0);
  return getattrAsking(fs, node);
}

async function getattrAsking(fs: FileSystem, ino: number): Promise<Reply> {
  const { cache, held, manager } = fs.client;
  const stamp = cache.beginFill();
  const { attr, cacheable } = await manager.ask('getattr', { ino });
  const keep = cacheable && cache.mayKeep(stamp);
  if (keep) cache.keepAttr(stamp, attr);
  held.noteAttr(attr);
  await fs.client.kernelSettled(ino);
  return encodeAttr(fs.current(attr), fs.attrMs(ino, keep));
}

export async function setattr(fs: FileSystem, { node: ino, body }: Request): Promise<Reply> {
  const { cache, cuts, directories, held, manager } = fs.client;
  const asked = decodeSetattr(body);
  if (asked.valid & FATTR.fh) fs.checkHandle(readHandle(body, 8));
  const set = requestedChanges(asked);
  const { size } = set;
  const attr = size === undefined ? (await manager.ask('setattr', { ino, set })).attr : await cuts.resize(ino, { ...set, size });
  held.noteAttr(attr);
  directories.noteAttr(attr);
  const file = held.get(ino);
  if (file?.mode === 'write' && (set.mtime !== undefined || set.ctime !== undefined))
    fs.native.setTimes(ino, set.mtime, set.ctime ?? attr.ctime);
  const kept = cache.replaceAttr(attr);
  return encodeAttr(fs.current(attr), fs.attrMs(ino, kept));
}

export function requestedChanges(asked: SetattrIn): SetAttr {
  const { valid } = asked;
  const set: SetAttr = {};
  if (valid & FATTR.mode) set.mode = asked.mode & 0o7777;
  if (valid & FATTR.uid) set.uid = asked.uid;
  if (valid & FATTR.gid) set.gid = asked.gid;
  if (valid & FATTR.size) set.size = asked.size;
  if (valid & FATTR.atime) set.atime = valid & FATTR.atimeNow ? timeNow() : asked.atime;
  if (valid & FATTR.mtime) set.mtime = valid & FATTR.mtimeNow ? timeNow() : asked.mtime;
  if (valid & FATTR.ctime) set.ctime = asked.ctime;
  return set;
}

export function timeNow(): Time {
  const ms = Date.now();
  const seconds = Math.floor(ms / 1000);
  return [seconds, (ms - seconds * 1000) * 1_000_000];
}

export function statfs(fs: FileSystem): Reply | Promise<Reply> {
  const room = fs.client.statfs();
  return room instanceof Promise ? room.then(encodeStatfs) : encodeStatfs(room);
}

/** Whether a file has bytes, as far as is known here. */
export function sizeNow(fs: FileSystem, attr: Attr): number {
  return fs.native.fileState(attr.ino)?.size ?? attr.size;
}
