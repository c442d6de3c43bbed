/** Names: POSIX semantics, and what a second mount is told. */
import { afterEach, beforeEach, describe, expect, test } from '@jest/globals';
import { Cluster, ROOT, type TestClient } from './cluster.js';

let cluster: Cluster;
let a: TestClient;
let b: TestClient;

beforeEach(async () => {
  cluster = await Cluster.start();
  a = await cluster.client('a');
  b = await cluster.client('b');
});
afterEach(() => cluster.close());

const code = (value: string): unknown => expect.objectContaining({ code: value });

async function names(ino = ROOT): Promise<string[]> {
  const { entries, end } = await a.ask('readdir', { ino, cookie: 0, limit: 100 });
  expect(end).toBe(true);
  return entries.map(({ name }) => name);
}

describe('one mount', () => {
  test('root is there', async () => {
    const { attr } = await a.ask('getattr', { ino: a.hello.rootIno });
    expect(attr).toMatchObject({ ino: 1, kind: 'directory', mode: 0o755, uid: 0, gid: 0, nlink: 2 });
  });

  test('create, look up, exclusive or not', async () => {
    expect((await a.lookup('f')).attr).toBeUndefined();
    const { attr } = await a.make('f', { mode: 0o100640 });
    expect(attr).toMatchObject({ kind: 'file', mode: 0o640, uid: 1, gid: 2, nlink: 1, size: 0, blocks: 0 });
    expect((await a.lookup('f')).attr).toEqual(attr);
    await expect(a.make('f')).rejects.toEqual(code('EEXIST'));
    expect((await a.make('f', { exclusive: false })).attr.ino).toBe(attr.ino);
  });

  test('names that cannot be', async () => {
    await expect(a.make('x'.repeat(256))).rejects.toEqual(code('EINVAL'));
    await expect(a.make('ä'.repeat(128))).rejects.toEqual(code('ENAMETOOLONG'));
    await a.make('ä'.repeat(127));
    for (const name of ['.', '..', 'a/b']) await expect(a.make(name)).rejects.toEqual(code('EINVAL'));
    await expect(a.make('x', { parent: 99 })).rejects.toEqual(code('ENOENT'));
    const { attr } = await a.make('file');
    await expect(a.make('x', { parent: attr.ino })).rejects.toEqual(code('ENOTDIR'));
  });

  test('directories count their links and refuse to go while not empty', async () => {
    const d = await a.mkdir('d');
    await a.mkdir('e', d);
    expect((await a.ask('getattr', { ino: d })).attr.nlink).toBe(3);
    await expect(a.unlink('d', { directory: true })).rejects.toEqual(code('ENOTEMPTY'));
    await expect(a.unlink('d')).rejects.toEqual(code('EISDIR'));
    await a.unlink('e', { parent: d, directory: true });
    expect((await a.ask('getattr', { ino: d })).attr.nlink).toBe(2);
    expect((await a.unlink('d', { directory: true })).attr.nlink).toBe(0);
    expect((await a.ask('getattr', { ino: ROOT })).attr.nlink).toBe(2);
  });

  test('a changed directory has a new mtime and change counter', async () => {
    const before = (await a.ask('getattr', { ino: ROOT })).attr;
    await a.make('f');
    const after = (await a.ask('getattr', { ino: ROOT })).attr;
    expect(after.change).toBeGreaterThan(before.change);
    expect(after.mtime).not.toEqual(before.mtime);
  });

  test('listings are stable while names come and go', async () => {
    for (let index = 0; index < 10; index++) await a.make(`f${index}`);
    const first = await a.ask('readdir', { ino: ROOT, cookie: 0, limit: 4 });
    expect(first.end).toBe(false);
    await a.unlink('f1');
    await a.unlink('f5');
    await a.make('late');
    const rest = await a.ask('readdir', { ino: ROOT, cookie: first.entries[3]?.cookie ?? 0, limit: 100 });
    expect(rest.entries.map(({ name }) => name)).toEqual(['f4', 'f6', 'f7', 'f8', 'f9', 'late']);
    expect(rest.end).toBe(true);
  });

  test('hard links', async () => {
    const { attr } = await a.make('f');
    expect((await a.ask('link', { ino: attr.ino, newParent: ROOT, newName: 'g' })).attr.nlink).toBe(2);
    await expect(a.ask('link', { ino: attr.ino, newParent: ROOT, newName: 'g' })).rejects.toEqual(code('EEXIST'));
    await expect(a.ask('link', { ino: ROOT, newParent: ROOT, newName: 'h' })).rejects.toEqual(code('EPERM'));
    expect((await a.unlink('f')).attr.nlink).toBe(1);
    expect((await a.lookup('g')).attr?.ino).toBe(attr.ino);
    expect((await a.unlink('g')).attr.nlink).toBe(0);
    await expect(a.ask('getattr', { ino: attr.ino })).rejects.toEqual(code('ENOENT'));
  });

  test('symlinks', async () => {
    const { attr } = await a.make('s', { kind: 'symlink', target: '/wherever' });
    expect(attr).toMatchObject({ kind: 'symlink', mode: 0o777, size: 9 });
    expect((await a.ask('readlink', { ino: attr.ino })).target).toBe('/wherever');
    await expect(a.ask('readlink', { ino: ROOT })).rejects.toEqual(code('EINVAL'));
  });

  test('a directory with the set-group-id bit gives its group on', async () => {
    const { attr } = await a.make('d', { kind: 'directory', mode: 0o2775, gid: 50 });
    expect((await a.make('f', { parent: attr.ino })).attr.gid).toBe(50);
    expect((await a.make('e', { parent: attr.ino, kind: 'directory', mode: 0o755 })).attr).toMatchObject({ gid: 50, mode: 0o2755 });
  });

  test('attributes are set', async () => {
    const { attr } = await a.make('f');
    const set = (await a.ask('setattr', { ino: attr.ino, set: { mode: 0o4711, uid: 9, mtime: [5, 6] } })).attr;
    expect(set).toMatchObject({ mode: 0o4711, uid: 9, gid: 2, mtime: [5, 6] });
    expect(set.change).toBeGreaterThan(attr.change);
  });

  test('extended attributes', async () => {
    const { ino } = (await a.make('f')).attr;
    const set = (name: string, text: string | undefined, more = {}) =>
      a.ask('setxattr', { ino, name, create: false, replace: false, ...(text === undefined ? {} : { value: Buffer.from(text) }), ...more });
    await set('user.one', 'first');
    await expect(set('user.one', 'x', { create: true })).rejects.toEqual(code('EEXIST'));
    await expect(set('user.two', 'x', { replace: true })).rejects.toEqual(code('ENODATA'));
    await expect(set('system.x', 'x')).rejects.toEqual(code('EOPNOTSUPP'));
    await expect(set('user.extmem.lease', 'x')).rejects.toEqual(code('EPERM'));
    const { xattrs } = await a.ask('getxattrs', { ino });
    expect(Buffer.from(xattrs['user.one'] ?? []).toString()).toBe('first');
    expect(Buffer.from(xattrs['user.extmem.layout'] ?? []).toString()).toBe('stripe');
    await set('user.one', undefined);
    await expect(set('user.one', undefined)).rejects.toEqual(code('ENODATA'));
  });

  test('a label is a line of text, for files and directories; nothing is none', async () => {
    const { ino } = (await a.make('f')).attr;
    const set = (to: number, text: string) =>
      a.ask('setxattr', { ino: to, name: 'user.extmem.label', value: Buffer.from(text), create: false, replace: false });
    const labelOf = async (of: number) => (await a.ask('getxattrs', { ino: of })).xattrs['user.extmem.label'];
    await set(ino, 'orders, Köln');
    const d = await a.mkdir('d');
    await set(d, 'of the year');
    expect([await labelOf(ino), await labelOf(d)].map((value) => Buffer.from(value ?? []).toString())).toEqual([
      'orders, Köln',
      'of the year',
    ]);
    await expect(set(ino, 'two\nlines')).rejects.toEqual(code('EINVAL'));
    await expect(set(ino, 'ö'.repeat(129))).rejects.toEqual(code('E2BIG'));
    await set(ino, '');
    expect(await labelOf(ino)).toBeUndefined();
  });

  test('files take the layout of their directory', async () => {
    const d = await a.mkdir('d');
    const set = (ino: number, text: string) =>
      a.ask('setxattr', { ino, name: 'user.extmem.layout', value: Buffer.from(text), create: false, replace: false });
    await expect(set(d, 'raid7')).rejects.toEqual(code('EINVAL'));
    await set(d, 'concat');
    const { ino } = (await a.make('f', { parent: d })).attr;
    expect(Buffer.from((await a.ask('getxattrs', { ino })).xattrs['user.extmem.layout'] ?? []).toString()).toBe('concat');
  });
});

