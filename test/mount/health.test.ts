/** An appliance whose host runs short of memory, and what appliances say of their machines. Real processes; needs root, for a cgroup. */
import { afterAll, beforeAll, expect, test } from '@jest/globals';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import type { HealthAnswer, StatusAnswer } from '../../src/manager/index.js';
import { until } from '../until.js';
import { MemoryCgroup } from './cgroup.js';
import { TestCluster } from './cluster.js';

const MIB = 1024 * 1024;
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

const offer = async (): Promise<string | undefined> => (await ask<StatusAnswer>('status')).appliances[0]?.offer;

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
  const create = (path: string) => cluster.extmem('create', path, '--size', '400M');
  expect(await offer()).toBe('whole');
  const free = await useMemory(500 * MIB);
  await until('less is offered', async () => (await offer()) === 'lowered');
  const refused = await create('/large');
  expect(refused.code).toBe(7); // no room in the pool
  expect((await ask<HealthAnswer>('health')).appliances[0]?.worries).toContain('it is short of memory and offers less than was donated');
  await free();
  await until('all is offered', async () => (await offer()) === 'whole');
  expect((await create('/large')).code).toBe(0);
  expect(cgroup.oomKills).toBe(0);
});

test('health shows what there is, and says what is absent', async () => {
  const { stdout } = await cluster.extmem('health');
  const lines = stdout.split('\n');
  expect(lines[0]).toBe('appliance a1');
  for (const what of ['temperatures', 'voltages', 'fans', 'memory errors', 'power', 'disks', 'tasks waited'])
    expect(lines.filter((line) => line.startsWith(`  ${what}`))).toHaveLength(1);
});

test('an appliance that cannot be asked is shown with the reason', async () => {
  await cluster.signal('a1', 'SIGKILL');
  await until('it is down', async () => (await ask<StatusAnswer>('status')).appliances[0]?.state === 'down');
  expect(await ask<HealthAnswer>('health')).toEqual({ appliances: [{ id: 'a1', worries: ['appliance a1 is down'] }] });
});
