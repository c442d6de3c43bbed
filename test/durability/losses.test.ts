/**
 * What goes wrong with an appliance and its backing store, as real processes: kill -9, a full store, a device that fails, bytes that
 * flip. What was promised durable is there; what is lost or behind is said to be so, and never wrong bytes.
 */
import { spawnSync } from 'node:child_process';
import { closeSync, openSync, readFileSync, readSync, writeFileSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from '@jest/globals';
import { until } from '../until.js';
import { Actor } from '../mount/actor.js';
import { quote, timed } from '../mount/bad_days.js';
import { TestCluster, type Role } from '../mount/cluster.js';
import { startWithStore } from './start.js';

const BLOCK = 65536;

describe.each(['tcp', 'shm'] as const)('over %s', (transport) => {
  let cluster: TestCluster;
  let actor: Actor;
  const path = (name: string): string => quote(cluster.mount().path(name));
  const store = (): string => join(cluster.folder, 'store');
  const start = (...flags: string[]): Promise<Role> => startWithStore(cluster, store(), ...flags);
  const crash = async (...flags: string[]): Promise<void> => {
    await cluster.signal('a1', 'SIGKILL');
    await start(...flags);
  };
  const extmem = async (...parameters: string[]): Promise<string> => {
    const { code, stdout, stderr } = await cluster.extmem(...parameters);
    expect({ parameters, code, stderr }).toEqual({ parameters, code: 0, stderr: '' });
    return stdout;
  };

  beforeEach(async () => {
    cluster = new TestCluster({ transport, cache: '32M', memory: '256M', appliances: 0 });
    actor = new Actor();
    await cluster.start(0);
  });
  afterEach(async () => {
    await actor.end();
    await cluster.stop();
  });

  test('killed: durability persisted has what was fsynced; memory is behind, and says so until it is accepted', async () => {
    await start();
    await cluster.startMount('m1');
    await extmem('create', '/ledger', '--size', '4M', '--durability', 'persisted', '--json');
    await actor.do(`
old = random.randbytes(3_000_000)
put(${path('plain')}, old); put(${path('by-xattr')}, b'')
os.setxattr(${path('by-xattr')}, 'user.extmem.durability', b'persisted')`);
    await extmem('persist', '/plain');
    await actor.do(`
new = random.randbytes(3_000_000)
for name in (${path('ledger')}, ${path('by-xattr')}, ${path('plain')}):
    f = os.open(name, os.O_RDWR); os.write(f, new); os.fsync(f); os.close(f)
unlucky = os.open(${path('plain')}, os.O_RDONLY)`);
    await crash();
    await until('the mount knows', async () => (await timed(actor, `os.pread(unlucky, 1, 0)`)).error === 'ESTALE');
    await timed(actor, `os.close(unlucky)`);
    await actor.do(`assert get(${path('ledger')})[:len(new)] == new; assert get(${path('by-xattr')}) == new`);
    await until('it is given back', async () => (await timed(actor, `get(${path('plain')})`)).error === 'ESTALE');
    expect(await extmem('info', '/plain')).toMatch(/BEHIND/);
    await extmem('restore', '/plain');
    // Page by page what was persisted.
    await actor.do(`assert get(${path('plain')}) == old; put(${path('plain')}, new); assert get(${path('plain')}) == new`);
    expect(await extmem('info', '/plain')).not.toMatch(/BEHIND/);
  });

  test('killed in the middle of persisting, again and again: what an earlier fsync promised is there', async () => {
    await start();
    await cluster.startMount('m1');
    await extmem('create', '/ledger', '--size', '8M', '--durability', 'persisted', '--json');
    // Every page has memory from the start: what is lost with an appliance is also what could be given to holes.
    await actor.do(`
size = 8 << 20; pages = {page: {1} for page in range(size // 4096)}
f = os.open(${path('ledger')}, os.O_RDWR); os.write(f, bytes([1]) * size); os.fsync(f); os.close(f)`);
    const told = (): number => cluster.mount().log().split('came back with an earlier state').length - 1;
    for (let round = 0; round < 6; round += 1) {
      await actor.do(`
f = os.open(${path('ledger')}, os.O_RDWR)
for page, byte in pages.items(): assert os.pread(f, 4096, page * 4096) in (bytes([b]) * 4096 for b in byte), page
for page in list(pages): pages[page] = {os.pread(f, 1, page * 4096)[0]}
for n in range(40):
    page = random.randrange(size // 4096); byte = random.randrange(1, 256)
    os.pwrite(f, bytes([byte]) * 4096, page * 4096); pages[page] = {byte}
os.fsync(f)
for n in range(200):
    page = random.randrange(size // 4096); byte = random.randrange(1, 256)
    os.pwrite(f, bytes([byte]) * 4096, page * 4096); pages[page].add(byte)`);
      const synced = timed(actor, `os.fsync(f)`);
      await new Promise((resolve) => setTimeout(resolve, round * 4));
      await crash();
      await synced;
      await timed(actor, `os.close(f)`);
      // Who opens it before the mount has been told of the restart has a handle of what is no more.
      await until('the mount knows', () => told() > round);
      await until('it can be opened', async () => (await timed(actor, `os.close(os.open(${path('ledger')}, os.O_RDWR))`)).error === '');
    }
    await actor.do(`f = os.open(${path('ledger')}, os.O_RDWR)
for page, byte in pages.items(): assert os.pread(f, 4096, page * 4096) in (bytes([b]) * 4096 for b in byte), page`);
  });

  test('the store is full: persisting says so, fsync of durability persisted fails, memory goes on, nothing is lost', async () => {
    await start('--store-limit', '8M');
    await cluster.startMount('m1');
    await actor.do(`first = random.randbytes(3_000_000); put(${path('first')}, first)`);
    await extmem('persist', '/first');
    await actor.do(`big = random.randbytes(12_000_000); put(${path('big')}, big)`);
    const { code, stderr } = await cluster.extmem('persist', '/big');
    expect(code).not.toBe(0);
    expect(stderr).toMatch(/the store is full/);
    await actor.do(
      `f = os.open(${path('synced')}, os.O_RDWR | os.O_CREAT); os.setxattr(f, 'user.extmem.durability', b'persisted'); os.write(f, big)`,
    );
    expect((await timed(actor, `os.fsync(f)`)).error).toBe('EIO');
    await actor.do(`assert get(${path('big')}) == big; assert get(${path('first')}) == first`);
    await timed(actor, `os.close(f)`);
    await actor.do(`os.unlink(${path('big')}); os.unlink(${path('synced')})`);
    // What is gone makes room, and then everything fits again.
    await until('it fits', async () => (await cluster.extmem('persist', '--all')).code === 0, 60_000);
    await cluster.signal('a1', 'SIGTERM');
    await start();
    await cluster.evict();
    await actor.do(`assert get(${path('first')}) == first`);
  }, 120_000);

  test('a byte flips in the store: EIO for those pages, everything else is good, and it is counted', async () => {
    await start();
    await cluster.startMount('m1');
    await actor.do(`marked = b''.join((b'block %08d ' % n) * 4096 for n in range(40))[:40 * ${BLOCK}]; put(${path('marked')}, marked)`);
    await cluster.signal('a1', 'SIGTERM');
    flip(store(), Buffer.from('block 00000020 block 00000020'));
    await start();
    await cluster.evict();
    const outcome = await actor.do<string[]>(`
f = os.open(${path('marked')}, os.O_RDONLY); found = []
for at in range(0, len(marked), 4096):
    try: found.append('same' if os.pread(f, 4096, at) == marked[at:at + 4096] else 'other')
    except OSError as error: found.append(errno.errorcode[error.errno])
found`);
    expect(new Set(outcome)).toEqual(new Set(['same', 'EIO']));
    expect(outcome.filter((one) => one === 'EIO').length).toBeLessThanOrEqual(BLOCK / 4096);
    const damagedPages = async (): Promise<number | undefined> => {
      const status = JSON.parse(await extmem('status', '--json')) as { appliances: { store?: { damagedPages: number } }[] };
      return status.appliances[0]?.store?.damagedPages;
    };
    await until('it is counted', async () => (await damagedPages()) === BLOCK / 4096); // told with the next heartbeat
  });

  test('destroyed is destroyed: what a removed file had is not in the store any more', async () => {
    await start();
    await cluster.startMount('m1');
    await extmem('create', '/secret', '--size', '64M', '--json');
    await actor.do(`f = os.open(${path('secret')}, os.O_RDWR); os.write(f, b'unmistakable secret ' * 500_000); os.fsync(f); os.close(f)`);
    await extmem('persist', '--all');
    expect(readFileSync(store()).includes('unmistakable secret')).toBe(true);
    await extmem('rm', '/secret');
    await until('it is wiped', () => Promise.resolve(!readFileSync(store()).includes('unmistakable secret')));
  });
});

describe('a store that cannot be used', () => {
  const cluster = new TestCluster({ appliances: 0, memory: '64M' });
  afterEach(() => cluster.stop());

  test('is refused with what to do: something else there, in use, wrong key', async () => {
    await cluster.start(0);
    const foreign = join(cluster.folder, 'foreign');
    writeFileSync(foreign, 'precious data\n'.repeat(1000));
    const attempt = (id: string, ...flags: string[]) =>
      cluster.startAppliance(id, ...flags).then(
        () => 'it started',
        (error: unknown) => String(error),
      );
    expect(await attempt('a1', '--store', foreign)).toMatch(/something else lies where the store should be/);
    expect(readFileSync(foreign, 'utf8').startsWith('precious data')).toBe(true);
    const own = join(cluster.folder, 'own');
    const key = join(cluster.folder, 'key');
    writeFileSync(key, `${'ab'.repeat(32)}\n`);
    await cluster.startAppliance('a2', '--store', own, '--store-key-file', key, '--store-compression', 'zstd');
    expect(await attempt('a3', '--store', own)).toMatch(/in use by another appliance/);
    await cluster.signal('a2', 'SIGTERM');
    expect(await attempt('a4', '--store', own)).toMatch(/encrypted: it needs its key/);
    writeFileSync(key, `${'cd'.repeat(32)}\n`);
    expect(await attempt('a5', '--store', own, '--store-key-file', key)).toMatch(/the key is not that of the store/);
  });
});

/** Flips a bit where that text is found. */
function flip(file: string, text: Buffer): void {
  const at = readFileSync(file).indexOf(text);
  if (at < 0) throw new Error(`${text.toString()} is not in the store`);
  const fd = openSync(file, 'r+');
  const byte = Buffer.alloc(1);
  readSync(fd, byte, 0, 1, at);
  byte[0] = (byte[0] ?? 0) ^ 1;
  writeSync(fd, byte, 0, 1, at);
  closeSync(fd);
  spawnSync('sync', [file]);
}
