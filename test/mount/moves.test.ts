/**
 * Memory moves while it is in use: files are migrated, copies are made anew, and whatever dies meanwhile, whoever reads and writes
 * notices nothing but pauses.
 */
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from '@jest/globals';
import { askManager } from '../../src/base/manager_http.js';
import type { AllocationInfo, Job, RegionsAnswer, SpaceAnswer, StatusAnswer } from '../../src/manager/index.js';
import { until } from '../until.js';
import { Actor } from './actor.js';
import { quote } from './bad_days.js';
import { TestCluster } from './cluster.js';

const MIB = 1024 * 1024;
const FILE_BYTES = 24 * MIB;
/** Slow enough to be hit in the middle, a stretch at a time. */
const RATE = '8M';

/** Reads and writes at random, and compares all that it reads with what it wrote, until it is told to stop. */
const WORKLOAD = `
import threading, time
class Workload:
    def __init__(self, path, size, seed):
        self.random = random.Random(seed)
        self.model = bytearray(self.random.randbytes(size))
        put(path, self.model)
        self.fd = os.open(path, os.O_RDWR)
        self.map = mmap.mmap(self.fd, size)
        self.rounds, self.longest, self.failure, self.stopping = 0, 0, '', False
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()
    def run(self):
        try:
            while not self.stopping:
                began = time.monotonic()
                self.round()
                self.longest = max(self.longest, time.monotonic() - began)
                self.rounds += 1
        except BaseException as error: self.failure = repr(error)
    def round(self):
        count = self.random.randrange(1, 9000)
        at = self.random.randrange(len(self.model) - count)
        kind = self.random.randrange(10)
        if kind < 4:
            assert os.pread(self.fd, count, at) == self.model[at:at + count], f'pread at {at}'
        elif kind < 5:
            assert self.map[at:at + count] == self.model[at:at + count], f'mapping at {at}'
        else:
            data = self.random.randbytes(count)
            if kind < 6: self.map[at:at + count] = data
            else: assert os.pwrite(self.fd, data, at) == count
            self.model[at:at + count] = data
            if kind == 9 and self.rounds % 8 == 0: os.fsync(self.fd)
    def stop(self):
        self.stopping = True
        self.thread.join()
        assert self.failure == '', self.failure
        os.fsync(self.fd)
        got = os.pread(self.fd, len(self.model), 0)
        wrong = [page for page in range(0, len(got), 4096) if got[page:page + 4096] != self.model[page:page + 4096]]
        assert len(got) == len(self.model) and wrong == [], f'{len(got)} bytes, pages that differ: {wrong[:9]}'
        self.map.close()
        os.close(self.fd)
        return sha(self.model)
`;

const cluster = new TestCluster({ transport: 'tcp', cache: '32M', memory: '512M', appliances: 3 });
let actor: Actor;
let other: Actor;
let count = 0;

async function ask<Answer>(...parameters: string[]): Promise<Answer> {
  const { stdout, stderr } = await cluster.extmem(...parameters, '--json');
  if (stdout === '') throw new Error(stderr);
  return JSON.parse(stdout) as Answer;
}
/** Without the time that a process takes to start. */
const get = async <Answer>(route: string): Promise<Answer> =>
  (await askManager({ manager: cluster.manager, token: cluster.token }, 'GET', route)) as Answer;
const infoOf = (path: string): Promise<AllocationInfo> => get(`/v1/allocations${path}`);
const jobOf = (id: number): Promise<Job> => get(`/v1/jobs/${id}`);
const hasEnded = async (id: number): Promise<boolean> => !['waiting', 'running'].includes((await jobOf(id)).state);
const isHalfWay = async (id: number): Promise<boolean> => {
  const { doneBytes, totalBytes } = await jobOf(id);
  return doneBytes > 0 && doneBytes < totalBytes;
};
const isUp = async (): Promise<boolean> => (await get<StatusAnswer>('/v1/status')).appliances.every(({ state }) => state === 'up');
/** Of files, and of what is not yet zero again. */
const usedBytes = async (): Promise<number> =>
  (await get<SpaceAnswer>('/v1/space')).appliances.reduce((sum, one) => sum + one.usedBytes, 0);

