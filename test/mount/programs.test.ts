/**
 * Real programs on a mount: copies, archives, databases, verified random I/O and mappings. Each leaves the bytes that it would leave
 * on any other file system; another process reads them after every cache was emptied.
 */
import { mkdirSync, symlinkSync, utimesSync, writeFileSync, chmodSync, linkSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from '@jest/globals';
import { python } from '../python.js';
import { hashFile, makeRandomFile, succeed, TestCluster } from './cluster.js';

/** Odd, so that the last page is part of one; larger than the cache, so that it is read from the appliances. */
const FILE_BYTES = 12 * 1024 ** 2 + 1234;

describe.each(['tcp', 'shm'] as const)('over %s', (transport) => {
  const cluster = new TestCluster({ transport, cache: '8M', memory: '384M' });
  let source = '';
  let hash = '';
  let tree = '';

  const onMount = (name: string): string => cluster.mount().path(name);
  const hashOf = async (name: string): Promise<string> => (await succeed('sha256sum', [onMount(name)])).slice(0, 64);
  const hashAfterEviction = async (name: string): Promise<string> => {
    await cluster.evict();
    return hashOf(name);
  };

  beforeAll(async () => {
    await cluster.start();
    source = join(cluster.folder, 'source');
    hash = makeRandomFile(source, FILE_BYTES);
    tree = join(cluster.folder, 'tree');
    makeTree(tree);
  });
  afterAll(() => cluster.stop());

  test('cp: equal hashes before and after eviction, and copied back', async () => {
    await succeed('cp', [source, onMount('copied')]);
    expect(await hashOf('copied')).toBe(hash);
    expect(await hashAfterEviction('copied')).toBe(hash);
    await succeed('cp', [onMount('copied'), join(cluster.folder, 'back')]);
    expect(hashFile(join(cluster.folder, 'back'))).toBe(hash);
  });

  test('cp -a: a tree with its modes, times, links and attributes', async () => {
    await succeed('cp', ['-a', tree, onMount('tree')]);
    expect(await listing(onMount('tree'))).toBe(await listing(tree));
    await succeed('diff', ['-r', '--no-dereference', tree, onMount('tree')]);
  });

  test('mv and cp within the mount keep the bytes', async () => {
    await succeed('cp', [source, onMount('original')]);
    await succeed('cp', [onMount('original'), onMount('again')]);
    await succeed('mv', [onMount('again'), onMount('moved')]);
    expect(await hashAfterEviction('moved')).toBe(hash);
  });

  test.each([
    ['bs=1M', 'bs=1M'],
    ['bs=4093', 'bs=4093'],
    ['bs=128k oflag=direct', 'bs=128k', 'oflag=direct'],
  ])('dd of=mount %s', async (_what, ...flags) => {
    const whole = join(cluster.folder, 'whole');
    const wholeHash = makeRandomFile(whole, 4 * 1024 ** 2);
    await succeed('dd', [`if=${whole}`, `of=${onMount('dd')}`, 'status=none', ...flags]);
    expect(await hashAfterEviction('dd')).toBe(wholeHash);
  });

  test.each([
    ['bs=1M', 'bs=1M'],
    ['bs=1M iflag=direct', 'bs=1M', 'iflag=direct'],
    ['bs=7777', 'bs=7777'],
  ])('dd if=mount %s', async (_what, ...flags) => {
    await succeed('cp', [source, onMount('in')]);
    await cluster.evict();
    const out = join(cluster.folder, 'dd-out');
    await succeed('dd', [`if=${onMount('in')}`, `of=${out}`, 'status=none', ...flags]);
    expect(hashFile(out)).toBe(hash);
  });

  test('dd conv=notrunc,fsync with seek changes only its range', async () => {
    await succeed('cp', [source, onMount('patched')]);
    await succeed('cp', [source, join(cluster.folder, 'patched')]);
    for (const file of [onMount('patched'), join(cluster.folder, 'patched')])
      await succeed('dd', ['if=/dev/zero', `of=${file}`, 'bs=1001', 'seek=4321', 'count=3', 'conv=notrunc,fsync', 'status=none']);
    expect(await hashAfterEviction('patched')).toBe(hashFile(join(cluster.folder, 'patched')));
  });

  test('rsync: a tree, twice; the second time nothing is sent', async () => {
    await succeed('rsync', ['-aH', `${tree}/`, onMount('synced')]);
    await succeed('diff', ['-r', '--no-dereference', tree, onMount('synced')]);
    expect(await listing(onMount('synced'))).toBe(await listing(tree));
    expect(await succeed('rsync', ['-aHi', `${tree}/`, onMount('synced')])).toBe('');
  });

  test('rsync --inplace --checksum of a changed file', async () => {
    await succeed('cp', [source, onMount('inplace')]);
    const changed = join(cluster.folder, 'changed');
    await succeed('cp', [source, changed]);
    await succeed('dd', ['if=/dev/urandom', `of=${changed}`, 'bs=5000', 'seek=99', 'count=1', 'conv=notrunc', 'status=none']);
    await succeed('rsync', ['--inplace', '--no-whole-file', '--checksum', changed, onMount('inplace')]);
    expect(await hashAfterEviction('inplace')).toBe(hashFile(changed));
  });

  test('tar: packed on the mount, unpacked on the mount, compared', async () => {
    await succeed('tar', ['-cf', onMount('tree.tar'), '-C', tree, '.']);
    mkdirSync(join(cluster.folder, 'unpack'), { recursive: true });
    await succeed('mkdir', [onMount('unpacked')]);
    await succeed('tar', ['-xpf', onMount('tree.tar'), '-C', onMount('unpacked')]);
    await succeed('tar', ['-df', onMount('tree.tar'), '-C', onMount('unpacked')]);
    await succeed('diff', ['-r', '--no-dereference', tree, onMount('unpacked')]);
  });

  test.each(['wal', 'delete'])('sqlite3, journal_mode=%s: sound after eviction', async (journal) => {
    const database = onMount(`${journal}.db`);
    await succeed('sqlite3', [
      database,
      `PRAGMA journal_mode=${journal}; CREATE TABLE t(id INTEGER PRIMARY KEY, v BLOB);
       WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<2000) INSERT INTO t SELECT i, randomblob(i % 700) FROM n;`,
    ]);
    const changes = Array.from(
      { length: 20 },
      (_, at) => `BEGIN; UPDATE t SET v=randomblob(300) WHERE id%20=${at}; DELETE FROM t WHERE id%97=${at}; COMMIT;`,
    );
    await succeed('sqlite3', [database, ...changes]);
    await succeed('sqlite3', [database, 'VACUUM;']);
    await cluster.evict();
    const left = Array.from({ length: 2000 }, (_, index) => index + 1).filter((id) => id % 97 >= 20).length;
    expect(await succeed('sqlite3', [database, 'PRAGMA integrity_check; SELECT count(*) FROM t;'])).toBe(`ok\n${left}\n`);
  });

  test.each([
    ['mmap', ['--ioengine=mmap']],
    ['libaio and O_DIRECT', ['--ioengine=libaio', '--direct=1', '--iodepth=16']],
    ['pwrite of odd sizes', ['--ioengine=psync', '--bsrange=1k-20k', '--bs_unaligned=1']],
  ])('fio verifies what it wrote by %s', async (what, flags) => {
    const file = onMount(`fio-${what.slice(0, 4)}`);
    const parameters = [
      '--name=verify',
      `--filename=${file}`,
      '--size=12M',
      '--rw=randwrite',
      '--bs=4k',
      '--verify=crc32c',
      '--verify_fatal=1',
      '--randseed=7',
    ];
    const output = JSON.parse(await succeed('fio', [...parameters, ...flags, '--output-format=json'], cluster.folder)) as {
      jobs: { error: number; write: { total_ios: number } }[];
    };
    expect(output.jobs[0]?.error).toBe(0);
    await cluster.evict();
    await succeed('fio', [...parameters, ...flags, '--verify_only=1'], cluster.folder);
  });

  test('Python mmap: what one process stores another maps and reads', async () => {
    const file = onMount('mapped');
    const store = `
import mmap, os, random, hashlib, sys
size = 11 * 1024 * 1024 + 17
fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT); os.ftruncate(fd, size)
os.posix_fallocate(fd, 0, size)
m = mmap.mmap(fd, size)
random.seed(5)
for _ in range(3000):
    at = random.randrange(size - 900)
    m[at:at + 800] = random.randbytes(800)
m.flush()
print(hashlib.sha256(m[:]).hexdigest())`;
    const stored = await succeed(python, ['-c', store, file]);
    const map = `
import mmap, os, hashlib, sys
fd = os.open(sys.argv[1], os.O_RDONLY)
print(hashlib.sha256(mmap.mmap(fd, 0, prot=mmap.PROT_READ)[:]).hexdigest())`;
    expect(await succeed(python, ['-c', map, file])).toBe(stored);
    expect(`${await hashAfterEviction('mapped')}\n`).toBe(stored);
    await cluster.evict();
    expect(await succeed(python, ['-c', map, file])).toBe(stored);
  });

  test('no program left an error behind', async () => {
    const { cache } = await cluster.statistics();
    expect(cache?.['failedPages']).toBe(0);
  });
});

/** Files of sizes around a page, folders, links of both kinds, modes, times of the past. */
function makeTree(folder: string): void {
  mkdirSync(join(folder, 'inner/empty'), { recursive: true });
  for (const bytes of [0, 1, 4095, 4096, 4097, 300_001]) makeRandomFile(join(folder, `inner/of-${bytes}`), bytes);
  for (let at = 0; at < 20; at += 1) writeFileSync(join(folder, `inner/small-${at}`), `small ${at}`);
  writeFileSync(join(folder, 'script'), '#!/bin/sh\n');
  chmodSync(join(folder, 'script'), 0o751);
  symlinkSync('inner/of-4097', join(folder, 'link'));
  symlinkSync('/nowhere', join(folder, 'dangling'));
  linkSync(join(folder, 'script'), join(folder, 'hard'));
  utimesSync(join(folder, 'script'), 1_000_000_000.25, 1_100_000_000.75);
}

/** Everything but what must differ (device, inode, change time, a folder's size). */
function listing(folder: string): Promise<string> {
  return succeed('sh', [
    '-c',
    `cd '${folder}' && find . ! -type d -printf '%p %M %U %G %n %s %T@ %l\\n' -o -printf '%p %M %U %G\\n' | sort`,
  ]);
}
