/** Shared files at the manager: who makes them longer, when that is seen, and what a cut waits for before memory is used again. */
import { afterEach, beforeEach, describe, expect, test } from '@jest/globals';
import { setTimeout as sleep } from 'node:timers/promises';
import { ExtmemError } from '../../../src/base/errors.js';
import { decodeRecord } from '../../../src/base/file_record.js';
import { RECALL_TIMEOUT_MS } from '../../../src/base/protocol.js';
import { until } from '../../until.js';
import { changed, Cluster, extent, PAGE, type TestAppliance, type TestClient } from './cluster.js';

let cluster: Cluster;
let appliance: TestAppliance;
let a: TestClient;
let b: TestClient;

beforeEach(async () => {
  cluster = await Cluster.start();
  appliance = await cluster.appliance('one');
  a = await cluster.client('a');
  b = await cluster.client('b');
});
afterEach(() => cluster.close());

const code = (value: string): unknown => expect.objectContaining({ code: value });
const mtime: [number, number] = [2_000_000_000, 0];

/** Of `pages` pages, the last `room` of them behind its end; both have it open for writing. */
async function sharedFile({ pages = 4, room = 0 } = {}): Promise<{ ino: number; region: number; at: number }> {
  const grant = await a.openNew('f');
  const [region] = await a.provision();
  if (region === undefined) throw new Error('no provision');
  const record = changed(grant, { size: (pages - room) * PAGE, extents: [extent(0, pages * PAGE, region.region, 0)] });
  expect(await a.ask('commit', { records: [record] })).toEqual({ failed: [] });
  a.override.recall = () => ({ open: 'write', record });
  const { ino } = grant.attr;
  expect((await b.ask('acquire', { ino, mode: 'write' })).mode).toBe('shared');
  return { ino, region: region.region, at: 0 };
}

const claim = (client: TestClient, ino: number, unclean = false): Promise<{ attr: { size: number } }> =>
  client.ask('claimEnd', { ino, unclean, holdsPages: false });
const wrote = (client: TestClient, ino: number, offset: number, length: number): Promise<{ attr: { size: number } }> =>
  client.ask('wrote', { ino, offset, length, mtime, holdsPages: false });

/** A handler that answers when the test says so. */
function held<Answer>(answer: Answer): { handler: () => Promise<Answer>; begun: Promise<void>; release(): void } {
  let begin: () => void = () => undefined;
  let release: () => void = () => undefined;
  const begun = new Promise<void>((resolve) => (begin = resolve));
  const gate = new Promise<void>((resolve) => (release = resolve));
  return { begun, release: () => release(), handler: () => (begin(), gate.then(() => answer)) };
}

/** a makes the file longer by so many bytes; `last` does not drop what it had of the end before `end`. */
async function growing(ino: number, length: number, last: TestClient): Promise<{ end(): Promise<unknown> }> {
  const dropping = held({});
  last.override.invalidate = dropping.handler;
  await claim(a, ino);
  const written = wrote(a, ino, 4 * PAGE, length);
  await dropping.begun;
  return { end: () => (dropping.release(), written) };
}

/** Whether it has settled once everything that does not wait has happened. */
async function isSettled(promise: Promise<unknown>): Promise<boolean> {
  let settled = false;
  promise.then(
    () => (settled = true),
    () => (settled = true),
  );
  for (let turn = 0; turn < 20; ++turn) await a.ask('renew', {});
  return settled;
}

