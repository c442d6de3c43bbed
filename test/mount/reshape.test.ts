/**
 * Regions and allocations in every form (A2, A8, A9): holes that give memory back at the appliance, ranges taken out and put in without
 * a byte being copied, what SEEK_DATA and SEEK_HOLE say of it on both mounts, and what is told of regions.
 */
import { afterAll, beforeAll, describe, expect, test } from '@jest/globals';
import type { OneRegionAnswer, RegionsAnswer } from '../../src/manager/index.js';
import { Actor } from './actor.js';
import { quote } from './bad_days.js';
import { TestCluster } from './cluster.js';
import { until } from '../until.js';

const MIB = 1 << 20;
const PAGE = 4096;
const cluster = new TestCluster({ appliances: 2, memory: '512M', cache: '16M', transport: 'tcp' });
let actor: Actor;

const path = (mount: string, name: string): string => quote(cluster.mount(mount).path(name));

async function extmem<Answer>(...words: string[]): Promise<Answer> {
  const { code, stdout, stderr } = await cluster.extmem(...words, '--json');
  if (code !== 0) throw new Error(stderr);
  return JSON.parse(stdout) as Answer;
}

async function residentBytes(): Promise<number> {
  const { regions } = await extmem<RegionsAnswer>('regions');
  return regions.reduce((sum, { residentBytes: bytes = 0 }) => sum + bytes, 0);
}

/** Where a file has data, as a program finds out: [begin, end] pairs. */
const RANGES = `
def ranges(path):
    found, at = [], 0
    fd = os.open(path, os.O_RDONLY)
    try:
        while True:
            try: begin = os.lseek(fd, at, os.SEEK_DATA)
            except OSError: return found
            at = os.lseek(fd, begin, os.SEEK_HOLE)
            found.append([begin, at])
    finally: os.close(fd)
`;

beforeAll(async () => {
  await cluster.start(2);
  actor = new Actor();
  await actor.do(RANGES);
});
afterAll(async () => {
  await actor.end();
  await cluster.stop();
});

describe('what follows a range that is taken out or put in', () => {
  test.each([['stripe'], ['concat']])(
    'layout %s: has its bytes, for both mounts and what they have mapped, and the record is all that changed',
    async (layout) => {
      const name = `shifted-${layout}`;
      await extmem('create', `/${name}`, '--size', '0', '--layout', layout);
      const [one, other] = [path('m1', name), path('m2', name)];
      await actor.do(`data = random.randbytes(${9 * MIB} + 100); put(${one}, data)`);
      await actor.do(`fd = os.open(${other}, os.O_RDONLY); seen = mmap.mmap(fd, ${MIB}, prot=mmap.PROT_READ); seen[:]`);
      const before = await residentBytes();
      await extmem('resize', `/${name}`, '--collapse', `${3 * PAGE},${3 * MIB}`);
      await actor.do(`data = data[:${3 * PAGE}] + data[${3 * PAGE + 3 * MIB}:]`);
      expect(await actor.do(`[get(${one}) == data, get(${other}) == data, seen[:] == data[:${MIB}]]`)).toEqual([true, true, true]);
      await until('its memory is free', async () => (await residentBytes()) <= before - 2 * MIB);
      await extmem('resize', `/${name}`, '--insert', `${MIB + PAGE},${2 * MIB}`);
      await actor.do(`data = data[:${MIB + PAGE}] + bytes(${2 * MIB}) + data[${MIB + PAGE}:]`);
      expect(await actor.do(`[get(${other}) == data, get(${one}) == data]`)).toEqual([true, true]);
      const hole = [MIB + PAGE, 3 * MIB + PAGE];
      expect(await actor.do(`[ranges(${one}), ranges(${other})]`)).toEqual(
        Array.from({ length: 2 }, () => [
          [0, hole[0]],
          [hole[1], 8 * MIB + 100],
        ]),
      );
      // It is a file as any other afterwards.
      await actor.do(`f = open(${one}, 'r+b'); f.seek(${2 * MIB}); f.write(b'x' * 5000); f.seek(0, 2); f.write(b'y' * 5000); f.close()`);
      await actor.do(`data = data[:${2 * MIB}] + b'x' * 5000 + data[${2 * MIB} + 5000:] + b'y' * 5000`);
      expect(await actor.do(`get(${other}) == data`)).toBe(true);
      await actor.do(`seen.close(); os.close(fd); os.unlink(${one})`);
    },
  );

  test.each([
    ['--collapse', '100,4096', 'whole pages'],
    ['--insert', '0,100', 'whole pages'],
    ['--collapse', '0,1M', 'nothing follows'],
    ['--insert', '1M,4K', 'nothing follows'],
  ])('%s %s of a file of 1 MiB is refused', async (flag, range, why) => {
    await actor.do(`put(${path('m1', 'small')}, bytes(${MIB}))`);
    const { code, stderr } = await cluster.extmem('resize', '/small', flag, range);
    expect([code, stderr]).toEqual([1, expect.stringContaining(why)]);
    expect(await actor.do(`len(get(${path('m2', 'small')}))`)).toBe(MIB);
  });
});