/** A file in a folder of that layout, at which somebody is at work on mount m1. */
async function begin(layout: string): Promise<string> {
  const folder = `/${layout}${++count}`;
  await actor.do(`os.mkdir(${at(folder)}); os.setxattr(${at(folder)}, 'user.extmem.layout', b'${layout}')`);
  await actor.do(`w = Workload(${at(`${folder}/file`)}, ${FILE_BYTES}, ${count}); w.rounds`);
  return `${folder}/file`;
}
const at = (path: string, mount = 'm1'): string => quote(cluster.mount(mount).path(path.slice(1)));
/** It has met no wrong byte, and another mount reads the same as it does. */
async function end(path: string): Promise<void> {
  const sum = await actor.do<string>(`w.stop()`);
  expect(await actor.do<number>(`w.rounds`)).toBeGreaterThan(20);
  expect(await actor.do<number>(`w.longest`)).toBeLessThan(5);
  await cluster.evict('m2');
  expect(await other.do(`sha(get(${at(path, 'm2')}))`)).toBe(sum);
  await actor.do(`os.unlink(${at(path)})`);
}
const migrate = (path: string, ...flags: string[]): Promise<Job> => ask('migrate', path, '--rate', RATE, '--background', ...flags);

beforeAll(() => cluster.start(2));
afterAll(() => cluster.stop());
beforeEach(async () => {
  [actor, other] = [new Actor(), new Actor()];
  await actor.do(WORKLOAD);
});
afterEach(async () => {
  await Promise.all([actor.end(), other.end()]);
});

describe('migrating', () => {
  test.each(['stripe', 'mirror'])('a file (%s) while it is written to: all of it is there, nothing of it where it was', async (layout) => {
    const path = await begin(layout);
    const job = await ask<Job>('migrate', path, '--to', 'a3');
    expect(job).toMatchObject({ state: 'done', problems: [], error: '' });
    const { appliances, allocatedBytes, bears } = await infoOf(path);
    if (layout === 'stripe') expect(appliances).toEqual(['a3']);
    else expect([appliances.includes('a3'), appliances.length, bears]).toEqual([true, 2, 1]);
    await until('the old pieces are free', async () => (await usedBytes()) === allocatedBytes);
    await end(path);
  });

  test('goes on when the manager dies in the middle, and nothing is left behind', async () => {
    const path = await begin('stripe');
    const { id } = await migrate(path, '--to', 'a1');
    await until('it is half way', () => isHalfWay(id));
    await cluster.signal('manager', 'SIGKILL');
    await cluster.startManager();
    await until('it is done', () => hasEnded(id));
    expect(await jobOf(id)).toMatchObject({ state: 'done', problems: [] });
    expect((await infoOf(path)).appliances).toEqual(['a1']);
    await end(path);
    await until('nothing is used', async () => (await usedBytes()) === 0);
  });

  test('is cancelled after the stretch under way, and what was moved stays', async () => {
    const path = await begin('stripe');
    const { id } = await migrate(path, '--to', 'a2', '--rate', '3M');
    await until('it is half way', () => isHalfWay(id));
    expect((await cluster.extmem('jobs', 'cancel', String(id))).code).toBe(0);
    await until('it has ended', () => hasEnded(id));
    const { state, doneBytes, totalBytes } = await jobOf(id);
    expect([state, doneBytes > 0 && doneBytes < totalBytes]).toEqual(['cancelled', true]);
    expect((await infoOf(path)).appliances.length).toBeGreaterThan(1);
    await end(path);
  });

  test('what was fsynced is there when the mount dies in the middle', async () => {
    const path = await begin('stripe');
    await actor.do(`g = os.open(${at(path)} + '.kept', os.O_RDWR | os.O_CREAT); kept = random.randbytes(${9 * MIB})`);
    await actor.do(`os.write(g, kept); os.fsync(g)`);
    const sum = await actor.do<string>(`sha(kept)`);
    const { id } = await migrate(`${path}.kept`, '--to', 'a3', '--rate', '4M');
    await until('it is half way', () => isHalfWay(id));
    await cluster.signal('m1', 'SIGKILL');
    await actor.end();
    await cluster.startMount('m1');
    await until('it has ended', () => hasEnded(id));
    expect((await infoOf(`${path}.kept`)).appliances).toEqual(['a3']);
    expect(await other.do(`sha(get(${at(`${path}.kept`, 'm2')}))`)).toBe(sum);
    await other.do(`os.unlink(${at(`${path}.kept`, 'm2')}); os.unlink(${at(path, 'm2')})`);
  });
});

