/** Two mounts of one cluster: what one does, the other sees when the call returns. */
import { afterAll, beforeAll, describe, expect, test } from '@jest/globals';
import { Actor } from './actor.js';
import { run, succeed, TestCluster } from './cluster.js';

describe('two mounts', () => {
  const cluster = new TestCluster({ transport: 'tcp', cache: '32M', memory: '512M' });
  let a: Actor;
  let b: Actor;

  beforeAll(async () => {
    await cluster.start(2);
    a = new Actor(cluster.mount('m1').mountPoint);
    b = new Actor(cluster.mount('m2').mountPoint);
  }, 60_000);
  afterAll(async () => {
    await Promise.all([a.end(), b.end()]);
    await cluster.stop();
  }, 60_000);

  test('a file that was looked for in vain is there once the other made it', async () => {
    expect(await b.do(`os.path.exists('late')`)).toBe(false);
    await a.do(`open('late', 'w').write('here')`);
    expect(await b.do(`open('late').read()`)).toBe('here');
  });

  test('A reads, B rewrites, A reads again: no stale page', async () => {
    await a.do(`open('aba', 'w').write('one' * 5000)`);
    expect(await a.do(`open('aba').read() == 'one' * 5000`)).toBe(true);
    await b.do(`open('aba', 'w').write('two' * 4000)`);
    expect(await a.do(`open('aba').read() == 'two' * 4000`)).toBe(true);
  });

  test('growth and truncation are seen by who has the file open', async () => {
    await a.do(`fa = os.open('size', os.O_CREAT | os.O_RDWR); os.write(fa, b'x' * 10000)`);
    await b.do(`fb = os.open('size', os.O_RDONLY)`);
    expect(await b.do(`len(os.pread(fb, 20000, 0))`)).toBe(10000);
    await a.do(`os.pwrite(fa, b'y' * 5000, 10000)`);
    expect(await b.do(`os.pread(fb, 20000, 0)[9999:] == b'x' + b'y' * 5000`)).toBe(true);
    await a.do(`os.ftruncate(fa, 3)`);
    expect(await b.do(`os.fstat(fb).st_size`)).toBe(3);
    expect(await b.do(`len(os.pread(fb, 20000, 0))`)).toBe(3);
    await a.do(`os.close(fa)`);
    await b.do(`os.close(fb)`);
  });

  test('a read of an open file ends where the other has cut it', async () => {
    await a.do(`fa = os.open('cut', os.O_CREAT | os.O_RDWR); os.pwrite(fa, b'x' * 1_000_000, 0)`);
    expect(await b.do(`fb = os.open('cut', os.O_RDONLY); len(os.pread(fb, 1_000_000, 0))`)).toBe(1_000_000);
    await a.do(`os.ftruncate(fa, 415_261)`);
    expect(await b.do(`len(os.pread(fb, 1_000_000, 0))`)).toBe(415_261);
    await a.do(`os.close(fa)`);
    await b.do(`os.close(fb)`);
  });

  test('fallocate beyond the end is seen by the other', async () => {
    await a.do(`fa = os.open('longer', os.O_CREAT | os.O_RDWR); os.pwrite(fa, b'x' * 100, 0)`);
    await b.do(`fb = os.open('longer', os.O_RDWR)`);
    await a.do(`fallocate(fa, 0, 0, 50_000)`);
    expect(await b.do(`os.fstat(fb).st_size, os.pread(fb, 50_000, 0) == b'x' * 100 + bytes(49_900)`)).toEqual([50_000, true]);
    await a.do(`os.close(fa)`);
    await b.do(`os.close(fb)`);
  });

  test.each([
    ['within a page', 5000, 100],
    ['over pages, its ends within some', 5000, 20_000],
  ])('a hole %s that one punches is zeros for the other, which had read it', async (_, offset, length) => {
    await a.do(`fa = os.open('hole', os.O_CREAT | os.O_RDWR); data = bytearray(random.randbytes(40_000)); os.pwrite(fa, data, 0)`);
    expect(await b.do(`fb = os.open('hole', os.O_RDONLY); sha(os.pread(fb, 40_000, 0))`)).toBe(await a.do(`sha(data)`));
    await a.do(`fallocate(fa, 3, ${offset}, ${length}); data[${offset}:${offset + length}] = bytes(${length})`);
    expect(await b.do(`sha(os.pread(fb, 40_000, 0))`)).toBe(await a.do(`sha(data)`));
    await a.do(`os.close(fa)`);
    await b.do(`os.close(fb)`);
  });

  test('who could only read a region can write to it once a file that it writes lies there', async () => {
    await a.do(`put('other', b'x' * 5000)`);
    expect(await b.do(`len(get('other'))`)).toBe(5000);
    await a.do(`fa = os.open('both', os.O_CREAT | os.O_RDWR)`);
    await b.do(`fb = os.open('both', os.O_RDWR)`);
    await a.do(`os.pwrite(fa, b'a' * 8192, 0)`);
    await b.do(`os.pwrite(fb, b'b' * 4096, 4096)`);
    expect(await a.do(`os.pread(fa, 8192, 0) == b'a' * 4096 + b'b' * 4096`)).toBe(true);
    await a.do(`os.close(fa)`);
    await b.do(`os.close(fb)`);
  });

  test('pages that a mapping has dirtied do not bring back what the other has cut off', async () => {
    await a.do(`fa = os.open('mapped', os.O_CREAT | os.O_RDWR); os.pwrite(fa, b'x' * 8192, 0)`);
    await b.do(`fb = os.open('mapped', os.O_RDWR); m = mmap.mmap(fb, 8192); m[5000:5005] = b'dirty'`);
    await a.do(`os.ftruncate(fa, 100)`);
    await b.do(`m.flush()`);
    expect(await a.do(`os.fstat(fa).st_size`)).toBe(100);
    expect(await b.do(`os.fstat(fb).st_size`)).toBe(100);
    await a.do(`os.close(fa)`);
    await b.do(`m.close(); os.close(fb)`);
  });

  test('a file replaced by rename is the new one at once', async () => {
    await a.do(`open('target', 'w').write('old')`);
    expect(await b.do(`open('target').read()`)).toBe('old');
    await a.do(`open('fresh', 'w').write('new content')`);
    await a.do(`os.rename('fresh', 'target')`);
    expect(await b.do(`open('target').read()`)).toBe('new content');
    expect(await b.do(`os.path.exists('fresh')`)).toBe(false);
  });

  test('what a mount leaves behind another takes over: not a byte is copied, and it stays where it is', async () => {
    const bytes = 8 << 20;
    const giver = new Actor((await cluster.startMount('giver')).mountPoint);
    await giver.do(
      `f = open('handed', 'w+b'); f.truncate(${bytes}); m = mmap.mmap(f.fileno(), ${bytes}); m[:] = random.randbytes(${bytes})`,
    );
    const hash = await giver.do<string>(`m.flush(); hashlib.sha256(m).hexdigest()`);
    await giver.do(`m.close(); f.close()`);
    await giver.end();
    await cluster.signal('giver', 'SIGTERM');

    const places = async (): Promise<unknown> =>
      (JSON.parse((await cluster.extmem('info', '/handed', '--json')).stdout) as { regions: unknown }).regions;
    const moved = async (what: 'bytesRead' | 'bytesWritten'): Promise<number> => {
      const { fabric } = (await cluster.statistics('m2')) as unknown as { fabric: Record<string, Record<typeof what, number>> };
      return Object.values(fabric).reduce((sum, peer) => sum + peer[what], 0);
    };
    const [before, read, written] = [await places(), await moved('bytesRead'), await moved('bytesWritten')];
    expect(before).not.toEqual([]);
    await b.do(`g = open('handed', 'r+b'); m = mmap.mmap(g.fileno(), 0)`);
    expect(await moved('bytesRead')).toBe(read);
    expect(await b.do(`hashlib.sha256(m).hexdigest()`)).toBe(hash);
    expect(await moved('bytesWritten')).toBe(written);
    await b.do(`m[:4] = b'mine'; m.flush(); m.close(); g.close()`);
    expect(await places()).toEqual(before);
    expect(await a.do(`get('handed')[:4] == b'mine'`)).toBe(true);
  });

  test('two sqlite writers, one on each mount, lose no row', async () => {
    const rows = 150;
    const path = (mount: string): string => cluster.mount(mount).path('shared.db');
    await succeed('sqlite3', [path('m1'), 'create table t (who text, n integer)']);
    const inserts = (who: string): string => Array.from({ length: rows }, (_, n) => `insert into t values ('${who}', ${n});`).join('\n');
    const write = (mount: string): ReturnType<typeof run> =>
      run('sqlite3', ['-bail', '-cmd', '.timeout 60000', path(mount), inserts(mount)]);
    const ended = await Promise.all([write('m1'), write('m2')]);
    expect(ended.map(({ code, stderr }) => ({ code, stderr }))).toEqual([
      { code: 0, stderr: '' },
      { code: 0, stderr: '' },
    ]);
    const found = await succeed('sqlite3', [path('m2'), 'pragma integrity_check; select count(*), count(distinct who || n) from t']);
    expect(found.trim()).toBe(`ok\n${2 * rows}|${2 * rows}`);
  }, 120_000);
});
