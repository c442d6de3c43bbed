/** The HTTP interface: tokens, versions, the API and its description, metrics. */
import { connect } from 'node:net';
import { once } from 'node:events';
import { afterEach, beforeEach, expect, test } from '@jest/globals';
import { pino } from 'pino';
import { applianceOperations, appliancePushes, clientOperations, clientPushes } from '../../../src/base/messages.js';
import { PROTOCOL_VERSION } from '../../../src/base/protocol.js';
import { connectSession, sessionUrl, type Handlers } from '../../../src/base/session.js';
import { Cluster, MIB, TOKEN } from './cluster.js';

const NONE_FREED = { freedBytes: 0, heldBytes: 0 };

let cluster: Cluster;
let log: string[];

beforeEach(async () => {
  log = [];
  cluster = await Cluster.start({ logger: pino({ level: 'warn' }, { write: (line: string) => void log.push(line) }) });
});
afterEach(() => cluster.close());

const refusals = (): string[] => log.filter((line) => line.includes('refused'));

test('without the token nothing answers but /healthz; the refusal is logged once', async () => {
  for (const path of ['/v1/status', '/v1/allocations', '/metrics', '/openapi.json', '/nothing']) {
    const { status, body } = await cluster.http('GET', path, undefined, 'wrong');
    expect([path, status, body['code']]).toEqual([path, 401, 'EACCES']);
  }
  expect((await cluster.http('GET', '/healthz', undefined, 'wrong')).status).toBe(200);
  const handlers = {} as Handlers<typeof clientPushes>;
  await expect(
    connectSession(sessionUrl(cluster.manager.url, 'clients'), 'wrong', { out: clientOperations, in: clientPushes }, handlers),
  ).rejects.toMatchObject({ code: 'EACCES' });
  expect(refusals()).toHaveLength(1);
});

test('another version is refused with a code of its own', async () => {
  const client = await connectSession(
    sessionUrl(cluster.manager.url, 'clients'),
    TOKEN,
    { out: clientOperations, in: clientPushes },
    {} as Handlers<typeof clientPushes>,
  );
  await expect(client.call('renew', {})).rejects.toMatchObject({ code: 'EPROTO' });
  await expect(client.call('hello', { version: PROTOCOL_VERSION + 1, name: 'x', hostId: 'h' })).rejects.toMatchObject({ code: 'EVERSION' });
  client.close();
  const appliance = await connectSession(
    sessionUrl(cluster.manager.url, 'appliances'),
    TOKEN,
    { out: applianceOperations, in: appliancePushes },
    {} as Handlers<typeof appliancePushes>,
  );
  await expect(appliance.call('join', { version: PROTOCOL_VERSION + 1, id: 'x' })).rejects.toMatchObject({ code: 'EVERSION' });
  appliance.close();
});

test('garbage on the port is refused and logged once', async () => {
  for (let round = 0; round < 3; round++) {
    const socket = connect(cluster.manager.port, '127.0.0.1');
    socket.on('error', () => undefined).resume();
    socket.write(Buffer.from([0, 1, 2, 3, 255, 10, 10]));
    await once(socket, 'close');
  }
  expect(refusals()).toHaveLength(1);
});

test('allocations: create, list, info, renew, resize, destroy', async () => {
  const made = await cluster.http('POST', '/v1/allocations', { path: 'f', bytes: 10 * MIB, layout: 'concat' });
  expect(made.status).toBe(201);
  expect(made.body).toMatchObject({
    path: '/f',
    bytes: 10 * MIB,
    allocatedBytes: 0,
    layout: 'concat',
    dedicated: false,
    holders: [],
    warning: expect.stringContaining('one copy'),
  });
  expect((await cluster.http('POST', '/v1/allocations', { path: 'f', bytes: 1 })).status).toBe(409);
  expect((await cluster.http('POST', '/v1/allocations', { path: 'no/f', bytes: 1 })).status).toBe(404);
  expect((await cluster.http('POST', '/v1/allocations', { path: 'g', bytes: -1 })).status).toBe(400);
  const client = await cluster.client('a');
  await client.openNew('dir file');
  expect((await cluster.http('GET', '/v1/allocations/dir%20file')).body['holders']).toEqual([
    { client: client.id, name: 'a', mode: 'write', open: 'write', connected: true },
  ]);
  expect((await cluster.http('POST', '/v1/allocations/f/renew')).body).toEqual(made.body);
  expect((await cluster.http('PATCH', '/v1/allocations/f', { bytes: 5 })).body).toMatchObject({ bytes: 5 });
  const listed = (await cluster.http('GET', '/v1/allocations')).body['allocations'] as { path: string; bytes: number }[];
  expect(listed.map(({ path, bytes }) => [path, bytes])).toEqual([
    ['/f', 5],
    ['/dir file', 0],
  ]);
  expect((await cluster.http('DELETE', '/v1/allocations/f')).status).toBe(204);
  expect((await cluster.http('GET', '/v1/allocations/f')).status).toBe(404);
});

test('what persisting freed, and what clients hold, is told in sum of all appliances, if that was asked for', async () => {
  const asked: unknown[] = [];
  for (const [id, heldBytes] of [
    ['one', 7],
    ['two', 0],
  ] as const) {
    const appliance = await cluster.appliance(id);
    appliance.override.persist = ({ free = false }) => (asked.push([id, free]), free ? { freedBytes: 100, heldBytes } : NONE_FREED);
  }
  const layout = { layout: 'stripe', dedicated: true };
  expect((await cluster.http('POST', '/v1/allocations', { path: '/f', bytes: 64 * MIB, ...layout })).status).toBe(201);
  expect((await cluster.http('POST', '/v1/persist', { path: '/f' })).body).toEqual({ appliances: ['one', 'two'] });
  const freed = await cluster.http('POST', '/v1/persist', { path: '/f', free: true });
  expect(freed.body).toEqual({ appliances: ['one', 'two'], freedBytes: 200, heldBytes: 7 });
  expect(asked.sort()).toEqual([
    ['one', false],
    ['one', true],
    ['two', false],
    ['two', true],
  ]);
});

test('a directory goes with all that is in it when that is asked for', async () => {
  const client = await cluster.client('a');
  const d = await client.mkdir('d');
  const e = await client.mkdir('e', d);
  for (const parent of [d, e]) for (let index = 0; index < 3; index++) await client.make(`f${index}`, { parent });
  expect((await cluster.http('DELETE', '/v1/allocations/d')).body['code']).toBe('EISDIR');
  expect((await cluster.http('DELETE', '/v1/allocations?path=/d&recursive=true')).status).toBe(204);
  expect((await client.lookup('d')).attr).toBeUndefined();
});

test('the API describes itself, and is measured', async () => {
  await cluster.appliance('one', 64 * MIB);
  const { body } = await cluster.http('GET', '/openapi.json');
  expect(Object.keys(body['paths'] as object)).toEqual(expect.arrayContaining(['/v1/allocations', '/v1/space', '/v1/status']));
  const { text } = await cluster.http('GET', '/metrics');
  expect(text).toMatch(/^extmem_appliance_donated_bytes\{appliance="one"\} 67108864$/m);
  expect((await cluster.http('GET', '/v1/status')).body).toMatchObject({ pool: { totalBytes: 64 * MIB, freeBytes: 64 * MIB } });
});
