/** Memory that moves: what is planned, what is asked of appliances, what is left when that fails; and jobs. */
import { afterEach, beforeEach, describe, expect, test } from '@jest/globals';
import { decodeRecord, type Extent, type ExtentMember } from '../../../src/base/file_record.js';
import type { FileGrant, RegionGrant } from '../../../src/base/messages.js';
import type { Job } from '../../../src/manager/index.js';
import { planStretch, replaceSlots, type Choice } from '../../../src/manager/moves/plan.js';
import { until } from '../../until.js';
import { changed, Cluster, MIB, PAGE, type TestAppliance, type TestClient } from './cluster.js';

describe('a stretch', () => {
  const at = (region: number, offset: number): ExtentMember => ({ region, offset });
  const concat = (fileOffset: number, length: number, region: number, offset = 0): Extent => ({
    ...{ fileOffset, length, unit: length },
    members: [at(region, offset)],
  });
  const on = (...regions: number[]): Choice => {
    return (copies) => copies.flatMap(({ region }, index) => (regions.includes(region) ? [index] : []));
  };
  const moveAll = (extents: readonly Extent[], choose: Choice, limit: number): { extents: Extent[]; rounds: number } => {
    let now = [...extents];
    let next = 0;
    for (let rounds = 0; ; rounds++) {
      const slots = planStretch(now, choose, limit);
      if (slots.length === 0) return { extents: now, rounds };
      const moved = slots.map((slot) => ({
        slot,
        members: new Map(
          slot.meant.map((index) => {
            const member = at(100 + index, next);
            next += index === slot.meant.at(-1) ? slot.bytes : 0;
            return [index, member] as const;
          }),
        ),
      }));
      now = replaceSlots(now, moved);
    }
  };

  test('is as much as asked for, of what is meant only, and what has moved joins again', () => {
    const extents = [concat(0, 10 * PAGE, 1), concat(16 * PAGE, 4 * PAGE, 2, 8 * PAGE), concat(32 * PAGE, 6 * PAGE, 1, 64 * PAGE)];
    expect(planStretch(extents, on(1), 12 * PAGE).map(({ extent, bytes }) => [extent.fileOffset, bytes])).toEqual([
      [0, 10 * PAGE],
      [32 * PAGE, 2 * PAGE],
    ]);
    const { extents: after, rounds } = moveAll(extents, on(1), 4 * PAGE);
    expect(rounds).toBe(4);
    expect(after).toEqual([concat(0, 10 * PAGE, 100), extents[1], concat(32 * PAGE, 6 * PAGE, 100, 10 * PAGE)]);
  });

  test('is whole rows where there are columns, of those columns that are meant', () => {
    const unit = 2 * PAGE;
    const striped: Extent = { fileOffset: PAGE, length: 5 * unit, unit, members: [at(1, 0), at(2, 0)] };
    const { extents, rounds } = moveAll([striped], on(2), unit);
    expect(rounds).toBe(3);
    expect(extents).toEqual([{ ...striped, members: [at(1, 0), at(101, 0)] }]);
  });

  test('is refused where the file lies elsewhere since', () => {
    const extents = [concat(0, 4 * PAGE, 1)];
    const [slot] = planStretch(extents, on(1), 4 * PAGE);
    if (slot === undefined) throw new Error('nothing is planned');
    const moved = [{ slot, members: new Map([[0, at(9, 0)]]) }];
    for (const others of [[concat(0, 4 * PAGE, 2)], [concat(0, 2 * PAGE, 1)], []])
      expect(() => replaceSlots(others, moved)).toThrow(expect.objectContaining({ code: 'EAGAIN' }));
    expect(replaceSlots([concat(0, 6 * PAGE, 1)], moved)).toEqual([concat(0, 4 * PAGE, 9), concat(4 * PAGE, 2 * PAGE, 1, 4 * PAGE)]);
  });
});

