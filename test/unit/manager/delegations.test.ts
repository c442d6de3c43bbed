/** Delegations: recall, shared mode, fences, restarts. Each row of the coherence rules that is the manager's. */
import { afterEach, beforeEach, describe, expect, test } from '@jest/globals';
import { ExtmemError } from '../../../src/base/errors.js';
import { decodeRecord, encodeRecord } from '../../../src/base/file_record.js';
import type { FileGrant } from '../../../src/base/messages.js';
import { RECALL_TIMEOUT_MS } from '../../../src/base/protocol.js';
import { changed, Cluster, extent, MIB, PAGE, ROOT, type TestAppliance, type TestClient } from './cluster.js';

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

/** A file of `pages` pages that `a` holds for writing, committed. */
async function writtenFile(name = 'f', pages = 4): Promise<{ ino: number; region: number; record: Buffer; grant: FileGrant }> {
  const grant = await a.openNew(name);
  const [region] = await a.provision();
  if (region === undefined) throw new Error('no provision');
  const at = (region.used ?? []).reduce((end, [offset, length]) => Math.max(end, offset + length), 0);
  const record = changed(grant, { size: pages * PAGE, extents: [extent(0, pages * PAGE, region.region, at)] });
  expect(await a.ask('commit', { records: [record] })).toEqual({ failed: [] });
  return { ino: grant.attr.ino, region: region.region, record, grant };
}

describe('granting', () => {
  test('alone: read or write, as asked', async () => {
    const { ino } = (await a.make('f')).attr;
    expect((await a.ask('acquire', { ino, mode: 'read' })).mode).toBe('read');
    expect((await a.ask('acquire', { ino, mode: 'write' })).mode).toBe('write');
    expect((await a.ask('acquire', { ino, mode: 'read' })).mode).toBe('write');
  });

  test('readers do not disturb each other', async () => {
    const { ino } = (await a.make('f')).attr;
    await a.ask('acquire', { ino, mode: 'read' });
    expect((await b.ask('acquire', { ino, mode: 'read' })).mode).toBe('read');
    expect(a.count('recall')).toBe(0);
  });

  test('a writer that still writes becomes shared, and so does who comes', async () => {
    const { ino, record, region } = await writtenFile();
    const newer = changed({ record }, { size: 3 * PAGE + 5 });
    a.override.recall = () => ({ open: 'write', record: newer });
    const grant = await b.ask('acquire', { ino, mode: 'read' });
    expect(a.pushes).toContainEqual({ op: 'recall', ask: { ino, to: 'shared' } });
    expect(grant.mode).toBe('shared');
    expect(grant.attr).toMatchObject({ size: 3 * PAGE + 5, blocks: (4 * PAGE) / 512 });
    expect(decodeRecord(grant.record).extents).toEqual([extent(0, 4 * PAGE, region, 0)]);
    expect(grant.regions).toEqual([
      expect.objectContaining({ region, bytes: 64 * MIB, appliance: 'one', incarnation: appliance.incarnation }),
    ]);
  });

  test('what a writer gave up is taken once: again after another grant it changes nothing', async () => {
    const { grant, record } = await writtenFile();
    const { ino } = grant.attr;
    const { delegation = -1 } = grant;
    const last = { ino, delegation, open: 'write' as const, record: changed({ record }, { size: 3 * PAGE + 5 }) };
    await a.ask('gaveUp', last);
    a.override.recall = () => ({ open: 'write' });
    expect((await b.ask('acquire', { ino, mode: 'write' })).attr.size).toBe(3 * PAGE + 5);
    await b.ask('claimEnd', { ino, unclean: false, holdsPages: false });
    await b.ask('wrote', { ino, offset: 4 * PAGE, length: 9, mtime: [9, 9], holdsPages: false });
    const raised = a.next('grant');
    await b.ask('release', { ino });
    expect((await raised).grant).toMatchObject({ mode: 'write', attr: { size: 4 * PAGE + 9 } });
    await a.ask('gaveUp', last);
    expect((await a.ask('getattr', { ino })).attr.size).toBe(4 * PAGE + 9);
  });

  test('a writer that has closed the file gives way entirely', async () => {
    const { ino, record } = await writtenFile();
    a.override.recall = () => ({ open: 'none', record });
    expect((await b.ask('acquire', { ino, mode: 'write' })).mode).toBe('write');
    await expect(a.ask('commit', { records: [record] })).resolves.toEqual({ failed: [{ ino, code: 'ESTALE' }] });
  });

  test('a writer that only reads by now is raised to read again', async () => {
    const { ino } = await writtenFile();
    a.override.recall = () => ({ open: 'read' });
    const raised = a.next('grant');
    expect((await b.ask('acquire', { ino, mode: 'read' })).mode).toBe('read');
    expect((await raised).grant.mode).toBe('read');
  });

  test('readers are recalled for a writer', async () => {
    const { ino } = (await a.make('f')).attr;
    await a.ask('acquire', { ino, mode: 'read' });
    a.override.recall = () => ({ open: 'read' });
    expect((await b.ask('acquire', { ino, mode: 'write' })).mode).toBe('shared');
    expect(a.count('recall')).toBe(1);
  });

  test('who is left alone gets its delegation back', async () => {
    const { ino } = await writtenFile();
    a.override.recall = () => ({ open: 'write' });
    await b.ask('acquire', { ino, mode: 'read' });
    const raised = a.next('grant');
    await b.ask('release', { ino });
    expect((await raised).grant).toMatchObject({ mode: 'write', attr: { ino } });
  });

  test('A closes, B writes, A reopens: the change counter tells', async () => {
    const { ino, record } = await writtenFile();
    const closedAt = decodeRecord(record).change;
    await a.ask('release', { ino, record });
    const grant = await b.ask('acquire', { ino, mode: 'write' });
    await b.ask('release', { ino, record: changed(grant, { mtime: [2_000_000_000, 0] }) });
    const again = await a.ask('acquire', { ino, mode: 'read' });
    expect(again.attr.change).toBeGreaterThan(closedAt);
    expect(again.attr.mtime).toEqual([2_000_000_000, 0]);
    await a.ask('release', { ino });
    expect((await a.ask('acquire', { ino, mode: 'read' })).attr.change).toBe(again.attr.change);
  });
});

