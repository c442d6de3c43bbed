/**
 * What backing stores lie on, for real: a block device that turns read-only under the appliance, a file system that is full. The
 * appliance says so, goes on serving, and loses nothing that was promised. Needs root: loop devices and mounts.
 */
import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, test } from '@jest/globals';
import type { HealthAnswer } from '../../src/manager/index.js';
import { until } from '../until.js';
import { Actor } from '../mount/actor.js';
import { quote, timed } from '../mount/bad_days.js';
import { succeed, TestCluster, type Role } from '../mount/cluster.js';
import { startWithStore } from './start.js';

const MIB = 1 << 20;
let cluster: TestCluster;
let actor: Actor;
let undo: (() => Promise<unknown>)[];

const path = (name: string): string => quote(cluster.mount().path(name));
const start = (store: string): Promise<Role> => startWithStore(cluster, store);
const health = async (): Promise<HealthAnswer['appliances'][number]> => {
  const { stdout, stderr } = await cluster.extmem('health', '--json');
  const [one] = (JSON.parse(stdout) as HealthAnswer).appliances;
  if (one === undefined) throw new Error(stderr);
  return one;
};

beforeEach(async () => {
  cluster = new TestCluster({ transport: 'tcp', cache: '32M', memory: '128M', appliances: 0 });
  actor = new Actor();
  undo = [];
  await cluster.start(0);
});
afterEach(async () => {
  await actor.end();
  // What lies in the cluster's folder is given back after the processes, and before the folder goes.
  for (const { name } of cluster
    .running()
    .filter((role) => role.name !== 'manager')
    .reverse())
    await cluster.signal(name, 'SIGTERM');
  for (const step of undo.reverse()) await step();
  await cluster.stop();
});

test('a block device turns read-only under it: fsync of `persisted` says so, health too, memory goes on, what was promised is there', async () => {
  const image = join(cluster.folder, 'image');
  await succeed('truncate', ['--size', '64M', image]);
  const device = (await succeed('losetup', ['--find', '--show', image])).trim();
  undo.push(
    () => succeed('losetup', ['--detach', device]),
    () => succeed('blockdev', ['--setrw', device]), // or it is read-only for whoever has it next
  );
  await start(device);
  await cluster.startMount('m1');
  await actor.do(`
old = random.randbytes(${2 * MIB}); new = random.randbytes(${2 * MIB})
f = os.open(${path('ledger')}, os.O_RDWR | os.O_CREAT); os.setxattr(f, 'user.extmem.durability', b'persisted')
os.pwrite(f, old, 0); os.fsync(f); os.close(f); put(${path('plain')}, old)`);
  await cluster.signal('a1', 'SIGTERM');
  await start(device); // it came back from there
  await cluster.evict();
  await actor.do(`assert get(${path('ledger')}) == old and get(${path('plain')}) == old`);
  expect((await health()).worries).toEqual([]);

  await succeed('blockdev', ['--setro', device]);
  await actor.do(`f = os.open(${path('ledger')}, os.O_RDWR); os.pwrite(f, new, 0)`);
  expect((await timed(actor, `os.fsync(f)`)).error).toBe('EIO');
  const { health: found, worries } = await health();
  expect(found?.store).toMatchObject({ device: device.replace('/dev/', ''), readOnly: true });
  expect(worries.join('\n')).toMatch(/nothing is persisted in \S+ any more \(.*\); what is in memory is served all the same/);
  expect(worries.join('\n')).toMatch(/the device of \S+ is read-only/);
  await actor.do(`put(${path('plain')}, new)`);
  await cluster.evict();
  await actor.do(`assert get(${path('plain')}) == new and os.pread(f, len(new), 0) == new`);
  await timed(actor, `os.close(f)`);

  const failing = cluster.role('a1');
  await cluster.signal('a1', 'SIGTERM');
  expect(failing.log()).toMatch(/not everything could be persisted/);
  await succeed('blockdev', ['--setrw', device]);
  await start(device);
  await until('it can be opened', async () => (await timed(actor, `get(${path('ledger')})`)).error === '');
  await actor.do(`
found = get(${path('ledger')})
for at in range(0, len(old), 4096): assert found[at:at + 4096] in (old[at:at + 4096], new[at:at + 4096]), at`);
  // Newer than what is stored, and said to be.
  await until('it is behind', async () => (await timed(actor, `get(${path('plain')})`)).error === 'ESTALE');
  expect((await health()).worries).toEqual([]);
});

test('the file system of the store is full: persisting says so, health too, memory goes on; with room again, it goes through', async () => {
  const folder = join(cluster.folder, 'small');
  mkdirSync(folder);
  await succeed('mount', ['-t', 'tmpfs', '-o', 'size=12M', 'extmem-test', folder]);
  undo.push(() => succeed('umount', [folder]));
  await start(folder);
  await cluster.startMount('m1');
  await actor.do(`first = random.randbytes(${3 * MIB}); put(${path('first')}, first)`);
  expect((await cluster.extmem('persist', '/first')).code).toBe(0);
  expect((await health()).health?.store?.freeBytes).toBeLessThan(10 * MIB);
  await actor.do(`big = random.randbytes(${16 * MIB}); put(${path('big')}, big)`);
  const refused = await cluster.extmem('persist', '/big');
  expect(refused.code).not.toBe(0);
  expect((await health()).worries.join()).toMatch(/persisting in \S+ failed \(.*\); what is in memory is served all the same/);
  await cluster.evict();
  await actor.do(`assert get(${path('big')}) == big and get(${path('first')}) == first; os.unlink(${path('big')})`);
  await until('it fits', async () => (await cluster.extmem('persist', '--all')).code === 0);
  expect((await health()).worries).toEqual([]);
  await cluster.signal('a1', 'SIGTERM');
  await start(folder);
  await cluster.evict();
  await actor.do(`assert get(${path('first')}) == first`);
});
