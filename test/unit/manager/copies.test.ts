/** Which copies of files count: writers say which missed a write, appliances what they lost; who dies leaves them unsynced. */
import { afterEach, beforeEach, describe, expect, test } from '@jest/globals';
import { decodeRecord, type Extent } from '../../../src/base/file_record.js';
import type { FileGrant, RegionGrant } from '../../../src/base/messages.js';
import { until } from '../../until.js';
import { changed, Cluster, MIB, PAGE, type TestAppliance, type TestClient } from './cluster.js';

let cluster: Cluster;
let one: TestAppliance;
let a: TestClient;
let b: TestClient;
let regions: [number, number];

const mirror = (length = PAGE, offset = 0): Extent => ({
  ...{ fileOffset: 0, length, unit: length, copies: 2 },
  members: regions.map((region) => ({ region, offset })),
});
const marksOf = (record: Uint8Array): string[] =>
  decodeRecord(record).extents.flatMap(({ members }) =>
    members.map(({ missing, unsynced }) => (missing === true ? 'missing' : unsynced === true ? 'unsynced' : 'good')),
  );
const recordOf = async (ino: number): Promise<Uint8Array> => (await b.ask('acquire', { ino, mode: 'read' })).record;

/** A file of one page with two copies, held by `a` for writing. */
async function mirrored(name = 'f', offset = 0): Promise<{ grant: FileGrant; ino: number }> {
  const grant = await a.openNew(name);
  expect((await a.ask('commit', { records: [changed(grant, { extents: [mirror(PAGE, offset)], size: PAGE })] })).failed).toEqual([]);
  return { grant, ino: grant.attr.ino };
}

beforeEach(async () => {
  cluster = await Cluster.start();
  one = await cluster.appliance('one');
  await cluster.appliance('two');
  [a, b] = [await cluster.client('a'), await cluster.client('b')];
  const provided = await a.provision(2 * MIB);
  const on = (appliance: string): number => provided.find((grant: RegionGrant) => grant.appliance === appliance)?.region ?? 0;
  regions = [on('one'), on('two')];
});

afterEach(() => cluster.close());

describe('a copy that missed a write', () => {
  test('is missing from then on; the record of its writer is taken with it, and older ones of the same pieces later', async () => {
    const grant = await a.openNew('f');
    const record = changed(grant, { extents: [mirror()], size: 100 });
    const places = [{ region: regions[0], offset: 4000 }];
    const dropped = await a.ask('dropCopies', { ino: grant.attr.ino, record, places });
    expect(marksOf(dropped.record)).toEqual(['missing', 'good']);
    expect(decodeRecord(dropped.record)).toMatchObject({ size: 100, epoch: 2 });
    // Made before it knew: still the record of a writer whose extents nobody else changed.
    const { change } = decodeRecord(dropped.record);
    const late = changed({ record }, { size: 200, change: change + 1 });
    expect((await a.ask('commit', { records: [late] })).failed).toEqual([]);
    await a.ask('release', { ino: grant.attr.ino });
    const now = await recordOf(grant.attr.ino);
    expect(marksOf(now)).toEqual(['missing', 'good']);
    expect(decodeRecord(now)).toMatchObject({ size: 200, epoch: 2 });
  });

  test('is told to all others before its writer is answered', async () => {
    const { ino } = await mirrored();
    a.override.recall = () => ({ open: 'write' });
    await b.ask('acquire', { ino, mode: 'read' });
    let told = false;
    b.override.invalidate = async ({ record }) => {
      await new Promise((resolve) => setTimeout(resolve, 50));
      told = record !== undefined && marksOf(record).includes('missing');
      return {};
    };
    const { record } = await a.ask('dropCopies', { ino, places: [{ region: regions[1], offset: 0 }] });
    expect(told).toBe(true);
    expect(marksOf(record)).toEqual(['good', 'missing']);
  });

  test('the last one is not dropped, nor on the word of somebody who does not write', async () => {
    const { ino } = await mirrored();
    const places = (...of: number[]): { region: number; offset: number }[] => of.map((region) => ({ region, offset: 0 }));
    expect(marksOf((await a.ask('dropCopies', { ino, places: places(...regions) })).record)).toEqual(['good', 'good']);
    await a.ask('dropCopies', { ino, places: places(regions[0]) });
    expect(marksOf((await a.ask('dropCopies', { ino, places: places(regions[1]) })).record)).toEqual(['missing', 'good']);
    await expect(b.ask('dropCopies', { ino, places: places(regions[1]) })).rejects.toMatchObject({ code: 'ESTALE' });
  });

  test('a record from before a truncation is refused as ever', async () => {
    const { grant, ino } = await mirrored();
    await a.ask('dropCopies', { ino, places: [{ region: regions[0], offset: 0 }] });
    await cluster.http('PATCH', '/v1/allocations/f', { bytes: 0 });
    const { failed } = await a.ask('commit', { records: [changed(grant, { extents: [mirror()], change: 1000 })] });
    expect(failed).toEqual([{ ino, code: 'ESTALE' }]);
    expect(decodeRecord(await recordOf(ino)).extents).toEqual([]);
  });
});

