/** Access parameters at the manager: what capabilities say, in which order a change is carried out, and what survives. */
import { afterEach, beforeEach, expect, test } from '@jest/globals';
import { askManager } from '../../../src/base/manager_http.js';
import type { RegionGrant } from '../../../src/base/messages.js';
import { decodeCapability, Right, Via } from '../../../src/base/protocol.js';
import { until } from '../../until.js';
import { Cluster, MIB, TOKEN, type TestAppliance, type TestClient } from './cluster.js';

let cluster: Cluster;
let appliance: TestAppliance;
let alice: TestClient;
let bob: TestClient;

beforeEach(async () => {
  cluster = await Cluster.start();
  appliance = await cluster.appliance('a');
  alice = await cluster.client('alice');
  bob = await cluster.client('bob');
});
afterEach(() => cluster.close());

/** Over HTTP. */
const ME = 'all clients=me';

function ask<Answer>(method: string, route: string, body?: unknown): Promise<Answer> {
  return askManager({ manager: cluster.manager.url, token: TOKEN, name: 'me' }, method, route, body) as Promise<Answer>;
}

const create = async (access: string): Promise<number> =>
  (await ask<{ ino: number }>('POST', '/v1/allocations', { path: '/f', bytes: MIB, access })).ino;

const change = (rules: string): Promise<{ pending: string[] }> => ask('PUT', '/v1/access/f', { rules });

function saysOf(grants: readonly RegionGrant[]): { rights: number; via: number; version: number; notAfter: number } {
  const [grant] = grants;
  if (grant === undefined) throw new Error('nothing was granted');
  const { capability } = grant;
  const { rights, via, version, notAfter } = decodeCapability(new DataView(capability.buffer, capability.byteOffset), 0);
  return { rights, via, version, notAfter: Number(notAfter) };
}

test('a capability says what the rules give: rights, ways, until when, of which version', async () => {
  const end = Date.now() + 3_600_000;
  const ino = await create(`read+write via=tcp clients=alice until=${new Date(end).toISOString()}; read via=127.0.0.1 clients=bob; ${ME}`);
  const write = await alice.ask('acquire', { ino, mode: 'write' });
  expect(saysOf(write.regions)).toEqual({ rights: Right.read | Right.write, via: Via.tcp | (Via.tcp << 8), version: 1, notAfter: end });
  await expect(bob.ask('acquire', { ino, mode: 'write' })).rejects.toMatchObject({ code: 'EACCES' });
  const read = await bob.ask('acquire', { ino, mode: 'read' });
  expect(saysOf(read.regions)).toEqual({ rights: Right.read, via: Via.link0, version: 1, notAfter: 0 });
});

test('a change: the writer writes back, who keeps something has it, the appliances take back, who lost is told, then it is answered', async () => {
  const ino = await create(`all clients=alice; all clients=bob; ${ME}`);
  await alice.ask('acquire', { ino, mode: 'write' });
  const order: string[] = [];
  alice.override.recall = () => (order.push('alice writes back'), { open: 'write' });
  alice.override.access = ({ read, write }) => (order.push(`alice ${String(read)} ${String(write)}`), {});
  appliance.override.setAccess = ({ regions, keep }) => {
    order.push(`appliance ${regions.map(({ version }) => version).join()}`);
    expect(keep).toEqual([bob.id]);
    return {};
  };
  await change(`read+read-metadata clients=alice; all clients=bob; ${ME}`);
  order.push('answered');
  expect(order).toEqual(['alice writes back', 'alice true false', 'appliance 2', 'alice true false', 'answered']);
  order.length = 0;
  await change(`all clients=bob; ${ME}`);
  expect(order).toEqual(['alice writes back', 'appliance 3', 'alice false false']);
  await expect(alice.ask('regions', { regions: [...appliance.regions.keys()] })).resolves.toEqual({ regions: [] });
});

test('an appliance that does not take a change is named, not used, and told when it is back', async () => {
  await create(`all clients=alice; ${ME}`);
  appliance.override.setAccess = () => {
    throw new Error('not now');
  };
  expect((await change(ME)).pending).toEqual(['a']);
  await until('it is down', async () => (await cluster.http('GET', '/v1/status')).text.includes('"state":"down"'));
  await appliance.connect();
  expect(appliance.welcome.access).toEqual([{ region: [...appliance.regions.keys()][0], version: 2 }]);
});

test('rules, their version and the key survive the manager; who resumes is told what holds', async () => {
  const ino = await create(`all clients=alice; ${ME}`);
  await alice.ask('acquire', { ino, mode: 'read' });
  await expect(change(`all key; ${ME}`)).rejects.toMatchObject({ code: 'EINVAL' }); // no key was given
  await change(`read-metadata clients=alice; ${ME}`);
  await cluster.restartManager();
  const told = alice.next('access');
  await alice.connect(true);
  expect(await told).toMatchObject({ ino, read: false, write: false, regions: [] });
  expect(await ask('GET', '/v1/access/f')).toMatchObject({ version: 2, rules: `read-metadata clients=alice; ${ME}` });
});

test('what may not be seen is neither found nor listed; what may not be changed is not', async () => {
  const ino = await create(`read-metadata clients=alice; ${ME}`);
  expect((await alice.lookup('f')).attr?.ino).toBe(ino);
  await expect(bob.lookup('f')).rejects.toMatchObject({ code: 'EACCES' });
  const names = async (client: TestClient): Promise<string[]> =>
    (await client.ask('readdir', { ino: 1, cookie: 0, limit: 10 })).entries.map(({ name }) => name);
  expect([await names(alice), await names(bob)]).toEqual([['f'], []]);
  const refused = { code: 'EACCES' };
  await expect(alice.ask('setattr', { ino, set: { mode: 0o600 } })).rejects.toMatchObject(refused);
  await expect(alice.ask('setattr', { ino, set: { size: 0 } })).rejects.toMatchObject(refused);
  await expect(alice.rename('f', 'g')).rejects.toMatchObject(refused);
  await expect(alice.unlink('f')).rejects.toMatchObject(refused);
  await alice.make('h');
  await expect(alice.rename('h', 'f')).rejects.toMatchObject(refused);
});
