/**
 * The manager is killed (kill -9), and started again: what is open goes on, names wait for it with EIO, and it catches up by itself.
 */
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from '@jest/globals';
import { until } from '../until.js';
import { Actor } from './actor.js';
import { allocationsOf, LIMIT_MS, quote, sessionState, timed } from './bad_days.js';
import { TestCluster, within } from './cluster.js';

const MIB = 1024 ** 2;

describe.each(['tcp', 'shm'] as const)('the manager killed, over %s', (transport) => {
  const cluster = new TestCluster({ transport, cache: '32M', memory: '192M' });
  let actor: Actor;
  const at = (name: string): string => quote(cluster.mount().path(name));
  const kill = (): Promise<void> => cluster.signal('manager', 'SIGKILL');
  const isResumed = (): Promise<boolean> => sessionState(cluster).then((state) => state === 'alive');
  const restart = async (): Promise<void> => {
    await cluster.startManager();
    await until('the mount resumes its session', isResumed);
  };
  /** A call that must fail, soon, with EIO. */
  const failsSoon = async (code: string): Promise<void> => {
    const { error, ms } = await timed(actor, code);
    expect({ code, error }).toEqual({ code, error: 'EIO' });
    expect(ms).toBeLessThan(LIMIT_MS);
  };

  beforeAll(() => cluster.start());
  afterAll(() => cluster.stop());
  beforeEach(() => void (actor = new Actor()));
  afterEach(() => actor.end());

  test('open files go on being read and written, and fsync succeeds', async () => {
    await actor.do(
      `f = os.open(${at('open')}, os.O_RDWR | os.O_CREAT); before = random.randbytes(3 << 20); os.write(f, before); os.fsync(f)`,
    );
    await kill();
    const { error, ms } = await timed(
      actor,
      `after = random.randbytes(1 << 20)
os.pwrite(f, after, 1 << 20)
os.fsync(f)
assert os.pread(f, 3 << 20, 0) == before[:1 << 20] + after + before[2 << 20:]`,
    );
    expect(error).toBe('');
    expect(ms).toBeLessThan(LIMIT_MS);
    await cluster.evict();
    expect(await actor.do(`os.pread(f, 3 << 20, 0) == before[:1 << 20] + after + before[2 << 20:]`)).toBe(true);
    await restart();
    expect(await actor.do(`os.pread(f, 3 << 20, 0) == before[:1 << 20] + after + before[2 << 20:]`)).toBe(true);
  });

  test('open, create, unlink, rename, mkdir and truncate fail with EIO, and nothing is half done', async () => {
    await allocationsOf(cluster).create('/elsewhere', { bytes: 8192 });
    await actor.do(`put(${at('stays')}, b'stays'); put(${at('other')}, b'other'); f = os.open(${at('stays')}, os.O_RDWR)`);
    await kill();
    await failsSoon(`os.open(${at('elsewhere')}, os.O_RDONLY)`);
    await failsSoon(`os.open(${at('new')}, os.O_RDWR | os.O_CREAT)`);
    await failsSoon(`os.unlink(${at('stays')})`);
    await failsSoon(`os.rename(${at('stays')}, ${at('other')})`);
    await failsSoon(`os.rename(${at('stays')}, ${at('moved')})`);
    await failsSoon(`os.mkdir(${at('folder')})`);
    await failsSoon(`os.ftruncate(f, 2)`);
    await failsSoon(`os.symlink('x', ${at('symlink')})`);
    await failsSoon(`os.link(${at('stays')}, ${at('link')})`);
    await restart();
    const names = await actor.do<string[]>(`sorted(os.listdir(${quote(cluster.mount().mountPoint)}))`);
    expect(names).toEqual(expect.arrayContaining(['elsewhere', 'other', 'stays']));
    for (const name of ['new', 'moved', 'folder', 'symlink', 'link']) expect(names).not.toContain(name);
    expect(await actor.do(`get(${at('stays')})`)).toBe('stays');
    expect(await actor.do(`get(${at('other')})`)).toBe('other');
    await actor.do(`os.rename(${at('stays')}, ${at('moved')}); os.unlink(${at('other')}); os.unlink(${at('moved')})`);
  });

  test('the manager that is back learns sizes and times without anybody asking', async () => {
    await actor.do(`f = os.open(${at('grown')}, os.O_RDWR | os.O_CREAT); os.write(f, bytes(5000)); os.fsync(f)`);
    await kill();
    await actor.do(`os.pwrite(f, bytes(70000), 5000); os.fsync(f)`);
    const [size, mtime] = await actor.do<[number, number]>(`(os.fstat(f).st_size, os.fstat(f).st_mtime)`);
    expect(size).toBe(75000);
    await restart();
    await until('the manager has the new size', async () => (await allocationsOf(cluster).info('/grown')).attr.size === 75000);
    const [seconds] = (await allocationsOf(cluster).info('/grown')).attr.mtime;
    expect(seconds).toBe(Math.floor(mtime));
    expect(await actor.do(`st = os.stat(${at('grown')}); (st.st_size, st.st_mtime)`)).toEqual([size, mtime]);
  });

  test('a file that was closed while it was dead has its bytes and its size afterwards', async () => {
    await actor.do(`f = os.open(${at('closed')}, os.O_RDWR | os.O_CREAT); os.write(f, b'first'); os.fsync(f)`);
    await kill();
    await actor.do(`data = random.randbytes(300001); os.pwrite(f, data, 0); os.close(f)`);
    await restart();
    await cluster.evict();
    expect(await actor.do(`get(${at('closed')}) == data`)).toBe(true);
    await until('the manager has the new size', async () => (await allocationsOf(cluster).info('/closed')).attr.size === 300001);
  });

  test('a file grows within the reserve; beyond it a write fails with ENOSPC and breaks nothing', async () => {
    await actor.do(`f = os.open(${at('growing')}, os.O_RDWR | os.O_CREAT); piece = random.randbytes(1 << 20)`);
    await kill();
    const grow = `
done = 0
while True:
    try: done += os.pwrite(f, piece, done)
    except OSError as error: failed = errno.errorcode[error.errno]; break
(done, failed)`;
    const [written, failed] = await actor.do<[number, string]>(grow);
    expect(failed).toBe('ENOSPC');
    expect(written).toBeGreaterThanOrEqual(8 * MIB);
    await actor.do(`os.fsync(f)`);
    await cluster.evict();
    expect(
      await actor.do(
        `all(os.pread(f, 1 << 20, at) == piece[:max(0, min(1 << 20, ${written} - at))] for at in range(0, ${written}, 1 << 20))`,
      ),
    ).toBe(true);
    await restart();
    await until('there is room again', async () => (await timed(actor, `os.pwrite(f, piece, ${written})`)).error === '');
    await actor.do(`os.close(f); os.unlink(${at('growing')})`);
  });

  test('mount and manager killed, both started again: what was fsynced is there', async () => {
    await actor.do(`
data = random.randbytes(2_500_123); files = []
for i in range(12):
    f = os.open(${quote(cluster.mount().mountPoint)} + f'/durable-{i}', os.O_RDWR | os.O_CREAT); os.write(f, b'old'); os.fsync(f); files.append(f)`);
    await kill();
    await actor.do(`
for i, f in enumerate(files): os.pwrite(f, data[i * 1000:], 0); os.fsync(f)`);
    await cluster.signal('m1', 'SIGKILL');
    await cluster.startManager();
    expect((await cluster.extmem('umount', cluster.folder + '/m1')).code).toBe(0);
    await cluster.startMount('m1');
    const { error } = await within(
      timed(
        actor,
        `for i in range(12):
    assert get(${quote(cluster.mount().mountPoint)} + f'/durable-{i}') == data[i * 1000:], i`,
      ),
      30_000,
      'reading back',
    );
    expect(error).toBe('');
  });
});
