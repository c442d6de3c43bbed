import { beforeEach, describe, expect, test } from '@jest/globals';
import { constants } from 'node:os';
import type { Attr } from '../../../src/base/messages.js';
import { ExtmemError } from '../../../src/base/errors.js';
import { attrOfFile, emptyRecord, grantOf } from '../client/scripted_manager.js';
import { settle, startClient, type TestClient } from '../client/mounted.js';
import { Kernel, named, text } from './kernel.js';

const { EIO, EINTR, EAGAIN, ENOSYS, ENOTTY, EINVAL, ENODATA, ERANGE, EOPNOTSUPP, ESTALE, EISDIR } = constants.errno;
const O_RDWR = 2;
const O_TRUNC = 0o1000;

let t: TestClient;
let kernel: Kernel;

beforeEach(async () => {
  t = await startClient();
  kernel = new Kernel(t.client, t.native);
  t.manager.script.lookup = ({ name }) => (name === 'none' ? { cacheable: true } : { attr: attrOfFile(5, { size: 10 }), cacheable: true });
  t.manager.script.getattr = ({ ino }) => ({ attr: attrOfFile(ino, { size: 10 }), cacheable: true });
  t.manager.script.acquire = ({ ino, mode }) => grantOf(ino, mode, { size: 10 });
  t.manager.script.release = () => ({});
  t.manager.script.create = ({ open }) => ({ attr: attrOfFile(9), parents: [], ...(open ? { grant: grantOf(9, 'write') } : {}) });
  t.manager.script.unlink = () => ({ attr: attrOfFile(5, { nlink: 0 }), parents: [] });
  t.manager.script.rename = () => ({ moved: attrOfFile(5), replaced: attrOfFile(6, { nlink: 0 }), parents: [] });
  t.manager.script.setattr = ({ ino, set }) => ({
    attr: attrOfFile(ino, { mode: set.mode ?? 0o644, size: set.size ?? 10 }),
    ...(set.size === undefined ? {} : { record: emptyRecord(ino, { size: set.size, change: 40 }) }),
  });
});

