/** An appliance whose host runs short of memory, and what appliances say of their machines. Real processes; needs root, for a cgroup. */
import { afterAll, beforeAll, expect, test } from '@jest/globals';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import type { HealthAnswer, StatusAnswer } from '../../src/manager/index.js';
import { until } from '../until.js';
import { clusterStatus } from './bad_days.js';
import { MemoryCgroup } from './cgroup.js';
import { TestCluster } from './cluster.js';

const MIB = 1024 * 1024;
/** A busy machine takes its time to fill memory; offers are made anew every second. */
const PATIENCE_MS = 60_000;
const cluster = new TestCluster({ memory: '512M' });
const cgroup = MemoryCgroup.create('health', 1024 * MIB);

beforeAll(async () => {
  await cluster.startManager();
  await cluster.startApplianceWith(cgroup.runner(), 'a1');
});

afterAll(async () => {
  await cluster.stop();
  cgroup.remove();
});

async function ask<Answer>(...parameters: string[]): Promise<Answer> {
  return JSON.parse((await cluster.extmem(...parameters, '--json')).stdout) as Answer;
}

const appliance = async (): Promise<StatusAnswer['appliances'][number] | undefined> => (await clusterStatus(cluster)).appliances[0];

/** A process beside the appliance that uses so much; answers how to end it. */
async function useMemory(bytes: number): Promise<() => Promise<void>> {
  const [program = '', ...runner] = cgroup.runner();
  const script = `const held = Buffer.alloc(${bytes}, 1); console.log(held.length); process.stdin.resume()`;
  const child = spawn(program, [...runner, process.execPath, '-e', script], { stdio: ['pipe', 'pipe', 'inherit'] });
  const gone = once(child, 'exit');
  await once(child.stdout, 'data');
  return async () => {
    child.kill();
    await gone;
  };
}

test('what its cgroup cannot give is not offered, nothing is killed, and it is offered again when there is room', async () => {
  const bytes = 400 * MIB;
  const create = (path: string) => cluster.extmem('create', path, '--size', String(bytes));
  expect((await appliance())?.offer).toBe('whole');
  const free = await useMemory(500 * MIB);
  try {
    // It may have been asked while that memory was being taken, and offer a little less at first.
    await until('less than that is offered', async () => ((await appliance())?.donatedBytes ?? bytes) < bytes, PATIENCE_MS);
    expect((await appliance())?.offer).toBe('lowered');
    const refused = await create('/large');
    expect(refused.code).toBe(7); // no room in the pool
    expect((await ask<HealthAnswer>('health')).appliances[0]?.worries).toContain('it is short of memory and offers less than was donated');
  } finally {
    await free();
  }
  await until('all is offered', async () => (await appliance())?.offer === 'whole', PATIENCE_MS);
  expect((await create('/large')).code).toBe(0);
  expect(cgroup.oomKills).toBe(0);
}, 180_000);

test('health shows what there is, and says what is absent', async () => {
  const { stdout } = await cluster.extmem('health');
  const lines = stdout.split('\n');
  expect(lines[0]).toBe('appliance a1');
  for (const what of ['temperatures', 'voltages', 'fans', 'memory errors', 'power', 'disks', 'store', 'tasks waited'])
    expect(lines.filter((line) => line.startsWith(`  ${what}`))).toHaveLength(1);
});

test('an appliance that cannot be asked is shown with the reason alone, whatever it offered before', async () => {
  const free = await useMemory(500 * MIB);
  try {
    await until('less is offered', async () => (await appliance())?.offer !== 'whole', PATIENCE_MS);
    await cluster.signal('a1', 'SIGKILL');
  } finally {
    await free();
  }
  await until('it is down', async () => (await appliance())?.state === 'down', PATIENCE_MS);
  expect(await ask<HealthAnswer>('health')).toEqual({ appliances: [{ id: 'a1', worries: ['appliance a1 is down'] }] });
}, 180_000);
