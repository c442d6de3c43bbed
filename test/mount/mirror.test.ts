/**
 * Files with copies: an appliance goes, and nobody who reads or writes them notices but by a pause. What it had is not believed when
 * it is back; what nobody has any more is EIO.
 */
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from '@jest/globals';
import { join } from 'node:path';
import { until } from '../until.js';
import { Actor } from './actor.js';
import { allocationsOf, clusterStatus, LIMIT_MS, quote, timed } from './bad_days.js';
import { TestCluster } from './cluster.js';

const MIB = 1024 * 1024;

interface Info {
  layout: string;
  missing: string[];
  unsynced: string[];
  bears: number;
  lost: boolean;
  lostRanges: { offset: number; length: number }[];
  appliances: string[];
}

async function infoOf(cluster: TestCluster, path: string): Promise<Info> {
  const { code, stdout, stderr } = await cluster.extmem('info', path, '--json');
  if (code !== 0) throw new Error(stderr);
  return JSON.parse(stdout) as Info;
}

async function makeFolder(cluster: TestCluster, actor: Actor, name: string, layout: string): Promise<void> {
  const folder = cluster.mount().path(name);
  await actor.do(`os.mkdir(${quote(folder)}); os.setxattr(${quote(folder)}, 'user.extmem.layout', b'${layout}')`);
}

const isUp = async (cluster: TestCluster): Promise<boolean> =>
  (await clusterStatus(cluster)).appliances.every(({ state }) => state === 'up');