describe('names', () => {
  test('a name that was looked up is answered from the cache, at once', async () => {
    expect(await kernel.lookup(1, 'a')).toMatchObject({ node: 5, entryMs: 4000, attrMs: 4000, size: 10 });
    t.manager.takeAsked();
    expect(kernel.askAtOnce('LOOKUP', 1, text('a'))?.errno).toBe(0);
    expect(kernel.askAtOnce('GETATTR', 5, Buffer.alloc(16))?.errno).toBe(0);
    expect(t.manager.takeAsked()).toEqual([]);
  });

  test('that a name does not exist is remembered until the manager says otherwise', async () => {
    expect(await kernel.lookup(1, 'none')).toMatchObject({ node: 0, entryMs: 4000 });
    expect(kernel.askAtOnce('LOOKUP', 1, text('none'))?.body.readUInt32LE(0)).toBe(0);
    await t.manager.pushes?.invalidateEntries({ entries: [{ parent: 1, name: 'none' }] });
    expect(t.native.log).toContain('invalidateEntry 1 none');
    expect(kernel.askAtOnce('LOOKUP', 1, text('none'))).toBeUndefined();
  });

  test('attributes that are not cacheable are asked for each time, and the kernel is given no time', async () => {
    t.manager.script.lookup = () => ({ attr: attrOfFile(5), cacheable: false });
    expect(await kernel.lookup(1, 'a')).toMatchObject({ node: 5, entryMs: 4000, attrMs: 0 });
    expect(kernel.askAtOnce('LOOKUP', 1, text('a'))).toBeUndefined();
  });

  test('an answer that an invalidation overtook is not kept', async () => {
    let answer: (value: { attr: Attr; cacheable: boolean }) => void = () => undefined;
    t.manager.script.lookup = () => new Promise((resolve) => (answer = resolve));
    const looking = kernel.lookup(1, 'a');
    await settle();
    await t.manager.pushes?.invalidateEntries({ entries: [{ parent: 1, name: 'other' }] });
    answer({ attr: attrOfFile(5), cacheable: true });
    expect(await looking).toMatchObject({ node: 5, entryMs: 0 });
    expect(kernel.askAtOnce('LOOKUP', 1, text('a'))).toBeUndefined();
  });

  test('a notice about a name is not waited for while its directory is busy', async () => {
    t.native.onInvalidate = () => new Promise(() => undefined);
    t.manager.script.create = () => new Promise(() => undefined);
    kernel.send('MKDIR', 1, named([0o755, 0o22], 'd'));
    await t.manager.pushes?.invalidateEntries({ entries: [{ parent: 1, name: 'a' }] });
    const begun = t.manager.pushes?.invalidateEntries({ entries: [{ parent: 2, name: 'a' }] });
    kernel.send('MKDIR', 2, named([0o755, 0o22], 'd'));
    await begun;
  });

  test('our own unlink turns a cached name into a negative one', async () => {
    await kernel.lookup(1, 'a');
    expect((await kernel.ask('UNLINK', 1, text('a'))).errno).toBe(0);
    expect(kernel.askAtOnce('LOOKUP', 1, text('a'))?.body.readUInt32LE(0)).toBe(0);
  });

  test('a rename moves what is cached and marks what it replaced', async () => {
    await t.client.held.open(6, 'write');
    await kernel.lookup(1, 'a');
    const body = Buffer.concat([Buffer.from('0100000000000000', 'hex'), text('a'), text('b')]);
    expect((await kernel.ask('RENAME', 1, body)).errno).toBe(0);
    expect(kernel.askAtOnce('LOOKUP', 1, text('a'))?.body.readUInt32LE(0)).toBe(0);
    expect(t.client.held.get(6)?.unlinked).toBe(true);
    expect(
      (await kernel.ask('RENAME2', 1, Buffer.concat([Buffer.from('01000000000000000400000000000000', 'hex'), text('a'), text('b')]))).errno,
    ).toBe(EINVAL);
  });

  test('look-ups are counted and forgotten', async () => {
    await kernel.lookup(1, 'a');
    await kernel.lookup(1, 'a');
    kernel.fileSystem.handle({ kind: 'forget', nodes: [{ node: 5, count: 1 }] });
    expect(kernel.fileSystem.nodes.size).toBe(1);
    kernel.fileSystem.handle({ kind: 'forget', nodes: [{ node: 5, count: 1 }] });
    expect(kernel.fileSystem.nodes.size).toBe(0);
    expect(kernel.askAtOnce('GETATTR', 5, Buffer.alloc(16))).toBeUndefined();
  });
});

describe('attributes', () => {
  test('size and times of a file that is written here are the ones of now', async () => {
    await kernel.lookup(1, 'a');
    await kernel.open(5, O_RDWR);
    t.native.write(5, 5000);
    expect((await kernel.getattr(5)).size).toBe(5000);
  });

  test('attributes of a shared file are given no time', async () => {
    t.manager.script.acquire = ({ ino }) => grantOf(ino, 'shared');
    await kernel.open(5, O_RDWR);
    expect((await kernel.getattr(5)).attrMs).toBe(0);
  });

  test('a change of our own stays cached with its new value', async () => {
    await kernel.lookup(1, 'a');
    await kernel.setattr(5, 1, { mode: 0o600 });
    t.manager.takeAsked();
    expect((await kernel.getattr(5)).mode).toBe(0o100600);
    expect(t.manager.takeAsked()).toEqual([]);
  });

  test('an attribute push drops ours before it is answered', async () => {
    await kernel.lookup(1, 'a');
    await t.manager.pushes?.invalidate({ ino: 5, offset: 0, length: 0 });
    expect(t.native.log).toContain('invalidateInode 5 -1 0');
    expect(kernel.askAtOnce('GETATTR', 5, Buffer.alloc(16))).toBeUndefined();
  });

  test('times set under the write delegation reach native', async () => {
    await kernel.open(5, O_RDWR);
    await kernel.setattr(5, 1 << 5, { mtime: 77 });
    expect(t.native.fileState(5)?.mtime).toEqual([77, 0]);
  });

  test('a truncate of an open file cuts natively around the manager', async () => {
    await kernel.open(5, O_RDWR);
    expect((await kernel.setattr(5, 1 << 3, { size: 3 })).errno).toBe(0);
    expect(t.native.fileState(5)?.size).toBe(3);
    expect(t.native.log.slice(-2)).toEqual(['beginCut 5 3 -1', 'endCut 5 done']);
  });

  test('statfs is asked once a second, and known when the manager is dead', async () => {
    t.manager.script.statfs = () => ({ totalBytes: 1 << 20, freeBytes: 1 << 19, files: 2 });
    expect((await kernel.ask('STATFS', 1)).body.readUInt32LE(0)).toBe(256);
    t.manager.alive = false;
    expect(kernel.askAtOnce('STATFS', 1)?.body.readUInt32LE(0)).toBe(256);
  });
});

