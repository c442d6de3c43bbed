/**
 * Extended attributes: user.* and trusted.*, kept by the manager and cached like attributes. Of the other name spaces nothing is
 * kept: the kernel asks for security.capability before every write, which must cost no word to the manager.
 */
import { ExtmemError } from '../base/errors.js';
import type { Xattrs } from '../client/attribute_cache.js';
import type { FileSystem, Reply, Request } from './file_system.js';
import { decodeGetxattr, decodeSetxattr, encodeXattrLength, readName } from './fuse_wire.js';

/** What the manager says of a file: changes without a word, is never cached, and is not listed, so that no copy carries it on. */
const MANAGER_PREFIX = 'user.extmem.';
const KEPT_PREFIXES = ['user.', 'trusted.'];
const XATTR_CREATE = 1;
const XATTR_REPLACE = 2;

export function getxattr(fs: FileSystem, { node, body }: Request): Reply | Promise<Reply> {
  const { bytes, name } = decodeGetxattr(body);
  if (!isKept(name)) throw name.startsWith('security.') ? noSuch(name) : notOffered(name);
  const known = name.startsWith(MANAGER_PREFIX) ? undefined : fs.client.cache.xattrsOf(node);
  if (known !== undefined) return valueOf(known, name, bytes);
  return fetchXattrs(fs, node).then((xattrs) => valueOf(xattrs, name, bytes));
}

export function listxattr(fs: FileSystem, { node, body }: Request): Reply | Promise<Reply> {
  const bytes = body.readUInt32LE(0);
  const known = fs.client.cache.xattrsOf(node);
  if (known !== undefined) return listOf(known, bytes);
  return fetchXattrs(fs, node).then((xattrs) => listOf(xattrs, bytes));
}

export async function setxattr(fs: FileSystem, { node: ino, body }: Request): Promise<Reply> {
  const { name, value, flags } = decodeSetxattr(body);
  if (!isKept(name)) throw notOffered(name);
  await change(fs, ino, { name, value, create: (flags & XATTR_CREATE) !== 0, replace: (flags & XATTR_REPLACE) !== 0 });
  return undefined;
}

export async function removexattr(fs: FileSystem, { node: ino, body }: Request): Promise<Reply> {
  const name = readName(body, 0);
  if (!isKept(name)) throw name.startsWith('security.') ? noSuch(name) : notOffered(name);
  await change(fs, ino, { name, create: false, replace: false });
  return undefined;
}

async function change(
  fs: FileSystem,
  ino: number,
  asked: { name: string; value?: Uint8Array; create: boolean; replace: boolean },
): Promise<void> {
  const { cache, directories, manager } = fs.client;
  directories.giveBack([ino]); // its layout is that of files that are made in it
  const { attr } = await manager.ask('setxattr', { ino, ...asked });
  fs.client.held.noteAttr(attr);
  cache.replaceAttr(attr); // and with it what was cached of its extended attributes
}

async function fetchXattrs(fs: FileSystem, ino: number): Promise<Xattrs> {
  const { cache, manager } = fs.client;
  const stamp = cache.beginFill();
  const { xattrs } = await manager.ask('getxattrs', { ino });
  // The manager tells changes to those who cached the attributes: without them nothing would tell us.
  if (cache.attr(ino) !== undefined) cache.keepXattrs(stamp, ino, xattrs);
  return xattrs;
}

function valueOf(xattrs: Xattrs, name: string, roomBytes: number): Reply {
  const value = Object.hasOwn(xattrs, name) ? xattrs[name] : undefined;
  if (value === undefined) throw noSuch(name);
  return fitted(value, roomBytes, name);
}

function listOf(xattrs: Xattrs, roomBytes: number): Reply {
  const names = Object.keys(xattrs).filter((name) => !name.startsWith(MANAGER_PREFIX));
  return fitted(Buffer.from(names.map((name) => `${name}\0`).join(''), 'utf8'), roomBytes, 'the list of names');
}

/** Room 0 asks for the length only. */
function fitted(value: Uint8Array, roomBytes: number, what: string): Reply {
  if (roomBytes === 0) return encodeXattrLength(value.byteLength);
  if (value.byteLength > roomBytes)
    throw new ExtmemError('ERANGE', `reading extended attribute ${what}: it has ${value.byteLength} bytes, there is room for ${roomBytes}`);
  return value;
}

function isKept(name: string): boolean {
  return KEPT_PREFIXES.some((prefix) => name.startsWith(prefix));
}

function noSuch(name: string): ExtmemError {
  return new ExtmemError('ENODATA', `there is no extended attribute ${name}`);
}

function notOffered(name: string): ExtmemError {
  return new ExtmemError('EOPNOTSUPP', `extended attribute ${name}: only user.* and trusted.* are kept`);
}
