/** The lock table: POSIX ranges, flock, waits. */
import { describe, expect, test } from '@jest/globals';
import { LOCK_END, LockTable } from '../../../src/base/lock_table.js';
import type { Lock } from '../../../src/base/messages.js';

function lock(owner: string, type: Lock['type'], start = 0, end = LOCK_END, more: Partial<Lock> = {}): Lock {
  return { ino: 1, owner, flock: false, type, start, end, pid: 1, ...more };
}
/** A lock that is free. */
function take(table: LockTable, wanted: Lock): void {
  expect(table.setlk(wanted)).toBeUndefined();
}
const EAGAIN = expect.objectContaining({ code: 'EAGAIN' });

describe('ranges', () => {
  test('readers share, a writer excludes', () => {
    const table = new LockTable();
    take(table, lock('a', 'read', 0, 9));
    take(table, lock('b', 'read', 5, 20));
    expect(() => table.setlk(lock('c', 'write', 9, 9))).toThrow(EAGAIN);
    expect(table.getlk(lock('c', 'write', 15, 30))?.owner).toBe('b');
    expect(table.getlk(lock('c', 'read', 0, 30))).toBeUndefined();
    take(table, lock('c', 'write', 21, 30));
    expect(() => table.setlk(lock('a', 'write', 0, 9))).toThrow(EAGAIN);
  });

  test('an owner splits, changes and joins its own ranges', () => {
    const table = new LockTable();
    take(table, lock('a', 'write', 0, 99));
    take(table, lock('a', 'unlock', 40, 49));
    take(table, lock('a', 'read', 0, 9));
    const ranges = (): unknown[] =>
      table
        .exportInode(1)
        .map(({ type, start, end }) => [type, start, end])
        .sort();
    expect(ranges()).toEqual([
      ['read', 0, 9],
      ['write', 10, 39],
      ['write', 50, 99],
    ]);
    take(table, lock('a', 'write', 40, 49));
    take(table, lock('a', 'write', 5, 9));
    expect(ranges()).toEqual([
      ['read', 0, 4],
      ['write', 5, 99],
    ]);
    take(table, lock('a', 'unlock'));
    expect(table.hasLocks(1)).toBe(false);
  });

  test('flock and POSIX locks do not see each other', () => {
    const table = new LockTable();
    take(table, lock('a', 'write'));
    take(table, lock('b', 'write', 0, LOCK_END, { flock: true }));
    expect(() => table.setlk(lock('a', 'read', 0, LOCK_END, { flock: true }))).toThrow(EAGAIN);
    table.releaseOwner(1, 'b', true);
    take(table, lock('a', 'read', 0, LOCK_END, { flock: true }));
  });
});

describe('waits', () => {
  test('are served in the order they came', async () => {
    const table = new LockTable();
    const order: string[] = [];
    take(table, lock('a', 'write'));
    const b = table.setlk(lock('b', 'read'), true)?.then(() => order.push('b'));
    const c = table.setlk(lock('c', 'write'), true)?.then(() => order.push('c'));
    const d = table.setlk(lock('d', 'read'), true)?.then(() => order.push('d'));
    take(table, lock('a', 'unlock'));
    await b;
    expect(order).toEqual(['b']); // d waits behind the writer
    take(table, lock('b', 'unlock'));
    await c;
    take(table, lock('c', 'unlock'));
    await d;
    expect(order).toEqual(['b', 'c', 'd']);
  });

  test('an upgrade passes those who wait for its owner', async () => {
    const table = new LockTable();
    take(table, lock('a', 'read'));
    take(table, lock('b', 'read'));
    const c = table.setlk(lock('c', 'write'), true);
    const a = table.setlk(lock('a', 'write'), true);
    take(table, lock('b', 'unlock'));
    await a;
    take(table, lock('a', 'unlock'));
    await c;
  });

  test('can be cancelled', async () => {
    const table = new LockTable();
    take(table, lock('a', 'write'));
    const wait = table.setlk(lock('b', 'write'), true, 'w');
    expect(table.cancel('w')).toBe(true);
    await expect(wait).rejects.toMatchObject({ code: 'EINTR' });
    expect(table.cancel('w')).toBe(false);
    take(table, lock('a', 'unlock'));
    expect(table.hasLocks(1)).toBe(false);
  });

  test('that would never end fail with EDEADLK', () => {
    const table = new LockTable();
    take(table, lock('a', 'write', 0, 0));
    take(table, lock('b', 'write', 1, 1));
    take(table, lock('c', 'write', 2, 2, { ino: 2 }));
    void table.setlk(lock('a', 'write', 1, 1), true)?.catch(() => undefined);
    void table.setlk(lock('c', 'write', 0, 0), true)?.catch(() => undefined);
    expect(() => table.setlk(lock('b', 'write', 2, 2, { ino: 2 }), true)).toThrow(expect.objectContaining({ code: 'EDEADLK' }));
  });

  test('end with their owner, and let others in', async () => {
    const table = new LockTable();
    take(table, lock('1:x', 'write'));
    const dying = table.setlk(lock('2:y', 'write'), true);
    const next = table.setlk(lock('3:z', 'read'), true);
    table.releaseOwners((owner) => owner.startsWith('2:'));
    await expect(dying).rejects.toMatchObject({ code: 'EINTR' });
    expect(table.releaseOwners((owner) => owner.startsWith('1:'))).toEqual([1]);
    await next;
  });
});

test('an owner is wanted as long as somebody waits for what it holds', async () => {
  const table = new LockTable();
  take(table, lock('a', 'write', 0, 9));
  take(table, lock('b', 'write', 20, 29));
  expect(table.wanted()).toEqual(new Set());
  const wait = table.setlk(lock('c', 'read', 5, 15), true);
  expect(table.wanted()).toEqual(new Set(['a']));
  take(table, lock('a', 'unlock'));
  await wait;
  expect(table.wanted()).toEqual(new Set());
});

test('what an owner says that it holds replaces what it held, and lets others in', async () => {
  const table = new LockTable();
  take(table, lock('a', 'write', 0, 9));
  take(table, lock('b', 'write', 20, 29));
  const wait = table.setlk(lock('c', 'write', 0, 4), true);
  const now = [lock('a', 'write', 5, 9)];
  table.restate(1, (owner) => owner === 'a', now);
  await wait;
  expect(
    table
      .exportInode(1)
      .map(({ owner, start, end }) => [owner, start, end])
      .sort(),
  ).toEqual([
    ['a', 5, 9],
    ['b', 20, 29],
    ['c', 0, 4],
  ]);
});

test('waits of an owner that is gone end, and those behind them come in', async () => {
  const table = new LockTable();
  take(table, lock('a', 'read'));
  const gone = table.setlk(lock('b', 'write'), true);
  const behind = table.setlk(lock('c', 'read'), true);
  table.cancelOwners((owner) => owner === 'b');
  await expect(gone).rejects.toMatchObject({ code: 'EINTR' });
  await behind;
});

test('locks move from one table to another', () => {
  const from = new LockTable();
  take(from, lock('a', 'write', 0, 9));
  take(from, lock('a', 'read', 0, LOCK_END, { flock: true }));
  const to = new LockTable();
  to.importLocks(from.exportInode(1));
  expect(to.exportInode(1)).toEqual(from.exportInode(1));
  expect(() => to.setlk(lock('b', 'read', 5, 5))).toThrow(EAGAIN);
});