describe('attributes of a file that somebody writes', () => {
  test('are asked of the writer, and may not be kept', async () => {
    const { ino, record } = await writtenFile();
    a.override.attributes = () => ({ record: changed({ record }, { size: 99 }) });
    expect(await b.lookup('f')).toMatchObject({ attr: { size: 99 }, cacheable: false });
    expect(await b.ask('getattr', { ino })).toMatchObject({ attr: { size: 99 }, cacheable: false });
    expect(await a.ask('getattr', { ino })).toMatchObject({ attr: { size: 4 * PAGE }, cacheable: true });
  });

  test('that were kept are taken back when a writer comes', async () => {
    const { ino } = (await a.make('f')).attr;
    expect((await b.lookup('f')).cacheable).toBe(true);
    await a.ask('acquire', { ino, mode: 'write' });
    expect(b.pushes.find(({ op }) => op === 'invalidate')?.ask).toMatchObject({ ino, length: 0 });
  });

  test('are what the manager knows when the writer is dead', async () => {
    await writtenFile();
    a.session.terminate('killed');
    expect((await b.lookup('f')).attr?.size).toBe(4 * PAGE);
  });
});

describe('truncation and holes', () => {
  test('pieces go back, zeroed, and a record from before is refused', async () => {
    const { ino, region, record } = await writtenFile();
    const freed = a.next('freed');
    const cut = await a.ask('setattr', { ino, set: { size: PAGE + 1 }, record });
    expect(cut.attr).toMatchObject({ size: PAGE + 1, blocks: (2 * PAGE) / 512 });
    expect(decodeRecord(cut.record ?? Buffer.alloc(0)).extents).toEqual([extent(0, 2 * PAGE, region, 0)]);
    expect((await freed).pieces).toEqual([{ region, offset: 2 * PAGE, length: 2 * PAGE }]);
    expect(appliance.punched).toEqual([{ region, offset: 2 * PAGE, length: 2 * PAGE }]);
    expect(await a.ask('commit', { records: [changed({ record }, {})] })).toEqual({ failed: [{ ino, code: 'ESTALE' }] });
  });

  test('by another mount: the writer is recalled first, told the new record before pieces are zeroed, and has its delegation back', async () => {
    const { ino, region, record } = await writtenFile();
    a.override.recall = () => ({ open: 'write', record: changed({ record }, { size: 3 * PAGE }) });
    a.override.invalidate = () => {
      expect(appliance.punched.filter(({ length }) => length === PAGE * 3)).toEqual([]);
      return {};
    };
    const raised = a.next('grant');
    await b.ask('setattr', { ino, set: { size: 100 } });
    const told = a.pushes.find(({ op }) => op === 'invalidate')?.ask;
    expect(told).toMatchObject({ ino, offset: 100, length: -1, attr: { size: 100 } });
    expect(decodeRecord(told?.['record'] as Uint8Array).extents).toEqual([extent(0, PAGE, region, 0)]);
    expect((await raised).grant.mode).toBe('write');
    // Nobody had the file's first page at hand to zero its tail: the appliance did.
    expect(appliance.punched).toContainEqual({ region, offset: 100, length: PAGE - 100 });
  });

  test('a punched range is a hole', async () => {
    const { ino, region, record } = await writtenFile();
    const { record: after } = await a.ask('punch', { ino, offset: PAGE, length: PAGE, record });
    expect(decodeRecord(after).extents).toEqual([extent(0, PAGE, region, 0), extent(2 * PAGE, 2 * PAGE, region, 2 * PAGE)]);
    expect(decodeRecord(after).size).toBe(4 * PAGE);
  });

  test('a deleted file gives everything back, when its last holder lets it go', async () => {
    const { ino, region } = await writtenFile();
    await a.unlink('f');
    expect((await a.ask('getattr', { ino })).attr.nlink).toBe(0);
    expect(appliance.punched).toEqual([]);
    const freed = a.next('freed');
    await a.ask('release', { ino });
    expect((await freed).pieces).toEqual([{ region, offset: 0, length: 4 * PAGE }]);
    await expect(a.ask('getattr', { ino })).rejects.toEqual(code('ENOENT'));
  });

  test('what was never committed comes back too', async () => {
    const grant = await a.openNew('f');
    const [region] = await a.provision();
    await a.unlink('f');
    const freed = a.next('freed');
    await a.ask('release', {
      ino: grant.attr.ino,
      record: changed(grant, { size: PAGE, extents: [extent(0, PAGE, region?.region ?? 0, 0)] }),
    });
    expect((await freed).pieces).toEqual([{ region: region?.region, offset: 0, length: PAGE }]);
  });
});