describe('rename', () => {
  test('over an existing file', async () => {
    const { attr: f } = await a.make('f');
    const { attr: g } = await a.make('g');
    const { moved, replaced } = await a.rename('f', 'g');
    expect(moved.ino).toBe(f.ino);
    expect(replaced).toMatchObject({ ino: g.ino, nlink: 0 });
    expect(await names()).toEqual(['g']);
  });

  test('to itself, by two names of one inode, does nothing', async () => {
    const { attr } = await a.make('f');
    await a.ask('link', { ino: attr.ino, newParent: ROOT, newName: 'g' });
    await a.rename('f', 'g');
    expect((await names()).sort()).toEqual(['f', 'g']);
  });

  test('directories: into themselves, over each other, over files', async () => {
    const d = await a.mkdir('d');
    const e = await a.mkdir('e', d);
    await a.make('f');
    await expect(a.rename('d', 'x', { newParent: e })).rejects.toEqual(code('EINVAL'));
    await expect(a.rename('d', 'f')).rejects.toEqual(code('ENOTDIR'));
    await expect(a.rename('f', 'd')).rejects.toEqual(code('EISDIR'));
    await a.mkdir('empty');
    await expect(a.rename('empty', 'd')).rejects.toEqual(code('ENOTEMPTY'));
    await a.rename('d', 'empty');
    expect((await names()).sort()).toEqual(['empty', 'f']);
    expect((await a.ask('getattr', { ino: ROOT })).attr.nlink).toBe(3);
    await a.rename('e', 'top', { parent: d });
    expect((await a.ask('getattr', { ino: ROOT })).attr.nlink).toBe(4);
    expect((await a.ask('getattr', { ino: d })).attr.nlink).toBe(2);
    await a.rename('empty', 'inner', { newParent: e }); // e is no longer below d
  });

  test('noReplace and exchange', async () => {
    const { attr: f } = await a.make('f');
    const d = await a.mkdir('d');
    const { attr: g } = await a.make('g', { parent: d });
    await expect(a.rename('f', 'g', { newParent: d, noReplace: true })).rejects.toEqual(code('EEXIST'));
    await expect(a.rename('f', 'no', { exchange: true })).rejects.toEqual(code('ENOENT'));
    await a.rename('f', 'g', { newParent: d, exchange: true });
    expect((await a.lookup('f')).attr?.ino).toBe(g.ino);
    expect((await a.lookup('g', d)).attr?.ino).toBe(f.ino);
    await a.rename('f', 'd', { exchange: true });
    expect((await a.lookup('d')).attr?.ino).toBe(g.ino);
    expect((await a.lookup('f')).attr?.ino).toBe(d);
    await expect(a.rename('f', 'g', { newParent: d, exchange: true })).rejects.toEqual(code('EINVAL'));
  });
});

