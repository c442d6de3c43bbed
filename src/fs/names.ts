/**
 * Names: look-up, creation of everything that is not opened at once, links, removal, renaming. The manager owns them all; a look-up
 * that the manager said may be cached is answered from the cache.
 */
import { ExtmemError } from '../base/errors.js';
import type { Attr, InodeKind } from '../base/messages.js';
import type { FillStamp } from '../client/attribute_cache.js';
import type { FileSystem, Reply, Request } from './file_system.js';
import {
  decodeLink,
  decodeMkdir,
  decodeMknod,
  decodeRename,
  decodeRename2,
  encodeNegativeEntry,
  kindOfMode,
  readName,
  readSymlink,
  RENAME_EXCHANGE,
  RENAME_NOREPLACE,
} from './fuse_wire.js';

export const PERMISSION_BITS = 0o7777;

export function lookup(fs: FileSystem, { node: parent, body }: Request): Reply | Promise<Reply> {
  const name = readName(body, 0);
  const { cache, directories } = fs.client;
  const known = cache.entry(parent, name);
  // Not to be believed by the kernel: nobody would tell it.
  if (known === undefined && directories.isAbsent(parent, name)) return encodeNegativeEntry(0);
  if (known === 0) return encodeNegativeEntry(fs.client.validityMs());
  if (known !== undefined) {
    const attr = fs.client.knownAttr(known);
    if (attr !== undefined) return fs.entry(attr, { entry: true, attr: true });
  }
  return lookupAsking(fs, parent, name);
}

async function lookupAsking(fs: FileSystem, parent: number, name: string): Promise<Reply> {
  const { cache, directories, manager } = fs.client;
  const stamp = cache.beginFill();
  const { attr, cacheable } = await whileBusy(fs, [parent], () => manager.ask('lookup', { parent, name }));
  // The manager tells of every change of the name; `cacheable` is about the attributes.
  const keep = cache.mayKeep(stamp);
  cache.keepEntry(stamp, parent, name, attr?.ino);
  if (attr === undefined) return encodeNegativeEntry(keep ? fs.client.validityMs() : 0);
  const ours = directories.attrOf(attr.ino); // newer than any answer
  if (ours !== undefined) return fs.entry(ours, { entry: keep, attr: true });
  if (cacheable) cache.keepAttr(stamp, attr);
  await fs.client.kernelSettled(attr.ino);
  return fs.entry(attr, { entry: keep, attr: keep && cacheable });
}

export function readlink(fs: FileSystem, { node }: Request): Promise<Reply> {
  return fs.client.manager.ask('readlink', { ino: node }).then(({ target }) => Buffer.from(target, 'utf8'));
}

interface NewInode {
  name: string;
  kind: InodeKind;
  mode: number;
  rdev?: number;
  target?: string;
}

export function mknod(fs: FileSystem, request: Request): Promise<Reply> {
  const { mode, rdev, name } = decodeMknod(request.body);
  const kind = kindOfMode(mode);
  if (kind === undefined || kind === 'directory' || kind === 'symlink')
    throw new ExtmemError('EINVAL', `mknod ${name}: mode ${mode.toString(8)} names no kind that it can make`);
  return make(fs, request, { name, kind, mode, rdev });
}

export function mkdir(fs: FileSystem, request: Request): Promise<Reply> {
  const { mode, name } = decodeMkdir(request.body);
  return make(fs, request, { name, kind: 'directory', mode });
}

export function symlink(fs: FileSystem, request: Request): Promise<Reply> {
  const { name, target } = readSymlink(request.body);
  return make(fs, request, { name, kind: 'symlink', mode: 0o777, target });
}

async function make(fs: FileSystem, { node: parent, uid, gid }: Request, made: NewInode): Promise<Reply> {
  const { name, kind, target } = made;
  const { cache, directories } = fs.client;
  const stamp = cache.beginFill();
  const delegate = kind === 'directory' ? { delegate: { numbers: directories.numbersWanted } } : {};
  const { attr, parents, delegated } = await whileBusy(fs, [parent], () =>
    fs.client.manager.ask('create', {
      parent,
      name,
      kind,
      mode: made.mode & PERMISSION_BITS,
      uid,
      gid,
      rdev: made.rdev ?? 0,
      ...(target === undefined ? {} : { target }),
      open: false,
      exclusive: true,
      ...delegate,
    }),
  );
  if (delegated !== undefined) directories.take(attr, delegated);
  const keep = noteNewName(fs, stamp, { parent, name, ino: attr.ino }, parents);
  cache.keepAttr(stamp, attr);
  return fs.entry(attr, { entry: keep, attr: keep });
}

