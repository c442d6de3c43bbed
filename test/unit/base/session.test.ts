/** Sessions: typed calls both ways, order, limits of time and size, ends. */
import { once } from 'node:events';
import type { AddressInfo } from 'node:net';
import { afterEach, beforeEach, describe, expect, test } from '@jest/globals';
import { Type } from '@sinclair/typebox';
import { WebSocketServer, type WebSocket } from 'ws';
import { ExtmemError } from '../../../src/base/errors.js';
import { connectSession, Session, sessionUrl, type Handlers } from '../../../src/base/session.js';

const up = {
  double: { ask: Type.Object({ value: Type.Integer() }), answer: Type.Object({ value: Type.Integer() }) },
  slow: { ask: Type.Object({}), answer: Type.Object({}) },
  grantThenRecall: { ask: Type.Object({}), answer: Type.Object({}) },
} as const;
const down = {
  recall: { ask: Type.Object({}), answer: Type.Object({ sawGrant: Type.Boolean() }) },
  blob: { ask: Type.Object({ bytes: Type.Uint8Array() }), answer: Type.Object({ length: Type.Integer() }) },
} as const;

let server: WebSocketServer;
let serverSide: Session<typeof down, typeof up>;
let accepted: Promise<void>;
let recalled: Promise<boolean>;
let release: () => void;

beforeEach(async () => {
  server = new WebSocketServer({ port: 0, host: '127.0.0.1' });
  await once(server, 'listening');
  const slow = new Promise<void>((resolve) => (release = resolve));
  let tellRecalled: (saw: boolean) => void;
  recalled = new Promise((resolve) => (tellRecalled = resolve));
  const handlers: Handlers<typeof up> = {
    double: ({ value }) => {
      if (value === 13) throw new ExtmemError('ENOENT', 'no thirteen');
      if (value === 14) throw new Error('a bug');
      return { value: value * 2 };
    },
    slow: async () => {
      await slow;
      return {};
    },
    grantThenRecall: () => {
      setImmediate(() => void serverSide.call('recall', {}).then(({ sawGrant }) => tellRecalled(sawGrant)));
      return {};
    },
  };
  accepted = once(server, 'connection').then(([socket]) => {
    serverSide = new Session(socket as WebSocket, { out: down, in: up }, handlers);
  });
});

afterEach(async () => {
  release();
  for (const socket of server.clients) socket.terminate();
  await new Promise((resolve) => server.close(resolve));
});

async function connect(handlers: Partial<Handlers<typeof down>> = {}): Promise<Session<typeof up, typeof down>> {
  const { port } = server.address() as AddressInfo;
  const all: Handlers<typeof down> = { recall: () => ({ sawGrant: false }), blob: ({ bytes }) => ({ length: bytes.length }), ...handlers };
  const session = await connectSession(`ws://127.0.0.1:${port}/`, 'token', { out: up, in: down }, all);
  await accepted;
  return session;
}

describe('calls', () => {
  test('are answered in both directions', async () => {
    const session = await connect();
    await expect(session.call('double', { value: 21 })).resolves.toEqual({ value: 42 });
    await expect(serverSide.call('blob', { bytes: new Uint8Array(1000) })).resolves.toEqual({ length: 1000 });
    session.close();
  });

  test('fail with the code of the other side, EIO for its bugs', async () => {
    const session = await connect();
    await expect(session.call('double', { value: 13 })).rejects.toMatchObject({ code: 'ENOENT', message: 'no thirteen' });
    await expect(session.call('double', { value: 14 })).rejects.toMatchObject({ code: 'EIO' });
    session.close();
  });

  test('that are not what the table says are not sent', async () => {
    const session = await connect();
    await expect(session.call('double', { value: 1.5 })).rejects.toMatchObject({ code: 'EINVAL' });
    await expect(session.call('nothing' as 'double', { value: 1 })).rejects.toMatchObject({ code: 'ENOSYS' });
    session.close();
  });

  test('end after their time', async () => {
    const session = await connect();
    await expect(session.call('slow', {}, { timeoutMs: 20 })).rejects.toMatchObject({ code: 'EIO', reason: 'timeout' });
    session.close();
  });

  test('a push that follows an answer does not overtake it', async () => {
    let granted = false;
    const session = await connect({ recall: () => ({ sawGrant: granted }) });
    const grant = async (): Promise<void> => {
      await session.call('grantThenRecall', {});
      await Promise.resolve();
      granted = true;
    };
    await grant();
    await expect(recalled).resolves.toBe(true);
    session.close();
  });

  test('ten thousand at once', async () => {
    const session = await connect();
    const answers = await Promise.all(Array.from({ length: 10_000 }, (_, value) => session.call('double', { value: value + 100 })));
    expect(answers.every(({ value }, index) => value === (index + 100) * 2)).toBe(true);
    session.close();
  });
});

describe('ends', () => {
  test('close settles what is pending, here and there', async () => {
    const session = await connect();
    const pending = session.call('slow', {});
    session.close();
    await expect(pending).rejects.toMatchObject({ code: 'ECLOSED' });
    await expect(session.call('double', { value: 1 })).rejects.toMatchObject({ code: 'ECLOSED' });
    await serverSide.closed;
    await expect(serverSide.call('recall', {})).rejects.toMatchObject({ code: 'EIO', reason: 'closed' });
  });

  test('a peer that sends garbage is cut off', async () => {
    const session = await connect();
    const [socket] = [...server.clients];
    socket?.send(Buffer.from('not a frame'));
    await expect(session.closed).resolves.toMatchObject({ message: expect.stringContaining('no frame') });
  });

  test('a peer that falls silent is found within 3 s', async () => {
    const session = await connect();
    const [socket] = [...server.clients];
    socket?.pause();
    const before = Date.now();
    const pending = session.call('double', { value: 1 }, { timeoutMs: 0 });
    await expect(pending).rejects.toMatchObject({ code: 'EIO', reason: 'closed' });
    expect(Date.now() - before).toBeLessThan(3600);
  });
});

test('URLs as people write them', () => {
  expect(sessionUrl('host:7070', 'clients')).toBe('ws://host:7070/v1/clients/session');
  expect(sessionUrl('https://host:7070/', 'appliances')).toBe('wss://host:7070/v1/appliances/session');
});
