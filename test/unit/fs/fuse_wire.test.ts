import { describe, expect, test } from '@jest/globals';
import type { Attr } from '../../../src/base/messages.js';
import {
  decodeCreate,
  decodeFallocate,
  decodeGetxattr,
  decodeLink,
  decodeLock,
  decodeMknod,
  decodeReaddir,
  decodeRelease,
  decodeRename2,
  decodeSetattr,
  decodeSetxattr,
  DirentWriter,
  encodeAttr,
  encodeCreate,
  encodeEntry,
  encodeLock,
  encodeNegativeEntry,
  encodeOpen,
  encodeStatfs,
  encodeXattrLength,
  FATTR,
  kindOfMode,
  readName,
  readSymlink,
} from '../../../src/fs/fuse_wire.js';

/** '01000000 6162' … as a little-endian C struct lies in memory. */
const bytes = (hex: string): Buffer => Buffer.from(hex.replace(/\s+/g, ''), 'hex');

const attr: Attr = {
  ino: 0x1_0000_0002,
  kind: 'file',
  mode: 0o640,
  uid: 1000,
  gid: 100,
  nlink: 2,
  rdev: 0,
  size: 0x2_0000_0003,
  blocks: 8,
  atime: [-1, 999_999_999],
  mtime: [0x1_0000_0000, 2],
  ctime: [3, 4],
  change: 5,
};

const attrBytes = `
  0200000001000000 0300000002000000 0800000000000000
  ffffffffffffffff 0000000001000000 0300000000000000
  ffc99a3b 02000000 04000000 a0810000 02000000 e8030000 64000000 00000000 00100000 00000000`;

describe('replies', () => {
  test('fuse_entry_out has node id, timeouts and attributes', () => {
    const expected = bytes(`0200000001000000 0000000000000000 0400000000000000 0100000000000000 00000000 0065cd1d ${attrBytes}`);
    expect(encodeEntry(attr, { entryMs: 4000, attrMs: 1500 })).toEqual(expected);
  });

  test('a negative entry has node id 0 and a timeout', () => {
    const expected = Buffer.alloc(128);
    expected.writeUInt32LE(2, 16);
    expected.writeUInt32LE(250_000_000, 32);
    expect(encodeNegativeEntry(2250)).toEqual(expected);
  });

  test('fuse_attr_out', () => {
    expect(encodeAttr(attr, 0)).toEqual(bytes(`0000000000000000 00000000 00000000 ${attrBytes}`));
  });

  test('fuse_open_out keeps a handle that is a 47-bit pointer', () => {
    expect(encodeOpen(0x7fff_1234_5678, 2)).toEqual(bytes('78563412 ff7f0000 02000000 00000000'));
  });

  test('CREATE is answered by an entry and an open', () => {
    const valid = { entryMs: 0, attrMs: 0 };
    expect(encodeCreate(attr, valid, 9, 0)).toEqual(Buffer.concat([encodeEntry(attr, valid), encodeOpen(9, 0)]));
  });

  test('fuse_statfs_out counts 4 KiB blocks', () => {
    const body = encodeStatfs({ totalBytes: 40960, freeBytes: 8192, files: 3 });
    expect(body.length).toBe(80);
    expect(body.subarray(0, 32)).toEqual(bytes('0a00000000000000 0200000000000000 0200000000000000 0300000000000000'));
    expect(body.subarray(40, 56)).toEqual(bytes('00100000 ff000000 00100000 00000000'));
  });

  test('fuse_lk_out to the end of the file has OFFSET_MAX', () => {
    const lock = { ino: 1, owner: 'a', flock: false, type: 'write' as const, start: 5, end: Number.MAX_SAFE_INTEGER, pid: 77 };
    expect(encodeLock(lock)).toEqual(bytes('0500000000000000 ffffffffffffff7f 01000000 4d000000'));
  });

  test('fuse_getxattr_out', () => {
    expect(encodeXattrLength(258)).toEqual(bytes('02010000 00000000'));
  });

  test('fuse_dirent is padded to eight bytes and ends before the buffer does', () => {
    const writer = new DirentWriter(64);
    expect(writer.add('abc', 5, 'directory', 3)).toBe(true);
    expect(writer.add('12345678', 6, 'symlink', 4)).toBe(true);
    expect(writer.add('x', 7, 'file', 5)).toBe(false);
    expect(writer.bytes).toEqual(
      bytes(`0500000000000000 0300000000000000 03000000 04000000 6162630000000000
             0600000000000000 0400000000000000 08000000 0a000000 3132333435363738`),
    );
  });

  test('fuse_direntplus is an entry followed by a dirent', () => {
    const writer = new DirentWriter(4096);
    const valid = { entryMs: 1000, attrMs: 1000 };
    writer.addPlus('a', attr, valid, 9);
    writer.addPlain('.', 1, 1);
    const entry = writer.bytes.subarray(0, 160);
    expect(entry.subarray(0, 128)).toEqual(encodeEntry(attr, valid));
    expect(entry.subarray(128)).toEqual(bytes('0200000001000000 0900000000000000 01000000 08000000 6100000000000000'));
    expect(writer.bytes.readUInt32LE(160)).toBe(0); // not looked up
    expect(writer.bytes.length).toBe(320);
  });
});

