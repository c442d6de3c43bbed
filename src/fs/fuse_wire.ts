/**
 * Layouts of <linux/fuse.h> (protocol 7.31) as the control path needs them: bodies of requests are decoded, bodies of replies
 * encoded. The headers (fuse_in_header, fuse_out_header) are native's. Little-endian, as on every machine that extmem runs on.
 *
 * Invariants: nothing here keeps state or touches anything but its arguments; a body shorter than its layout is never read past
 * its end (the opcode table checks the minimum, `readName` the rest); 64-bit numbers are safe integers, except lock owners, which
 * are opaque and therefore hexadecimal strings.
 */
import { ExtmemError } from '../base/errors.js';
import type { Attr, InodeKind, Lock, Time } from '../base/messages.js';

export const FATTR = {
  mode: 1 << 0,
  uid: 1 << 1,
  gid: 1 << 2,
  size: 1 << 3,
  atime: 1 << 4,
  mtime: 1 << 5,
  fh: 1 << 6,
  atimeNow: 1 << 7,
  mtimeNow: 1 << 8,
  lockOwner: 1 << 9,
  ctime: 1 << 10,
} as const;

export const FOPEN_DIRECT_IO = 1 << 0;
export const FOPEN_KEEP_CACHE = 1 << 1;
export const FUSE_RELEASE_FLOCK_UNLOCK = 1 << 1;
const FUSE_LK_FLOCK = 1 << 0;
export const RENAME_NOREPLACE = 1;
export const RENAME_EXCHANGE = 2;

/** open(2) flags of x86-64 and arm64 Linux that matter here. */
export const O_ACCMODE = 0o3;
export const O_EXCL = 0o200;
export const O_TRUNC = 0o1000;

/** The kernel's "to the end of the file" in lock ranges; MAX_SAFE_INTEGER stands for it in messages. */
const OFFSET_MAX_HIGH = 0x7fffffff;
const OFFSET_MAX_LOW = 0xffffffff;
const TWO_32 = 2 ** 32;
const NAME_MAX = 255;
const BLOCK_BYTES = 4096;

export const ATTR_BYTES = 88;
export const ENTRY_OUT_BYTES = 40 + ATTR_BYTES;
export const ATTR_OUT_BYTES = 16 + ATTR_BYTES;
export const OPEN_OUT_BYTES = 16;
const DIRENT_BYTES = 24;

const KIND_BITS: Record<InodeKind, number> = {
  fifo: 0o010000,
  character: 0o020000,
  directory: 0o040000,
  block: 0o060000,
  file: 0o100000,
  symlink: 0o120000,
  socket: 0o140000,
};
const KIND_MASK = 0o170000;

/** The inode kind that the S_IFMT bits of a mode name; undefined for none of them (mknod with 0 means a file). */
export function kindOfMode(mode: number): InodeKind | undefined {
  const bits = mode & KIND_MASK;
  if (bits === 0) return 'file';
  for (const [kind, value] of Object.entries(KIND_BITS)) if (value === bits) return kind as InodeKind;
  return undefined;
}

// ---- requests

export function readU64(view: DataView, at: number): number {
  return view.getUint32(at + 4, true) * TWO_32 + view.getUint32(at, true);
}

function readI64(view: DataView, at: number): number {
  return view.getInt32(at + 4, true) * TWO_32 + view.getUint32(at, true);
}

function readOwner(view: DataView, at: number): string {
  const high = view
    .getUint32(at + 4, true)
    .toString(16)
    .padStart(8, '0');
  return high + view.getUint32(at, true).toString(16).padStart(8, '0');
}

export function viewOf(body: Buffer): DataView {
  return new DataView(body.buffer, body.byteOffset, body.byteLength);
}

/** The NUL-terminated string at `at`, and where the next one begins. */
function readString(body: Buffer, at: number): { text: string; end: number } {
  const nul = body.indexOf(0, at);
  const stop = nul < 0 ? body.length : nul;
  const text = body.toString('utf8', at, stop);
  // Names travel as text: bytes that are not UTF-8 would come back as other names.
  if (text.includes('\ufffd') && !Buffer.from(text, 'utf8').equals(body.subarray(at, stop)))
    throw new ExtmemError('EILSEQ', 'reading a name from the kernel: it is not UTF-8; names on this mount must be');
  return { text, end: stop + 1 };
}