describe('records', () => {
  test('may name only free pieces of the own provision', async () => {
    const { region } = await writtenFile();
    const other = await a.openNew('g');
    const theirs = await b.openNew('h');
    const refused = async (client: TestClient, record: Buffer): Promise<string | undefined> =>
      (await client.ask('commit', { records: [record] })).failed[0]?.code;
    expect(await refused(a, changed(other, { extents: [extent(0, PAGE, region, 3 * PAGE)] }))).toBe('EINVAL'); // in use
    expect(await refused(a, changed(other, { extents: [extent(0, PAGE, region, 64 * MIB)] }))).toBe('EINVAL'); // beyond it
    expect(await refused(a, changed(other, { extents: [extent(0, PAGE, 9999, 0)] }))).toBe('EINVAL');
    expect(await refused(a, changed(other, { extents: [extent(0, PAGE, region, 8 * PAGE), extent(PAGE, PAGE, region, 8 * PAGE)] }))).toBe(
      'EINVAL',
    ); // twice
    expect(await refused(b, changed(theirs, { extents: [extent(0, PAGE, region, 8 * PAGE)] }))).toBe('EINVAL'); // not theirs
    expect(await refused(a, changed(other, { extents: [extent(0, PAGE, region, 8 * PAGE)] }))).toBeUndefined();
  });

  test('one that fails does not take the others with it', async () => {
    const f = await a.openNew('f');
    const g = await a.openNew('g');
    const { failed } = await a.ask('commit', { records: [changed(f, { epoch: 77 }), changed(g, { size: 5 }), Buffer.from('nonsense')] });
    expect(failed).toEqual([
      { ino: f.attr.ino, code: 'ESTALE' },
      { ino: 0, code: 'EINVAL' },
    ]);
    expect((await a.ask('getattr', { ino: g.attr.ino })).attr.size).toBe(5);
  });
});

