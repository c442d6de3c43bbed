/** Provisions, dedicated regions, adoption, appliances that come back empty: nothing is given twice, nothing is left behind. */
import { afterEach, beforeEach, describe, expect, test } from '@jest/globals';
import { ExtmemError } from '../../../src/base/errors.js';
import { decodeRecord } from '../../../src/base/file_record.js';
import { until } from '../../until.js';
import { changed, Cluster, extent, MIB, PAGE, type TestAppliance, type TestClient } from './cluster.js';

let cluster: Cluster;
let one: TestAppliance;
let two: TestAppliance;
let a: TestClient;

beforeEach(async () => {
  cluster = await Cluster.start({ dedicatedBytes: 100 * MIB });
  one = await cluster.appliance('one', 512 * MIB);
  two = await cluster.appliance('two', 512 * MIB);
  a = await cluster.client('a');
});
afterEach(() => cluster.close());

const code = (value: string): unknown => expect.objectContaining({ code: value });
const space = async (): Promise<Record<string, unknown>> => (await cluster.http('GET', '/v1/space')).body;
const reserved = async (): Promise<number> => (await space())['reservedBytes'] as number;

describe('provisions', () => {
  test('are spread over the appliances, with the right to write', async () => {
    const regions = await a.provision(10 * MIB);
    expect(regions.map(({ appliance, bytes, used }) => [appliance, bytes, used]).sort()).toEqual([
      ['one', 64 * MIB, []],
      ['two', 64 * MIB, []],
    ]);
    expect(one.reserved() + two.reserved()).toBe(128 * MIB);
    expect(await reserved()).toBe(128 * MIB);
  });

  test('use the last room in smaller pieces, and then there is none', async () => {
    await cluster.appliance('tiny', 64 * MIB + 3 * MIB + 200 * 1024);
    const sizes: number[] = [];
    for (;;) {
      const regions = await a.provision(64 * MIB).catch((error: unknown) => {
        expect(error).toEqual(code('ENOSPC'));
        return undefined;
      });
      if (regions === undefined) break;
      sizes.push(...regions.filter(({ appliance }) => appliance === 'tiny').map(({ bytes }) => bytes));
    }
    expect(sizes).toEqual([64 * MIB, 3 * MIB, 192 * 1024]);
    expect(one.reserved()).toBe(512 * MIB);
    expect((await a.ask('statfs', {})).freeBytes).toBe(2 * 512 * MIB + 64 * MIB + 3 * MIB + 200 * 1024);
  });

  test('an appliance that refuses is passed over', async () => {
    one.override.createRegion = () => {
      throw new ExtmemError('ENOSPC', 'no');
    };
    const regions = await a.provision(MIB);
    expect(regions.map(({ appliance }) => appliance)).toEqual(['two']);
    expect(await reserved()).toBe(64 * MIB);
  });

  test('that were not used go with a clean unmount', async () => {
    await a.provision(MIB);
    await a.ask('goodbye', {});
    await until('the regions are destroyed', async () => one.regions.size + two.regions.size === 0);
    expect(await reserved()).toBe(0);
  });

  test('of a dead client are fenced, swept and adopted by the next, with what is used', async () => {
    const regions = await a.provision(MIB);
    const region = regions[0]?.region ?? 0;
    const grant = await a.openNew('f');
    await a.ask('commit', { records: [changed(grant, { size: PAGE, extents: [extent(0, PAGE, region, 8 * PAGE)] })] });
    const [owner, other] = regions[0]?.appliance === 'one' ? [one, two] : [two, one];
    a.session.terminate('killed');
    const b = await cluster.client('b');
    const first = await b.provision(MIB); // within the lease: nothing of it is taken
    expect(first.map((grant) => grant.region)).not.toContain(region);
    await until('the lease is over', async () => {
      const adopted = await b.provision(300 * MIB);
      return adopted.some(
        (grant) => grant.region === region && grant.used?.length === 1 && grant.used[0]?.[0] === 8 * PAGE && grant.used[0][1] === PAGE,
      );
    });
    expect(owner.fenced).toContainEqual([{ first: a.id, last: a.id }]);
    expect(other.fenced).toContainEqual([{ first: a.id, last: a.id }]);
    // What the dead one may have left in unused bytes was zeroed before.
    expect(owner.punched).toEqual([
      { region, offset: 0, length: 8 * PAGE },
      { region, offset: 9 * PAGE, length: 64 * MIB - 9 * PAGE },
    ]);
  });

  test('what one client frees in the provision of another goes to its owner', async () => {
    const [region] = await a.provision(MIB);
    const grant = await a.openNew('f');
    await a.ask('release', { ino: grant.attr.ino, record: changed(grant, { extents: [extent(0, PAGE, region?.region ?? 0, 0)] }) });
    const b = await cluster.client('b');
    const freed = a.next('freed');
    await b.unlink('f');
    expect((await freed).pieces).toEqual([{ region: region?.region, offset: 0, length: PAGE }]);
    expect(b.count('freed')).toBe(0);
  });

  test('a piece that comes free while its region is being adopted is free once, not twice', async () => {
    const b = await cluster.client('b');
    const [own] = await b.provision(MIB);
    const leave = async (client: TestClient, name: string, region: number, offset: number): Promise<void> => {
      const grant = await client.openNew(name);
      await client.ask('release', { ino: grant.attr.ino, record: changed(grant, { extents: [extent(0, PAGE, region, offset)] }) });
    };
    // While b does not answer what it is told, what else is free waits.
    let answerFreed: () => void = () => undefined;
    b.override.freed = () => new Promise((resolve) => (answerFreed = (): void => resolve({})));
    await leave(b, 'h', own?.region ?? 0, 0);
    const told = b.next('freed');
    await b.unlink('h');
    await told;
    // a leaves a region with two files in it; one of them is being freed.
    const [left] = await a.provision(MIB);
    const region = left?.region ?? 0;
    const owner = left?.appliance === 'one' ? one : two;
    await leave(a, 'f', region, 0);
    await leave(a, 'g', region, PAGE);
    await a.ask('goodbye', {});
    await until('the region is swept', async () => owner.punched.some((piece) => piece.region === region));
    let punch: () => void = () => undefined;
    owner.override.punch = () => new Promise((resolve) => (punch = (): void => resolve({})));
    await b.unlink('f');
    // b adopts it, and the other region that it is to get takes longer than the freeing.
    const free = async (): Promise<number> => (await b.ask('statfs', {})).freeBytes;
    for (const appliance of [one, two])
      appliance.override.createRegion = async (ask) => {
        const before = await free();
        punch();
        if (appliance === owner) await until('the piece is free', async () => (await free()) > before);
        appliance.regions.set(ask.region, ask);
        return {};
      };
    const adopted = (await b.provision(300 * MIB)).find((grant) => grant.region === region);
    expect(adopted?.used).toEqual([[PAGE, PAGE]]);
    owner.override = {};
    b.override = {};
    const next = b.next('freed');
    answerFreed();
    await b.unlink('g');
    expect((await next).pieces).toEqual([{ region, offset: PAGE, length: PAGE }]);
  });

  test('are waited for when a dead client has all there is', async () => {
    while ((await a.provision(512 * MIB).catch(() => [])).length > 0);
    const b = await cluster.client('b');
    await expect(b.provision(MIB)).rejects.toEqual(code('ENOSPC'));
    a.session.terminate('killed');
    await until('the manager has noticed', async () =>
      ((await cluster.http('GET', '/v1/clients')).body['clients'] as { alive: boolean }[]).some(({ alive }) => !alive),
    );
    expect((await b.provision(MIB)).length).toBeGreaterThan(0);
  });

  test('survive the manager, with what is used and what was being freed', async () => {
    const [region] = await a.provision(MIB);
    const id = region?.region ?? 0;
    const owner = region?.appliance === 'one' ? one : two;
    const f = await a.openNew('f');
    const g = await a.openNew('g');
    await a.ask('release', { ino: f.attr.ino, record: changed(f, { extents: [extent(0, PAGE, id, 0)] }) });
    await a.ask('release', { ino: g.attr.ino, record: changed(g, { extents: [extent(0, PAGE, id, PAGE)] }) });
    owner.override.punch = () => new Promise(() => undefined);
    await a.unlink('f');
    await cluster.restartManager();
    owner.override = {};
    await Promise.all([one.connect(), two.connect()]);
    await a.connect(true);
    const h = await a.openNew('h');
    const taken = await a.ask('commit', { records: [changed(h, { extents: [extent(0, PAGE, id, 0)] })] });
    expect(taken.failed).toEqual([{ ino: h.attr.ino, code: 'EINVAL' }]); // not zeroed yet
    const freed = await a.next('freed');
    expect(freed.pieces).toEqual([{ region: id, offset: 0, length: PAGE }]);
    expect(owner.punched).toEqual([{ region: id, offset: 0, length: PAGE }]);
    expect((await a.ask('commit', { records: [changed(h, { extents: [extent(0, PAGE, id, 0)] })] })).failed).toEqual([]);
  });
});

