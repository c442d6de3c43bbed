/**
 * Open files: open, create, release, and freeing ranges. An open whose delegation is held already is answered at once; the bytes
 * themselves never come by here.
 */
import { constants } from 'node:fs';
import { ExtmemError } from '../base/errors.js';
import type { Attr } from '../base/messages.js';
import type { FillStamp } from '../client/attribute_cache.js';
import type { HeldFile, OpenMode } from '../client/held_files.js';
import { isOpen } from '../client/held_files.js';
import { sizeNow, timeNow } from './attributes.js';
import type { FileSystem, Reply, Request } from './file_system.js';
import {
  decodeCreate,
  decodeFallocate,
  decodeRelease,
  encodeCreate,
  encodeOpen,
  FOPEN_DIRECT_IO,
  FOPEN_KEEP_CACHE,
  FUSE_RELEASE_FLOCK_UNLOCK,
  O_ACCMODE,
  O_EXCL,
  O_TRUNC,
  readHandle,
} from './fuse_wire.js';
import { noteNewName, PERMISSION_BITS, whileBusy } from './names.js';

const FALLOC_KEEP_SIZE = 0x01;
const FALLOC_PUNCH_HOLE = 0x02;
const FALLOC_ZERO_RANGE = 0x10;

export function open(fs: FileSystem, { node: ino, body }: Request): Reply | Promise<Reply> {
  const flags = body.readUInt32LE(0);
  const mode = modeOf(flags);
  const file = fs.client.held.open(ino, mode);
  return file instanceof Promise ? file.then((held) => finishOpen(fs, held, mode, flags)) : finishOpen(fs, file, mode, flags);
}

function finishOpen(fs: FileSystem, file: HeldFile, mode: OpenMode, flags: number): Reply | Promise<Reply> {
  if ((flags & O_TRUNC) === 0) return encodeOpen(...openHandle(fs, file, mode, flags));
  return truncateOpened(fs, file, mode).then(() => encodeOpen(...openHandle(fs, file, mode, flags)));
}

/** Native's handle and the open's reply flags. A failure takes the open back. */
function openHandle(fs: FileSystem, file: HeldFile, mode: OpenMode, flags: number): [number, number] {
  const { ino } = file;
  const keepCache = fs.client.held.takeKeepCache(file);
  try {
    const direct = fs.files.goesDirect(ino, flags);
    const handle = fs.native.openHandle(ino, flags, { keepsPages: keepCache, direct });
    fs.files.add(handle, { ino, mode, direct });
    return [handle, (keepCache ? FOPEN_KEEP_CACHE : 0) | (direct ? FOPEN_DIRECT_IO : 0)];
  } catch (error) {
    fs.client.held.close(ino, mode);
    throw error;
  }
}

/** O_TRUNC: an empty file only gets its times. */
async function truncateOpened(fs: FileSystem, file: HeldFile, mode: OpenMode): Promise<void> {
  const { ino } = file;
  const { cache, cuts, held, manager } = fs.client;
  try {
    const now = timeNow();
    if (sizeNow(fs, file.attr) > 0 || file.mode !== 'write') {
      const attr = await cuts.resize(ino, { size: 0 });
      cache.replaceAttr(attr);
    } else if (manager.alive) {
      const { attr } = await manager.ask('setattr', { ino, set: { mtime: now } });
      file.attr = attr;
      cache.replaceAttr(attr);
    }
    if (held.get(ino)?.mode === 'write') fs.native.setTimes(ino, now, now);
  } catch (error) {
    held.close(ino, mode);
    throw error;
  }
}

export function create(fs: FileSystem, request: Request): Reply | Promise<Reply> {
  const { node: parent, uid, gid, body } = request;
  const { flags, mode: permissions, name } = decodeCreate(body);
  const open = modeOf(flags);
  const file = fs.client.directories.create(parent, { name, mode: permissions & PERMISSION_BITS, uid, gid, open });
  if (file === undefined) return createAsking(fs, request);
  const stamp = fs.client.cache.beginFill();
  return finishCreate(fs, { parent, name, stamp, parents: [], flags }, file, file.attr);
}