describe.each(['tcp', 'shm'] as const)('a mirrored file, over %s', (transport) => {
  const cluster = new TestCluster({ transport, cache: '32M', memory: '256M', rebuild: 'off' });
  let actor: Actor;
  let count = 0;

  const succeedsSoon = async (code: string): Promise<number> => {
    const { error, ms } = await timed(actor, code);
    expect({ code, error }).toEqual({ code, error: '' });
    expect(ms).toBeLessThan(LIMIT_MS);
    return ms;
  };
  const failsSoon = async (code: string): Promise<void> => {
    const { error, ms } = await timed(actor, code);
    expect({ code, error }).toEqual({ code, error: 'EIO' });
    expect(ms).toBeLessThan(LIMIT_MS);
  };
  const name = (): string => `/copies/file${++count}`;
  const at = (path: string): string => quote(cluster.mount().path(path.slice(1)));
  const restart = async (id: string): Promise<void> => {
    if (cluster.runs(id)) await cluster.signal(id, 'SIGKILL');
    await cluster.startAppliance(id);
    await until('the manager counts it', () => isUp(cluster));
  };

  beforeAll(async () => {
    await cluster.start();
    const first = new Actor();
    await makeFolder(cluster, first, 'copies', 'mirror');
    await first.end();
  });
  afterAll(() => cluster.stop());
  beforeEach(() => void (actor = new Actor()));
  afterEach(() => actor.end());

  test('is read and written on while an appliance dies, and the dead one is not believed when it is back', async () => {
    const file = name();
    await actor.do(`data = random.randbytes(${8 * MIB}); put(${at(file)}, data); f = os.open(${at(file)}, os.O_RDWR)`);
    expect((await infoOf(cluster, file)).appliances).toEqual(['a1', 'a2']);
    await actor.do(`m = mmap.mmap(f, len(data)); assert m[5000:9000] == data[5000:9000]`);
    await cluster.evict();
    await cluster.signal('a1', 'SIGKILL');
    await succeedsSoon(`assert os.pread(f, len(data), 0) == data`);
    await succeedsSoon(`new = random.randbytes(100_000); os.pwrite(f, new, 3000); os.fsync(f)`);
    await actor.do(`data = data[:3000] + new + data[103_000:]`);
    await succeedsSoon(`m[6_000_000:6_000_004] = b'here'; m.flush()`);
    await actor.do(`data = data[:6_000_000] + b'here' + data[6_000_004:]`);
    await cluster.evict();
    await succeedsSoon(`assert os.pread(f, len(data), 0) == data and m[:] == data`);
    const degraded = await infoOf(cluster, file);
    expect([degraded.missing, degraded.bears, degraded.lost]).toEqual([['a1'], 0, false]);
    await restart('a1');
    await cluster.evict();
    await succeedsSoon(`assert os.pread(f, len(data), 0) == data and m[:] == data`);
    await actor.do(`os.close(f); assert get(${at(file)}) == data`);
  });

  test('keeps what was fsynced when the mount and an appliance die', async () => {
    const file = name();
    await actor.do(
      `data = random.Random(5).randbytes(3_000_001); f = os.open(${at(file)}, os.O_RDWR | os.O_CREAT); os.write(f, data); os.fsync(f)`,
    );
    await cluster.signal('m1', 'SIGKILL');
    await cluster.signal('a2', 'SIGKILL');
    await actor.end();
    actor = new Actor();
    await cluster.startMount('m1');
    const { bytes, lost } = await allocationsOf(cluster).info(file);
    expect([bytes, lost]).toEqual([3_000_001, false]);
    await succeedsSoon(`got = get(${at(file)}); assert got == random.Random(5).randbytes(3_000_001)`);
    await succeedsSoon(`f = os.open(${at(file)}, os.O_RDWR); os.pwrite(f, b'after', 17); os.fsync(f); os.close(f)`);
    await cluster.evict();
    await succeedsSoon(`assert get(${at(file)}) == got[:17] + b'after' + got[22:]`);
    await restart('a2');
    await cluster.evict();
    await succeedsSoon(`assert get(${at(file)}) == got[:17] + b'after' + got[22:]`);
  });

  test('is EIO where no copy is left, and nowhere else', async () => {
    const file = name();
    await actor.do(`data = random.randbytes(500_000); put(${at(file)}, data)`);
    await actor.do(`g = os.open(${at(file)}, os.O_RDWR)`);
    await cluster.evict();
    await restart('a1');
    await succeedsSoon(`assert os.pread(g, 500_000, 0) == data`);
    await cluster.evict();
    await restart('a2');
    await failsSoon(`os.pread(g, 4096, 0)`);
    await failsSoon(`os.pread(g, 4096, 400_000)`);
    const info = await infoOf(cluster, file);
    expect(info.lost).toBe(true);
    expect(info.lostRanges.reduce((sum, { length }) => sum + length, 0)).toBeGreaterThanOrEqual(500_000);
    await succeedsSoon(`put(${at(file)} + '.new', data); assert get(${at(file)} + '.new') == data`);
  });

  test('is read and written on when an appliance falls silent', async () => {
    const file = name();
    await actor.do(`data = random.randbytes(${3 * MIB}); put(${at(file)}, data); f = os.open(${at(file)}, os.O_RDWR)`);
    await cluster.evict();
    await cluster.signal('a1', 'SIGSTOP');
    try {
      for (const call of [
        `assert os.pread(f, len(data), 0) == data`,
        `os.pwrite(f, b'new', 5)`,
        `os.fsync(f)`,
        `os.pwrite(f, b'more', 2_000_000)`,
        `os.fsync(f)`,
      ]) {
        await succeedsSoon(call);
      }
      await cluster.evict();
      await succeedsSoon(`data = data[:5] + b'new' + data[8:2_000_000] + b'more' + data[2_000_004:]; assert get(${at(file)}) == data`);
    } finally {
      await cluster.signal('a1', 'SIGCONT');
    }
    await until('the manager counts it', () => isUp(cluster));
    await cluster.evict();
    await succeedsSoon(`assert get(${at(file)}) == data`);
    expect((await infoOf(cluster, file)).missing).toEqual(['a1']);
  });
});