describe('dedicated regions', () => {
  test('are created on all chosen appliances', async () => {
    const { status, body } = await cluster.http('POST', '/v1/allocations', { path: '/big', bytes: 101 * MIB });
    expect(status).toBe(201);
    expect(body).toMatchObject({
      path: '/big',
      bytes: 101 * MIB,
      layout: 'stripe',
      dedicated: true,
      appliances: ['one', 'two'],
      lost: false,
      extents: 1,
    });
    expect(one.reserved()).toBe(52 * MIB);
    const { attr } = await a.lookup('big');
    const grant = await a.ask('acquire', { ino: attr?.ino ?? 0, mode: 'write' });
    expect(decodeRecord(grant.record).extents[0]).toMatchObject({ fileOffset: 0, length: 104 * MIB, unit: 2 * MIB });
    expect(grant.regions).toHaveLength(2);
  });

  test('all or none: a failure leaves nothing behind', async () => {
    two.override.createRegion = () => {
      throw new ExtmemError('ENOSPC', 'no');
    };
    const { status, body } = await cluster.http('POST', '/v1/allocations', { path: '/big', bytes: 200 * MIB });
    expect([status, body['code']]).toEqual([507, 'ENOSPC']);
    await until('nothing is left', async () => one.regions.size === 0);
    expect(await reserved()).toBe(0);
    expect((await a.lookup('big')).attr).toBeUndefined();
  });

  test('what does not fit is refused before anything is made', async () => {
    const { status } = await cluster.http('POST', '/v1/allocations', { path: '/big', bytes: 2048 * MIB });
    expect(status).toBe(507);
    expect(one.regions.size + two.regions.size).toBe(0);
  });

  test('grow by regions, shrink, and go with the file', async () => {
    await cluster.http('POST', '/v1/allocations', { path: '/big', bytes: 100 * MIB, layout: 'concat' });
    const grown = await cluster.http('PATCH', '/v1/allocations/big', { bytes: 150 * MIB });
    expect(grown.body).toMatchObject({ bytes: 150 * MIB, allocatedBytes: 150 * MIB, extents: 4 });
    const shrunk = await cluster.http('PATCH', '/v1/allocations?path=/big', { bytes: 60 * MIB });
    expect(shrunk.body).toMatchObject({ bytes: 60 * MIB, allocatedBytes: 60 * MIB });
    expect((await cluster.http('DELETE', '/v1/allocations/big')).status).toBe(204);
    await until('nothing is left', async () => one.regions.size + two.regions.size === 0);
    expect(await reserved()).toBe(0);
  });

  test('best fit takes as few appliances as hold it', async () => {
    await cluster.manager.close();
    await cluster.startManager({ strategy: 'best-fit', dedicatedBytes: 100 * MIB });
    await one.connect();
    await cluster.appliance('three', 300 * MIB);
    const { body } = await cluster.http('POST', '/v1/allocations', { path: '/big', bytes: 200 * MIB });
    expect(body['appliances']).toEqual(['three']);
  });
});

