/** Files in local memory by command: `extmem evict`, `warm`, `pin`, `unpin`, and what `status` and `info` tell of them. */
import { afterAll, beforeAll, describe, expect, test } from '@jest/globals';
import { open, rm, truncate } from 'node:fs/promises';
import { join } from 'node:path';
import type { FileResidency } from '../../src/fs/residency.js';
import { python } from '../python.js';
import { makeRandomFile, hashFile, run, succeed, TestCluster } from './cluster.js';

const MIB = 1 << 20;
const CACHE = 16 * MIB;

interface Told {
  files: (FileResidency & { path: string; droppedBytes?: number; unpinned?: boolean })[];
}

describe('files in local memory', () => {
  const cluster = new TestCluster({ transport: 'tcp', cache: `${CACHE}`, memory: '256M' });

  beforeAll(async () => {
    await cluster.start();
    for (const [name, size] of Object.entries({ small: 2 * MIB, other: 2 * MIB, large: 40 * MIB })) await copyIn(name, size);
  });
  afterAll(() => cluster.stop());

  const path = (name: string): string => cluster.mount().path(name);

  async function copyIn(name: string, bytes: number): Promise<void> {
    const outside = join(cluster.folder, name);
    makeRandomFile(outside, bytes);
    await succeed('cp', [outside, path(name)]);
    await succeed('sync', [path(name)]);
  }

  async function extmem(...parameters: string[]): Promise<Told['files']> {
    const { code, stdout, stderr } = await cluster.extmem(...parameters, '--json');
    expect({ code, stderr }).toEqual({ code: 0, stderr: '' });
    return (JSON.parse(stdout) as Told).files;
  }

  const readAll = (name: string): Promise<string> => succeed('dd', [`if=${path(name)}`, 'of=/dev/null', 'bs=1M']);

  async function kernelPages(name: string): Promise<number> {
    const told = await succeed('fincore', ['--bytes', '--raw', '--noheadings', '--output', 'RES', path(name)]);
    return Number(told.trim());
  }

  test('warm reads a file into our cache, or a range; evict drops it, from the kernel too', async () => {
    await extmem('evict', path('small'));
    const [part] = await extmem('warm', '--offset', '1M', '--length', '512K', path('small'));
    expect(part).toMatchObject({ cachedBytes: MIB / 2, warming: { state: 'done', doneBytes: MIB / 2 } });
    const warmed = await extmem('warm', path('small'), path('other'));
    expect(warmed.map(({ cachedBytes }) => cachedBytes)).toEqual([2 * MIB, 2 * MIB]);
    const { cache: before } = await cluster.statistics();
    await readAll('small');
    const { cache: after } = await cluster.statistics();
    expect(after?.['fills']).toBe(before?.['fills']); // it came from the cache
    expect(await kernelPages('small')).toBe(2 * MIB);
    const [evicted] = await extmem('evict', path('small'));
    expect(evicted).toMatchObject({ cachedBytes: 0, droppedBytes: 2 * MIB });
    expect(await kernelPages('small')).toBe(0);
  });

  test('what a mapping has dirtied in the kernel is not lost by evict', async () => {
    const program = `
import mmap, os, sys, subprocess
fd = os.open(sys.argv[1], os.O_RDWR)
mapping = mmap.mmap(fd, 0)
mapping[4096:4101] = b'dirty'
subprocess.run(sys.argv[2:], check=True, stdout=subprocess.DEVNULL)
assert mapping[4096:4101] == b'dirty'
os._exit(0)`;
    const cliOf = [process.execPath, join(import.meta.dirname, '../../src/cli/main.js'), 'evict', path('other')];
    const { code, stderr } = await run(python, ['-c', program, path('other'), ...cliOf], cluster.environment);
    expect({ code, stderr }).toEqual({ code: 0, stderr: '' });
    const file = await open(path('other'));
    const { buffer } = await file.read(Buffer.alloc(5), 0, 5, 4096);
    await file.close();
    expect(buffer.toString()).toBe('dirty');
  });

  test('a pinned file stays while more than the cache is read; unpinned it goes', async () => {
    const [pinned] = await extmem('pin', path('small'));
    expect(pinned).toMatchObject({ pinned: true, pinnedBytes: 2 * MIB });
    for (let round = 0; round < 3; round += 1) {
      await succeed(python, ['-c', `import os; os.posix_fadvise(os.open('${path('large')}', 0), 0, 0, os.POSIX_FADV_DONTNEED)`]);
      await readAll('large');
    }
    await extmem('evict', path('small')); // what is pinned stays
    await cluster.evict();
    const status = await cluster.extmem('status');
    expect(status.stdout).toMatch(/pinned: .*small, 2 MiB of 2 MiB here/);
    const info = await cluster.extmem('info', '/small', '--json');
    expect(JSON.parse(info.stdout)).toMatchObject({ pinnedHere: [{ mountPoint: cluster.mount().mountPoint, pinnedBytes: 2 * MIB }] });
    const { cache: before } = await cluster.statistics();
    expect(hashFile(path('small'))).toBe(hashFile(join(cluster.folder, 'small')));
    const { cache: after } = await cluster.statistics();
    expect(after?.['fills']).toBe(before?.['fills']);
    expect(await extmem('unpin', path('small'))).toMatchObject([{ unpinned: true }]);
    const [gone] = await extmem('evict', path('small'));
    expect(gone).toMatchObject({ pinned: false, cachedBytes: 0 });
  });

  test('what is written to a pinned file stays here too', async () => {
    await extmem('pin', path('small'));
    await truncate(path('small'), 0);
    await copyIn('small', 2 * MIB);
    await cluster.evict();
    const [told] = await extmem('warm', path('small'));
    expect(told).toMatchObject({ pinnedBytes: 2 * MIB });
    expect(hashFile(path('small'))).toBe(hashFile(join(cluster.folder, 'small')));
    await extmem('unpin', path('small'));
  });

  test('more than there is room for: pin is refused with what to do, warm leaves out the rest and says so', async () => {
    const refused = await cluster.extmem('pin', path('large'));
    expect(refused.code).toBe(1);
    expect(refused.stderr).toMatch(/pinning 40 MiB does not fit: .* 8 MiB may be pinned.*--cache/);
    const warmed = await cluster.extmem('warm', path('large'));
    expect(warmed).toMatchObject({ code: 0, stderr: expect.stringMatching(/the last 28 MiB do not fit/) as unknown });
    const { files } = await cluster.statistics();
    expect(files).toMatchObject({ pinned: [], reservedBytes: 0 });
  });

  test('a pin ends when the file is removed', async () => {
    await copyIn('brief', MIB);
    await extmem('pin', path('brief'));
    await rm(path('brief'));
    const { files, cache } = await cluster.statistics();
    expect(files).toMatchObject({ pinned: [], reservedBytes: 0 });
    expect(cache?.['pinnedBytes']).toBe(0);
  });

  test('a shared file is not cached, and warm says why; its other user sees what is written, pinned or not', async () => {
    await copyIn('shared', MIB);
    await extmem('pin', path('shared'));
    await cluster.startMount('m2');
    const writer = await open(cluster.mount('m2').path('shared'), 'r+');
    await writer.write('from elsewhere', 0);
    const reader = await open(path('shared'));
    const { buffer } = await reader.read(Buffer.alloc(14), 0, 14, 0);
    expect(buffer.toString()).toBe('from elsewhere');
    const warmed = await cluster.extmem('warm', path('shared'));
    expect(warmed).toMatchObject({ code: 6, stderr: expect.stringMatching(/another mount has the file open/) as unknown });
    await writer.close();
    await reader.close();
    await extmem('unpin', path('shared'));
  });

  test.each([
    [['warm', '/proc/self/status'], 1, /on no extmem mount/],
    [['pin', 'MOUNT/nothing'], 5, /no such file/],
    [['pin', 'MOUNT'], 1, /is a folder; name the files in it/],
    [['warm', '--offset', 'far', 'MOUNT/small'], 2, /not a size/],
    [['unpin'], 2, /missing required argument|which files/],
  ])('%p: exit %i, and why', async (parameters, exit, why) => {
    const { code, stderr } = await cluster.extmem(...parameters.map((word) => word.replace('MOUNT', cluster.mount().mountPoint)));
    expect({ code, stderr }).toEqual({ code: exit, stderr: expect.stringMatching(why) as unknown });
  });

  describe('read-ahead', () => {
    /** Reads so many pages of the large file, each as the kernel is told of it alone, in the order that `pages` gives; what it cost. */
    async function readPages(pages: string): Promise<{ asked: number; here: number; unused: number; wasted: number }> {
      const program = `
import os, random, sys
fd = os.open(sys.argv[1], os.O_RDONLY)
os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
chance = random.Random(4)
for page in ${pages}:
    assert len(os.pread(fd, 4096, page * 4096)) == 4096`;
      await extmem('evict', path('large'));
      const { cache: before = {} } = await cluster.statistics();
      await succeed(python, ['-c', program, path('large')]);
      const { cache: after = {} } = await cluster.statistics();
      const of = (name: string): number => (after[name] ?? 0) - (before[name] ?? 0);
      const asked = of('hits') + of('misses');
      return { asked, here: of('hits') / asked, unused: (of('readAhead') - of('readAheadUsed')) / asked, wasted: of('readAheadWasted') };
    }

    test.each([
      ['onwards', 'range(4000)'],
      ['backwards', 'range(4999, 999, -1)'],
      ['by a stride', 'range(5, 9000, 3)'],
      ['of two readers in turns', '(page for step in range(2000) for page in (step, 5000 + step))'],
      [
        'with one in ten anywhere',
        '(page for step in range(4000) for page in ((step, chance.randrange(5000, 10240)) if step % 10 == 9 else (step,)))',
      ],
    ])('most pages of a stream %s are there when they are asked for', async (_, pages) => {
      const { here, unused } = await readPages(pages);
      expect(here).toBeGreaterThan(0.8);
      expect(unused).toBeLessThan(0.3);
    });

    test('of random reads next to nothing is read ahead', async () => {
      const { asked, unused } = await readPages('(chance.randrange(10240) for _ in range(3000))');
      expect(asked).toBeGreaterThan(2000);
      expect(unused).toBeLessThan(0.05);
    });

    test('what goes unasked for is counted, and told by status', async () => {
      await readPages('[*range(3000)]');
      const { wasted } = await readPages('[*range(4000, 10240)]');
      expect(wasted).toBe(0); // a stream that was read to the end
      const { stdout } = await cluster.extmem('status');
      expect(stdout).toMatch(/read-ahead: [\d.]+ \w+, [\d.]+ ?% of it asked for since; [\d.]+ \w+ went unasked for/);
    });
  });
});