/** An open file's handle, where the operation's struct has it. */
export function readHandle(body: Buffer, at: number): number {
  return readU64(viewOf(body), at);
}

/** A path component; the kernel has refused '/' already. */
export function readName(body: Buffer, at: number): string {
  const { text, end } = readString(body, at);
  if (end - 1 - at > NAME_MAX) throw new ExtmemError('ENAMETOOLONG', `reading a name from the kernel: it has more than ${NAME_MAX} bytes`);
  return text;
}

/** Two path components that follow each other (RENAME). */
export function readTwoNames(body: Buffer, at: number): [string, string] {
  const first = readString(body, at);
  return [readName(body, at), readName(body, first.end)];
}

/** SYMLINK: the new name, then what it points to. */
export function readSymlink(body: Buffer): { name: string; target: string } {
  const name = readString(body, 0);
  return { name: readName(body, 0), target: readString(body, name.end).text };
}

export interface SetattrIn {
  valid: number;
  size: number;
  atime: Time;
  mtime: Time;
  ctime: Time;
  mode: number;
  uid: number;
  gid: number;
}
export const SETATTR_IN_BYTES = 88;
export function decodeSetattr(body: Buffer): SetattrIn {
  const view = viewOf(body);
  return {
    valid: view.getUint32(0, true),
    size: readU64(view, 16),
    atime: [readI64(view, 32), view.getUint32(56, true)],
    mtime: [readI64(view, 40), view.getUint32(60, true)],
    ctime: [readI64(view, 48), view.getUint32(64, true)],
    mode: view.getUint32(68, true),
    uid: view.getUint32(76, true),
    gid: view.getUint32(80, true),
  };
}

export function decodeMknod(body: Buffer): { mode: number; rdev: number; name: string } {
  return { mode: body.readUInt32LE(0), rdev: body.readUInt32LE(4), name: readName(body, 16) };
}

export function decodeMkdir(body: Buffer): { mode: number; name: string } {
  return { mode: body.readUInt32LE(0), name: readName(body, 8) };
}

export function decodeCreate(body: Buffer): { flags: number; mode: number; name: string } {
  return { flags: body.readUInt32LE(0), mode: body.readUInt32LE(4), name: readName(body, 16) };
}

export function decodeRename(body: Buffer): { newParent: number; flags: number; name: string; newName: string } {
  const [name, newName] = readTwoNames(body, 8);
  return { newParent: readU64(viewOf(body), 0), flags: 0, name, newName };
}

export function decodeRename2(body: Buffer): { newParent: number; flags: number; name: string; newName: string } {
  const [name, newName] = readTwoNames(body, 16);
  return { newParent: readU64(viewOf(body), 0), flags: body.readUInt32LE(8), name, newName };
}

export function decodeLink(body: Buffer): { ino: number; newName: string } {
  return { ino: readU64(viewOf(body), 0), newName: readName(body, 8) };
}

export interface ReleaseIn {
  handle: number;
  flags: number;
  releaseFlags: number;
  owner: string;
}
export function decodeRelease(body: Buffer): ReleaseIn {
  const view = viewOf(body);
  return { handle: readU64(view, 0), flags: view.getUint32(8, true), releaseFlags: view.getUint32(12, true), owner: readOwner(view, 16) };
}

/** READDIR and READDIRPLUS (fuse_read_in). */
export function decodeReaddir(body: Buffer): { handle: number; offset: number; bytes: number } {
  const view = viewOf(body);
  return { handle: readU64(view, 0), offset: readU64(view, 8), bytes: view.getUint32(16, true) };
}

export function decodeSetxattr(body: Buffer): { name: string; value: Buffer; flags: number } {
  const bytes = body.readUInt32LE(0);
  const { text, end } = readString(body, 8);
  if (end + bytes > body.length)
    throw new ExtmemError('EINVAL', `setting extended attribute ${text}: the kernel sent less than its length`);
  return { name: text, value: body.subarray(end, end + bytes), flags: body.readUInt32LE(4) };
}

export function decodeGetxattr(body: Buffer): { bytes: number; name: string } {
  return { bytes: body.readUInt32LE(0), name: readString(body, 8).text };
}