describe('shared mode', () => {
  async function shared(): Promise<{ ino: number; region: number; regionB: number; record: Buffer }> {
    const file = await writtenFile();
    a.override.recall = () => ({ open: 'write', record: file.record });
    await b.ask('acquire', { ino: file.ino, mode: 'write' });
    const [own] = await b.provision();
    return { ...file, regionB: own?.region ?? 0 };
  }

  test('extents of whoever came first count; the others come back', async () => {
    const { ino, region, regionB, record } = await shared();
    const before = decodeRecord(record).extents;
    const propose = (at: number, owner: number): Buffer => changed({ record }, { extents: [...before, extent(4 * PAGE, PAGE, owner, at)] });
    const first = await a.ask('extend', { ino, record: propose(4 * PAGE, region) });
    expect(first.unused).toEqual([]);
    const second = await b.ask('extend', { ino, record: propose(0, regionB) });
    expect(second.unused).toEqual([{ region: regionB, offset: 0, length: PAGE }]);
    expect(decodeRecord(second.record).extents).toEqual(decodeRecord(first.record).extents);
    expect(second.regions.map((grant) => grant.region)).toEqual([region]);
  });

  test('a write is answered when the others have dropped what they had, and know the new extents', async () => {
    const { ino, region, record } = await shared();
    await a.ask('extend', {
      ino,
      record: changed({ record }, { extents: [...decodeRecord(record).extents, extent(4 * PAGE, PAGE, region, 4 * PAGE)] }),
    });
    await a.ask('claimEnd', { ino, unclean: false, holdsPages: true });
    const { attr } = await a.ask('wrote', { ino, offset: 4 * PAGE, length: 10, mtime: [2_000_000_000, 1] });
    expect(attr).toMatchObject({ size: 4 * PAGE + 10, mtime: [2_000_000_000, 1] });
    const told = b.pushes.find(({ op }) => op === 'invalidate')?.ask;
    expect(told).toMatchObject({ ino, offset: 4 * PAGE, length: 10, attr: { size: 4 * PAGE + 10 } });
    expect(decodeRecord(told?.['record'] as Uint8Array).extents).toEqual([extent(0, 5 * PAGE, region, 0)]);
    await a.ask('wrote', { ino, offset: 0, length: 10, mtime: [2_000_000_000, 2] });
    expect(b.pushes.filter(({ op }) => op === 'invalidate').at(-1)?.ask['record']).toBeUndefined();
  });

  test('two that write at once do not wait for each other', async () => {
    const { ino } = await shared();
    let aDone: Promise<unknown> = Promise.resolve();
    let bDone: Promise<unknown> = Promise.resolve();
    a.override.invalidate = () => aDone.then(() => ({}));
    b.override.invalidate = () => bDone.then(() => ({}));
    const before = Date.now();
    aDone = a.ask('wrote', { ino, offset: 0, length: 1, mtime: [1, 0] });
    bDone = b.ask('wrote', { ino, offset: 0, length: 1, mtime: [1, 0] });
    await Promise.all([aDone, bDone]);
    expect(Date.now() - before).toBeLessThan(900);
  });

  test('a dead reader is fenced before a write is answered', async () => {
    const { ino } = await shared();
    b.session.terminate('killed');
    await a.ask('wrote', { ino, offset: 0, length: 1, mtime: [1, 0] });
    expect(appliance.events).toContain(`fence ${b.id}-${b.id}`);
  });

  test('two make one file at once: who made it knows that it has it before it is recalled', async () => {
    for (let round = 0; round < 20; round += 1) {
      const order: string[] = [];
      for (const client of [a, b]) {
        await client.lookup(`both-${round}`); // it is told that there is something now, before the maker is answered
        client.override.invalidateEntries = () => new Promise((resolve) => setTimeout(() => resolve({}), 5));
      }
      const answers = await Promise.all(
        [a, b].map(async (client) => {
          client.override.recall = () => (order.push(`recall ${client.id}`), { open: 'write' });
          const { grant } = await client.make(`both-${round}`, { open: true, exclusive: false });
          order.push(`answer ${client.id}`);
          return grant?.mode;
        }),
      );
      const [maker, other] = order[0] === `answer ${a.id}` ? [a.id, b.id] : [b.id, a.id];
      expect(order).toEqual([`answer ${maker}`, `recall ${maker}`, `answer ${other}`]);
      expect(answers.sort()).toEqual(['shared', 'write']);
    }
  });

  test('who does not hold the file may not write to it', async () => {
    const { ino } = await writtenFile();
    await expect(b.ask('wrote', { ino, offset: 0, length: 1, mtime: [1, 0] })).rejects.toEqual(code('ESTALE'));
  });
});