describe('a job', () => {
  let cluster: Cluster;
  let appliances: Record<'one' | 'two' | 'three', TestAppliance>;
  let a: TestClient;
  let b: TestClient;
  let provided: RegionGrant[];

  const regionOn = (appliance: string): number => provided.find((grant) => grant.appliance === appliance)?.region ?? 0;
  const placesOf = async (name: string): Promise<string[]> => {
    const { body } = await cluster.http('GET', `/v1/allocations/${name}`);
    return body['appliances'] as string[];
  };
  const infoOf = async (name: string): Promise<{ missing: string[]; bears: number }> =>
    (await cluster.http('GET', `/v1/allocations/${name}`)).body as unknown as { missing: string[]; bears: number };
  async function begin(body: Record<string, unknown>): Promise<number> {
    const { status, body: job, text } = await cluster.http('POST', '/v1/jobs', body);
    if (status !== 201) throw new Error(text);
    return job['id'] as number;
  }
  async function end(id: number): Promise<Job> {
    let job: Job | undefined;
    await until('it has ended', async () => {
      job = (await cluster.http('GET', `/v1/jobs/${id}`)).body as unknown as Job;
      return !['waiting', 'running'].includes(job.state);
    });
    return job as Job;
  }
  /** Of one page, on `one` and, with two copies, on `two`; nobody has it open. */
  async function make(name: string, copies: 1 | 2): Promise<FileGrant> {
    const grant = await a.openNew(name);
    const members = ['one', 'two'].slice(0, copies).map((id) => ({ region: regionOn(id), offset: 0 }));
    const extent: Extent = { fileOffset: 0, length: PAGE, unit: PAGE, ...(copies > 1 ? { copies } : {}), members };
    const record = changed(grant, { extents: [extent], size: PAGE });
    await a.ask('release', { ino: grant.attr.ino, record });
    return grant;
  }

  beforeEach(() => start(false));
  async function start(automatic: boolean): Promise<void> {
    cluster = await Cluster.start({ rebuild: { automatic } });
    appliances = { one: await cluster.appliance('one'), two: await cluster.appliance('two'), three: await cluster.appliance('three') };
    [a, b] = [await cluster.client('a'), await cluster.client('b')];
    provided = await a.provision(3 * MIB);
  }
  afterEach(() => cluster.close());

  test('has what moves copied from where it is by whoever gets it, told to readers, and freed where it was', async () => {
    const { attr } = await make('f', 1);
    await b.ask('acquire', { ino: attr.ino, mode: 'read' });
    const told = b.next('invalidate');
    const job = await end(await begin({ kind: 'migrate', paths: ['/f'], to: 'three' }));
    expect(job).toMatchObject({ state: 'done', doneBytes: PAGE, totalBytes: PAGE, problems: [], error: '' });
    const { copied } = appliances.three;
    expect(copied).toMatchObject([{ to: { length: PAGE }, from: [{ origin: 'one', region: regionOn('one'), offset: 0 }] }]);
    const { record, cut } = await told;
    expect(cut).toBe(true);
    expect(decodeRecord(record ?? Buffer.alloc(0)).extents[0]?.members).toEqual([
      { region: copied[0]?.to.region, offset: copied[0]?.to.offset },
    ]);
    await until('it is zeroed', () => appliances.one.punched.length > 0);
    expect(appliances.one.punched).toEqual([{ region: regionOn('one'), offset: 0, length: PAGE }]);
    expect(await placesOf('f')).toEqual(['three']);
  });

  test('moves what its writer has not told of yet, too', async () => {
    const grant = await a.openNew('f');
    const extents: Extent[] = [{ fileOffset: 0, length: PAGE, unit: PAGE, members: [{ region: regionOn('one'), offset: 0 }] }];
    a.override.recall = () => ({ open: 'write', record: changed(grant, { extents, size: PAGE }) });
    const job = await end(await begin({ kind: 'migrate', paths: ['/f'], to: 'three' }));
    expect(job).toMatchObject({ state: 'done', doneBytes: PAGE });
    expect(await placesOf('f')).toEqual(['three']);
  });

  test('that nobody asked for fences no mount that is away: it says which, and the file stays as it is', async () => {
    await cluster.close();
    await start(true);
    const { attr } = await make('f', 2);
    await a.ask('acquire', { ino: attr.ino, mode: 'write' });
    a.session.terminate('its network is cut');
    await appliances.two.restart();
    let job: Job | undefined;
    await until('it was tried', async () => {
      job = ((await cluster.http('GET', '/v1/jobs')).body['jobs'] as Job[])[0];
      return job?.state === 'failed';
    });
    expect(job).toMatchObject({ kind: 'rebuild', automatic: true, doneBytes: 0 });
    expect(job?.problems[0]?.why).toContain('mount a, which does not answer');
    expect(Object.values(appliances).flatMap(({ fenced }) => fenced)).toEqual([]);
  }, 30_000);

  test('leaves everything as it was when the copy fails, and zeroes what it had begun', async () => {
    await make('f', 1);
    let copies = 0;
    appliances.three.override.copy = () => {
      copies++;
      throw Object.assign(new Error('no'), { code: 'EIO' });
    };
    const job = await end(await begin({ kind: 'migrate', paths: ['/f'], to: 'three' }));
    expect(job).toMatchObject({ state: 'failed', doneBytes: 0, problems: [{ path: '/f' }] });
    expect(await placesOf('f')).toEqual(['one']);
    await until('it is zeroed', () => appliances.three.punched.length === copies);
    expect(appliances.one.punched).toEqual([]);
  });

  test('makes copies whole on what is left', async () => {
    await make('f', 2);
    await appliances.one.restart();
    await until('a copy is missing', async () => (await infoOf('f')).missing.length > 0);
    const job = await end(await begin({ kind: 'rebuild' }));
    expect(job).toMatchObject({ state: 'done', doneBytes: PAGE });
    expect(await infoOf('f')).toMatchObject({ missing: [], bears: 1 });
  });

  test('what cannot be made whole is listed, with the reason', async () => {
    await make('f', 2);
    await appliances.one.restart();
    await until('a copy is missing', async () => (await infoOf('f')).missing.length > 0);
    appliances.two.session.terminate('killed');
    await until('it is down', async () => {
      const { body } = await cluster.http('GET', '/v1/appliances');
      return (body['appliances'] as { state: string }[]).some(({ state }) => state === 'down');
    });
    const job = await end(await begin({ kind: 'rebuild', paths: ['/f'] }));
    expect(job).toMatchObject({ state: 'failed', doneBytes: 0 });
    expect(job.problems).toMatchObject([{ path: '/f', why: 'the only good copy of part of it is on two, which is down' }]);
  });

  test('says where there is no room, and which appliance there is not', async () => {
    await make('f', 1);
    const tiny = await cluster.appliance('tiny', PAGE / 2);
    const job = await end(await begin({ kind: 'migrate', paths: ['/f'], to: tiny.id }));
    expect(job.problems).toMatchObject([{ path: '/f', why: expect.stringContaining('there is no room for') as unknown }]);
    expect((await cluster.http('POST', '/v1/jobs', { kind: 'migrate', paths: ['/f'], to: 'nowhere' })).status).toBe(404);
    expect((await cluster.http('POST', '/v1/jobs', { kind: 'migrate', paths: [], to: 'two' })).status).toBe(400);
    expect((await cluster.http('DELETE', '/v1/jobs/77')).status).toBe(404);
  });

  test('empties an appliance: clients carve no more there, what they wrote is known, and nothing new is placed there', async () => {
    await make('f', 2);
    const written = await a.openNew('g');
    const carved = { region: regionOn('one'), offset: 8 * PAGE };
    const record = changed(written, { extents: [{ fileOffset: 0, length: PAGE, unit: PAGE, members: [carved] }], size: PAGE });
    const order: string[] = [];
    a.override.retire = ({ regions }) => (order.push(`retire ${regions.join(' ')}`), {});
    a.override.recall = ({ ino }) => (order.push(`recall ${ino}`), { open: 'write', record });
    const id = await begin({ kind: 'drain', appliance: 'one' });
    expect(await end(id)).toMatchObject({ state: 'done', problems: [], doneBytes: 2 * PAGE });
    expect(order).toEqual([`retire ${regionOn('one')}`, `recall ${written.attr.ino}`, ...order.slice(2)]);
    expect([(await placesOf('f')).sort(), appliances.one.regions.size]).toEqual([['three', 'two'], 0]);
    expect(await placesOf('g')).not.toContain('one');
    const places = async (): Promise<string[]> => (await b.provision(64 * MIB)).map(({ appliance }) => appliance);
    expect(await places()).not.toContain('one');
    const { body } = await cluster.http('GET', '/v1/appliances');
    expect(body['appliances']).toContainEqual(expect.objectContaining({ id: 'one', draining: true, reservedBytes: 0 }));
    await cluster.restartManager();
    await Promise.all([...Object.values(appliances).map((one) => one.connect()), a.connect(true), b.connect(true)]);
    expect(await places()).not.toContain('one');
    expect((await cluster.http('DELETE', '/v1/appliances/one/drain')).status).toBe(204);
    expect((await b.ask('provision', { bytes: MIB, appliances: ['one'] })).regions.length).toBeGreaterThan(0);
  });

  test('what cannot leave an appliance is listed, and stays', async () => {
    await make('f', 2);
    appliances.three.session.terminate('killed');
    await until('it is down', async () => {
      const { body } = await cluster.http('GET', '/v1/appliances');
      return (body['appliances'] as { state: string }[]).some(({ state }) => state === 'down');
    });
    const job = await end(await begin({ kind: 'drain', appliance: 'one' }));
    expect(job).toMatchObject({ state: 'failed', doneBytes: 0 });
    expect(job.problems.map(({ why }) => why)).toEqual([expect.stringContaining('no appliance that is up')]);
    expect(await placesOf('f')).toEqual(['one', 'two']);
  });

  test('goes on in the next life of the manager, which zeroes what the last one had begun', async () => {
    await make('f', 1);
    let asked = false;
    appliances.three.override.copy = () => {
      asked = true;
      return new Promise(() => undefined);
    };
    const id = await begin({ kind: 'migrate', paths: ['/f'], to: 'three' });
    await until('it is being copied', () => asked);
    const [begun] = [...appliances.three.regions.keys()].slice(-1);
    await cluster.restartManager();
    delete appliances.three.override.copy;
    await Promise.all([...Object.values(appliances).map((one) => one.connect()), a.connect(true), b.connect(true)]);
    expect(await end(id)).toMatchObject({ state: 'done', doneBytes: PAGE });
    expect(await placesOf('f')).toEqual(['three']);
    await until(
      'it is zeroed',
      () => appliances.three.punched.some(({ region }) => region === begun) || !appliances.three.regions.has(begun ?? 0),
    );
  });
});