describe('the end of a shared file', () => {
  test('is one client’s until another asks for it, and that one learns how long the file is', async () => {
    const { ino } = await sharedFile();
    await claim(a, ino);
    await wrote(a, ino, 4 * PAGE, 100);
    await claim(a, ino);
    expect(a.count('yieldEnd')).toBe(0);
    const yielding = held({ unclean: false });
    a.override.yieldEnd = yielding.handler;
    const claimed = claim(b, ino);
    await yielding.begun;
    expect(await isSettled(claimed)).toBe(false);
    await wrote(a, ino, 4 * PAGE + 100, 50);
    yielding.release();
    expect((await claimed).attr.size).toBe(4 * PAGE + 150);
  });

  test('whoever has not claimed it cannot make the file longer, and can write within it', async () => {
    const { ino } = await sharedFile();
    await wrote(b, ino, 0, 4 * PAGE);
    await expect(wrote(b, ino, 0, 4 * PAGE + 1)).rejects.toEqual(code('ESTALE'));
    expect((await b.ask('getattr', { ino })).attr.size).toBe(4 * PAGE);
  });

  test('the size is seen by nobody before the others have dropped what they had of the file’s end', async () => {
    const { ino } = await sharedFile();
    const c = await cluster.client('c');
    const growth = await growing(ino, 100, b);
    const news = b.pushes.filter(({ op }) => op === 'invalidate').at(-1)?.ask;
    expect(news).toMatchObject({ ino, offset: 4 * PAGE, length: 100, attr: { size: 4 * PAGE + 100 } });
    expect(decodeRecord(news?.['record'] as Uint8Array).size).toBe(4 * PAGE + 100);
    for (const client of [a, b, c]) expect((await client.ask('getattr', { ino })).attr.size).toBe(4 * PAGE);
    await growth.end();
    for (const client of [a, b, c]) expect((await client.ask('getattr', { ino })).attr.size).toBe(4 * PAGE + 100);
  });

  test('goes on only after what its last owner wrote is told to all', async () => {
    const { ino } = await sharedFile();
    const c = await cluster.client('c');
    await c.ask('acquire', { ino, mode: 'read' });
    const growth = await growing(ino, 100, c);
    const claimed = claim(b, ino);
    expect(await isSettled(claimed)).toBe(false);
    await growth.end();
    expect((await claimed).attr.size).toBe(4 * PAGE + 100);
  });

  test('a write within what another is just making the file longer by, by one who was told of that, is no growth', async () => {
    const { ino } = await sharedFile();
    const growth = await growing(ino, 200, b);
    const within = wrote(b, ino, 4 * PAGE, 100);
    await growth.end();
    expect((await within).attr.size).toBe(4 * PAGE + 200);
  });

  test('who opens the file while a growth is being told learns of it with the open', async () => {
    const { ino } = await sharedFile();
    const c = await cluster.client('c');
    const growth = await growing(ino, 100, b);
    const opening = c.ask('acquire', { ino, mode: 'read' });
    expect(await isSettled(opening)).toBe(false);
    await growth.end();
    expect((await opening).attr.size).toBe(4 * PAGE + 100);
  });

  test('what a client writes after its answer to a recall is not undone by the record in that answer', async () => {
    const grant = await a.openNew('f');
    const { ino } = grant.attr;
    const lock = { ino, owner: '1', flock: false, type: 'write' as const, start: 0, end: 10, pid: 1 };
    let grown: Promise<unknown> | undefined;
    a.override.recall = () => {
      // On the wire right behind the answer.
      setImmediate(() => (grown = claim(a, ino).then(() => wrote(a, ino, 100, 50))));
      return { open: 'write', record: changed(grant, { size: 100 }), locks: [lock] };
    };
    await b.ask('acquire', { ino, mode: 'write' });
    await until('it has written', async () => grown !== undefined);
    await grown;
    expect((await b.ask('getattr', { ino })).attr.size).toBe(150);
  });

  test.each(['said so', 'was silent and is fenced', 'gave the end up'])(
    'what its owner left behind it is cut off before anybody makes the file longer (%s)',
    async (how) => {
      const { ino, region } = await sharedFile({ pages: 6, room: 2 });
      await claim(a, ino);
      if (how === 'gave the end up') await a.ask('giveUpEnd', { ino });
      else if (how === 'said so') a.override.yieldEnd = () => ({ unclean: true });
      else a.session.terminate('it was killed');
      expect((await claim(b, ino)).attr.size).toBe(4 * PAGE);
      const zeroed = { region, offset: 4 * PAGE, length: 2 * PAGE };
      await until('it is zeroed', async () => appliance.punched.some(({ offset }) => offset === zeroed.offset));
      expect(appliance.punched).toContainEqual(zeroed);
      expect(b.pushes).toContainEqual({
        op: 'invalidate',
        ask: expect.objectContaining({ ino, cut: true, record: expect.anything() }) as Record<string, unknown>,
      });
      const events = how === 'was silent and is fenced' ? [[{ first: a.id, last: a.id }]] : [];
      expect(appliance.fenced).toEqual(events);
    },
    20_000,
  );

  test('of a file that one client alone wrote and did not live to commit is cut off, too', async () => {
    const grant = await a.openNew('alone');
    const [region] = await a.provision();
    const record = changed(grant, { size: 100, extents: [extent(0, 3 * PAGE, region?.region ?? 0, 0)] });
    expect(await a.ask('commit', { records: [record] })).toEqual({ failed: [] });
    a.session.terminate('it was killed');
    const { attr } = await b.ask('acquire', { ino: grant.attr.ino, mode: 'write' });
    expect(attr).toMatchObject({ size: 100, blocks: PAGE / 512 });
    await until('it is zeroed', async () => appliance.punched.length > 0);
    expect(appliance.punched[0]).toMatchObject({ region: region?.region, offset: PAGE });
  }, 20_000);

  test('is nobody’s after a restart of the manager: everybody who may have had it is asked', async () => {
    const { ino, region } = await sharedFile({ pages: 6, room: 2 });
    await claim(a, ino);
    await cluster.restartManager();
    await appliance.connect();
    await Promise.all([a.connect(true), b.connect(true)]);
    expect((await claim(b, ino)).attr.size).toBe(4 * PAGE);
    expect(a.count('yieldEnd')).toBe(1);
    await until('it is zeroed', async () => appliance.punched.length > 0);
    expect(appliance.punched).toEqual([{ region, offset: 4 * PAGE, length: 2 * PAGE }]);
  });
});