describe('rebuilding', () => {
  test('begins by itself when an appliance dies, while the file is written to', async () => {
    const path = await begin('mirror');
    const [first = ''] = (await infoOf(path)).appliances;
    await cluster.signal(first, 'SIGKILL');
    await cluster.startAppliance(first);
    await until('all copies are whole', async () => (await infoOf(path)).bears === 1, 20_000);
    expect(await infoOf(path)).toMatchObject({ missing: [], unsynced: [], lost: false });
    await end(path);
  });

  test.each(['the appliance that copies', 'the appliance that is read'])(
    '%s dies in the middle: no byte is lost, and copies are whole in the end',
    async (who) => {
      const path = await begin('mirror');
      const [first = '', second = ''] = (await infoOf(path)).appliances;
      const third = ['a1', 'a2', 'a3'].find((id) => id !== first && id !== second) ?? '';
      const { id } = await migrate(path, '--from', first, '--to', third);
      await until('it is half way', () => isHalfWay(id));
      const victim = who === 'the appliance that copies' ? third : first;
      await cluster.signal(victim, 'SIGKILL');
      await cluster.startAppliance(victim);
      await until('it is up', isUp);
      await until('it has ended', () => hasEnded(id), 20_000);
      await until('all copies are whole', async () => (await infoOf(path)).bears === 1, 20_000);
      expect(await infoOf(path)).toMatchObject({ missing: [], unsynced: [], lost: false });
      await end(path);
    },
  );
});

describe('draining an appliance', () => {
  const regionsOn = async (id: string): Promise<number> =>
    (await get<RegionsAnswer>(`/v1/regions?appliance=${id}`)).regions.filter(({ state }) => state !== 'lost').length;
  /** It is empty, is stopped, and comes back. */
  const replace = async (id: string): Promise<void> => {
    expect(await regionsOn(id)).toBe(0);
    await cluster.signal(id, 'SIGTERM');
    await cluster.startAppliance(id);
    expect((await cluster.extmem('drain', id, '--undo')).code).toBe(0);
  };

  test.each(['stripe', 'mirror'])('a file (%s) that is written to all the while, and it can be stopped then', async (layout) => {
    const path = await begin(layout);
    const [first = ''] = (await infoOf(path)).appliances;
    expect(await ask<Job>('drain', first)).toMatchObject({ state: 'done', problems: [], error: '' });
    expect((await infoOf(path)).appliances).not.toContain(first);
    await actor.do(`put(${at(path)} + '.new', w.random.randbytes(9_000_000))`);
    expect((await infoOf(`${path}.new`)).appliances).not.toContain(first);
    await replace(first);
    await actor.do(`os.unlink(${at(path)} + '.new')`);
    await end(path);
  });

  test('many files, of which the manager has not heard of some, and one that two mounts write to', async () => {
    const here = quote(cluster.mount('m1').path('many'));
    await actor.do(`os.mkdir(${here}); shared = os.open(${here} + '/shared', os.O_RDWR | os.O_CREAT)`);
    await other.do(`shared = os.open(${quote(cluster.mount('m2').path('many/shared'))}, os.O_RDWR)`);
    await actor.do(`os.mkdir(${here} + '/own'); fds = [os.open(f'{${here}}/own/{n}', os.O_RDWR | os.O_CREAT) for n in range(200)]`);
    await actor.do(`for n, fd in enumerate(fds): os.write(fd, b'%d ' % n * 5000)`);
    const drained = ask<Job>('drain', 'a1');
    for (let round = 0; round < 20; round++) {
      await actor.do(`os.pwrite(shared, b'm1' * 50_000, ${2 * round} * 100_000)`);
      await other.do(`os.pwrite(shared, b'm2' * 50_000, ${2 * round + 1} * 100_000)`);
      await actor.do(`for fd in fds[${round}:${round + 5}]: os.pwrite(fd, b'more', ${round} * 4096 + 100_000)`);
    }
    expect(await drained).toMatchObject({ state: 'done', problems: [], error: '' });
    await replace('a1');
    await actor.do(`for fd in fds: os.close(fd)`);
    await other.do(`assert os.pread(shared, 4_000_000, 0) == (b'm1' * 50_000 + b'm2' * 50_000) * 20`);
    const there = quote(cluster.mount('m2').path('many'));
    await other.do(`for n in range(200): assert get(f'{${there}}/own/{n}').startswith(b'%d ' % n * 5000), n`);
    await Promise.all([actor.do(`os.close(shared)`), other.do(`os.close(shared)`)]);
    await actor.do(`import shutil; shutil.rmtree(${here})`);
  });

  test('goes on when the manager dies in the middle', async () => {
    const path = await begin('stripe');
    const { id } = await ask<Job>('drain', 'a2', '--rate', RATE, '--background');
    await until('something has moved', async () => (await jobOf(id)).doneBytes > 0);
    await cluster.signal('manager', 'SIGKILL');
    await cluster.startManager();
    await until('it is done', () => hasEnded(id), 30_000);
    expect(await jobOf(id)).toMatchObject({ state: 'done', problems: [], error: '' });
    await replace('a2');
    await end(path);
  });
});