test.each(['fallocate', 'extmem resize --punch'])('memory of a hole made by %s goes back at the appliance', async (how) => {
  const [one, other] = [path('m1', 'punched'), path('m2', 'punched')];
  await actor.do(`put(${one}, random.randbytes(${8 * MIB})); open(${one}).close()`);
  const before = await residentBytes();
  if (how === 'fallocate') await actor.do(`f = open(${one}, 'r+b'); fallocate(f.fileno(), 3, ${MIB}, ${6 * MIB}); f.close()`);
  else await extmem('resize', '/punched', '--punch', `${MIB},${6 * MIB}`);
  await until('its memory is free', async () => (await residentBytes()) <= before - 6 * MIB);
  expect(await actor.do(`[ranges(${one}), ranges(${other})]`)).toEqual(
    Array.from({ length: 2 }, () => [
      [0, MIB],
      [7 * MIB, 8 * MIB],
    ]),
  );
  await actor.do(`os.unlink(${one})`);
});

test('SEEK_DATA finds what is written and not yet flushed, on the mount that writes and on the other', async () => {
  const [one, other] = [path('m1', 'sparse'), path('m2', 'sparse')];
  await actor.do(`f = os.open(${one}, os.O_RDWR | os.O_CREAT); os.ftruncate(f, ${8 * MIB}); os.pwrite(f, b'x' * ${PAGE}, ${4 * MIB})`);
  for (const file of [one, other]) {
    const found = await actor.do<[number, number][]>(`ranges(${file})`);
    expect(found.length).toBeGreaterThan(0);
    expect(found.every(([begin, end]) => begin >= 4 * MIB && end <= 8 * MIB)).toBe(true);
    expect(found.some(([begin, end]) => begin === 4 * MIB && end >= 4 * MIB + PAGE)).toBe(true);
  }
  await actor.do(`os.close(f)`);
  expect(await actor.do(`ranges(${other})`)).toEqual(await actor.do(`ranges(${one})`));
});

test('what is told of regions: where, whose, how much is in memory, and which files lie in one', async () => {
  await actor.do(`put(${path('m1', 'told')}, random.randbytes(${MIB}))`);
  const { attr, regions: own } = await extmem<{ attr: { ino: number }; regions: { region: number }[] }>('info', '/told');
  const { regions, silent } = await extmem<RegionsAnswer>('regions');
  expect(silent).toEqual([]);
  const holding = regions.filter(({ region }) => own.some((one) => one.region === region));
  expect(holding.length).toBeGreaterThan(0);
  for (const one of holding) expect(one).toMatchObject({ state: 'memory', activity: 'none', clientName: 'm1', absentBytes: 0 });
  const first = own[0]?.region ?? 0;
  const one = await extmem<OneRegionAnswer>('regions', String(first));
  expect(one.files as unknown[]).toContainEqual({ ino: attr.ino, bytes: expect.any(Number) as unknown });
  const { appliance } = one;
  // 1 MiB came as messages; where, shows by the chunk.
  const usage = holding.flatMap((region) => region.usage ?? []);
  expect(usage.reduce((sum, { bytesWritten }) => sum + bytesWritten, 0)).toBeGreaterThanOrEqual(MIB);
  await cluster.evict();
  const readBefore = one.usage?.bytesRead ?? NaN;
  await actor.do(`get(${path('m1', 'told')})`);
  const { usage: later } = await extmem<OneRegionAnswer>('regions', String(first));
  expect(later).toMatchObject({ given: false, toldChunks: 0 });
  expect(later?.bytesRead).toBeGreaterThan(readBefore);
  expect(later?.lastAccessMs).toBeGreaterThanOrEqual(one.usage?.lastAccessMs ?? Infinity);
  expect(later?.hot[0]?.heat).toBeGreaterThan(0);
  expect((await cluster.extmem('regions', '--stats')).stdout).toMatch(/REGION +APPLIANCE +OPERATIONS/);
  const there = await extmem<RegionsAnswer>('regions', '--appliance', appliance);
  expect(new Set(there.regions.map((region) => region.appliance))).toEqual(new Set([appliance]));
  await extmem('create', '/hidden', '--size', '1M', '--label', 'the wages', '--allow', 'all clients=admin', '--name', 'admin');
  const count = async (...more: string[]): Promise<number> => (await extmem<RegionsAnswer>('regions', ...more)).regions.length;
  expect((await count('--name', 'admin')) - (await count())).toBeGreaterThan(0);
  // Whoever may not see the file does not see what it is called either.
  const labels = async (...more: string[]) => (await extmem<RegionsAnswer>('regions', ...more)).regions.map(({ label }) => label);
  expect(await labels('--name', 'admin')).toContain('the wages');
  expect(await labels()).not.toContain('the wages');
  expect((await cluster.extmem('regions', '999999')).code).toBe(5);
  await cluster.signal(appliance, 'SIGKILL');
  await until('it is told as lost or out of reach', async () => {
    const after = await extmem<RegionsAnswer>('regions');
    return after.regions.filter((region) => region.appliance === appliance).every(({ state }) => state === 'unknown' || state === 'lost');
  });
});
