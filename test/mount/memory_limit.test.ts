/**
 * The limit that a user sets on local memory (C10): our frames and the kernel's pages of our files together stay within 10 % of it,
 * whatever is done with four times as much. The kernel's pages are counted by the kernel: by the memory cgroup of who brings them in.
 */
import { afterAll, beforeAll, describe, expect, test } from '@jest/globals';
import { setInterval } from 'node:timers/promises';
import { python } from '../python.js';
import { MemoryCgroup } from './cgroup.js';
import { succeed, TestCluster } from './cluster.js';
import { verifiedWriters } from './pressure_programs.js';

const MIB = 1 << 20;
const CACHE = 8 * MIB;
const LIMIT = 32 * MIB;
/** Of libraries that a program loads for the first time. */
const PROGRAMS = MIB / 2;
const WORKING_SET = 4 * LIMIT;
const SAMPLE_MS = 2;

const SMALL_FILES = `
import os, sys
folder, count, size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
os.mkdir(folder)
def content(index): return (index * 2654435761 & 0xffffffffffff).to_bytes(8, 'little') * (size // 8)
for index in range(count):
    with open(f'{folder}/{index}', 'wb') as file: file.write(content(index))
for index in range(count):
    with open(f'{folder}/{index}', 'rb') as file: assert file.read() == content(index), f'file {index}: not what was written'
`;

/** Reads a file through a mapping, forwards and then pages at random, beside what it holds. */
const MAPPED_READER = `
import mmap, os, random, sys
path, seed = sys.argv[1], int(sys.argv[2])
fd = os.open(path, os.O_RDONLY)
size = os.fstat(fd).st_size
mapping = mmap.mmap(fd, size, prot=mmap.PROT_READ)
sequential = sum(mapping[at] for at in range(0, size, 4096))
pages = list(range(0, size, 4096))
assert sum(mapping[at] for at in reversed(pages)) == sequential
random.Random(seed).shuffle(pages)
for at in pages[:1000]: assert os.pread(fd, 4096, at) == mapping[at : at + 4096]
`;

/** Stores to every page in random order, a second time to every fourth; then reads all of it, in order. */
const MAPPED_WRITER = `
import mmap, os, random, sys
path, size, seed = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
fd = os.open(path, os.O_RDWR | os.O_CREAT)
os.posix_fallocate(fd, 0, size)
mapping = mmap.mmap(fd, size)
pages = list(range(size // 4096))
random.Random(seed).shuffle(pages)
def content(page, version): return (page * 2654435761 + version * seed & 0xffffffffffff).to_bytes(8, 'little') * 512
for page in pages: mapping[page * 4096 : (page + 1) * 4096] = content(page, 1)
again = set(pages[: len(pages) // 4])
for page in again: mapping[page * 4096 : (page + 1) * 4096] = content(page, 2)
for page in range(size // 4096):
    assert mapping[page * 4096 : (page + 1) * 4096] == content(page, 2 if page in again else 1), f'page {page}: not what was written'
`;

describe.each(['tcp', 'shm'] as const)('over %s', (transport) => {
  const cluster = new TestCluster({ transport, cache: `${CACHE}`, memory: '512M' });
  let application: MemoryCgroup;
  let before = 0;

  beforeAll(async () => {
    application = MemoryCgroup.create('limit', 1024 * MIB);
    await cluster.start(0);
    await cluster.startMount('m1', '--memory-limit', `${LIMIT}`);
    // The programs' own pages are not of our files.
    for (const program of [
      [python, '-c', 'import mmap, random'],
      ['dd', '--version'],
      ['fio', '--version'],
    ])
      await inside(...program);
    before = application.cachedBytes;
  });
  afterAll(async () => {
    await cluster.stop();
    application.remove();
  });

  const inside = (...command: string[]): Promise<string> => {
    const [program, ...parameters] = [...application.runner(), ...command];
    return succeed(program ?? '', parameters);
  };

  /** The most that the kernel held of our files while the command ran. */
  async function peakOf(...command: string[]): Promise<number> {
    let peak = 0;
    let running = true;
    const ended = inside(...command).finally(() => (running = false));
    for await (const _ of setInterval(SAMPLE_MS)) {
      if (!running) break;
      peak = Math.max(peak, application.cachedBytes - before);
    }
    await ended;
    return peak;
  }

  async function expectWithinLimit(...command: string[]): Promise<void> {
    const peak = await peakOf(...command);
    const { cache, kernel } = await cluster.statistics();
    const resident = cache?.['residentBytes'] ?? NaN; // never less than it was
    expect(resident).toBeLessThanOrEqual(CACHE);
    expect((resident + peak) / LIMIT).toBeLessThanOrEqual(1.1);
    expect(kernel?.['droppedBytes']).toBeGreaterThan(0);
    // What is told is never less than what is there.
    expect(kernel?.['pageBytes']).toBeGreaterThanOrEqual(application.cachedBytes - before - PROGRAMS);
  }

  const path = (name: string): string => cluster.mount().path(name);

  test('a buffered writer, and a reader, of one large file', async () => {
    await expectWithinLimit('dd', 'if=/dev/urandom', `of=${path('large')}`, 'bs=1M', `count=${WORKING_SET / MIB}`);
    await expectWithinLimit('dd', `if=${path('large')}`, 'of=/dev/null', 'bs=1M');
  }, 120_000);

  test('a reader through a mapping, forwards and at random', async () => {
    await expectWithinLimit(python, '-c', MAPPED_READER, path('large'), '3');
  }, 120_000);

  test('stores through a shared mapping', async () => {
    await expectWithinLimit(python, '-c', MAPPED_WRITER, path('mapped'), String(WORKING_SET), '5');
  }, 120_000);

  test('writers at random places, verified', async () => {
    await expectWithinLimit(...verifiedWriters(cluster.mount().mountPoint, WORKING_SET));
  }, 120_000);

  test('many small files, which are closed', async () => {
    await expectWithinLimit(python, '-c', SMALL_FILES, path('small'), String(WORKING_SET / 65536), '65536');
  }, 120_000);
});