describe('fences', () => {
  test('a holder that does not answer is fenced at every appliance before another is granted', async () => {
    const two = await cluster.appliance('two');
    const { ino } = await writtenFile();
    a.override.recall = () => new Promise(() => undefined);
    const order: string[] = [];
    two.override.fence = async (ask) => {
      await new Promise((resolve) => setImmediate(resolve));
      order.push(`fence ${ask.dead.map(({ first, last }) => `${first}-${last}`).join()}`);
      return {};
    };
    const before = Date.now();
    const grant = await b.ask('acquire', { ino, mode: 'write' });
    order.push('granted');
    expect(grant.mode).toBe('write');
    expect(order).toEqual([`fence ${a.id}-${a.id}`, 'granted']);
    expect(appliance.fenced).toEqual([[{ first: a.id, last: a.id }]]);
    expect(Date.now() - before).toBeGreaterThan(RECALL_TIMEOUT_MS - 100);
    await a.connect(true).catch(() => undefined);
    expect(a.hello.resumed).toBe(false);
  });

  test('what a dead writer had put beside the region is there', async () => {
    const { ino, region, record } = await writtenFile();
    const newer = changed({ record }, { change: 50, size: 5 * PAGE, extents: [extent(0, 5 * PAGE, region, 0)] });
    appliance.records.push({ region, ino, record }, { region, ino, record: newer }, { region, ino: 12345, record: newer });
    a.session.terminate('killed');
    const grant = await b.ask('acquire', { ino, mode: 'read' });
    expect(grant.attr).toMatchObject({ size: 5 * PAGE, change: 50 });
    expect(decodeRecord(grant.record).extents).toEqual([extent(0, 5 * PAGE, region, 0)]);
  });

  test('a writer that lives but cannot write back keeps the file: the other is refused, nobody is fenced', async () => {
    const { ino, record } = await writtenFile();
    a.override.recall = () => Promise.reject(new ExtmemError('EIO', 'an appliance is dead'));
    await expect(b.ask('acquire', { ino, mode: 'read' })).rejects.toEqual(code('EIO'));
    expect(appliance.fenced).toEqual([]);
    expect(await a.ask('commit', { records: [record] })).toEqual({ failed: [] });
    a.override = {};
    expect((await b.ask('acquire', { ino, mode: 'read' })).mode).toBe('read');
  });

  test('a client that was away for less than its lease goes on', async () => {
    const { ino, record } = await writtenFile();
    a.session.terminate('a short cut');
    const asked = b.ask('acquire', { ino, mode: 'read' });
    a.override.recall = () => ({ open: 'write', record });
    await a.connect(true);
    expect(a.hello.resumed).toBe(true);
    expect((await asked).mode).toBe('shared');
    expect(appliance.fenced).toEqual([]);
  });

  test("an appliance that is down gets the fence with its next hello, and its regions are nobody's until then", async () => {
    const { ino, region } = await writtenFile();
    appliance.session.terminate('cut off');
    a.session.terminate('killed');
    const grant = await b.ask('acquire', { ino, mode: 'read' });
    expect(grant.regions).toEqual([]);
    const up = b.next('appliances');
    await appliance.connect();
    expect(appliance.welcome.dead).toEqual([{ first: a.id, last: a.id }]);
    expect(appliance.welcome.regions).toEqual([region]);
    await up;
    expect(appliance.fenced).toEqual([[{ first: a.id, last: a.id }]]);
    expect((await b.ask('regions', { regions: [region] })).regions).toHaveLength(1);
  });

  test('however many come and go, an appliance is told no more ranges than there are clients, and a restarted one all of them', async () => {
    const visitors = await Promise.all(Array.from({ length: 8 }, (_, at) => cluster.client(`visitor ${at}`)));
    const [leaving, dying] = [visitors.slice(0, 4), visitors.slice(4)];
    const files = await Promise.all(dying.map(async (one) => (await one.openNew(`of ${one.id}`)).attr.ino));
    await Promise.all(leaving.map((one) => one.ask('goodbye', {})));
    for (const one of dying) one.session.terminate('killed');
    await Promise.all(files.map((ino) => b.ask('acquire', { ino, mode: 'read' })));
    expect(appliance.fenced).toHaveLength(4);
    const dead = [{ first: b.id + 1, last: b.id + 8 }];
    expect(appliance.fenced.at(-1)).toEqual(dead);
    const again = await cluster.appliance('started later');
    expect(again.welcome.dead).toEqual(dead);
    await cluster.restartManager();
    await appliance.connect();
    expect(appliance.welcome.dead).toEqual(dead);
  }, 30_000);

  test('an appliance that does not acknowledge is put down', async () => {
    const { ino } = await writtenFile();
    appliance.override.fence = () => new Promise(() => undefined);
    a.session.terminate('killed');
    const down = b.next('appliances');
    const grant = await b.ask('acquire', { ino, mode: 'read' });
    expect((await down).appliances[0]?.state).toBe('down');
    expect(grant.regions).toEqual([]);
  });
});

