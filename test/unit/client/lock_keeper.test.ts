import { beforeEach, describe, expect, test } from '@jest/globals';
import { LOCK_END } from '../../../src/base/lock_table.js';
import type { Lock } from '../../../src/base/messages.js';
import { grantOf } from './scripted_manager.js';
import { settle, startClient, type TestClient } from './mounted.js';

let t: TestClient;

beforeEach(async () => {
  t = await startClient();
  t.manager.script.acquire = ({ ino, mode }) => grantOf(ino, mode);
  t.manager.script.release = () => ({});
  t.manager.script.setlk = () => ({});
  t.manager.script.getlk = () => ({});
  t.manager.script.cancelLock = () => ({});
  t.manager.script.restateLocks = () => ({});
});

const lock = (owner: string, type: Lock['type'] = 'write', flock = false): Lock => ({
  ino: 5,
  owner,
  flock,
  type,
  start: 0,
  end: LOCK_END,
  pid: 1,
});

test('the only one who has a file keeps its locks itself', async () => {
  await t.client.held.open(5, 'write');
  t.manager.takeAsked();
  expect(t.client.locks.setlk(lock('a'), false, 1)).toBeUndefined();
  expect(() => t.client.locks.setlk(lock('b'), false, 2)).toThrow(expect.objectContaining({ code: 'EAGAIN' }));
  expect(t.client.locks.getlk(lock('b'))).toMatchObject({ owner: 'a' });
  expect(t.manager.takeAsked()).toEqual([]);
  expect(t.native.files.get(5)?.locked).toBe(true);
  void t.client.locks.releaseOwner(5, 'a', false);
  expect(t.native.files.get(5)?.locked).toBe(false);
});

test('a file open for reading only may be locked elsewhere too: the manager keeps its locks', async () => {
  await t.client.held.open(5, 'read');
  t.manager.takeAsked();
  await t.client.locks.setlk(lock('a', 'write', true), false, 1);
  expect(t.manager.takeAsked()).toEqual(['setlk']);
  await t.client.locks.releaseOwner(5, 'a', true);
  expect(t.manager.takeAsked()).toEqual(['setlk']);
});

test('locks are handed over with the recall, and whoever waits goes on waiting at the manager', async () => {
  await t.client.held.open(5, 'write');
  void t.client.locks.setlk(lock('a'), false, 1);
  const waiting = t.client.locks.setlk(lock('b'), true, 2);
  t.manager.asked.length = 0;
  const answer = await t.manager.pushes?.recall({ ino: 5, to: 'shared' });
  expect(answer?.locks).toEqual([lock('a')]);
  await waiting;
  expect(t.manager.asked.map(({ name }) => name)).toEqual(['gaveUp', 'setlk']);
  expect(t.manager.asked[1]?.ask).toEqual({ lock: lock('b'), wait: true, waiter: '2' });
});

test('a signal ends a wait here', async () => {
  await t.client.held.open(5, 'write');
  void t.client.locks.setlk(lock('a'), false, 1);
  const waiting = t.client.locks.setlk(lock('b'), true, 2);
  t.client.locks.interrupt(2);
  await expect(waiting).rejects.toMatchObject({ code: 'EINTR' });
});

test('a signal ends a wait at the manager', async () => {
  await t.client.held.open(5, 'read');
  t.manager.script.setlk = () => new Promise(() => undefined);
  void t.client.locks.setlk(lock('b'), true, 2);
  await settle();
  t.client.locks.interrupt(2);
  expect(t.manager.takeAsked()).toEqual(['acquire', 'setlk', 'cancelLock']);
});

test('a signal that came before the wait that it ends', async () => {
  await t.client.held.open(5, 'read');
  t.client.locks.interrupt(2);
  await expect(t.client.locks.setlk(lock('b'), true, 2)).rejects.toMatchObject({ code: 'EINTR' });
  expect(t.manager.takeAsked()).toEqual(['acquire']);
});

describe('who waits here and who waits at the manager', () => {
  const away = (owner: string): Lock => ({ ...lock(owner), ino: 6 });

  beforeEach(async () => {
    await t.client.held.open(5, 'write');
    await t.client.held.open(6, 'read');
    void t.client.locks.setlk(lock('a'), false, 1);
    t.manager.script.setlk = () => new Promise(() => undefined);
    t.manager.asked.length = 0;
  });

  test('a wait here goes to the manager when another begins there, and is asked first', async () => {
    void t.client.locks.setlk(lock('b'), true, 2);
    void t.client.locks.setlk(away('a'), true, 3);
    await settle();
    expect(t.manager.asked).toEqual([
      { name: 'restateLocks', ask: { ino: 5, locks: [lock('a')] } },
      { name: 'setlk', ask: { lock: lock('b'), wait: true, waiter: '2' } },
      { name: 'setlk', ask: { lock: away('a'), wait: true, waiter: '3' } },
    ]);
  });

  test('a wait that would be here begins at the manager while another is there', async () => {
    void t.client.locks.setlk(away('a'), true, 3);
    await settle();
    void t.client.locks.setlk(lock('b'), true, 2);
    await settle();
    expect(t.manager.asked).toEqual([
      { name: 'setlk', ask: { lock: away('a'), wait: true, waiter: '3' } },
      { name: 'restateLocks', ask: { ino: 5, locks: [lock('a')] } },
      { name: 'setlk', ask: { lock: lock('b'), wait: true, waiter: '2' } },
    ]);
  });

  test('a lock that is free is taken here all the same', () => {
    void t.client.locks.setlk(away('a'), true, 3);
    expect(t.client.locks.setlk({ ...lock('a'), start: 5, end: 6 }, true, 2)).toBeUndefined();
    expect(t.manager.takeAsked()).not.toContain('restateLocks');
  });

  test('flock does not ask who waits for whom', async () => {
    const whole = { ...lock('a'), flock: true };
    void t.client.locks.setlk(whole, false, 4);
    void t.client.locks.setlk({ ...whole, owner: 'b' }, true, 2);
    void t.client.locks.setlk(away('a'), true, 3);
    await settle();
    expect(t.manager.takeAsked()).toEqual(['setlk']);
  });
});

test('after the session was lost the manager is told what is held, before anything else', async () => {
  await t.client.held.open(5, 'read');
  await t.client.locks.setlk(lock('a'), false, 1);
  await t.client.locks.setlk({ ...lock('b'), flock: true }, false, 2);
  t.manager.alive = false;
  t.client.locks.sessionLost();
  await t.client.locks.releaseOwner(5, 'b', true); // nobody can be told
  t.manager.alive = true;
  t.manager.asked.length = 0;
  await t.client.locks.restate();
  expect(t.manager.asked).toEqual([{ name: 'restateLocks', ask: { ino: 5, locks: [lock('a')] } }]);
  await t.client.locks.restate();
  expect(t.manager.asked).toHaveLength(1);
});

test('a closed file may be locked here again', async () => {
  await t.client.held.open(5, 'write');
  await t.manager.pushes?.recall({ ino: 5, to: 'shared' });
  await t.manager.pushes?.grant({ grant: grantOf(5, 'write') });
  t.manager.takeAsked();
  await t.client.locks.setlk(lock('a'), false, 1);
  expect(t.manager.takeAsked()).toEqual(['setlk']);
  t.client.held.close(5, 'write');
  t.client.locks.closed(5);
  await t.client.held.open(5, 'write');
  expect(t.client.locks.setlk(lock('a'), false, 2)).toBeUndefined();
  expect(t.manager.takeAsked()).toEqual([]);
});
