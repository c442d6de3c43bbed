/**
 * An appliance with a backing store ends and starts again, as real processes: what it held is there, and mounts go on with the
 * files that they have open.
 */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from '@jest/globals';
import type { StatusAnswer } from '../../src/manager/index.js';
import { until } from '../until.js';
import { Actor } from '../mount/actor.js';
import { clusterStatus, quote, timed } from '../mount/bad_days.js';
import { TestCluster } from '../mount/cluster.js';

type Info = StatusAnswer['appliances'][number];

async function applianceOf(cluster: TestCluster, id = 'a1'): Promise<Info> {
  const found = (await clusterStatus(cluster)).appliances.find((one) => one.id === id);
  if (found === undefined) throw new Error(`the manager does not know ${id}`);
  return found;
}

describe.each(['tcp', 'shm'] as const)('an appliance with a store, over %s', (transport) => {
  const cluster = new TestCluster({ transport, cache: '32M', memory: '256M', appliances: 0 });
  const store = join(cluster.folder, 'store');
  let actor: Actor;
  const start = async (...flags: string[]): Promise<void> => {
    await cluster.startAppliance('a1', '--store', store, ...flags);
    await until('the manager counts it', async () => (await applianceOf(cluster)).state === 'up');
  };
  const restart = async (...flags: string[]): Promise<void> => {
    await cluster.signal('a1', 'SIGTERM');
    await start(...flags);
  };
  const path = (name: string): string => quote(cluster.mount().path(name));

  beforeAll(async () => {
    actor = new Actor();
    await cluster.start(0);
    await start();
    await cluster.startMount('m1');
  });
  afterAll(async () => {
    await actor.end();
    await cluster.stop();
  });

  test('ended in order and started again: files are there, through the descriptors and mappings that are open', async () => {
    await actor.do(`
data = random.randbytes(9_000_000)
f = os.open(${path('kept')}, os.O_RDWR | os.O_CREAT); os.write(f, data); os.fsync(f)
m = mmap.mmap(f, len(data))
put(${path('other')}, data[::-1])`);
    const { incarnation } = await applianceOf(cluster);
    await restart();
    expect((await applianceOf(cluster)).incarnation).toBe(incarnation);
    await cluster.evict();
    await actor.do(
      `assert os.pread(f, len(data), 0) == data; assert m[5_000_000] == data[5_000_000]; assert get(${path('other')}) == data[::-1]`,
    );
    await actor.do(
      `os.pwrite(f, b'after', 70_000); m[0] = 1; m.flush(); os.fsync(f); data = bytes([1]) + data[1:70_000] + b'after' + data[70_005:]`,
    );
    await cluster.evict();
    await actor.do(`assert get(${path('kept')}) == data`);
  });

  test('what is written while it is away waits, and what was removed, cut and punched before stays so', async () => {
    await actor.do(`
os.unlink(${path('other')})
g = os.open(${path('cut')}, os.O_RDWR | os.O_CREAT); os.write(g, b'x' * 3_000_000); os.fsync(g)`);
    await restart();
    await actor.do(`fallocate(g, 3, 1_000_000, 1_000_000); os.ftruncate(g, 2_500_000); os.fsync(g)`);
    await cluster.signal('a1', 'SIGTERM');
    await actor.do(`os.pwrite(f, b'meanwhile' * 4096, 303_104)`);
    await start();
    // What could not be written back meanwhile is kept, and said; then it goes through.
    await until('fsync goes through', async () => (await timed(actor, `os.fsync(f)`)).error === '');
    await actor.do(`data = data[:303_104] + b'meanwhile' * 4096 + data[303_104 + 9 * 4096:]`);
    await cluster.evict();
    await actor.do(`assert get(${path('kept')}) == data
assert get(${path('cut')}) == b'x' * 1_000_000 + bytes(1_000_000) + b'x' * 500_000
assert not os.path.exists(${path('other')})`);
  });

  test('only what has changed is persisted again', async () => {
    await actor.do(`os.pwrite(f, b'little', 1_000_000); os.fsync(f); data = data[:1_000_000] + b'little' + data[1_000_006:]`);
    await cluster.signal('a1', 'SIGTERM');
    await start('--http', '127.0.0.1:0');
    await actor.do(`assert get(${path('kept')}) == data`);
    await actor.do(`os.pwrite(f, b'again', 2_000_000); os.fsync(f); data = data[:2_000_000] + b'again' + data[2_000_005:]`);
    const persisted = await cluster.extmem('persist', '--all', '--json');
    expect({ code: persisted.code, stderr: persisted.stderr }).toEqual({ code: 0, stderr: '' });
  });

  test('restored lazily, it serves what it is asked for', async () => {
    await restart('--restore', 'lazily');
    await cluster.evict();
    expect((await applianceOf(cluster)).store?.absentBytes).toBeGreaterThan(1_000_000);
    await actor.do(`assert os.pread(f, 4096, 4_000_000) == data[4_000_000:4_004_096]`);
    await actor.do(`os.pwrite(f, b'lazy', 5_000_000); os.fsync(f); data = data[:5_000_000] + b'lazy' + data[5_000_004:]`);
    await restart();
    await cluster.evict();
    await actor.do(`assert get(${path('kept')}) == data`);
    expect(readFileSync(store).length).toBeGreaterThan(9_000_000);
  });
});
