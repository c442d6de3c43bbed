/** The embedded store: what the contract says of reads, of failing bodies, and of death. */
import { fork } from 'node:child_process';
import { once } from 'node:events';
import { mkdirSync, mkdtempSync, rmSync, statSync, truncateSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterEach, beforeEach, describe, expect, test } from '@jest/globals';
import { entriesAfter, Journal, type JournalEntry } from '../../../src/manager/journal.js';
import { openLmdbStore } from '../../../src/manager/lmdb_store.js';
import type { MetadataStore } from '../../../src/manager/metadata_store.js';

const seed = Number(process.env['EXTMEM_SEED'] ?? Date.now() % 2 ** 31);
console.log(`lmdb_store: EXTMEM_SEED=${seed}`);

let dir: string;
let store: MetadataStore;

beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), 'extmem-store-'));
  store = openLmdbStore(join(dir, 'db'));
});
afterEach(async () => {
  await store.close();
  rmSync(dir, { recursive: true, force: true });
});

describe('transactions', () => {
  test('are seen at once, and after they survive', async () => {
    const done = store.transact((tx) => tx.put('a/1', { n: 1, bytes: Buffer.from('x') }));
    expect(store.get<{ n: number }>('a/1')?.n).toBe(1);
    await done;
    expect(store.get('a/1')).toEqual({ n: 1, bytes: Buffer.from('x') });
  });

  test('that throw leave nothing', async () => {
    await expect(
      store.transact((tx) => {
        tx.put('a/1', 1);
        throw new Error('no');
      }),
    ).rejects.toThrow('no');
    expect(store.get('a/1')).toBeUndefined();
  });

  test('see their own writes and removals', async () => {
    await store.transact((tx) => tx.put('a/1', 1));
    await store.transact((tx) => {
      tx.remove('a/1');
      tx.put('a/2', 2);
      expect([tx.get('a/1'), tx.get('a/2')]).toEqual([undefined, 2]);
      expect([...tx.scan('a/')]).toEqual([['a/2', 2]]);
    });
  });

  test('settled waits for what was transacted', async () => {
    let isDone = false;
    void store.transact((tx) => tx.put('a', 1)).then(() => (isDone = true));
    await store.settled();
    await Promise.resolve();
    expect(isDone).toBe(true);
  });
});

test('reads and scans agree with a map, while commits are under way', async () => {
  let state = seed;
  const random = (below: number): number => {
    state = (Math.imul(state, 1103515245) + 12345) & 0x7fffffff;
    return (state >>> 8) % below;
  };
  const model = new Map<string, number>();
  for (let round = 0; round < 400; round++) {
    const done = store.transact((tx) => {
      for (let count = random(5); count >= 0; count--) {
        const key = `${random(2) === 0 ? 'a' : 'b'}/${String(random(40)).padStart(2, '0')}`;
        if (random(3) === 0) {
          tx.remove(key);
          model.delete(key);
        } else {
          tx.put(key, round);
          model.set(key, round);
        }
      }
    });
    const after = `a/${String(random(40)).padStart(2, '0')}`;
    const limit = 1 + random(10);
    const wanted = [...model]
      .filter(([key]) => key.startsWith('a/') && key > after)
      .sort()
      .slice(0, limit);
    expect([...store.scan('a/', { after, limit })]).toEqual(wanted);
    expect([...store.scan('b/')]).toEqual([...model].filter(([key]) => key.startsWith('b/')).sort());
    if (random(4) === 0) await done;
  }
});

test('a journal whose tail is torn gives the whole transactions before it', () => {
  const path = join(dir, 'torn');
  mkdirSync(path);
  const { journal } = Journal.open(path);
  const entry = (sequence: number): JournalEntry => ({
    sequence,
    writes: new Map([
      [`key ${sequence}`, Buffer.from('value')],
      ['gone', undefined],
    ]),
  });
  journal.append([entry(4), entry(5)]);
  const whole = statSync(join(path, 'journal-a')).size;
  journal.append([entry(6)]);
  const dropOld = journal.turn();
  journal.append([entry(7), entry(9)]);
  expect(entriesAfter(Journal.open(path).entries, 3).map(({ sequence }) => sequence)).toEqual([4, 5, 6, 7]); // 8 is missing
  expect(entriesAfter(Journal.open(path).entries, 5)[0]).toEqual(entry(6));
  truncateSync(join(path, 'journal-a'), whole + 11);
  expect(entriesAfter(Journal.open(path).entries, 3).map(({ sequence }) => sequence)).toEqual([4, 5]);
  dropOld();
  expect(entriesAfter(Journal.open(path).entries, 6).map(({ sequence }) => sequence)).toEqual([7]);
  journal.close();
});

test('what was answered survives kill -9, whole', async () => {
  await store.close();
  const child = fork(fileURLToPath(new URL('lmdb_writer.js', import.meta.url)), [join(dir, 'db')], {
    execArgv: [],
    stdio: ['ignore', 'ignore', 'inherit', 'ipc'],
  });
  let answered = 0;
  child.on('message', (count: number) => {
    answered = count;
    if (count >= 300) child.kill('SIGKILL');
  });
  await once(child, 'exit');
  store = openLmdbStore(join(dir, 'db'));
  const count = store.get<number>('count') ?? 0;
  expect(count).toBeGreaterThanOrEqual(answered);
  // Every transaction put one entry and the count: the last one is whole.
  expect([...store.scan('entry/')]).toHaveLength(count);
});
