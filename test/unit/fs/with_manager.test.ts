/** The file system against a real manager: two mounts, one cluster, no kernel. */
import { afterEach, beforeEach, describe, expect, test } from '@jest/globals';
import { constants } from 'node:os';
import { Allocations } from '../../../src/client/allocations.js';
import { connectClient } from '../../../src/client/manager_session.js';
import { pino } from 'pino';
import { until } from '../../until.js';
import { named, text } from './kernel.js';
import { Cluster, TOKEN, type TestMount } from './cluster.js';

const { EIO, EEXIST, ENOENT, ENOTEMPTY, EAGAIN } = constants.errno;
const O_RDWR = 2;

let cluster: Cluster;
let a: TestMount;
let b: TestMount;

beforeEach(async () => {
  cluster = await Cluster.start();
  a = await cluster.mount('a');
  b = await cluster.mount('b');
});

afterEach(async () => {
  await cluster.stop();
});

const sync = (mount: TestMount, node: number, id: number): Promise<{ errno: number }> => {
  mount.kernel.fileSystem.handle({ kind: 'commit', id, node, record: Buffer.from(mount.native.record(node, false)), owner: '' });
  return mount.native.told('answers', id);
};

describe('names', () => {
  test('what one makes the other sees, also where it knew of nothing', async () => {
    expect((await b.kernel.lookup(1, 'x')).node).toBe(0);
    const made = await a.kernel.create(1, 'x');
    expect(made.errno).toBe(0);
    expect(b.native.log).toContain('invalidateEntry 1 x');
    expect((await b.kernel.lookup(1, 'x')).node).toBe(made.node);
  });

  test('after making a name, it is answered at once', async () => {
    const made = await a.kernel.ask('MKDIR', 1, named([0o755, 0], 'd'));
    expect(made.errno).toBe(0);
    expect(a.kernel.askAtOnce('LOOKUP', 1, text('d'))?.errno).toBe(0);
  });

  test('directories, links, renames, removal', async () => {
    const { node: d } = await a.kernel.ask('MKDIR', 1, named([0o755, 0], 'd')).then(() => a.kernel.lookup(1, 'd'));
    const file = await a.kernel.create(d, 'f');
    const link = Buffer.alloc(8);
    link.writeUInt32LE(file.node, 0);
    expect((await a.kernel.ask('LINK', 1, Buffer.concat([link, text('hard')]))).errno).toBe(0);
    expect(await b.kernel.lookup(1, 'hard')).toMatchObject({ node: file.node, nlink: 2 });
    expect((await a.kernel.ask('RMDIR', 1, text('d'))).errno).toBe(ENOTEMPTY);
    const to = Buffer.alloc(8);
    to.writeUInt32LE(1, 0);
    expect((await a.kernel.ask('RENAME', d, Buffer.concat([to, text('f'), text('moved')]))).errno).toBe(0);
    expect((await b.kernel.lookup(1, 'moved')).node).toBe(file.node);
    expect((await a.kernel.ask('RMDIR', 1, text('d'))).errno).toBe(0);
    expect((await a.kernel.list(1)).sort()).toEqual(['.', '..', 'hard', 'moved']);
    expect((await a.kernel.create(1, 'moved', O_RDWR | 0o200)).errno).toBe(EEXIST);
    expect((await b.kernel.ask('UNLINK', 1, text('none'))).errno).toBe(ENOENT);
  });

  test('a symbolic link says where it points', async () => {
    const made = await a.kernel.ask('SYMLINK', 1, Buffer.concat([text('s'), text('../somewhere')]));
    expect(made.errno).toBe(0);
    const { node } = await b.kernel.lookup(1, 's');
    expect((await b.kernel.ask('READLINK', node)).body.toString()).toBe('../somewhere');
  });

  test('a listing with attributes fills the cache, and others’ changes empty it', async () => {
    for (let index = 0; index < 30; index += 1) await a.kernel.ask('MKNOD', 1, named([0o100644, 0, 0, 0], `n${index}`));
    expect(await b.kernel.list(1, 1024, true)).toHaveLength(32);
    const known = b.kernel.askAtOnce('LOOKUP', 1, text('n7'));
    expect(known?.errno).toBe(0);
    const { node } = await b.kernel.lookup(1, 'n7');
    await a.kernel.setattr(node, 1, { mode: 0o600 });
    expect((await b.kernel.getattr(node)).mode).toBe(0o100600);
  });

  test('two mounts that make names in one directory do not wait for each other’s notices', async () => {
    const names = ['p', 'q', 'r'];
    for (const mount of [a, b]) for (const name of names) await mount.kernel.lookup(1, name);
    const begin = performance.now();
    await Promise.all(
      [a, b].map(async (mount) => {
        // As in a kernel: a notice about a directory waits until the operations under way in it are answered.
        const asked = names.map((name) => mount.kernel.ask('MKDIR', 1, named([0o755, 0], name)));
        mount.native.onInvalidate = () => Promise.all(asked).then(() => undefined);
        await Promise.all(asked);
      }),
    );
    expect(performance.now() - begin).toBeLessThan(900);
  });
});