describe('restart of the manager', () => {
  test('known clients go on with what they held; what conflicts waits for them', async () => {
    const { ino, record } = await writtenFile();
    const d = await a.mkdir('d');
    await cluster.restartManager();
    await appliance.connect();
    await b.connect(true);
    const asked = b.ask('acquire', { ino, mode: 'read' });
    a.override.recall = () => ({ open: 'write', record: changed({ record }, { size: 7 }) });
    await a.connect(true);
    expect(a.hello.resumed).toBe(true);
    expect(await asked).toMatchObject({ mode: 'shared', attr: { size: 7 } });
    expect((await a.lookup('d')).attr?.ino).toBe(d);
    expect(appliance.fenced).toEqual([]);
  });

  test('a holder that does not come back within its lease is fenced', async () => {
    const { ino } = await writtenFile();
    a.session.terminate('killed');
    await cluster.restartManager();
    await appliance.connect();
    await b.connect(true);
    expect((await b.ask('acquire', { ino, mode: 'write' })).mode).toBe('write');
    expect(appliance.events).toEqual([`fence ${a.id}-${a.id}`]);
  });

  test('orphans of nobody are gone, and their pieces zeroed', async () => {
    const { ino, region } = await writtenFile();
    await a.unlink('f');
    await a.ask('release', { ino }).catch(() => undefined);
    const g = await a.openNew('g');
    await a.unlink('g');
    await a.ask('goodbye', {});
    await cluster.restartManager();
    await appliance.connect();
    await b.connect(true);
    await expect(b.ask('getattr', { ino: g.attr.ino })).rejects.toEqual(code('ENOENT'));
    expect(appliance.regions.has(region)).toBe(false);
  });
});