async function createAsking(fs: FileSystem, { node: parent, uid, gid, body }: Request): Promise<Reply> {
  const { flags, mode: permissions, name } = decodeCreate(body);
  const { cache, held, manager } = fs.client;
  const stamp = cache.beginFill();
  const exclusive = (flags & O_EXCL) !== 0;
  const { attr, parents, grant } = await whileBusy(fs, [parent], () =>
    manager.ask('create', {
      ...{ parent, name, kind: 'file', mode: permissions & PERMISSION_BITS, uid, gid, rdev: 0 },
      ...{ open: true, exclusive },
    }),
  );
  if (attr.kind === 'directory') throw new ExtmemError('EISDIR', `creating ${name}: it is a directory`);
  // Somebody else made it meanwhile, and not as a file: the kernel is to look again.
  if (attr.kind !== 'file') throw new ExtmemError('ESTALE', `creating ${name}: it exists and is no file`);
  const mode = modeOf(flags);
  const file = grant === undefined ? await held.open(attr.ino, mode) : held.openGranted(grant, mode);
  if ((flags & O_TRUNC) !== 0 && sizeNow(fs, attr) > 0) await truncateOpened(fs, file, mode);
  return finishCreate(fs, { parent, name, stamp, parents, flags }, file, attr);
}

interface Created {
  parent: number;
  name: string;
  stamp: FillStamp;
  parents: readonly Attr[];
  flags: number;
}

function finishCreate(fs: FileSystem, made: Created, file: HeldFile, attr: Attr): Reply {
  const { ino } = attr;
  const { parent, name, stamp, parents, flags } = made;
  const [handle, openFlags] = openHandle(fs, file, modeOf(flags), flags);
  const keep = noteNewName(fs, stamp, { parent, name, ino }, parents);
  const alone = keep && file.mode === 'write';
  if (alone) fs.client.cache.keepAttr(stamp, attr);
  fs.nodes.count(ino);
  return encodeCreate(fs.current(file.attr), fs.validity(ino, { entry: keep, attr: alone }), handle, openFlags);
}

export function release(fs: FileSystem, { body }: Request): Reply | Promise<Reply> {
  const { handle, releaseFlags, owner } = decodeRelease(body);
  const opened = fs.files.take(handle);
  if (opened === undefined) throw new ExtmemError('EBADF', 'releasing a file: its handle is not known');
  const { ino, mode } = opened;
  const unlocking = (releaseFlags & FUSE_RELEASE_FLOCK_UNLOCK) !== 0 ? fs.client.locks.releaseOwner(ino, owner, true) : undefined;
  if (unlocking === undefined) return finishRelease(fs, handle, ino, mode);
  return unlocking.then(() => finishRelease(fs, handle, ino, mode));
}

function finishRelease(fs: FileSystem, handle: number, ino: number, mode: OpenMode): undefined {
  const { held, locks } = fs.client;
  fs.native.closeHandle(handle);
  held.close(ino, mode);
  const file = held.get(ino);
  if (file === undefined || isOpen(file)) return undefined;
  locks.closed(ino);
  const state = file.mode === 'write' && !file.unlinked ? fs.native.fileState(ino) : undefined;
  if (state !== undefined && (state.recordChanged || state.dirtyBytes > 0)) fs.client.writeBehind(ino);
  return undefined;
}

/** Native allocates; what is freed or zeroed goes through the manager. */
export async function fallocate(fs: FileSystem, { node: ino, body }: Request): Promise<Reply> {
  fs.checkHandle(readHandle(body, 0));
  const { offset, length, mode } = decodeFallocate(body);
  const keepsSize = (mode & FALLOC_KEEP_SIZE) !== 0;
  const kind = mode & ~FALLOC_KEEP_SIZE;
  if (kind !== FALLOC_PUNCH_HOLE && kind !== FALLOC_ZERO_RANGE)
    throw new ExtmemError('EOPNOTSUPP', `fallocate of inode ${ino}: mode ${mode} is not offered`);
  const file = fs.client.held.get(ino);
  if (file === undefined) throw new ExtmemError('EBADF', `fallocate of inode ${ino}: it is not open`);
  const size = sizeNow(fs, file.attr);
  if (offset < size) await fs.client.cuts.punch(ino, offset, Math.min(length, size - offset));
  if (!keepsSize && offset + length > size) await fs.client.cuts.resize(ino, { size: offset + length }, { onlyGrow: true });
  fs.client.cache.dropAttr(ino);
  return undefined;
}

function modeOf(flags: number): OpenMode {
  return (flags & O_ACCMODE) !== constants.O_RDONLY || (flags & O_TRUNC) !== 0 ? 'write' : 'read';
}