describe('a cut of a shared file', () => {
  test('waits for the writers of all mounts, and what it frees is used again only when all have its record', async () => {
    const { ino, region } = await sharedFile();
    const c = await cluster.client('c');
    await c.ask('acquire', { ino, mode: 'read' });
    const pausing = held({});
    const telling = held({});
    a.override.pauseWriters = pausing.handler;
    c.override.invalidate = telling.handler;
    const cutting = b.ask('setattr', { ino, set: { size: PAGE } });
    await pausing.begun;
    await until('its own writers are stopped, too', async () => b.count('pauseWriters') === 1);
    expect(c.count('pauseWriters')).toBe(0); // it only reads
    await wrote(a, ino, 2 * PAGE, 10); // what is under way may end
    expect(await isSettled(cutting)).toBe(false);
    expect((await c.ask('getattr', { ino })).attr.size).toBe(4 * PAGE);
    pausing.release();
    await telling.begun;
    expect(await isSettled(cutting)).toBe(false);
    expect(appliance.punched).toEqual([]);
    telling.release();
    expect((await cutting).attr.size).toBe(PAGE);
    await until('it is zeroed', async () => appliance.punched.length > 0);
    expect(appliance.punched).toEqual([{ region, offset: PAGE, length: 3 * PAGE }]);
    for (const client of [a, b, c]) {
      const news = client.pushes.filter(({ op, ask }) => op === 'invalidate' && ask['cut'] === true).at(-1)?.ask;
      expect(decodeRecord(news?.['record'] as Uint8Array)).toMatchObject({ size: PAGE, extents: [extent(0, PAGE, region, 0)] });
    }
  });

  test('who does not stop writing is fenced before anything is freed', async () => {
    const { ino } = await sharedFile();
    a.override.pauseWriters = () => new Promise(() => undefined);
    await b.ask('setattr', { ino, set: { size: 0 } });
    expect(appliance.fenced).toEqual([[{ first: a.id, last: a.id }]]);
  }, 20_000);

  test('that fails lets the writers go on with the file as it was', async () => {
    const { ino } = await sharedFile();
    await expect(b.ask('setattr', { ino, set: { size: Number.MAX_SAFE_INTEGER } })).rejects.toEqual(code('EFBIG'));
    const news = a.pushes.filter(({ op }) => op === 'invalidate').at(-1)?.ask;
    expect(news).toMatchObject({ ino, cut: true, attr: { size: 4 * PAGE } });
  });

  test('that one mount cannot stop for is given up, and who is slow to stop is not fenced for it', async () => {
    const { ino } = await sharedFile();
    const slow = held({});
    a.override.pauseWriters = slow.handler;
    b.override.pauseWriters = () => Promise.reject(new ExtmemError('EIO', 'its appliance is dead'));
    const c = await cluster.client('c');
    await expect(c.ask('setattr', { ino, set: { size: 0 } })).rejects.toEqual(code('EIO'));
    await sleep(RECALL_TIMEOUT_MS + 500);
    expect(appliance.fenced).toEqual([]);
    slow.release();
  }, 20_000);

  test('is refused while how the asker holds the file is changing', async () => {
    const { ino } = await sharedFile();
    await b.ask('release', { ino });
    await until('a has it alone', async () => a.count('grant') > 0);
    await expect(a.ask('setattr', { ino, set: { size: 0 } })).rejects.toEqual(code('EAGAIN'));
  });

  test('that may only make the file longer does not cut what another has written', async () => {
    const { ino } = await sharedFile();
    expect((await b.ask('setattr', { ino, set: { size: PAGE }, onlyGrow: true })).attr.size).toBe(4 * PAGE);
    expect((await b.ask('setattr', { ino, set: { size: 5 * PAGE }, onlyGrow: true })).attr.size).toBe(5 * PAGE);
    expect(appliance.punched.filter(({ length }) => length >= PAGE)).toEqual([]);
  });

  /** b cuts a file; the manager dies before a has heard of it, and is back. */
  async function cutAsItDies(): Promise<{ ino: number; region: number; cutting: Promise<unknown> }> {
    const { ino, region } = await sharedFile();
    a.override.invalidate = () => new Promise(() => undefined);
    const cutting = b.ask('setattr', { ino, set: { size: PAGE } }).catch(() => 'lost');
    await a.next('invalidate');
    await cluster.restartManager();
    await appliance.connect();
    return { ino, region, cutting };
  }

  test('whose manager died before it told everybody is told by the next one before its memory is used again', async () => {
    const { region, cutting } = await cutAsItDies();
    const telling = held({});
    a.override.invalidate = telling.handler;
    await Promise.all([a.connect(true), b.connect(true)]);
    expect(await cutting).toBe('lost');
    await telling.begun;
    expect(appliance.punched).toEqual([]);
    telling.release();
    await until('it is zeroed', async () => appliance.punched.length > 0);
    expect(appliance.punched).toEqual([{ region, offset: PAGE, length: 3 * PAGE }]);
  }, 20_000);

  test('whose manager died before it told everybody is known to who hears of a write after that', async () => {
    const { ino, region, cutting } = await cutAsItDies();
    a.override.invalidate = () => ({});
    await Promise.all([a.connect(true), b.connect(true)]);
    expect(await cutting).toBe('lost');
    const told = a.next('invalidate');
    await wrote(b, ino, 0, 10);
    const { record } = await told;
    expect(decodeRecord(record as Uint8Array)).toMatchObject({ size: PAGE, extents: [extent(0, PAGE, region, 0)] });
  }, 20_000);
});
