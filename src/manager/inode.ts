/**
 * An inode as the store keeps it, and how it is read, changed and told. Stored values are never changed in place: `touch` and
 * the spread make new ones.
 */
import { ExtmemError } from '../base/errors.js';
import { now } from '../base/clock.js';
import { encodeRecord, restampRecord } from '../base/file_record.js';
import { DEFAULT_LAYOUT, type Layout } from '../base/layout.js';
import type { AcrossName, Attr, Durability, InodeKind, LayoutName, Time } from '../base/messages.js';
import { STRIPE_UNIT_BYTES } from '../base/protocol.js';
import { isProtected, type AccessRow } from './access.js';
import { limits } from './limits.js';
import { keys, type ReadView } from './metadata_store.js';

export const ROOT_INO = 1;
/** 0 begins a listing; 1 and 2 are left to '.' and '..'. */
export const FIRST_COOKIE = 3;

export interface Inode {
  readonly ino: number;
  readonly kind: InodeKind;
  readonly mode: number;
  readonly uid: number;
  readonly gid: number;
  readonly nlink: number;
  readonly rdev: number;
  readonly size: number;
  readonly blocks: number;
  readonly atime: Time;
  readonly mtime: Time;
  readonly ctime: Time;
  readonly change: number;
  /** Of the file's extents: a record with an older one is not accepted. */
  readonly epoch: number;
  /** Between these epochs only marks of members changed, which are not a writer's to say: its records are accepted since then.
   *  Void when `to` is not the present epoch. */
  readonly marked?: { readonly since: number; readonly to: number };
  /** A file's own, and for a directory that of files made in it; absent: the default. */
  readonly layout?: LayoutName;
  readonly copies?: number;
  readonly across?: AcrossName;
  /** What fsync of a file promises; absent: memory. */
  readonly durability?: Durability;
  /** What people call it; whoever may see its metadata sees it. */
  readonly label?: string;
  /** Who may do what with a file; absent: whoever has the join token, everything. */
  readonly access?: AccessRow;
  /** Of a symlink. */
  readonly target?: string;
  /** Of a directory. */
  readonly parent?: number;
  readonly nextCookie?: number;
  /** Of a file that the holder of a directory made there: whoever looks at the file takes that directory back first, because
   *  its holder may have removed the name. */
  readonly home?: number;
}

export interface Entry {
  readonly ino: number;
  readonly cookie: number;
}

export function attrOf(inode: Inode): Attr {
  const { ino, kind, mode, uid, gid, nlink, rdev, size, blocks, atime, mtime, ctime, change } = inode;
  const persisted = inode.durability === 'persisted' ? { persisted: true } : {};
  const ownRegions = isProtected(inode) ? { ownRegions: true } : {};
  return { ino, kind, mode, uid, gid, nlink, rdev, size, blocks, atime, mtime, ctime, change, ...persisted, ...ownRegions };
}

/** A change of attributes (ctime), or of contents too (mtime). */
export function touch(inode: Inode, what: 'attributes' | 'contents', at: Time = now()): Inode {
  return { ...inode, ctime: at, change: inode.change + 1, ...(what === 'contents' ? { mtime: at } : {}) };
}

/** What a label may be: a line for people. */
export function checkLabel(label: string): string {
  if (Buffer.byteLength(label) > limits.labelBytes)
    throw new ExtmemError('E2BIG', `a label has ${limits.labelBytes} bytes at most, this one ${Buffer.byteLength(label)}`);
  if (/\p{Cc}/u.test(label)) throw new ExtmemError('EINVAL', 'a label is one line of text, without control characters');
  return label;
}

export function findInode(view: ReadView, ino: number): Inode {
  const inode = view.get<Inode>(keys.inode(ino));
  if (inode === undefined) throw new ExtmemError('ENOENT', `there is no inode ${ino} (any more)`);
  return inode;
}

export function findDirectory(view: ReadView, ino: number): Inode {
  const inode = findInode(view, ino);
  if (inode.kind !== 'directory') throw new ExtmemError('ENOTDIR', `inode ${ino} is no directory`);
  return inode;
}

export function findFile(view: ReadView, ino: number): Inode {
  const inode = findInode(view, ino);
  if (inode.kind === 'directory') throw new ExtmemError('EISDIR', `inode ${ino} is a directory`);
  if (inode.kind !== 'file') throw new ExtmemError('EINVAL', `inode ${ino} is no regular file`);
  return inode;
}

export function layoutOf({ layout = DEFAULT_LAYOUT.layout, copies, across }: Pick<Inode, 'layout' | 'copies' | 'across'>): Layout {
  return { layout, ...(copies === undefined ? {} : { copies }), ...(across === undefined ? {} : { across }) };
}

/** Whether a record of this epoch was made of extents as they are. */
export function acceptsEpoch({ epoch, marked }: Inode, ofRecord: number): boolean {
  return ofRecord === epoch || (marked?.to === epoch && ofRecord >= marked.since && ofRecord < epoch);
}

export function recordHeader(inode: Inode) {
  const { ino, size, mtime, ctime, change, epoch } = inode;
  return { ino, ...layoutOf(inode), stripeUnit: STRIPE_UNIT_BYTES, size, mtime, ctime, change, epoch };
}

/** A file's record as it is told: the stored extents under the inode's present attributes. */
export function recordOf(view: ReadView, inode: Inode): Buffer {
  const stored = view.get<Uint8Array>(keys.record(inode.ino));
  if (stored === undefined) return encodeRecord({ ...recordHeader(inode), extents: [] });
  return restampRecord(stored, recordHeader(inode));
}
