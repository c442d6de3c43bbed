/**
 * `extmem persist --free`, as real processes: what is in the backing store takes no memory any more, unless clients hold it
 * themselves, and whoever has the file open, reads and writes it meanwhile, loses nothing.
 */
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from '@jest/globals';
import type { Freed } from '../../src/base/messages.js';
import type { RegionsAnswer } from '../../src/manager/index.js';
import { until } from '../until.js';
import { Actor } from '../mount/actor.js';
import { clusterStatus, quote, timed } from '../mount/bad_days.js';
import { TestCluster } from '../mount/cluster.js';
import { startWithStore } from './start.js';

const MIB = 2 ** 20;

/** A cluster whose only appliance has a store, and what of it these tests look at. */
class FreeingCluster extends TestCluster {
  readonly store = join(this.folder, 'store');

  constructor(transport: 'tcp' | 'shm') {
    super({ transport, cache: '8M', memory: '256M', appliances: 0 });
  }

  path(name: string): string {
    return quote(this.mount().path(name));
  }

  async ask(...parameters: string[]): Promise<string> {
    const { code, stdout, stderr } = await this.extmem(...parameters);
    expect({ parameters, code, stderr }).toEqual({ parameters, code: 0, stderr: '' });
    return stdout;
  }

  async free(...paths: string[]): Promise<Freed> {
    const answers = JSON.parse(await this.ask('persist', '--free', ...paths, '--json')) as Freed[];
    expect(answers).toHaveLength(1);
    return answers[0] as Freed;
  }

  async memory(): Promise<{ resident: number; absent: number; operations: number }> {
    const { regions } = JSON.parse(await this.ask('regions', '--json')) as RegionsAnswer;
    const sum = (of: (region: (typeof regions)[number]) => number | undefined): number =>
      regions.reduce((total, region) => total + (of(region) ?? 0), 0);
    return {
      resident: sum(({ residentBytes }) => residentBytes),
      absent: sum(({ absentBytes }) => absentBytes),
      operations: sum(({ usage }) => usage?.operations),
    };
  }

  async incarnation(): Promise<number | undefined> {
    return (await clusterStatus(this)).appliances[0]?.incarnation;
  }
}

/** f and m are the open file and its mapping, data what is in it. */
async function fill(cluster: FreeingCluster, actor: Actor): Promise<void> {
  await cluster.ask('create', '/table', '--size', '24M', '--json');
  await actor.do(`
size = 24 << 20; data = bytearray(random.randbytes(size))
f = os.open(${cluster.path('table')}, os.O_RDWR); os.write(f, data); os.fsync(f); m = mmap.mmap(f, size)`);
}