export interface FallocateIn {
  offset: number;
  length: number;
  mode: number;
}
export function decodeFallocate(body: Buffer): FallocateIn {
  const view = viewOf(body);
  return { offset: readU64(view, 8), length: readU64(view, 16), mode: view.getUint32(24, true) };
}

const LOCK_TYPES: Lock['type'][] = ['read', 'write', 'unlock'];

export function decodeLock(body: Buffer, ino: number): Lock {
  const view = viewOf(body);
  const type = LOCK_TYPES[view.getUint32(32, true)];
  if (type === undefined) throw new ExtmemError('EINVAL', `locking inode ${ino}: unknown lock type`);
  return {
    ino,
    owner: readOwner(view, 8),
    flock: (view.getUint32(40, true) & FUSE_LK_FLOCK) !== 0,
    type,
    start: Math.min(readU64(view, 16), Number.MAX_SAFE_INTEGER),
    end: Math.min(readU64(view, 24), Number.MAX_SAFE_INTEGER),
    pid: view.getUint32(36, true),
  };
}

// ---- replies

function writeU64(view: DataView, at: number, value: number): void {
  view.setUint32(at, value % TWO_32, true);
  view.setUint32(at + 4, value / TWO_32, true);
}

function writeI64(view: DataView, at: number, value: number): void {
  const high = Math.floor(value / TWO_32);
  view.setUint32(at, value - high * TWO_32, true);
  view.setInt32(at + 4, high, true);
}

/** How long the kernel may believe a name and attributes. */
export interface Validity {
  entryMs: number;
  attrMs: number;
}

function writeAttr(view: DataView, at: number, attr: Attr): void {
  writeU64(view, at, attr.ino);
  writeU64(view, at + 8, attr.size);
  writeU64(view, at + 16, attr.blocks);
  writeI64(view, at + 24, attr.atime[0]);
  writeI64(view, at + 32, attr.mtime[0]);
  writeI64(view, at + 40, attr.ctime[0]);
  view.setUint32(at + 48, attr.atime[1], true);
  view.setUint32(at + 52, attr.mtime[1], true);
  view.setUint32(at + 56, attr.ctime[1], true);
  view.setUint32(at + 60, KIND_BITS[attr.kind] | attr.mode, true);
  view.setUint32(at + 64, attr.nlink, true);
  view.setUint32(at + 68, attr.uid, true);
  view.setUint32(at + 72, attr.gid, true);
  view.setUint32(at + 76, attr.rdev, true);
  view.setUint32(at + 80, BLOCK_BYTES, true);
  view.setUint32(at + 84, 0, true);
}

function writeEntry(view: DataView, at: number, attr: Attr, valid: Validity): void {
  writeU64(view, at, attr.ino);
  writeU64(view, at + 8, 0); // generation: inode numbers are never used twice
  writeU64(view, at + 16, Math.floor(valid.entryMs / 1000));
  writeU64(view, at + 24, Math.floor(valid.attrMs / 1000));
  view.setUint32(at + 32, (Math.floor(valid.entryMs) % 1000) * 1_000_000, true);
  view.setUint32(at + 36, (Math.floor(valid.attrMs) % 1000) * 1_000_000, true);
  writeAttr(view, at + 40, attr);
}

export function encodeEntry(attr: Attr, valid: Validity): Buffer {
  const body = Buffer.allocUnsafe(ENTRY_OUT_BYTES);
  writeEntry(viewOf(body), 0, attr, valid);
  return body;
}

/** "No such name", which the kernel may remember: an entry whose node id is 0. */
export function encodeNegativeEntry(entryMs: number): Buffer {
  const body = Buffer.alloc(ENTRY_OUT_BYTES);
  const view = viewOf(body);
  writeU64(view, 16, Math.floor(entryMs / 1000));
  view.setUint32(32, (Math.floor(entryMs) % 1000) * 1_000_000, true);
  return body;
}

export function encodeAttr(attr: Attr, attrMs: number): Buffer {
  const body = Buffer.allocUnsafe(ATTR_OUT_BYTES);
  const view = viewOf(body);
  writeU64(view, 0, Math.floor(attrMs / 1000));
  view.setUint32(8, (Math.floor(attrMs) % 1000) * 1_000_000, true);
  view.setUint32(12, 0, true);
  writeAttr(view, 16, attr);
  return body;
}

