/** Directories that a mount has to itself, against a real manager: what is done in them is told behind, and seen by others at once. */
import { afterEach, beforeEach, describe, expect, test } from '@jest/globals';
import { constants } from 'node:os';
import { Allocations } from '../../../src/client/allocations.js';
import { until } from '../../until.js';
import { Cluster, TOKEN, type TestMount } from './cluster.js';
import { named, text } from './kernel.js';

const { EIO, EEXIST, ENAMETOOLONG } = constants.errno;

let cluster: Cluster;
let a: TestMount;
let b: TestMount;
let d: number;

beforeEach(async () => {
  cluster = await Cluster.start();
  a = await cluster.mount('a');
  b = await cluster.mount('b');
  d = (await a.kernel.ask('MKDIR', 1, named([0o755, 0], 'd')).then(() => a.kernel.lookup(1, 'd'))).node;
});

afterEach(async () => {
  await cluster.stop();
});

const asks = (mount: TestMount): Record<string, number> => {
  const all = mount.session.counters()['asks'] as Record<string, number>;
  return { lookup: all['lookup'] ?? 0, create: all['create'] ?? 0, unlink: all['unlink'] ?? 0, release: all['release'] ?? 0 };
};

async function make(mount: TestMount, name: string): Promise<{ node: number; handle: bigint }> {
  await mount.kernel.lookup(d, name);
  const made = await mount.kernel.create(d, name);
  expect(made.errno).toBe(0);
  return made;
}

async function makeClosed(mount: TestMount, name: string): Promise<number> {
  const { node, handle } = await make(mount, name);
  await mount.kernel.release(node, handle);
  return node;
}

/** Answers what syncs it by the one handle: its errno. */
async function openDirectory(mount: TestMount): Promise<() => Promise<number>> {
  const opened = await mount.kernel.ask('OPENDIR', d, Buffer.alloc(8));
  const body = Buffer.alloc(16);
  body.writeBigUInt64LE(opened.body.readBigUInt64LE(0), 0);
  return async () => (await mount.kernel.ask('FSYNCDIR', d, body)).errno;
}

const syncDirectory = async (mount: TestMount): Promise<number> => (await openDirectory(mount))();

const commit = (mount: TestMount, node: number, id: number): Promise<{ errno: number }> => {
  mount.kernel.fileSystem.handle({ kind: 'commit', id, node, record: Buffer.from(mount.native.record(node, false)), owner: '' });
  return mount.native.told('answers', id);
};

describe('the holder', () => {
  test('makes and removes files without asking, and sees what it did', async () => {
    const before = asks(a);
    for (let index = 0; index < 20; index += 1) await makeClosed(a, `f${index}`);
    for (let index = 0; index < 10; index += 1) expect((await a.kernel.ask('UNLINK', d, text(`f${index}`))).errno).toBe(0);
    expect(a.kernel.askAtOnce('LOOKUP', d, text('f3'))?.errno).toBe(0);
    expect((await a.kernel.lookup(d, 'f3')).node).toBe(0);
    expect((await a.kernel.lookup(d, 'f13')).node).toBeGreaterThan(0);
    expect(asks(a)).toEqual(before);
    expect(await a.kernel.list(d)).toHaveLength(12);
  });

  test('does not believe answers that were under way when it changed something', async () => {
    const node = await makeClosed(a, 'f');
    expect(await syncDirectory(a)).toBe(0);
    a.client.cache.dropAttr(node);
    a.client.cache.dropAttr(d);
    const ask = a.session.ask.bind(a.session);
    let release: () => void = () => undefined;
    const released = new Promise<void>((resolve) => (release = resolve));
    const late: typeof ask = (name, what) => ask(name, what).then(async (answer) => (await released, answer));
    a.session.ask = late;
    const under = [a.kernel.lookup(d, 'f'), a.kernel.lookup(1, 'd')];
    await new Promise((resolve) => setTimeout(resolve, 20)); // the manager has answered
    expect((await a.kernel.ask('UNLINK', d, text('f'))).errno).toBe(0);
    release();
    await Promise.all(under);
    a.session.ask = ask;
    expect((await a.kernel.lookup(d, 'f')).node).toBe(0);
    expect(a.client.cache.attr(d)).toBeUndefined();
  });

  test('is told at once what cannot be', async () => {
    await makeClosed(a, 'f');
    expect((await a.kernel.create(d, 'f', 0o2 | 0o200)).errno).toBe(EEXIST);
    expect((await a.kernel.create(d, 'ä'.repeat(128))).errno).toBe(ENAMETOOLONG);
    await cluster.killManager();
    await until('the session is lost', () => !a.session.alive);
    expect((await a.kernel.create(d, 'g')).errno).toBe(EIO);
    expect((await a.kernel.ask('UNLINK', d, text('f'))).errno).toBe(EIO);
  });

  test('gives a new file its directory’s group and layout', async () => {
    await a.kernel.setattr(d, 1, { mode: 0o2775 });
    const { node } = await make(a, 'f');
    expect((await b.kernel.lookup(d, 'f')).node).toBe(node);
    expect((await b.kernel.getattr(d)).mode & 0o7777).toBe(0o2775);
  });

  test('a file that is open when its name goes lives until it is closed', async () => {
    const { node, handle } = await make(a, 'f');
    a.native.write(node, 5000);
    expect((await a.kernel.ask('UNLINK', d, text('f'))).errno).toBe(0);
    expect((await a.kernel.getattr(node)).nlink).toBe(0);
    await a.kernel.release(node, handle);
    await until('it is gone', () => a.native.fileState(node) === undefined);
    expect((await b.kernel.lookup(d, 'f')).node).toBe(0);
  });
});