describe('an appliance that restarts', () => {
  test('has lost its regions: clients are told, files say so, and can be deleted', async () => {
    await cluster.http('POST', '/v1/allocations', { path: '/big', bytes: 100 * MIB });
    const [old] = [...one.regions.keys()];
    const told = new Promise<number[]>((resolve) => {
      a.override.appliances = ({ lostRegions }) => {
        if (lostRegions.length > 0) resolve(lostRegions);
        return {};
      };
    });
    await one.restart();
    expect(await told).toEqual([old]);
    expect(one.welcome.regions).toEqual([]);
    const { body } = await cluster.http('GET', '/v1/allocations/big');
    expect(body).toMatchObject({ lost: true });
    await a.unlink('big');
    await until('the other half is destroyed', async () => two.regions.size === 0);
    expect((await cluster.http('GET', '/v1/status')).body['lostRegions']).toBe(0);
  });

  test('with the same incarnation keeps what it has, and destroys what nobody knows', async () => {
    const regions = await a.provision(MIB);
    one.regions.set(4711, { bytes: MIB, thin: false });
    one.session.terminate('cut off');
    await one.connect();
    expect([...one.regions.keys()]).toEqual(regions.filter(({ appliance }) => appliance === 'one').map(({ region }) => region));
  });

  test('after its goodbye it is down, and what it held is lost', async () => {
    await a.provision(MIB);
    const told = a.next('appliances');
    await one.session.call('goodbye', {});
    expect((await told).lostRegions).toHaveLength(1);
    expect((await space())['totalBytes']).toBe(512 * MIB);
  });
});