function writeOpen(view: DataView, at: number, handle: number, openFlags: number): void {
  writeU64(view, at, handle);
  view.setUint32(at + 8, openFlags, true);
  view.setUint32(at + 12, 0, true);
}

export function encodeOpen(handle: number, openFlags: number): Buffer {
  const body = Buffer.allocUnsafe(OPEN_OUT_BYTES);
  writeOpen(viewOf(body), 0, handle, openFlags);
  return body;
}

/** CREATE is answered by fuse_entry_out and fuse_open_out. */
export function encodeCreate(attr: Attr, valid: Validity, handle: number, openFlags: number): Buffer {
  const body = Buffer.allocUnsafe(ENTRY_OUT_BYTES + OPEN_OUT_BYTES);
  const view = viewOf(body);
  writeEntry(view, 0, attr, valid);
  writeOpen(view, ENTRY_OUT_BYTES, handle, openFlags);
  return body;
}

export function encodeStatfs(room: { totalBytes: number; freeBytes: number; files: number }): Buffer {
  const body = Buffer.alloc(80);
  const view = viewOf(body);
  writeU64(view, 0, Math.floor(room.totalBytes / BLOCK_BYTES));
  writeU64(view, 8, Math.floor(room.freeBytes / BLOCK_BYTES));
  writeU64(view, 16, Math.floor(room.freeBytes / BLOCK_BYTES));
  writeU64(view, 24, room.files);
  writeU64(view, 32, Number.MAX_SAFE_INTEGER - room.files); // inodes are not limited
  view.setUint32(40, BLOCK_BYTES, true);
  view.setUint32(44, NAME_MAX, true);
  view.setUint32(48, BLOCK_BYTES, true);
  return body;
}

export function encodeLock(lock: Lock): Buffer {
  const body = Buffer.alloc(24);
  const view = viewOf(body);
  writeU64(view, 0, lock.start);
  if (lock.end === Number.MAX_SAFE_INTEGER) {
    view.setUint32(8, OFFSET_MAX_LOW, true);
    view.setUint32(12, OFFSET_MAX_HIGH, true);
  } else {
    writeU64(view, 8, lock.end);
  }
  view.setUint32(16, LOCK_TYPES.indexOf(lock.type), true);
  view.setUint32(20, lock.pid, true);
  return body;
}

/** The answer to a GETXATTR or LISTXATTR that asked for the length only. */
export function encodeXattrLength(bytes: number): Buffer {
  const body = Buffer.alloc(8);
  body.writeUInt32LE(bytes, 0);
  return body;
}

/** Fills the reply to READDIR or READDIRPLUS up to the kernel's buffer; `add` answers false when an entry no longer fits. */
export class DirentWriter {
  private readonly body: Buffer;
  private readonly view: DataView;
  private used = 0;

  constructor(bytes: number) {
    this.body = Buffer.alloc(bytes);
    this.view = viewOf(this.body);
  }

  /** `next` is the offset at which reading goes on after this entry. */
  add(name: string, ino: number, kind: InodeKind, next: number): boolean {
    return this.place(0, name, ino, kind, next);
  }

  /** With attributes: the kernel counts one look-up of attr.ino. */
  addPlus(name: string, attr: Attr, valid: Validity, next: number): boolean {
    const at = this.used;
    if (!this.place(ENTRY_OUT_BYTES, name, attr.ino, attr.kind, next)) return false;
    writeEntry(this.view, at, attr, valid);
    return true;
  }

  /** With a zero node id: listed, not looked up ('.' and '..'). */
  addPlain(name: string, ino: number, next: number): boolean {
    return this.place(ENTRY_OUT_BYTES, name, ino, 'directory', next);
  }

  get bytes(): Buffer {
    return this.body.subarray(0, this.used);
  }

  private place(before: number, name: string, ino: number, kind: InodeKind, next: number): boolean {
    const nameBytes = Buffer.byteLength(name);
    const whole = (before + DIRENT_BYTES + nameBytes + 7) & ~7;
    if (this.used + whole > this.body.length) return false;
    const at = this.used + before;
    writeU64(this.view, at, ino);
    writeU64(this.view, at + 8, next);
    this.view.setUint32(at + 16, nameBytes, true);
    this.view.setUint32(at + 20, KIND_BITS[kind] >>> 12, true);
    this.body.write(name, at + DIRENT_BYTES, 'utf8');
    this.used += whole;
    return true;
  }
}