describe.each(['mirror', 'raid10'])('%s, shared by two mounts', (layout) => {
  const cluster = new TestCluster({ transport: 'tcp', cache: '32M', memory: '256M', appliances: 4, rebuild: 'off' });
  let writer: Actor;
  let reader: Actor;
  beforeAll(async () => {
    await cluster.start(2);
    [writer, reader] = [new Actor(), new Actor()];
  });
  afterAll(async () => {
    await Promise.all([writer.end(), reader.end()]);
    await cluster.stop();
  });

  test('each sees what the other wrote while an appliance dies, and copies are where they were asked for', async () => {
    await makeFolder(cluster, writer, 'both', layout);
    const here = quote(cluster.mount('m1').path('both/f'));
    const there = quote(cluster.mount('m2').path('both/f'));
    await writer.do(`data = random.Random(3).randbytes(${9 * MIB}); put(${here}, data); f = os.open(${here}, os.O_RDWR); os.fsync(f)`);
    await reader.do(`g = os.open(${there}, os.O_RDWR); assert os.pread(g, ${9 * MIB}, 0) == random.Random(3).randbytes(${9 * MIB})`);
    const { appliances, bears } = await infoOf(cluster, '/both/f');
    expect([appliances.length, bears]).toEqual([layout === 'mirror' ? 2 : 4, 1]);
    const [first = ''] = appliances;
    await cluster.signal(first, 'SIGKILL');
    for (let round = 0; round < 8; round += 1) {
      const offset = round * MIB + 100;
      const text = `b'round ${round} ' * 1000`;
      expect(await timed(writer, `os.pwrite(f, ${text}, ${offset})`)).toMatchObject({ error: '' });
      expect(await timed(reader, `assert os.pread(g, 8000, ${offset}) == ${text}; os.pwrite(g, b'seen', ${offset})`)).toMatchObject({
        error: '',
      });
      expect(await timed(writer, `assert os.pread(f, 8000, ${offset}) == b'seen' + (${text})[4:]`)).toMatchObject({ error: '' });
    }
    await writer.do(`os.fsync(f)`);
    expect((await infoOf(cluster, '/both/f')).missing).toEqual([first]);
    const { code, stderr } = await cluster.extmem('create', '/far', '--size', '1M', '--layout', 'mirror', '--across', 'host');
    expect([code, stderr]).toEqual([7, expect.stringContaining('on different hosts')]);
  });
});

test('an appliance that comes back with an earlier state is not believed, and the file is as it was last written', async () => {
  const cluster = new TestCluster({ transport: 'tcp', cache: '32M', memory: '256M', rebuild: 'off' });
  const actor = new Actor();
  const startA1 = (): Promise<unknown> => cluster.startAppliance('a1', '--store', join(cluster.folder, 'store'));
  try {
    await cluster.startManager();
    await startA1();
    await cluster.startAppliance('a2');
    await cluster.startMount('m1');
    await makeFolder(cluster, actor, 'copies', 'mirror');
    const kept = quote(cluster.mount().path('copies/kept'));
    const open = quote(cluster.mount().path('copies/open'));
    await actor.do(
      `old = random.randbytes(${2 * MIB}); put(${kept}, old); put(${open}, old); f = os.open(${open}, os.O_RDWR); os.fsync(f)`,
    );
    expect((await cluster.extmem('persist', '--all')).code).toBe(0);
    await actor.do(`new = random.randbytes(${2 * MIB}); put(${kept}, new); os.pwrite(f, new, 0); os.fsync(f)`);
    await cluster.evict();
    await cluster.signal('a1', 'SIGKILL');
    await startA1();
    await until('the manager counts it', () => isUp(cluster));
    await actor.do(`assert os.pread(f, len(new), 0) == new; os.pwrite(f, b'on', 0); os.fsync(f)`);
    await cluster.evict();
    await actor.do(`new = b'on' + new[2:]; assert get(${open}) == new and get(${kept})[2:] == new[2:]`);
    expect((await infoOf(cluster, '/copies/kept')).missing).toEqual(['a1']);
    expect((await infoOf(cluster, '/copies/open')).missing).toEqual(['a1']);
  } finally {
    await actor.end();
    await cluster.stop();
  }
}, 120_000);