describe('an appliance that lost what it held', () => {
  test('is not counted on for what has another copy, whoever has the file open', async () => {
    const { grant, ino } = await mirrored();
    await one.restart();
    const { failed } = await a.ask('commit', { records: [changed(grant, { extents: [mirror()], size: 50, change: 90 })] });
    expect(failed).toEqual([]);
    await a.ask('release', { ino });
    expect(marksOf(await recordOf(ino))).toEqual(['missing', 'good']);
    const { body } = await cluster.http('GET', '/v1/allocations/f');
    expect(body).toMatchObject({ lost: false, missing: ['one'], bears: 0, bytes: 50 });
  });

  test('the pieces of missing copies go with the file', async () => {
    const { ino } = await mirrored();
    await a.ask('dropCopies', { ino, places: [{ region: regions[0], offset: 0 }] });
    await a.unlink('f');
    await a.ask('release', { ino });
    await until('both are zeroed', async () => one.punched.length > 0);
    expect(one.punched).toEqual([{ region: regions[0], offset: 0, length: PAGE }]);
  });
});

test('whoever dies writing leaves all copies but one unsynced; a clean release leaves nothing', async () => {
  const released = await mirrored('released');
  await a.ask('release', { ino: released.ino });
  const { ino } = await mirrored('held', PAGE);
  a.override.recall = () => new Promise(() => undefined);
  a.session.terminate('killed');
  expect(marksOf(await recordOf(ino))).toEqual(['good', 'unsynced']);
  expect(marksOf(await recordOf(released.ino))).toEqual(['good', 'good']);
}, 30_000);

describe('layouts with copies', () => {
  const setLayout = (ino: number, name: string, value: string): Promise<unknown> =>
    a.ask('setxattr', { ino, name: `user.extmem.${name}`, value: Buffer.from(value), create: false, replace: false });

  test('are inherited, and told to whoever makes files by itself', async () => {
    const ino = await a.mkdir('d');
    await setLayout(ino, 'layout', 'mirror:2');
    await setLayout(ino, 'across', 'appliance');
    const { grant } = await a.make('f', { parent: ino, open: true });
    expect(decodeRecord(grant?.record ?? Buffer.alloc(0))).toMatchObject({ layout: 'mirror', copies: 2, across: 'appliance' });
    const { delegated } = await a.make('e', { parent: ino, kind: 'directory', delegate: { numbers: 1 } });
    expect(delegated).toMatchObject({ layout: 'mirror', copies: 2, across: 'appliance' });
  });

  test('that the pool cannot keep apart are refused', async () => {
    const ino = await a.mkdir('d');
    await expect(setLayout(ino, 'layout', 'mirror:3')).rejects.toMatchObject({ code: 'EDOMAIN' });
    await setLayout(ino, 'layout', 'mirror');
    await expect(setLayout(ino, 'across', 'host')).rejects.toMatchObject({ code: 'EDOMAIN' }); // both are on one
    const { status, body } = await cluster.http('POST', '/v1/allocations', { path: '/f', bytes: MIB, layout: 'mirror', across: 'rack' });
    expect([status, body['code']]).toEqual([409, 'EDOMAIN']);
  });

  test('of what has regions of its own, every copy is on another appliance', async () => {
    const made = await cluster.http('POST', '/v1/allocations', { path: '/big', bytes: 20 * MIB, layout: 'raid10', dedicated: true });
    expect(made.status).toBe(201);
    expect(made.body).toMatchObject({ layout: 'raid10', copies: 2, bears: 1, apart: 'appliance', appliances: ['one', 'two'], warning: '' });
    expect(made.body['allocatedBytes']).toBe(40 * MIB);
    const grown = await cluster.http('PATCH', '/v1/allocations/big', { bytes: 30 * MIB });
    expect(grown.body).toMatchObject({ bytes: 30 * MIB, allocatedBytes: 60 * MIB, bears: 1 });
  });
});