describe('two mounts', () => {
  test('a negative entry is taken back before the name is made', async () => {
    expect(await b.lookup('f')).toEqual({ cacheable: true });
    await a.make('f');
    expect(b.pushes).toContainEqual({ op: 'invalidateEntries', ask: { entries: [{ parent: ROOT, name: 'f' }] } });
    expect((await b.lookup('f')).attr).toBeDefined();
  });

  test('whoever has not looked is not told', async () => {
    await a.make('f');
    await a.unlink('f');
    expect(b.pushes).toEqual([]);
  });

  test('the one who changes is not told', async () => {
    await a.lookup('f');
    await a.make('f');
    expect(a.pushes).toEqual([]);
  });

  test('replace by rename is seen', async () => {
    const { attr: f } = await a.make('f');
    await a.make('g');
    const { attr: old } = await b.lookup('g');
    await a.rename('f', 'g');
    expect(b.count('invalidateEntries')).toBe(1);
    expect(b.pushes.find(({ op, ask }) => op === 'invalidate' && ask['ino'] === old?.ino)?.ask['attr']).toMatchObject({ nlink: 0 });
    expect((await b.lookup('g')).attr?.ino).toBe(f.ino);
  });

  test('the call returns when the other has answered, not before', async () => {
    await b.lookup('f');
    let answer: () => void = () => undefined;
    const asked = b.next('invalidateEntries');
    b.override.invalidateEntries = () => new Promise((resolve) => (answer = () => resolve({})));
    let isMade = false;
    const making = a.make('f').then(() => (isMade = true));
    await asked;
    expect(isMade).toBe(false);
    answer();
    await making;
  });

  test('attributes are taken back', async () => {
    const { attr } = await a.make('f');
    await b.lookup('f');
    await a.ask('setattr', { ino: attr.ino, set: { mode: 0o600 } });
    expect(b.pushes.find(({ op }) => op === 'invalidate')?.ask).toMatchObject({ ino: attr.ino, length: 0, attr: { mode: 0o600 } });
  });

  test('two that change one directory at once do not wait for each other', async () => {
    await a.lookup('b');
    await b.lookup('a');
    // Each kernel drops the entry only when its own creation is over.
    let aDone: Promise<unknown> = Promise.resolve();
    let bDone: Promise<unknown> = Promise.resolve();
    a.override.invalidateEntries = () => aDone.then(() => ({}));
    b.override.invalidateEntries = () => bDone.then(() => ({}));
    const before = Date.now();
    aDone = a.make('a');
    bDone = b.make('b');
    await Promise.all([aDone, bDone]);
    expect(Date.now() - before).toBeLessThan(2000);
  });

  test('one that is dead holds up a change for no longer than its lease', async () => {
    await b.lookup('f');
    b.session.terminate('killed');
    const before = Date.now();
    await a.make('f');
    expect(Date.now() - before).toBeLessThan(5000);
    await a.unlink('f');
  });
});
