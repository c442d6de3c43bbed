/**
 * The pool is full: the write that did not fit says ENOSPC, what was there before is whole, and what is deleted comes back, to the pool
 * and to the operating system. And very many files: they exist, work, and cost neither descriptors nor mappings.
 */
import { readdirSync, readFileSync, readlinkSync, statSync } from 'node:fs';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from '@jest/globals';
import { until } from '../until.js';
import { Actor } from './actor.js';
import { clusterStatus, quote, timed } from './bad_days.js';
import { run, TestCluster } from './cluster.js';

const MIB = 1024 ** 2;

describe.each(['tcp', 'shm'] as const)('a full pool, over %s', (transport) => {
  const cluster = new TestCluster({ transport, cache: '32M', memory: '96M' });
  let actor: Actor;
  const at = (name: string): string => quote(cluster.mount().path(name));
  /** Of an appliance's memory, what the operating system has given out. */
  const resident = (id: string): number => {
    const folder = `/proc/${cluster.role(id).pid}/fd`;
    const regions = readdirSync(folder).filter((fd) => readlinkSync(`${folder}/${fd}`).startsWith('/memfd:'));
    return regions.reduce((sum, fd) => sum + statSync(`${folder}/${fd}`).blocks * 512, 0);
  };
  const residentInRegions = async (): Promise<number> =>
    (await clusterStatus(cluster)).appliances.reduce((sum, one) => sum + one.residentBytes, 0);
  const fill = `
filler = os.open(NAME, os.O_RDWR | os.O_CREAT); piece = random.randbytes(1 << 20); written = 0
while True:
    try: written += os.pwrite(filler, piece, written)
    except OSError as error: failed = errno.errorcode[error.errno]; break
while True:
    try: written += os.pwrite(filler, piece[:4096], written)
    except OSError as error: break
os.fsync(filler)
(failed, written)`;
  const fillPool = (): Promise<[string, number]> => actor.do<[string, number]>(fill.replace('NAME', at('filler')));

  beforeAll(() => cluster.start());
  afterAll(() => cluster.stop());
  beforeEach(() => void (actor = new Actor()));
  afterEach(async () => {
    await actor.fails(`os.unlink(${at('filler')})`);
    await actor.end();
    await until('the memory is back', async () => (await residentInRegions()) < 16 * MIB);
  });

  test('the write that does not fit fails with ENOSPC, and nothing before it is broken', async () => {
    await actor.do(`before = random.randbytes(3 << 20); put(${at('before')}, before)`);
    const [failed, written] = await fillPool();
    expect(failed).toBe('ENOSPC');
    expect(written).toBeGreaterThan(160 * MIB);
    await cluster.evict();
    expect(await actor.do(`get(${at('before')}) == before`)).toBe(true);
    expect(
      await actor.do(`all(os.pread(filler, 1 << 20, at)[:4096] == piece[:4096] for at in range(0, ${written} - (1 << 20), 1 << 20))`),
    ).toBe(true);
    await actor.do(`f = os.open(${at('before')}, os.O_RDWR); os.pwrite(f, b'over', 100); os.fsync(f)`); // what has room goes on
    expect((await timed(actor, `put(${at('one-more')}, b'x' * 4096)`)).error).toBe('ENOSPC');
    await actor.do(`os.unlink(${at('before')}); os.unlink(${at('one-more')})`);
  });

  test('a store through a mapping into a hole, with the pool full: ENOSPC at msync; with fallocate before: none', async () => {
    await actor.do(
      `f = os.open(${at('reserved')}, os.O_RDWR | os.O_CREAT); os.ftruncate(f, 1 << 20); os.posix_fallocate(f, 0, 1 << 20); m = mmap.mmap(f, 1 << 20)`,
    );
    await actor.do(`g = os.open(${at('hole')}, os.O_RDWR | os.O_CREAT); os.ftruncate(g, 1 << 20); n = mmap.mmap(g, 1 << 20)`);
    await fillPool();
    await actor.do(`m[300_000] = 5; n[300_000] = 5`);
    expect((await timed(actor, `m.flush()`)).error).toBe('');
    expect((await timed(actor, `n.flush()`)).error).toBe('ENOSPC');
    await actor.do(`os.unlink(${at('reserved')}); os.unlink(${at('hole')})`);
  });

  test('deleting gives the room back at once, and the memory to the operating system', async () => {
    const [, written] = await fillPool();
    expect(resident('a1') + resident('a2')).toBeGreaterThan(written / 2);
    await actor.do(`os.close(filler); os.unlink(${at('filler')})`);
    await until('there is room', async () => (await timed(actor, `put(${at('again')}, bytes(60 << 20))`)).error === '');
    await actor.do(`os.unlink(${at('again')})`);
    await until('the memory is back', () => resident('a1') + resident('a2') < 32 * MIB);
  });

  test('truncating gives room back too', async () => {
    await fillPool();
    await actor.do(`os.ftruncate(filler, 1 << 20)`);
    await until('there is room', async () => (await timed(actor, `put(${at('again')}, bytes(60 << 20))`)).error === '');
    expect(await actor.do(`os.pread(filler, 1 << 20, 0) == piece`)).toBe(true);
    await actor.do(`os.unlink(${at('again')})`);
  });
});

describe('100,000 files', () => {
  const FILES = 100_000;
  const WORKERS = 8;
  const cluster = new TestCluster({ transport: 'shm', cache: '64M', memory: '768M' });
  const descriptors = (role: string): number => readdirSync(`/proc/${cluster.role(role).pid}/fd`).length;
  const mappings = (role: string): number => readFileSync(`/proc/${cluster.role(role).pid}/maps`, 'utf8').split('\n').length;

  beforeAll(() => cluster.start());
  afterAll(() => cluster.stop());

  test('are made, listed, looked at and read, and a tree of them removed, with a bounded number of descriptors and mappings', async () => {
    const workers = Array.from({ length: WORKERS }, () => new Actor());
    const root = quote(cluster.mount().mountPoint);
    await Promise.all(
      workers.map((worker, index) =>
        worker.do(`
root = ${root}; mine = f'{root}/d${index}'; os.mkdir(mine)
for i in range(${FILES / WORKERS}):
    if i % 25 == 0: put(f'{mine}/file-{i}', b'content of %d' % i)
    else: os.mknod(f'{mine}/file-{i}')`),
      ),
    );
    for (const role of ['m1', 'a1', 'a2', 'manager']) {
      expect({ role, descriptors: descriptors(role) < 300 }).toEqual({ role, descriptors: true });
      expect({ role, mappings: mappings(role) < 1500 }).toEqual({ role, mappings: true });
    }
    const counts = await Promise.all(
      workers.map((worker) =>
        worker.do(`
found = os.listdir(mine)
assert len(found) == len(set(found)) == ${FILES / WORKERS}, len(found)
for i in range(0, ${FILES / WORKERS}, 25): assert get(f'{mine}/file-{i}') == b'content of %d' % i
sum(os.stat(f'{mine}/{name}').st_size > 0 for name in found)`),
      ),
    );
    expect(counts).toEqual(workers.map(() => FILES / WORKERS / 25));
    const { code, stderr } = await run('rm', ['-rf', cluster.mount().path('d0')]);
    expect({ code, stderr }).toEqual({ code: 0, stderr: '' });
    expect(await workers[0]?.do(`sorted(os.listdir(root))`)).toEqual(workers.slice(1).map((_, index) => `d${index + 1}`));
    for (const worker of workers) await worker.end();
  }, 150_000);
});
