/**
 * Mains power goes, as real processes see it: a UPS's command says so, or init sends SIGPWR. Everything is persisted, with progress, and
 * is there again; how long that takes is told beforehand, and warned of where the battery does not last.
 */
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from '@jest/globals';
import type { HealthAnswer } from '../../src/manager/index.js';
import { until } from '../until.js';
import { Actor } from '../mount/actor.js';
import { clusterStatus, quote } from '../mount/bad_days.js';
import { TestCluster, within, type Role } from '../mount/cluster.js';
import { startWithStore } from './start.js';

const MIB = 1 << 20;
const cluster = new TestCluster({ transport: 'tcp', cache: '32M', memory: '256M', appliances: 0 });
const gone = join(cluster.folder, 'power is gone');
let actor: Actor;

const start = (...flags: string[]): Promise<Role> => startWithStore(cluster, join(cluster.folder, 'store'), ...flags);
const path = (name: string): string => quote(cluster.mount().path(name));

beforeAll(async () => {
  actor = new Actor();
  await cluster.start(0);
});
afterAll(async () => {
  await actor.end();
  await cluster.stop();
});

test('a UPS says that there is no mains power: everything is persisted, with progress, and comes back', async () => {
  const role = await start('--ups-command', `test ! -e '${gone}'`, '--battery-seconds', '0');
  await cluster.startMount('m1');
  await actor.do(`data = random.randbytes(${80 * MIB}); put(${path('kept')}, data)`);
  // What is to come is estimated from what is in memory, and is longer than that battery lasts.
  await until('it is told', async () => ((await clusterStatus(cluster)).appliances[0]?.store?.persistSeconds ?? 0) > 0);
  const health = await cluster.extmem('health', '--json');
  expect(health.code).toBe(1);
  const [one] = (JSON.parse(health.stdout) as HealthAnswer).appliances;
  expect(one?.health?.store).toMatchObject({ batterySeconds: 0, failure: '', broken: '' });
  expect(one?.worries.join()).toMatch(/persisting everything takes [\d.]+ s, the battery lasts 0 s/);
  expect(role.log()).toMatch(/persisting everything takes longer than the battery lasts/);
  writeFileSync(gone, '');
  expect(await within(role.exited, 60_000, 'it did not end')).toBe(0);
  expect(role.log()).toMatch(/mains power is gone/);
  expect(role.log()).toMatch(/persisted 64 MiB of about/);
  expect(role.log()).toMatch(/everything is persisted/);
  const again = await start();
  expect(again.facts['incarnation']).toBe(role.facts['incarnation']);
  await cluster.evict();
  await actor.do(`assert get(${path('kept')}) == data`);
});

test('SIGPWR: the same', async () => {
  const { incarnation } = cluster.role('a1').facts;
  await actor.do(`put(${path('late')}, data[:${MIB}])`);
  await cluster.signal('a1', 'SIGPWR');
  expect((await start()).facts['incarnation']).toBe(incarnation);
  await cluster.evict();
  await actor.do(`assert get(${path('late')}) == data[:${MIB}] and get(${path('kept')}) == data`);
});
