import { beforeEach, expect, test } from '@jest/globals';
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
  expect(t.manager.asked).toEqual([{ name: 'setlk', ask: { lock: lock('b'), wait: true, waiter: '2' } }]);
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