describe('files', () => {
  test('create opens in one step', async () => {
    const made = await kernel.create(1, 'new');
    expect(made).toMatchObject({ node: 9, errno: 0 });
    expect(t.manager.takeAsked()).toEqual(['create']);
    expect(t.client.held.get(9)).toMatchObject({ mode: 'write', writers: 1 });
    expect((await kernel.release(9, made.handle)).errno).toBe(0);
    expect(t.client.held.get(9)).toMatchObject({ writers: 0 });
  });

  test('a name that was known not to exist is not believed after it was made, also when the answer may not be kept', async () => {
    t.manager.script.lookup = () => ({ cacheable: true });
    expect((await kernel.lookup(1, 'new')).node).toBe(0);
    const create = t.manager.script.create;
    t.manager.script.create = async (ask) => {
      await t.manager.pushes?.invalidate({ ino: 77, offset: 0, length: 0 }); // somebody changes something at the same time
      return (await create?.(ask)) ?? { attr: attrOfFile(9), parents: [] };
    };
    await kernel.create(1, 'new');
    t.manager.takeAsked();
    t.manager.script.lookup = () => ({ attr: attrOfFile(9), cacheable: true });
    expect((await kernel.lookup(1, 'new')).node).toBe(9);
    expect(t.manager.takeAsked()).toEqual(['lookup']);
  });

  test('create of what is no file by now', async () => {
    t.manager.script.create = () => ({ attr: attrOfFile(9, { kind: 'directory' }), parents: [] });
    expect((await kernel.create(1, 'new')).errno).toBe(EISDIR);
    t.manager.script.create = () => ({ attr: attrOfFile(9, { kind: 'symlink' }), parents: [] });
    expect((await kernel.create(1, 'new')).errno).toBe(ESTALE);
  });

  test('open again of a file that is held is answered at once and keeps the kernel’s pages', async () => {
    const first = await kernel.open(5, O_RDWR);
    await kernel.release(5, first.handle);
    const body = Buffer.alloc(8);
    const told = kernel.askAtOnce('OPEN', 5, body);
    expect(told?.errno).toBe(0);
    expect(told?.body.readUInt32LE(8)).toBe(2);
  });

  test('O_TRUNC empties a file, and of an empty one sets the times only', async () => {
    await kernel.open(5, O_RDWR | O_TRUNC);
    expect(t.native.fileState(5)?.size).toBe(0);
    t.native.log.length = 0;
    await kernel.open(5, O_RDWR | O_TRUNC);
    expect(t.native.log).toEqual([]);
  });

  test('a truncating open that fails is no open', async () => {
    t.manager.script.setattr = () => {
      throw new ExtmemError('ENOSPC', 'no');
    };
    expect((await kernel.open(5, O_RDWR | O_TRUNC)).errno).toBe(constants.errno.ENOSPC);
    expect(t.client.held.get(5)).toMatchObject({ writers: 0 });
  });

  test('what a mapping wrote is taken home after the last close', async () => {
    t.manager.script.commit = () => ({ failed: [] });
    const { handle } = await kernel.open(5, O_RDWR);
    t.native.write(5, 4096);
    await kernel.release(5, handle);
    await settle();
    expect(t.native.log).toContain('flush 5');
    expect(t.native.fileState(5)).toMatchObject({ recordChanged: false, dirtyBytes: 0 });
  });

  test('punching asks the manager, and cuts natively around it', async () => {
    t.manager.script.punch = ({ ino }) => ({ record: emptyRecord(ino, { size: 20000 }), edgesZeroed: false });
    await kernel.open(5, O_RDWR);
    t.native.write(5, 20000);
    t.manager.asked.length = 0;
    const body = Buffer.alloc(32);
    body.writeBigUInt64LE(100n, 8);
    body.writeBigUInt64LE(9000n, 16);
    body.writeUInt32LE(3, 24);
    expect((await kernel.ask('FALLOCATE', 5, body)).errno).toBe(0);
    expect(t.manager.asked[0]?.ask).toMatchObject({ offset: 100, length: 9000 });
    expect(t.native.log.slice(-2)).toEqual(['beginCut 5 100 9000', 'endCut 5 done']);
    body.writeUInt32LE(0x08, 24);
    expect((await kernel.ask('FALLOCATE', 5, body)).errno).toBe(EOPNOTSUPP);
  });
});