describe('locks', () => {
  const lock = (ino: number, type: 'read' | 'write' | 'unlock', owner = 'o') => ({
    ino,
    owner,
    flock: false,
    type,
    start: 0,
    end: 9,
    pid: 1,
  });

  test('exclude each other over mounts, also with the same owner name', async () => {
    const { ino } = (await a.make('f')).attr;
    await a.ask('setlk', { lock: lock(ino, 'write'), wait: false });
    await expect(b.ask('setlk', { lock: lock(ino, 'read'), wait: false })).rejects.toEqual(code('EAGAIN'));
    expect((await b.ask('getlk', lock(ino, 'read'))).conflict).toMatchObject({ type: 'write', start: 0, end: 9 });
  });

  test('waits end with the lock, with a cancel, with the death of the holder', async () => {
    const { ino } = (await a.make('f')).attr;
    await a.ask('setlk', { lock: lock(ino, 'write'), wait: false });
    const first = b.ask('setlk', { lock: lock(ino, 'write', '1'), wait: true, waiter: 'w1' });
    await b.ask('cancelLock', { waiter: 'w1' });
    await expect(first).rejects.toEqual(code('EINTR'));
    const second = b.ask('setlk', { lock: lock(ino, 'write', '2'), wait: true });
    await a.ask('setlk', { lock: lock(ino, 'unlock'), wait: false });
    await second;
    const third = a.ask('setlk', { lock: lock(ino, 'read'), wait: true });
    await b.ask('goodbye', {});
    await third;
  });

  test('that a writer held by itself come with its recall', async () => {
    const { ino, record } = await writtenFile();
    a.override.recall = () => ({ open: 'write', record, locks: [lock(ino, 'write')] });
    await b.ask('acquire', { ino, mode: 'read' });
    await expect(b.ask('setlk', { lock: lock(ino, 'read'), wait: false })).rejects.toEqual(code('EAGAIN'));
  });

  test('restated ones replace what the manager believed', async () => {
    const { ino } = (await a.make('f')).attr;
    await a.ask('setlk', { lock: lock(ino, 'write'), wait: false });
    await a.ask('restateLocks', { ino, locks: [{ ...lock(ino, 'write', 'p'), start: 5 }] });
    await b.ask('setlk', { lock: { ...lock(ino, 'write'), end: 4 }, wait: false });
    await expect(b.ask('setlk', { lock: lock(ino, 'write'), wait: false })).rejects.toEqual(code('EAGAIN'));
  });

  test('a wait ends with the session that asked for it: nobody would know of the lock', async () => {
    const { ino } = (await a.make('f')).attr;
    await a.ask('setlk', { lock: lock(ino, 'write'), wait: false });
    const wait = b.ask('setlk', { lock: lock(ino, 'write'), wait: true }).catch(() => 'lost');
    b.session.terminate('the network is cut');
    await b.connect(true);
    expect(await wait).toBe('lost');
    await a.ask('setlk', { lock: lock(ino, 'unlock'), wait: false });
    await a.ask('setlk', { lock: lock(ino, 'write'), wait: false });
  });

  test('of a client that does not come back are free after its lease, if somebody asks for them', async () => {
    const { ino } = (await a.make('f')).attr;
    await a.ask('setlk', { lock: lock(ino, 'write'), wait: false });
    a.session.terminate('it is dead');
    const wait = b.ask('setlk', { lock: lock(ino, 'write'), wait: true });
    await expect(b.ask('setlk', { lock: lock(ino, 'read', 'q'), wait: false })).rejects.toEqual(code('EAGAIN'));
    await wait;
    expect(appliance.fenced).toEqual([[{ first: a.id, last: a.id }]]);
  });

  test('survive the manager', async () => {
    const { ino } = (await a.make('f')).attr;
    await a.ask('setlk', { lock: lock(ino, 'write'), wait: false });
    await cluster.restartManager();
    await a.connect(true);
    await b.connect(true);
    await expect(b.ask('setlk', { lock: lock(ino, 'read'), wait: false })).rejects.toEqual(code('EAGAIN'));
  });
});

test('two thousand files are created and written by one client', async () => {
  const [region] = await a.provision(64 * MIB);
  const grants = await Promise.all(Array.from({ length: 2000 }, (_, index) => a.openNew(`f${index}`)));
  const records = grants.map((grant, index) =>
    encodeRecord({ ...decodeRecord(grant.record), change: 2, size: 1, extents: [extent(0, PAGE, region?.region ?? 0, index * PAGE)] }),
  );
  expect(await a.ask('commit', { records })).toEqual({ failed: [] });
  expect((await a.ask('readdir', { ino: ROOT, cookie: 0, limit: 4096 })).entries).toHaveLength(2000);
  expect((await a.ask('statfs', {})).totalBytes).toBe(1024 * MIB);
});