describe('files', () => {
  test('what is fsynced is the manager’s, and the next one to open it has the size', async () => {
    const { node, handle } = await a.kernel.create(1, 'x');
    a.native.write(node, 10_000);
    expect((await sync(a, node, 1)).errno).toBe(0);
    await a.kernel.release(node, handle);
    const seen = await b.kernel.lookup(1, 'x');
    expect(seen).toMatchObject({ node, size: 10_000 });
    expect((await b.kernel.open(node, 0)).errno).toBe(0);
    expect(b.native.fileState(node)).toMatchObject({ size: 10_000, mode: 'read' });
    expect(b.native.regions.size).toBeGreaterThan(0);
  });

  test('a file that was written, and given back because others were opened, is as long as it was written', async () => {
    const c = await cluster.mount('c', { maxIdleFiles: 1 });
    const { node, handle } = await c.kernel.create(1, 'x');
    expect((await c.kernel.getattr(node)).size).toBe(0); // and that is cached
    c.native.write(node, 10_000);
    await sync(c, node, 1);
    await c.kernel.release(node, handle);
    for (const name of ['y', 'z']) {
      const other = await c.kernel.create(1, name);
      await c.kernel.release(other.node, other.handle);
    }
    await until('it is given back', () => c.native.fileState(node) === undefined);
    expect((await c.kernel.getattr(node)).size).toBe(10_000);
  });

  test('the size of a file that another writes is the one of now', async () => {
    const { node } = await a.kernel.create(1, 'x');
    a.native.write(node, 777);
    expect((await b.kernel.lookup(1, 'x')).size).toBe(777);
    a.native.write(node, 888);
    expect((await b.kernel.getattr(node)).size).toBe(888);
  });

  test('a second opener makes the file shared, with what was unwritten written; alone again it is exclusive', async () => {
    const { node, handle } = await a.kernel.create(1, 'x');
    a.native.write(node, 5000);
    const other = await b.kernel.open(node, O_RDWR);
    expect(other.errno).toBe(0);
    expect(a.native.fileState(node)).toMatchObject({ mode: 'shared', dirtyBytes: 0 });
    expect(b.native.fileState(node)).toMatchObject({ mode: 'shared', size: 5000 });
    await a.kernel.release(node, handle);
    await until('b has it alone', () => b.native.fileState(node)?.mode === 'write');
    expect(b.native.log.slice(-3)).toEqual([`put ${node} shared`, `put ${node} write`, `endCut ${node} failed`]);
  });

  test('a write through is told to the others before it is answered', async () => {
    const { node } = await a.kernel.create(1, 'x');
    await b.kernel.open(node, O_RDWR);
    b.kernel.fileSystem.handle({ kind: 'claimEnd', id: 2, node, holdsPages: true });
    expect((await b.native.told('answers', 2)).errno).toBe(0);
    b.kernel.fileSystem.handle({ kind: 'wrote', id: 1, node, offset: 0, length: 100, mtimeSec: 5, mtimeNsec: 0, holdsPages: true });
    expect((await b.native.told('answers', 1)).errno).toBe(0);
    expect(a.native.log).toContain(`invalidateInode ${node} 0 100`);
    expect((await a.kernel.getattr(node)).size).toBe(100);
  });

  test('truncation both ways, open here, and open elsewhere', async () => {
    const { node } = await a.kernel.create(1, 'x');
    a.native.write(node, 9000);
    await a.kernel.setattr(node, 1 << 3, { size: 100 });
    expect(a.native.fileState(node)?.size).toBe(100);
    await b.kernel.setattr(node, 1 << 3, { size: 50_000 });
    expect((await a.kernel.getattr(node)).size).toBe(50_000);
    expect((await b.kernel.getattr(node)).size).toBe(50_000);
  });

  test('an unlinked file lives until it is closed', async () => {
    const { node, handle } = await a.kernel.create(1, 'x');
    a.native.write(node, 4096);
    await b.kernel.ask('UNLINK', 1, text('x'));
    expect((await a.kernel.getattr(node)).size).toBe(4096);
    await a.kernel.release(node, handle);
    await until('it is given back', () => a.client.held.get(node) === undefined);
    await until('its pieces are free', () => a.native.freed.length > 0);
  });

  test('locks of two mounts exclude each other', async () => {
    const { node } = await a.kernel.create(1, 'x');
    expect((await a.native.told('replies', a.kernel.lock('SETLK', node, 1, 1n))).errno).toBe(0);
    await b.kernel.open(node, O_RDWR); // the lock is handed over
    expect((await b.native.told('replies', b.kernel.lock('SETLK', node, 1, 1n))).errno).toBe(EAGAIN);
    const waiting = b.kernel.lock('SETLKW', node, 1, 1n);
    expect((await a.native.told('replies', a.kernel.lock('SETLK', node, 2, 1n))).errno).toBe(0);
    expect((await b.native.told('replies', waiting)).errno).toBe(0);
  });

  test('extended attributes are seen by the other mount', async () => {
    const { node } = await a.kernel.create(1, 'x');
    expect((await a.kernel.setxattr(node, 'user.k', 'v')).errno).toBe(0);
    expect((await b.kernel.getxattr(node, 'user.k', 10)).body.toString()).toBe('v');
    await a.kernel.setxattr(node, 'user.k', 'w');
    expect((await b.kernel.getxattr(node, 'user.k', 10)).body.toString()).toBe('w');
    expect((await b.kernel.getxattr(node, 'user.extmem.layout', 10)).body.toString()).toBe('stripe');
  });
});