describe('the manager dead', () => {
  beforeEach(async () => {
    await kernel.lookup(1, 'a');
    await kernel.open(5, O_RDWR);
    t.native.log.length = 0;
    t.manager.alive = false;
    await t.manager.events?.lost();
  });

  test('the kernel is told to believe nothing of what it was told', () => {
    expect(t.native.log).toEqual(['invalidateEntry 1 a', 'invalidateInode 5 -1 0']);
  });

  test('names fail with EIO, an open file still has attributes', async () => {
    expect((await kernel.ask('LOOKUP', 1, text('a'))).errno).toBe(EIO);
    t.native.write(5, 700);
    expect(await kernel.getattr(5)).toMatchObject({ size: 700, attrMs: 0 });
  });
});

describe('directories', () => {
  beforeEach(() => {
    const names = Array.from({ length: 50 }, (_, index) => `file${index}`);
    t.manager.script.readdir = ({ cookie, limit }) => {
      const from = names
        .map((name, index) => ({ name, cookie: index + 3, attr: attrOfFile(100 + index) }))
        .filter((entry) => entry.cookie > cookie);
      return { entries: from.slice(0, Math.min(limit, 20)), end: from.length <= 20 };
    };
  });

  test('every entry is listed once, over pages of the manager and small buffers of the kernel', async () => {
    const names = await kernel.list(1, 200);
    expect(names).toHaveLength(52);
    expect(new Set(names).size).toBe(52);
    expect(names.slice(0, 3)).toEqual(['.', '..', 'file0']);
    expect(t.manager.takeAsked()).toEqual(['readdir', 'readdir', 'readdir']);
  });

  test('with attributes, each listed inode counts as looked up, and is cached', async () => {
    expect(await kernel.list(1, 1024, true)).toHaveLength(52);
    expect(kernel.fileSystem.nodes.size).toBe(50);
    expect(kernel.fileSystem.directories.size).toBe(0);
    expect(t.client.cache.entry(1, 'file7')).toBe(107);
    expect(t.client.cache.attr(107)).toBeUndefined(); // the manager did not say that it may be
  });
});

