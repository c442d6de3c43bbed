/**
 * Reading directories. The manager answers in pages of entries with their attributes; a handle keeps the page that the kernel is
 * reading, so that most of the kernel's small reads are answered at once.
 *
 * Offsets: 0 is the beginning, 1 is after '.', 2 after '..', cookie + 2 after the manager's entry with that cookie.
 */
import { ExtmemError } from '../base/errors.js';
import type { Answer } from '../base/messages.js';
import type { ClientOperations } from '../client/manager.js';
import type { FileSystem, Reply, Request } from './file_system.js';
import { decodeReaddir, decodeRelease, DirentWriter, encodeOpen, readHandle } from './fuse_wire.js';

const PAGE_ENTRIES = 1024;
const DOT_OFFSETS = 2;

type Page = Answer<ClientOperations, 'readdir'>;

export interface DirectoryHandle {
  ino: number;
  page: Page | undefined;
  /** Cookie after which `page.entries[index]` comes. */
  cookie: number;
  index: number;
  /** Of operations in it that were answered and then refused by the manager: as many as this handle has reported. */
  failures: number;
}

export function opendir(fs: FileSystem, { node }: Request): Reply {
  const handle = fs.nextDirectoryHandle;
  fs.nextDirectoryHandle += 1;
  fs.directories.set(handle, { ino: node, page: undefined, cookie: 0, index: 0, failures: fs.client.directories.failuresTold(node) });
  return encodeOpen(handle, 0);
}

export function releasedir(fs: FileSystem, { body }: Request): Reply {
  fs.directories.delete(decodeRelease(body).handle);
  return undefined;
}

/** What was done in a directory of ours survives the manager's death when this is answered; all else does so anyhow. */
export async function syncDirectory(fs: FileSystem, { body }: Request): Promise<Reply> {
  const { directories } = fs.client;
  const handle = fs.directories.get(readHandle(body, 0));
  if (handle === undefined) throw new ExtmemError('EBADF', 'syncing a directory: its handle is not known');
  await directories.settled();
  const failures = directories.tellFailures(handle.ino);
  if (failures === handle.failures) return undefined;
  handle.failures = failures;
  throw new ExtmemError('EIO', `syncing directory ${handle.ino}: the manager refused what had been answered as done in it`);
}

export function readdir(fs: FileSystem, { body }: Request): Reply | Promise<Reply> {
  return read(fs, body, false);
}

export function readdirplus(fs: FileSystem, { body }: Request): Reply | Promise<Reply> {
  return read(fs, body, true);
}

function read(fs: FileSystem, body: Buffer, plus: boolean): Reply | Promise<Reply> {
  const { handle: id, offset, bytes } = decodeReaddir(body);
  const handle = fs.directories.get(id);
  if (handle === undefined) throw new ExtmemError('EBADF', 'reading a directory: its handle is not known');
  const writer = new DirentWriter(bytes);
  if (!addDots(writer, handle.ino, offset, plus)) return writer.bytes;
  const cookie = Math.max(0, offset - DOT_OFFSETS);
  // From the beginning: what changed since the page was read must be seen.
  if (offset === 0) handle.page = undefined;
  if (handle.page !== undefined && handle.cookie === cookie && hasMore(handle)) {
    addEntries(fs, handle, writer, plus);
    return writer.bytes;
  }
  if (handle.page?.end === true && handle.cookie === cookie) return writer.bytes;
  return fetchPage(fs, handle, cookie, plus).then(() => {
    addEntries(fs, handle, writer, plus);
    return writer.bytes;
  });
}

function hasMore({ page, index }: DirectoryHandle): boolean {
  return page !== undefined && index < page.entries.length;
}

function addDots(writer: DirentWriter, ino: number, offset: number, plus: boolean): boolean {
  for (let at = offset; at < DOT_OFFSETS; at += 1) {
    const name = at === 0 ? '.' : '..';
    const added = plus ? writer.addPlain(name, ino, at + 1) : writer.add(name, ino, 'directory', at + 1);
    if (!added) return false;
  }
  return true;
}

async function fetchPage(fs: FileSystem, handle: DirectoryHandle, cookie: number, plus: boolean): Promise<void> {
  const { cache, manager } = fs.client;
  const stamp = cache.beginFill();
  handle.page = await manager.ask('readdir', { ino: handle.ino, cookie, limit: PAGE_ENTRIES });
  if (plus) {
    for (const { name, attr, cacheable } of handle.page.entries) {
      cache.keepEntry(stamp, handle.ino, name, attr.ino);
      if (cacheable === true) cache.keepAttr(stamp, attr);
    }
  }
  handle.cookie = cookie;
  handle.index = 0;
}

function addEntries(fs: FileSystem, handle: DirectoryHandle, writer: DirentWriter, plus: boolean): void {
  const entries = handle.page?.entries ?? [];
  for (; handle.index < entries.length; handle.index += 1) {
    const entry = entries[handle.index];
    if (entry === undefined) return;
    const { name, cookie, attr } = entry;
    const next = cookie + DOT_OFFSETS;
    if (plus) {
      // The page may be old by now: the kernel may believe what is still in the cache.
      const present = fs.client.knownAttr(attr.ino);
      const isKept = fs.client.cache.entry(handle.ino, name) === attr.ino;
      const valid = fs.validity(attr.ino, { entry: isKept, attr: present !== undefined });
      if (!writer.addPlus(name, fs.current(present ?? attr), valid, next)) return;
      fs.nodes.count(attr.ino);
    } else if (!writer.add(name, attr.ino, attr.kind, next)) {
      return;
    }
    handle.cookie = cookie;
  }
}