describe('over tcp, while everything is persisted in the background as well', () => {
  const cluster = new FreeingCluster('tcp');
  const actor = new Actor();
  const writer = new Actor();
  const path = (name: string): string => cluster.path(name);

  beforeAll(async () => {
    await cluster.start(0);
    await startWithStore(cluster, cluster.store, '--persist', 'continuously', '--persist-interval', '20');
    await cluster.startMount('m1');
    await fill(cluster, actor);
  });
  afterAll(async () => {
    await actor.end();
    await writer.end();
    await cluster.stop();
  });

  test('its memory is given back, and it reads as before, through descriptors and mappings that are open', async () => {
    const before = await cluster.memory();
    expect(await cluster.ask('persist', '--free', '/table')).toMatch(/^persisted \/table on a1; 24 ?MiB? of memory freed\n$/);
    const after = await cluster.memory();
    expect(before.resident - after.resident).toBeGreaterThan(23 * MIB);
    expect(after.absent).toBeGreaterThan(23 * MIB);
    expect(await cluster.ask('regions')).not.toMatch(/restoring/);
    await cluster.evict();
    await actor.do(`assert m[5_000_000:5_100_000] == data[5_000_000:5_100_000]; assert os.pread(f, size, 0) == data`);
    expect((await cluster.memory()).absent).toBe(0);
  });

  test('what is written while it is freed again and again is there', async () => {
    await writer.do(`import threading
size = 24 << 20; done = False; turns = 0
f = os.open(${path('table')}, os.O_RDWR); mine = bytearray(os.pread(f, size, 0))
def work():
    global turns
    while not done:
        at = random.randrange(size - 20_000); some = random.randbytes(random.randrange(1, 20_000))
        os.pwrite(f, some, at); mine[at:at + len(some)] = some
        if turns % 8 == 0: os.fsync(f)
        at = random.randrange(size - 20_000)
        assert os.pread(f, 20_000, at) == mine[at:at + 20_000], at
        turns += 1
failed = []
def run():
    try: work()
    except BaseException as error: failed.append(repr(error))
thread = threading.Thread(target=run); thread.start()`);
    let freed = 0;
    for (let turn = 0; turn < 8; turn += 1) {
      freed += (await cluster.free('/table')).freedBytes;
      await cluster.evict();
    }
    expect(freed).toBeGreaterThan(24 * MIB);
    await writer.do(`done = True; thread.join(); os.fsync(f)`);
    expect(await writer.do<string[]>(`failed`)).toEqual([]);
    expect(await writer.do<number>(`turns`)).toBeGreaterThan(8);
    await cluster.evict();
    expect(await writer.do<boolean>(`os.pread(f, size, 0) == mine`)).toBe(true);
    expect((await cluster.free('/table')).freedBytes).toBeGreaterThan(23 * MIB);
    await cluster.evict();
    expect(await writer.do<boolean>(`os.pread(f, size, 0) == mine`)).toBe(true);
  });

  test('a hole that is made in what is in the store only stays one, and what is removed comes home no more', async () => {
    await actor.do(`put(${path('gone')}, b'x' * 3_000_000); g = os.open(${path('gone')}, os.O_RDWR); os.fsync(g)`);
    expect((await cluster.free('/gone')).freedBytes).toBeGreaterThan(2_900_000);
    await actor.do(`fallocate(g, 3, 1_000_000, 500_000); os.fsync(g)`);
    await cluster.evict();
    await actor.do(`assert get(${path('gone')}) == b'x' * 1_000_000 + bytes(500_000) + b'x' * 1_500_000`);
    await cluster.free('--all');
    const { absent } = await cluster.memory();
    expect(absent).toBeGreaterThan(26 * MIB);
    await actor.do(`os.close(g); os.unlink(${path('gone')})`);
    await until('what was removed is absent no more', async () => (await cluster.memory()).absent < absent - 2_300_000);
  });

  test('ended in order while blocks come home, and started again: nothing is behind, and it goes on as the same', async () => {
    await writer.do(`os.fsync(f)`);
    const incarnation = await cluster.incarnation();
    expect((await cluster.free('--all')).freedBytes + (await cluster.memory()).absent).toBeGreaterThan(23 * MIB);
    await cluster.evict();
    await writer.do(`
def look():
    global seen
    seen = os.pread(f, size, 0) == mine
reading = threading.Thread(target=look); reading.start()`);
    await cluster.signal('a1', 'SIGTERM');
    await startWithStore(cluster, cluster.store);
    expect(await cluster.incarnation()).toBe(incarnation);
    await writer.do(`reading.join()`);
    await cluster.evict();
    expect(await writer.do<boolean>(`os.pread(f, size, 0) == mine`)).toBe(true);
  });

  test('the appliance killed right after it: what was freed is there, and no older', async () => {
    await writer.do(`os.pwrite(f, b'last' * 100_000, 7_000_000); os.fsync(f)
mine[7_000_000:7_400_000] = b'last' * 100_000; expected = sha(bytes(mine)); os.close(f)`);
    await actor.do(`m.close(); os.close(f)`);
    expect((await cluster.free('/table')).freedBytes).toBeGreaterThan(23 * MIB);
    await cluster.signal('a1', 'SIGKILL');
    await startWithStore(cluster, cluster.store);
    await cluster.ask('restore', '/table');
    await until('it can be read', async () => (await timed(writer, `get(${path('table')})`)).error === '');
    await cluster.evict();
    expect(await writer.do<boolean>(`sha(get(${path('table')})) == expected`)).toBe(true);
  });
});

describe('over shm', () => {
  const cluster = new FreeingCluster('shm');
  const actor = new Actor();

  beforeAll(async () => {
    await cluster.start(0);
    await startWithStore(cluster, cluster.store);
    await cluster.startMount('m1');
    await fill(cluster, actor);
  });
  afterAll(async () => {
    await actor.end();
    await cluster.stop();
  });

  test('what a client holds is persisted and stays in memory, and this is told', async () => {
    const before = await cluster.memory();
    expect(await cluster.ask('persist', '--free', '/table')).toMatch(
      /^persisted \/table on a1; 0 ?B? of memory freed\n24 ?MiB? of \/table are persisted and stay in memory: .*--transport tcp\n$/,
    );
    expect(await cluster.free('--all')).toMatchObject({ freedBytes: 0, heldBytes: before.resident });
    expect(await cluster.memory()).toMatchObject({ resident: before.resident, absent: 0 });
    await cluster.evict();
    await actor.do(`assert os.pread(f, size, 0) == data; m.close(); os.close(f)`);
  });

  test('when it has unmounted it is freed; and who comes next is given the memory itself when all of it is home', async () => {
    await cluster.signal('m1', 'SIGTERM');
    expect(await cluster.free('/table')).toMatchObject({ freedBytes: 24 * MIB, heldBytes: 0 });
    await cluster.startMount('m1');
    await actor.do(`f = os.open(${cluster.path('table')}, os.O_RDONLY); assert os.pread(f, size, 0) == data`);
    expect((await cluster.memory()).absent).toBe(0);
    await until('reads are no messages any more', async () => {
      const before = await cluster.memory();
      await cluster.evict();
      await actor.do(`assert os.pread(f, size, 0) == data`);
      return (await cluster.memory()).operations === before.operations;
    });
    expect(await cluster.free('/table')).toMatchObject({ freedBytes: 0, heldBytes: 24 * MIB });
  });
});