describe('bad days', () => {
  test('with the manager dead for a while names fail at once; when it is back everything is as before', async () => {
    const { node } = await a.kernel.create(1, 'x');
    a.native.write(node, 4096);
    await cluster.killManager();
    await until('the session is lost', () => !a.session.alive);
    expect((await a.kernel.ask('LOOKUP', 1, text('x'))).errno).toBe(EIO);
    const begin = performance.now();
    expect((await a.kernel.ask('LOOKUP', 1, text('x'))).errno).toBe(EIO);
    expect(performance.now() - begin).toBeLessThan(100);
    a.native.write(node, 8192);
    expect((await a.kernel.getattr(node)).size).toBe(8192);
    await cluster.restartManager();
    await until('both are back', () => a.session.alive && b.session.alive);
    expect(a.fenced).toEqual([]);
    expect(a.client.held.get(node)?.mode).toBe('write');
    expect((await b.kernel.lookup(1, 'x')).size).toBe(8192);
  });

  test('a session comes back also when dropping what was cached fails', async () => {
    await a.kernel.create(1, 'x');
    await a.kernel.lookup(1, 'x');
    a.native.invalidateEntry = () => {
      throw new Error('a fault of ours');
    };
    await cluster.killManager();
    await until('the session is lost', () => !a.session.alive);
    await cluster.restartManager();
    await until('a is back', () => a.session.alive);
    expect((await a.kernel.lookup(1, 'x')).node).not.toBe(0);
  });

  test('a mount that was fenced goes on as another client, with its open files as they are now', async () => {
    const { node, handle } = await a.kernel.create(1, 'x');
    const idle = await a.kernel.create(1, 'closed');
    await a.kernel.release(idle.node, idle.handle);
    a.native.write(node, 4096);
    a.native.onFlush = () => new Promise(() => undefined); // a recall is not answered
    const { client } = a.session.hello;
    expect((await b.kernel.open(node, O_RDWR)).errno).toBe(0);
    await until('a holds it again', () => a.session.alive && a.client.held.get(node)?.isVoid === false);
    expect(a.session.hello.client).not.toBe(client);
    expect(a.native.log).toContain(`rejoin ${a.session.hello.client}`);
    expect(a.fenced).toEqual([]);
    expect(a.client.held.get(node)).toMatchObject({ mode: 'shared', writers: 1 });
    expect(a.client.held.get(idle.node)).toBeUndefined();
    expect((await a.kernel.getattr(node)).size).toBe(0); // what was not written back is gone
    expect((await a.kernel.lookup(1, 'x')).node).toBe(node);
    expect((await a.kernel.create(1, 'after')).errno).toBe(0);
    await a.kernel.release(node, handle);
    await until('it is given back', () => a.client.held.get(node) === undefined);
  }, 30_000);

  test('a writer that cannot write back keeps its file, and is not fenced', async () => {
    const { node } = await a.kernel.create(1, 'x');
    a.native.onFlush = () => Promise.reject(new Error('the appliance is dead'));
    a.native.write(node, 4096);
    expect((await b.kernel.open(node, O_RDWR)).errno).toBe(EIO);
    expect(a.fenced).toEqual([]);
  }, 15_000);

  test('calls on names wait for a manager that is back soon', async () => {
    await a.kernel.create(1, 'x');
    await cluster.killManager();
    await until('both notice', () => !a.session.alive && !b.session.alive);
    const looking = b.kernel.lookup(1, 'x');
    const making = a.kernel.create(1, 'y');
    await cluster.restartManager();
    expect((await looking).node).not.toBe(0);
    expect((await making).errno).toBe(0);
  });

  test('a wrong token, and no manager', async () => {
    const options = { manager: cluster.manager.url, name: 'c', hostId: 'host', log: pino({ level: 'silent' }) };
    await expect(connectClient({ ...options, token: 'not the token' })).rejects.toMatchObject({ code: 'EACCES' });
    await expect(connectClient({ ...options, manager: '127.0.0.1:1', token: TOKEN })).rejects.toMatchObject({ code: 'EUNREACHABLE' });
  });
});

