/** Watching what is read and written on a mount (C12): by the library's hook, and by `extmem watch`. */
import { afterAll, beforeAll, expect, test } from '@jest/globals';
import { onOperations, type OperationsReport, type OperationsWatch, type WatchOptions } from '../../src/client/index.js';
import { until } from '../until.js';
import { Actor } from './actor.js';
import { quote } from './bad_days.js';
import { TestCluster } from './cluster.js';

const MIB = 1 << 20;

const cluster = new TestCluster({ appliances: 1, transport: 'tcp', cache: '32M' });
const actor = new Actor();
const runtimeDir = process.env['EXTMEM_RUNTIME_DIR'];
const path = (name: string): string => cluster.mount().path(name);

interface Sums {
  reports: OperationsReport[];
  watch: OperationsWatch;
  of: (ino: number) => { reads: number; readBytes: number; hits: number; writes: number; writtenBytes: number; mappedWrites: number };
}

async function watched(options: WatchOptions = {}): Promise<Sums> {
  const reports: OperationsReport[] = [];
  const watch = await onOperations(cluster.mount().mountPoint, (report) => void reports.push(report), { intervalMs: 100, ...options });
  const of = (ino: number): ReturnType<Sums['of']> => {
    const sums = { reads: 0, readBytes: 0, hits: 0, writes: 0, writtenBytes: 0, mappedWrites: 0 };
    for (const file of reports.flatMap(({ files }) => files))
      if (file.ino === ino) for (const key of Object.keys(sums) as (keyof typeof sums)[]) sums[key] += file[key];
    return sums;
  };
  return { reports, watch, of };
}

const inoOf = (name: string): Promise<number> => actor.do<number>(`os.stat(${quote(path(name))}).st_ino`);

beforeAll(async () => {
  await cluster.start();
  process.env['EXTMEM_RUNTIME_DIR'] = cluster.environment['EXTMEM_RUNTIME_DIR'] ?? '';
  await actor.do(`
put(${quote(path('table'))}, bytes(8 << 20)); put(${quote(path('other'))}, bytes(4096))
buffer = mmap.mmap(-1, 65536)
def direct(f, at): return os.preadv(f, [buffer], at)`);
});
afterAll(async () => {
  if (runtimeDir === undefined) delete process.env['EXTMEM_RUNTIME_DIR'];
  else process.env['EXTMEM_RUNTIME_DIR'] = runtimeDir;
  await actor.end();
  await cluster.stop();
});

test('reads and writes are told by file, with what was in the cache and where it was hot', async () => {
  await cluster.evict();
  const { reports, watch, of } = await watched();
  const [table, other] = [await inoOf('table'), await inoOf('other')];
  await actor.do(`
f = os.open(${quote(path('table'))}, os.O_RDWR | os.O_DIRECT)
for turn in range(10): direct(f, 5 << 20)
os.pwritev(f, [buffer], 0); os.close(f)
g = os.open(${quote(path('other'))}, os.O_RDWR); m = mmap.mmap(g, 4096); m[0] = 1; m.flush(); m.close(); os.close(g)`);
  await until('all is told', () => of(table).writes > 0 && of(other).mappedWrites > 0);
  watch.close();
  await watch.ended;
  expect(of(table)).toEqual({ reads: 10, readBytes: 10 * 65536, hits: 9, writes: 1, writtenBytes: 65536, mappedWrites: 0 });
  expect(of(other)).toMatchObject({ writes: 1, writtenBytes: 4096, mappedWrites: 1 });
  const hot = reports.flatMap(({ files }) => files.filter(({ ino }) => ino === table).flatMap((file) => file.hot));
  const uses = (offset: number): number => hot.filter((one) => one.offset === offset).reduce((sum, one) => sum + one.operations, 0);
  expect([uses(4 * MIB), uses(0)]).toEqual([10, 1]);
});

test('who watches one file is told of that one; each is told everything, at an interval of its own', async () => {
  const one = await watched({ file: path('other') });
  const all = await watched({ intervalMs: 300 });
  const [table, other] = [await inoOf('table'), await inoOf('other')];
  await actor.do(`
f = os.open(${quote(path('table'))}, os.O_RDONLY | os.O_DIRECT); direct(f, 0); os.close(f)
g = os.open(${quote(path('other'))}, os.O_RDWR | os.O_DIRECT)
for turn in range(50): os.preadv(g, [memoryview(buffer)[:4096]], 0)
os.close(g)`);
  await until('both are told', () => one.of(other).reads === 50 && all.of(other).reads === 50 && all.of(table).reads === 1);
  expect(one.of(table).reads).toBe(0);
  one.watch.close();
  all.watch.close();
});

test('the command tells intervals as lines of JSON', async () => {
  const watching = cluster.extmem('watch', path('table'), '--interval', '200', '--count', '3', '--json');
  const { code, stdout, stderr } = await watching;
  expect({ code, stderr }).toEqual({ code: 0, stderr: '' });
  const reports = stdout.trimEnd().split('\n');
  expect(reports.map((line) => Object.keys(JSON.parse(line) as OperationsReport))).toEqual(
    Array(3).fill(['atMs', 'intervalMs', 'files', 'otherOperations']),
  );
});

test('what cannot be watched is refused, with what to do', async () => {
  await expect(onOperations('/nowhere', () => undefined)).rejects.toMatchObject({ code: 'ENOTCONN' });
  await expect(watched({ intervalMs: 5 })).rejects.toThrow(/between 100 and 3600000 ms/);
  const watches = await Promise.all(Array.from({ length: 16 }, () => watched()));
  await expect(watched()).rejects.toMatchObject({ code: 'EBUSY' });
  for (const { watch } of watches) watch.close();
  await until('there is room again', async () => {
    const { watch } = await watched();
    watch.close();
    return true;
  });
  expect((await cluster.extmem('watch', '/etc/hostname')).stderr).toMatch(/is on no extmem mount/);
});

test('a watch ends with the mount', async () => {
  const { watch } = await watched();
  await actor.end();
  await cluster.extmem('umount', cluster.mount().mountPoint);
  await watch.ended;
});