describe('others', () => {
  test('see what was made, and what was removed, when the call has returned', async () => {
    const node = await makeClosed(a, 'kept');
    await makeClosed(a, 'gone');
    expect((await a.kernel.ask('UNLINK', d, text('gone'))).errno).toBe(0);
    expect((await b.kernel.lookup(1, 'd')).node).toBe(d);
    expect((await b.kernel.lookup(d, 'kept')).node).toBe(node);
    expect((await b.kernel.lookup(d, 'gone')).node).toBe(0);
    // Both go on, each seeing the other.
    const { node: second } = await make(a, 'second');
    expect((await b.kernel.lookup(d, 'second')).node).toBe(second);
    expect((await b.kernel.ask('UNLINK', d, text('kept'))).errno).toBe(0);
    expect((await a.kernel.lookup(d, 'kept')).node).toBe(0);
  });

  test('list a directory while its maker fills it: every name that was made before the listing began, none twice', async () => {
    for (let index = 0; index < 200; index += 1) await makeClosed(a, `before${index}`);
    const listing = b.kernel.list(d, 512, true);
    for (let index = 0; index < 200; index += 1) await makeClosed(a, `during${index}`);
    const names = await listing;
    expect(new Set(names).size).toBe(names.length);
    expect(names.filter((name) => name.startsWith('before'))).toHaveLength(200);
    expect(await b.kernel.list(d)).toHaveLength(402);
  });

  test('make, link, move and remove there too', async () => {
    const node = await makeClosed(a, 'f');
    const link = Buffer.alloc(8);
    link.writeUInt32LE(node, 0);
    expect((await a.kernel.ask('LINK', 1, Buffer.concat([link, text('hard')]))).errno).toBe(0);
    expect((await a.kernel.ask('UNLINK', d, text('f'))).errno).toBe(0);
    expect(await b.kernel.lookup(1, 'hard')).toMatchObject({ node, nlink: 1 });
    await makeClosed(a, 'g');
    const to = Buffer.alloc(8);
    to.writeUInt32LE(1, 0);
    expect((await b.kernel.ask('RENAME', d, Buffer.concat([to, text('g'), text('moved')]))).errno).toBe(0);
    expect((await a.kernel.lookup(d, 'g')).node).toBe(0);
    expect((await a.kernel.lookup(1, 'moved')).node).toBeGreaterThan(0);
    expect((await b.kernel.ask('RMDIR', 1, text('d'))).errno).toBe(0);
  });

  test('see the file that its maker writes as it is now', async () => {
    const { node } = await make(a, 'f');
    a.native.write(node, 777);
    expect((await b.kernel.lookup(d, 'f')).size).toBe(777);
    expect((await b.kernel.open(node, 2)).errno).toBe(0);
    expect(b.native.fileState(node)).toMatchObject({ mode: 'shared', size: 777 });
  });

  test('over HTTP see it as well', async () => {
    await makeClosed(a, 'f');
    const allocations = new Allocations({ manager: cluster.manager.url, token: TOKEN });
    expect((await allocations.info('/d/f')).path).toBe('/d/f');
    await makeClosed(a, 'g');
    expect((await allocations.info('/d/g')).bytes).toBe(0);
  });
});

