/**
 * Strangers at every port: a wrong token, another version, garbage. They are refused, logged once each, and disturb nobody.
 */
import { randomBytes } from 'node:crypto';
import { mkdirSync } from 'node:fs';
import { connect } from 'node:net';
import { join } from 'node:path';
import WebSocket from 'ws';
import { afterAll, beforeAll, describe, expect, test } from '@jest/globals';
import { applianceOperations, appliancePushes, clientOperations, clientPushes } from '../../src/base/messages.js';
import { ClientHelloBytes, encodeClientHello, PROTOCOL_VERSION, WIRE_MAGIC } from '../../src/base/protocol.js';
import { connectSession, sessionUrl, type Handlers } from '../../src/base/session.js';
import { Actor } from './actor.js';
import { quote, timed } from './bad_days.js';
import { TestCluster, within } from './cluster.js';

const ATTEMPTS = 5;
/** Something that is no longer than a handshake may take. */
const PATIENCE_MS = 8000;

describe('strangers', () => {
  const cluster = new TestCluster({ transport: 'tcp', cache: '32M', memory: '128M', appliances: 1 });
  let actor: Actor;
  let appliancePort = 0;
  let managerPort = 0;

  beforeAll(async () => {
    await cluster.start();
    actor = new Actor();
    appliancePort = Number(cluster.role('a1').facts['port']);
    managerPort = Number(cluster.manager.split(':')[1]);
    await actor.do(`data = random.randbytes(1 << 20); put(${quote(cluster.mount().path('data'))}, data)`);
  });
  afterAll(async () => {
    await actor.end();
    await cluster.stop();
  });

  const undisturbed = async (): Promise<void> => {
    await cluster.evict();
    expect(
      await timed(actor, `assert get(${quote(cluster.mount().path('data'))}) == data; put(${quote(cluster.mount().path('more'))}, data)`),
    ).toMatchObject({ error: '' });
  };
  const refusals = (role: string, what: RegExp): string[] =>
    cluster
      .role(role)
      .log()
      .split('\n')
      .filter((line) => what.test(line));

  test('garbage at the appliance: cut off, logged once', async () => {
    for (let attempt = 0; attempt < ATTEMPTS; attempt += 1) await exchange(appliancePort, randomBytes(100_000));
    await exchange(appliancePort, Buffer.from('GET / HTTP/1.1\r\n\r\n'));
    expect(refusals('a1', /does not speak this protocol/)).toHaveLength(1);
    await undisturbed();
  });

  test('silence and a hello cut short at the appliance: cut off', async () => {
    await exchange(appliancePort, Buffer.alloc(0));
    await exchange(appliancePort, hello(PROTOCOL_VERSION).subarray(0, 20));
    await undisturbed();
  });

  test('another version at the appliance: told so, logged once', async () => {
    for (let attempt = 0; attempt < ATTEMPTS; attempt += 1) {
      const answer = await exchange(appliancePort, hello(PROTOCOL_VERSION + 7));
      expect(answer.readUInt32LE(0)).toBe(WIRE_MAGIC);
      expect(answer.readUInt8(6)).not.toBe(0);
    }
    expect(refusals('a1', /it speaks protocol version/)).toHaveLength(1);
    await undisturbed();
  });

  test('a client that does not know its key: refused, logged once', async () => {
    for (let attempt = 0; attempt < ATTEMPTS; attempt += 1)
      await exchange(
        appliancePort,
        Buffer.concat([
          hello(PROTOCOL_VERSION, BigInt(String(cluster.role('a1').facts['incarnation']))),
          Buffer.from(new Uint32Array([WIRE_MAGIC, 0]).buffer),
          randomBytes(32),
        ]),
      );
    expect(refusals('a1', /does not know the client's key/)).toHaveLength(1);
    await undisturbed();
  });

  test('garbage at the manager: cut off, logged once', async () => {
    for (let attempt = 0; attempt < ATTEMPTS; attempt += 1)
      await exchange(managerPort, Buffer.concat([Buffer.from([0x16, 0x03, 0x01]), randomBytes(1000)]));
    expect(refusals('manager', /is not HTTP/)).toHaveLength(1);
    await undisturbed();
  });

  test('a wrong token: 401, EACCES with what to do, logged once', async () => {
    for (let attempt = 0; attempt < ATTEMPTS; attempt += 1) {
      const answer = await fetch(`http://${cluster.manager}/v1/status`, { headers: { authorization: 'Bearer wrong-token' } });
      expect(answer.status).toBe(401);
    }
    mkdirSync(join(cluster.folder, 'm2'));
    for (const parameters of [
      ['mount', '--cache', '32M', join(cluster.folder, 'm2')],
      ['appliance', '--id', 'a9', '--memory', '64M'],
    ]) {
      const { code, stderr } = await cluster.extmem(...parameters, '--token', 'wrong-token');
      expect(code).not.toBe(0);
      expect(stderr).toMatch(/refused the join token; pass the token it was started with/);
    }
    expect(refusals('manager', /join token is missing or wrong/)).toHaveLength(1);
    await undisturbed();
  });

  test('another version at the manager: EVERSION to a client and to an appliance', async () => {
    const unused = {} as Handlers<typeof clientPushes>;
    const client = await connectSession(
      sessionUrl(cluster.manager, 'clients'),
      cluster.token,
      { out: clientOperations, in: clientPushes },
      unused,
    );
    await expect(client.call('hello', { version: PROTOCOL_VERSION + 7, name: 'x', hostId: 'x' })).rejects.toMatchObject({
      code: 'EVERSION',
    });
    client.close();
    const none = {} as Handlers<typeof appliancePushes>;
    const appliance = await connectSession(
      sessionUrl(cluster.manager, 'appliances'),
      cluster.token,
      { out: applianceOperations, in: appliancePushes },
      none,
    );
    await expect(appliance.call('join', { version: PROTOCOL_VERSION + 7, id: 'a9' })).rejects.toMatchObject({ code: 'EVERSION' });
    appliance.close();
    await undisturbed();
  });

  test('what is no frame, and frames of nonsense, on a session: ended or answered, logged once', async () => {
    for (let attempt = 0; attempt < ATTEMPTS; attempt += 1) {
      const ended = new Promise<void>((resolve) => {
        const socket = new WebSocket(sessionUrl(cluster.manager, 'clients'), { headers: { authorization: `Bearer ${cluster.token}` } });
        socket.on('open', () => socket.send(randomBytes(1000)));
        socket.on('close', () => resolve());
        socket.on('error', () => undefined);
      });
      await within(ended, PATIENCE_MS, 'the session is ended');
    }
    expect(refusals('manager', /no frame of this protocol/).length).toBeLessThanOrEqual(1);
    await undisturbed();
  });
});

/** Sends, and answers what came back until the other side hung up. */
function exchange(port: number, bytes: Buffer): Promise<Buffer> {
  const got: Buffer[] = [];
  const closed = new Promise<Buffer>((resolve) => {
    const socket = connect(port, '127.0.0.1', () => socket.write(bytes));
    socket.on('data', (piece: Buffer) => got.push(piece));
    socket.on('error', () => undefined);
    socket.on('close', () => resolve(Buffer.concat(got)));
  });
  return within(closed, PATIENCE_MS, `port ${port} did not hang up`);
}

function hello(version: number, incarnation = 0n): Buffer {
  const bytes = Buffer.alloc(ClientHelloBytes);
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  encodeClientHello(view, 0, {
    magic: WIRE_MAGIC,
    version,
    client: 1n,
    clientGeneration: 1,
    link: 0,
    linkGeneration: 1,
    incarnation,
    nonce: new Uint8Array(randomBytes(32)),
  });
  return bytes;
}