describe('what a mount has given up', () => {
  /** The manager dies just when the mount has done what a recall asks, and is back. */
  const dieOnce = (mount: TestMount): Promise<void> =>
    new Promise((restarted) => {
      mount.native.onPause = async () => {
        mount.native.onPause = () => Promise.resolve();
        await cluster.killManager();
        await until('the session is lost', () => !mount.session.alive);
        void cluster.restartManager().then(restarted);
      };
    });

  /** b wants what a has written. */
  const giveUpAsItDies = async (): Promise<number> => {
    const { node } = await a.kernel.create(1, 'x');
    a.native.write(node, 3 * 4096);
    const restarted = dieOnce(a);
    void b.kernel.open(node, O_RDWR);
    await restarted;
    return node;
  };

  const sizeSeenBy = async (mount: TestMount, node: number): Promise<number> => {
    await until('it is opened', async () => (await mount.kernel.open(node, O_RDWR)).errno === 0);
    return (await mount.kernel.getattr(node)).size;
  };

  test('of a file that is open is there, though the manager dies as it is told', async () => {
    const node = await giveUpAsItDies();
    expect(await sizeSeenBy(b, node)).toBe(3 * 4096);
    expect(a.client.held.get(node)).toMatchObject({ mode: 'shared', writers: 1 });
    expect(a.fenced).toEqual([]);
  });

  test('is there when nobody asks for it again', async () => {
    await giveUpAsItDies();
    await until('a is back', () => a.session.alive);
    await a.client.close({ goodbye: false }); // it is killed: what the manager has is all there is
    const allocations = new Allocations({ manager: cluster.manager.url, token: TOKEN });
    expect(await allocations.info('/x')).toMatchObject({ bytes: 3 * 4096 });
  });

  test('is there when writing it back failed before', async () => {
    const { node } = await a.kernel.create(1, 'x');
    a.native.write(node, 3 * 4096);
    a.native.onFlush = () => Promise.reject(new Error('the appliance is dead'));
    expect((await b.kernel.open(node, O_RDWR)).errno).toBe(EIO);
    a.native.onFlush = () => Promise.resolve();
    expect(await sizeSeenBy(b, node)).toBe(3 * 4096);
  });
});

test('allocations over HTTP are files of the mounts', async () => {
  const allocations = new Allocations({ manager: cluster.manager.url, token: TOKEN });
  const made = await allocations.create('/über größe', { bytes: 8192 });
  expect(made).toMatchObject({ bytes: 8192, layout: 'stripe' });
  expect(await a.kernel.lookup(1, 'über größe')).toMatchObject({ node: made.ino, size: 8192 });
  expect((await allocations.resize('/über größe', 100)).bytes).toBe(100);
  expect((await a.kernel.getattr(made.ino)).size).toBe(100);
  const names: string[] = [];
  for await (const { path } of allocations.list('/')) names.push(path);
  expect(names).toEqual(['/über größe']);
  await allocations.remove('/über größe');
  await expect(allocations.info('/über größe')).rejects.toMatchObject({ code: 'ENOENT' });
  expect((await a.kernel.lookup(1, 'über größe')).node).toBe(0);
  await expect(new Allocations({ manager: cluster.manager.url, token: 'another' }).check()).rejects.toMatchObject({ code: 'EACCES' });
});