describe('when something dies', () => {
  test('after fsync of the directory its names survive manager and mount', async () => {
    await makeClosed(a, 'f');
    await makeClosed(a, 'g');
    expect((await a.kernel.ask('UNLINK', d, text('f'))).errno).toBe(0);
    expect(await syncDirectory(a)).toBe(0);
    await a.session.close({ goodbye: false });
    await cluster.killManager();
    await cluster.restartManager();
    await until('b is back', () => b.session.alive);
    expect((await b.kernel.list(d)).sort()).toEqual(['.', '..', 'g']);
  });

  test('a file that was closed after writing survives both, and so does everything that was done before', async () => {
    await makeClosed(a, 'before');
    const { node } = await make(a, 'f');
    a.native.write(node, 4096);
    expect((await commit(a, node, 1)).errno).toBe(0);
    await a.session.close({ goodbye: false });
    expect((await b.kernel.list(d)).sort()).toEqual(['.', '..', 'before', 'f']);
    expect((await b.kernel.lookup(d, 'f')).size).toBe(4096);
  });

  test('what the manager did not hear before it died it hears when it is back, once', async () => {
    await makeClosed(a, 'f');
    const killed = cluster.killManager(); // with the names under way, or not yet sent
    await makeClosed(a, 'g').catch(() => undefined);
    await killed;
    await cluster.restartManager();
    await until('both are back', () => a.session.alive && b.session.alive);
    const names = await b.kernel.list(d);
    expect(names).toContain('f');
    expect(names.sort()).toEqual((await a.kernel.list(d)).sort());
    await makeClosed(a, 'h');
    expect((await b.kernel.lookup(d, 'h')).node).toBeGreaterThan(0);
  });

  test('a file whose name the manager does not know is not promised to be there', async () => {
    const { node } = await make(a, 'f');
    a.native.write(node, 4096);
    await cluster.killManager();
    await until('the session is lost', () => !a.session.alive);
    if (a.client.directories.isUnannounced(node)) expect((await commit(a, node, 1)).errno).toBe(EIO);
    expect(await syncDirectory(a)).toBe(a.client.directories.isUnannounced(node) ? EIO : 0);
  });

  test('what the manager refuses after it was answered is said once by fsync of the directory, and is not there', async () => {
    await makeClosed(a, 'kept');
    expect(await syncDirectory(a)).toBe(0);
    const sync = await openDirectory(a);
    await a.session.ask('returnDirectories', { directories: [d] }); // behind the back of the part that has it
    await makeClosed(a, 'refused');
    expect((await a.kernel.ask('UNLINK', d, text('kept'))).errno).toBe(0);
    expect(await sync()).toBe(EIO);
    expect(await sync()).toBe(0);
    for (const mount of [a, b]) expect((await mount.kernel.list(d)).sort()).toEqual(['.', '..', 'kept']);
    await makeClosed(a, 'refused');
    expect((await b.kernel.lookup(d, 'refused')).node).toBeGreaterThan(0);
  });

  test('a refusal whose answer is lost with the manager is told when it is back', async () => {
    await a.session.ask('returnDirectories', { directories: [d] });
    const sync = await openDirectory(a);
    await makeClosed(a, 'refused');
    await cluster.killManager();
    await cluster.restartManager();
    await until('a is back', () => a.session.alive);
    expect(await sync()).toBe(EIO);
    expect((await b.kernel.lookup(d, 'refused')).node).toBe(0);
  });

  test('who opens the directory only after a refusal is told of it too, once; so is who syncs the refused file', async () => {
    await a.session.ask('returnDirectories', { directories: [d] }); // behind the back of the part that has it
    const { node } = await make(a, 'refused');
    await a.client.directories.settled();
    expect(await syncDirectory(a)).toBe(EIO);
    expect(await syncDirectory(a)).toBe(0);
    expect((await commit(a, node, 1)).errno).toBe(EIO);
  });

  test('what was not told before a fence has not happened, and fsync of the directory says so', async () => {
    await makeClosed(a, 'told');
    expect(await syncDirectory(a)).toBe(0);
    const sync = await openDirectory(a);
    const { node } = await a.kernel.create(1, 'wanted');
    a.native.write(node, 4096);
    a.native.onFlush = () => new Promise(() => undefined); // a recall is not answered
    const ask = a.session.ask.bind(a.session);
    const kept: typeof ask = (name, what) => (name === 'names' ? new Promise(() => undefined) : ask(name, what));
    a.session.ask = kept;
    await makeClosed(a, 'untold');
    expect((await b.kernel.open(node, 2)).errno).toBe(0);
    await until('a holds it again', () => a.session.alive && a.client.held.get(node)?.isVoid === false);
    a.session.ask = ask;
    expect(await sync()).toBe(EIO);
    expect(await sync()).toBe(0);
    for (const mount of [a, b]) expect((await mount.kernel.list(d)).sort()).toEqual(['.', '..', 'told']);
    await makeClosed(a, 'after');
    expect((await b.kernel.lookup(d, 'after')).node).toBeGreaterThan(0);
  }, 30_000);

  test('unmounted in order, all is there', async () => {
    for (let index = 0; index < 30; index += 1) await makeClosed(a, `f${index}`);
    expect(await a.client.writeBackAll()).toEqual([]);
    await a.client.close({ goodbye: true });
    expect(await b.kernel.list(d)).toHaveLength(32);
  });
});