interface MadeName {
  parent: number;
  name: string;
  ino: number;
}

/** A name that we made: from here on the manager tells us when it changes. Answers whether it may be believed. */
export function noteNewName(fs: FileSystem, stamp: FillStamp, made: MadeName, parents: readonly Attr[]): boolean {
  const { cache, directories } = fs.client;
  noteParents(fs, parents);
  directories.noteName(made.parent, made.name, made.ino);
  cache.dropEntry(made.parent, made.name); // also when the new one may not be kept: what it was before is wrong now
  cache.keepEntry(stamp, made.parent, made.name, made.ino);
  return cache.mayKeep(stamp);
}

function noteParents(fs: FileSystem, parents: readonly Attr[]): void {
  const { cache, directories } = fs.client;
  for (const attr of parents) {
    cache.replaceAttr(attr);
    directories.noteAttr(attr);
  }
}

export async function link(fs: FileSystem, { node: newParent, body }: Request): Promise<Reply> {
  const { ino, newName } = decodeLink(body);
  const stamp = fs.client.cache.beginFill();
  const { attr, parents } = await whileBusy(fs, [newParent], () => fs.client.manager.ask('link', { ino, newParent, newName }));
  fs.client.directories.noteLink(ino);
  const keep = noteNewName(fs, stamp, { parent: newParent, name: newName, ino }, parents);
  return fs.entry(attr, { entry: keep, attr: fs.client.cache.replaceAttr(attr) });
}

export function unlink(fs: FileSystem, request: Request): Reply | Promise<Reply> {
  if (fs.client.directories.unlink(request.node, readName(request.body, 0))) return undefined;
  return remove(fs, request, false);
}

export function rmdir(fs: FileSystem, request: Request): Promise<Reply> {
  return remove(fs, request, true);
}

async function remove(fs: FileSystem, { node: parent, body }: Request, directory: boolean): Promise<Reply> {
  const name = readName(body, 0);
  const { cache, directories, held, manager } = fs.client;
  const { attr, parents } = await whileBusy(fs, [parent], () => manager.ask('unlink', { parent, name, directory }));
  cache.replaceEntry(parent, name);
  cache.replaceAttr(attr);
  directories.noteRemoval(parent, name);
  directories.noteAttr(attr);
  noteParents(fs, parents);
  held.noteAttr(attr);
  return undefined;
}

interface Renaming {
  newParent: number;
  flags: number;
  name: string;
  newName: string;
}

export function rename(fs: FileSystem, { node, body }: Request): Promise<Reply> {
  return move(fs, node, decodeRename(body));
}

export function rename2(fs: FileSystem, { node, body }: Request): Promise<Reply> {
  return move(fs, node, decodeRename2(body));
}

async function move(fs: FileSystem, parent: number, { newParent, flags, name, newName }: Renaming): Promise<Reply> {
  if ((flags & ~(RENAME_NOREPLACE | RENAME_EXCHANGE)) !== 0) throw new ExtmemError('EINVAL', `renaming ${name}: unknown flags ${flags}`);
  const { cache, directories, held, manager } = fs.client;
  const exchange = (flags & RENAME_EXCHANGE) !== 0;
  const stamp = cache.beginFill();
  const { moved, replaced, parents } = await whileBusy(fs, [parent, newParent], () =>
    manager.ask('rename', { parent, name, newParent, newName, noReplace: (flags & RENAME_NOREPLACE) !== 0, exchange }),
  );
  cache.replaceEntry(parent, name); // before: both may be the same name
  directories.noteRemoval(parent, name);
  if (exchange) {
    cache.dropEntry(parent, name);
    directories.giveBack([parent, newParent]);
  }
  noteNewName(fs, stamp, { parent: newParent, name: newName, ino: moved.ino }, parents);
  cache.replaceAttr(moved);
  if (replaced !== undefined) {
    cache.replaceAttr(replaced);
    directories.noteLink(replaced.ino); // not by that name any more
    directories.noteAttr(replaced);
    held.noteAttr(replaced);
  }
  return undefined;
}

/** While the kernel holds the directories' locks for an operation of ours, notices about names in them are not waited for. */
export async function whileBusy<Result>(fs: FileSystem, parents: readonly number[], work: () => Promise<Result>): Promise<Result> {
  const { activity } = fs.client;
  for (const parent of parents) activity.enter(parent);
  try {
    return await work();
  } finally {
    for (const parent of parents) activity.leave(parent);
  }
}