describe('locks', () => {
  test('a conflict, a wait, and a signal', async () => {
    await kernel.open(5, O_RDWR);
    expect((await t.native.told('replies', kernel.lock('SETLK', 5, 1, 1n))).errno).toBe(0);
    expect((await t.native.told('replies', kernel.lock('SETLK', 5, 1, 2n))).errno).toBe(EAGAIN);
    const found = await t.native.told('replies', kernel.lock('GETLK', 5, 1, 2n));
    expect(found.body.readUInt32LE(16)).toBe(1);
    const waiting = kernel.lock('SETLKW', 5, 1, 2n);
    kernel.fileSystem.handle({ kind: 'interrupt', unique: waiting });
    expect((await t.native.told('replies', waiting)).errno).toBe(EINTR);
  });

  test('a close drops the POSIX locks of its owner', async () => {
    await kernel.open(5, O_RDWR);
    kernel.lock('SETLK', 5, 1, 1n);
    kernel.fileSystem.handle({ kind: 'commit', id: 1, node: 5, record: Buffer.alloc(0), owner: '0000000000000001' });
    expect((await t.native.told('answers', 1)).errno).toBe(0);
    expect((await t.native.told('replies', kernel.lock('SETLK', 5, 1, 2n))).errno).toBe(0);
  });

  test('flock goes with its descriptor', async () => {
    const one = await kernel.open(5, O_RDWR);
    await kernel.open(5, O_RDWR);
    kernel.lock('SETLK', 5, 1, 1n, true);
    await kernel.release(5, one.handle, 2, 1n);
    expect((await t.native.told('replies', kernel.lock('SETLK', 5, 1, 2n, true))).errno).toBe(0);
  });
});

describe('extended attributes', () => {
  const kept = new Map<string, Uint8Array>();

  beforeEach(() => {
    kept.clear();
    t.manager.script.getxattrs = () => ({ xattrs: Object.fromEntries(kept) });
    t.manager.script.setxattr = ({ ino, name, value }) => {
      if (value === undefined) kept.delete(name);
      else kept.set(name, value);
      return { attr: attrOfFile(ino) };
    };
  });

  test('set, get, list, remove', async () => {
    await kernel.setxattr(5, 'user.one', 'first');
    expect((await kernel.getxattr(5, 'user.one', 0)).body.readUInt32LE(0)).toBe(5);
    expect((await kernel.getxattr(5, 'user.one', 64)).body.toString()).toBe('first');
    expect((await kernel.getxattr(5, 'user.one', 3)).errno).toBe(ERANGE);
    const room = Buffer.alloc(8);
    room.writeUInt32LE(100, 0);
    expect((await kernel.ask('LISTXATTR', 5, room)).body.toString()).toBe('user.one\0');
    expect((await kernel.ask('REMOVEXATTR', 5, text('user.one'))).errno).toBe(0);
    expect((await kernel.getxattr(5, 'user.one', 64)).errno).toBe(ENODATA);
  });

  test('they are cached with the attributes of the inode', async () => {
    kept.set('user.one', Buffer.from('x'));
    await kernel.lookup(1, 'a');
    await kernel.getxattr(5, 'user.one', 64);
    t.manager.takeAsked();
    await kernel.getxattr(5, 'user.two', 64);
    expect(t.manager.takeAsked()).toEqual([]);
    await t.manager.pushes?.invalidate({ ino: 5, offset: 0, length: 0 });
    await kernel.getxattr(5, 'user.two', 64);
    expect(t.manager.takeAsked()).toEqual(['getxattrs']);
  });

  test('the kernel’s question for capabilities costs nothing', async () => {
    expect((await kernel.getxattr(5, 'security.capability', 20)).errno).toBe(ENODATA);
    expect((await kernel.setxattr(5, 'security.selinux', 'x')).errno).toBe(EOPNOTSUPP);
    expect(t.manager.takeAsked()).toEqual([]);
  });
});

test('unknown requests are ENOSYS, ioctls ENOTTY, short ones EINVAL', async () => {
  expect((await kernel.ask(34, 1, Buffer.alloc(8))).errno).toBe(ENOSYS); // ACCESS
  expect((await kernel.ask(47, 1)).errno).toBe(ENOSYS); // COPY_FILE_RANGE
  expect((await kernel.ask(9999, 1)).errno).toBe(ENOSYS);
  expect((await kernel.ask('IOCTL', 1)).errno).toBe(ENOTTY);
  expect((await kernel.ask('OPEN', 1, Buffer.alloc(4))).errno).toBe(EINVAL);
});

test('the end of the session is passed on', () => {
  kernel.fileSystem.handle({ kind: 'ended', errno: 0 });
  expect(kernel.endings).toEqual([0]);
});