describe('requests', () => {
  test('fuse_setattr_in', () => {
    const body = bytes(`
      69010000 00000000 0100000000000000 0010000001000000 0000000000000000
      f6ffffffffffffff 0200000000000000 0300000000000000 07000000 08000000 09000000
      a4810000 00000000 e8030000 64000000 00000000`);
    const decoded = decodeSetattr(body);
    expect(decoded).toEqual({
      valid: FATTR.mode | FATTR.size | FATTR.mtime | FATTR.fh | FATTR.mtimeNow,
      size: 0x1_0000_1000,
      atime: [-10, 7],
      mtime: [2, 8],
      ctime: [3, 9],
      mode: 0o100644,
      uid: 1000,
      gid: 100,
    });
  });

  test('fuse_create_in and a name of several bytes per letter', () => {
    const body = Buffer.concat([bytes('c2800000 a4810000 12000000 00000000'), Buffer.from('naïve\0')]);
    expect(decodeCreate(body)).toEqual({ flags: 0x80c2, mode: 0o100644, name: 'naïve' });
  });

  test('fuse_mknod_in', () => {
    const body = Buffer.concat([bytes('a4210000 05010000 12000000 00000000'), Buffer.from('tty\0')]);
    expect(decodeMknod(body)).toEqual({ mode: 0o20644, rdev: 0x105, name: 'tty' });
    expect(kindOfMode(0o20644)).toBe('character');
  });

  test('fuse_rename2_in and two names', () => {
    const body = Buffer.concat([bytes('0500000000000000 01000000 00000000'), Buffer.from('old\0new\0')]);
    expect(decodeRename2(body)).toEqual({ newParent: 5, flags: 1, name: 'old', newName: 'new' });
  });

  test('SYMLINK has the name before the target', () => {
    expect(readSymlink(Buffer.from('link\0../there\0'))).toEqual({ name: 'link', target: '../there' });
  });

  test('fuse_link_in', () => {
    expect(decodeLink(Buffer.concat([bytes('0900000000000000'), Buffer.from('n\0')]))).toEqual({ ino: 9, newName: 'n' });
  });

  test('fuse_release_in keeps all 64 bits of the lock owner', () => {
    const body = bytes('785634127f000000 02800000 02000000 efcdab8967452301');
    expect(decodeRelease(body)).toEqual({ handle: 0x7f_1234_5678, flags: 0x8002, releaseFlags: 2, owner: '0123456789abcdef' });
  });

  test('fuse_lk_in to the end of the file', () => {
    const body = bytes('0100000000000000 efcdab8967452301 0a00000000000000 ffffffffffffff7f 01000000 4d000000 01000000 00000000');
    expect(decodeLock(body, 3)).toEqual({
      ino: 3,
      owner: '0123456789abcdef',
      flock: true,
      type: 'write',
      start: 10,
      end: Number.MAX_SAFE_INTEGER,
      pid: 77,
    });
  });

  test('fuse_read_in of a directory', () => {
    const body = bytes('0100000000000000 0200000000000000 00100000 00000000 0000000000000000 00000000 00000000');
    expect(decodeReaddir(body)).toEqual({ handle: 1, offset: 2, bytes: 4096 });
  });

  test('fuse_setxattr_in, a name and a value with zeros', () => {
    const body = Buffer.concat([bytes('03000000 01000000'), Buffer.from('user.a\0'), bytes('000100')]);
    expect(decodeSetxattr(body)).toEqual({ name: 'user.a', value: bytes('000100'), flags: 1 });
    expect(() => decodeSetxattr(body.subarray(0, body.length - 1))).toThrow(/less than its length/);
  });

  test('fuse_getxattr_in and fuse_fallocate_in', () => {
    expect(decodeGetxattr(Buffer.concat([bytes('40000000 00000000'), Buffer.from('user.b\0')]))).toEqual({ bytes: 64, name: 'user.b' });
    const body = bytes('0100000000000000 0010000000000000 0020000000000000 03000000 00000000');
    expect(decodeFallocate(body)).toEqual({ offset: 4096, length: 8192, mode: 3 });
  });

  test('names that are no UTF-8, or too long, are refused', () => {
    expect(() => readName(bytes('ff00'), 0)).toThrow(expect.objectContaining({ code: 'EILSEQ' }));
    expect(() => readName(Buffer.from(`${'n'.repeat(256)}\0`), 0)).toThrow(expect.objectContaining({ code: 'ENAMETOOLONG' }));
    expect(readName(Buffer.from('\ufffd\0'), 0)).toBe('\ufffd');
  });
});
