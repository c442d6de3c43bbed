/**
 * The session over io_uring: when it is chosen, what happens where it cannot be had, and what only it could get wrong. That it serves
 * as /dev/fuse does is what all other mount tests check, run with EXTMEM_IO_URING=on. Needs root, for the kernel's switch.
 */
import { existsSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import { join } from 'node:path';
import { afterAll, afterEach, beforeAll, describe, expect, test } from '@jest/globals';
import { until } from '../until.js';
import { Actor } from './actor.js';
import { LIMIT_MS, makeConcatFolder, makeFileOn, quote, timed } from './bad_days.js';
import { TestCluster, within } from './cluster.js';
import { forbidding } from './sandbox.js';

const SWITCH = '/sys/module/fuse/parameters/enable_uring';
const found = existsSync(SWITCH) && process.getuid?.() === 0 ? readFileSync(SWITCH, 'utf8').trim() : undefined;
const turn = (value: 'Y' | 'N'): void => writeFileSync(SWITCH, value);
// Lanes of CI that must have it run with EXTMEM_IO_URING=on, and there it is no reason to skip.
const describeHere = found === undefined && process.env['EXTMEM_IO_URING'] !== 'on' ? describe.skip : describe;

/** Until so many threads of a process wait for a FUSE server. */
function untilWaiting(pid: number, threads: number): Promise<void> {
  const waits = (thread: string): boolean => readFileSync(`/proc/${pid}/task/${thread}/wchan`, 'utf8') === 'request_wait_answer';
  return until(`${threads} threads wait`, () => readdirSync(`/proc/${pid}/task`).filter(waits).length >= threads);
}

describeHere('FUSE over io_uring', () => {
  const cluster = new TestCluster({ cache: '32M', memory: '256M', ioUring: 'auto' });
  const session = async (): Promise<unknown> => (await cluster.statistics()).fuse?.['session'];
  const refused = async (wrapper: string[], ...flags: string[]): Promise<string> => {
    const failed: unknown = await cluster.startMountWith(wrapper, 'm1', ...flags).catch((error: unknown) => error);
    expect(readFileSync('/proc/self/mountinfo', 'utf8')).not.toContain(` ${join(cluster.folder, 'm1')} `);
    return String(failed);
  };
  const useIt = async (): Promise<void> => {
    const actor = new Actor();
    const path = quote(cluster.mount().path('file'));
    await actor.do(`put(${path}, bytes(range(256)) * 4096)`);
    await cluster.evict();
    expect(await actor.do(`get(${path}) == bytes(range(256)) * 4096`)).toBe(true);
    await actor.end();
  };

  beforeAll(() => cluster.start(0));
  afterEach(async () => {
    if (cluster.runs('m1')) await cluster.signal('m1', 'SIGTERM');
    turn(found === 'Y' ? 'Y' : 'N');
  });
  afterAll(() => cluster.stop());

  test('switched off: auto takes /dev/fuse, and status says so', async () => {
    turn('N');
    await cluster.startMount('m1');
    expect(await session()).toBe('/dev/fuse');
    expect((await cluster.extmem('status')).stdout).toMatch(/requests over \/dev\/fuse/);
    expect(cluster.mount().log()).not.toMatch(/io_uring/);
    await useIt();
  });

  test('switched off: on is refused, and says how to switch it on', async () => {
    turn('N');
    expect(await refused([], '--io-uring', 'on')).toMatch(/switched off.*echo Y > .*enable_uring.*--io-uring=auto/);
  });

  test('switched on: auto takes it, status and doctor say so; off does not', async () => {
    turn('Y');
    const told = JSON.parse((await cluster.extmem('doctor', '--json')).stdout) as { session: string };
    expect(told.session).toBe('io_uring');
    await cluster.startMount('m1');
    expect(await session()).toBe('io_uring');
    expect((await cluster.extmem('status')).stdout).toMatch(/requests over io_uring/);
    await useIt();
    await cluster.signal('m1', 'SIGTERM');
    await cluster.startMount('m1', '--io-uring', 'off');
    expect(await session()).toBe('/dev/fuse');
  });

  test('what was agreed on stays when the kernel is switched off meanwhile', async () => {
    turn('Y');
    await cluster.startMount('m1');
    turn('N');
    await useIt();
    expect(await session()).toBe('io_uring');
  });

  // Before the kernel is told that we want it, and (io_uring_enter) when it is too late to go back but by mounting again.
  test.each(['io_uring_setup', 'io_uring_enter'] as const)(
    'forbidden by a sandbox (%s): auto mounts without, on is refused',
    async (call) => {
      turn('Y');
      await cluster.startMountWith(forbidding(call), 'm1');
      expect(await session()).toBe('/dev/fuse');
      expect(cluster.mount().log()).toMatch(/could not be used \(.*Operation not permitted\): \/dev\/fuse is used/);
      await useIt();
      await cluster.signal('m1', 'SIGTERM');
      expect(await refused(forbidding(call), '--io-uring', 'on')).toMatch(
        /with --io-uring=on: .*Operation not permitted; mount with --io-uring=auto/,
      );
    },
  );

  describe('a queue does not run dry', () => {
    const HERD = 100; // a queue has 32 entries at first
    const pinned = `os.sched_setaffinity(0, {0})\n`;
    test('of more callers that wait for a lock than it has entries, all get it', async () => {
      turn('Y');
      await cluster.startMount('m1', '--io-uring', 'on');
      const before = (await cluster.statistics()).fuse?.['ringEntries'] ?? 0;
      expect(before).toBeGreaterThanOrEqual(32 * availableParallelism());
      const holder = new Actor();
      const path = quote(cluster.mount().path('lock'));
      await holder.do(`${pinned}f = os.open(${path}, os.O_RDWR | os.O_CREAT); fcntl.flock(f, fcntl.LOCK_EX)`);
      const herd = new Actor();
      // Threads of one process: each has the file open for itself, which is who owns a flock.
      await herd.do(`${pinned}
import threading
got = 0; guard = threading.Lock(); ready = threading.Barrier(${HERD + 1})
def want():
    global got
    f = os.open(${path}, os.O_RDWR)
    ready.wait()
    fcntl.flock(f, fcntl.LOCK_EX)
    with guard: got += 1
    os.close(f)
threads = [threading.Thread(target=want) for _ in range(${HERD})]
for thread in threads: thread.start()
ready.wait()`);
      await until('the queue was given more entries', async () => ((await cluster.statistics()).fuse?.['ringEntries'] ?? 0) >= before + 64);
      expect(await herd.do('got')).toBe(0);
      await holder.do('fcntl.flock(f, fcntl.LOCK_UN)');
      await until('all of them got it', async () => (await herd.do('got')) === HERD, 60_000);
      for (const actor of [holder, herd]) await actor.end();
    });

    test('nor when all of them came at once, with the one that unlocks last', async () => {
      turn('Y');
      await cluster.startMount('m1', '--io-uring', 'on');
      const holder = new Actor();
      const path = quote(cluster.mount().path('lock'));
      await holder.do(`${pinned}f = os.open(${path}, os.O_RDWR | os.O_CREAT); fcntl.flock(f, fcntl.LOCK_EX)`);
      const herd = new Actor();
      await herd.do(`${pinned}
import threading
got = 0; guard = threading.Lock(); files = [os.open(${path}, os.O_RDWR) for _ in range(${HERD})]
def want(f):
    global got
    fcntl.flock(f, fcntl.LOCK_EX); fcntl.flock(f, fcntl.LOCK_UN)
    with guard: got += 1
threads = [threading.Thread(target=want, args=(f,)) for f in files]`);
      await cluster.signal('m1', 'SIGSTOP');
      await herd.do('for thread in threads: thread.start()');
      await untilWaiting(herd.pid, HERD);
      const unlocking = holder.do('fcntl.flock(f, fcntl.LOCK_UN)');
      await untilWaiting(holder.pid, 1);
      await cluster.signal('m1', 'SIGCONT');
      await within(unlocking, 30_000, 'the one that unlocks');
      await until('all of them got it', async () => (await herd.do('got')) === HERD, 60_000);
      for (const actor of [holder, herd]) await actor.end();
    });

    test('callers that wait for a silent appliance keep nobody else waiting', async () => {
      turn('Y');
      await cluster.startMount('m1', '--io-uring', 'on', '--transport', 'tcp', '--read-ahead', '0');
      const actor = new Actor();
      const folder = await makeConcatFolder(cluster, actor, 'concat');
      const silent = await makeFileOn(cluster, actor, folder, 'a1', 'bytes(1 << 20)');
      const other = await makeFileOn(cluster, actor, folder, 'a2', 'bytes(1 << 20)');
      await cluster.evict();
      await cluster.signal('a1', 'SIGSTOP');
      const herd = new Actor();
      const stuck = herd.fails(`${pinned}
import threading
f = os.open(${quote(silent)}, os.O_RDONLY | os.O_DIRECT)
def ask(page):
    try: os.preadv(f, [mmap.mmap(-1, 4096)], page * 4096)
    except OSError: pass
threads = [threading.Thread(target=ask, args=(page,)) for page in range(${HERD})]
for thread in threads: thread.start()
for thread in threads: thread.join()
raise OSError(errno.EIO, 'done')`);
      const asked = async (): Promise<number> => (await cluster.statistics()).fuse?.['reads'] ?? 0;
      const before = await asked();
      await until('all of them wait', async () => (await asked()) >= before + HERD);
      const { error, ms } = await timed(actor, `${pinned}get(${quote(other)})`);
      expect(error).toBe('');
      expect(ms).toBeLessThan(LIMIT_MS / 2);
      await cluster.signal('a1', 'SIGCONT');
      await within(stuck, 3 * LIMIT_MS, 'those that waited');
      for (const one of [actor, herd]) await one.end();
    });
  });

  test('what the kernel forgets is told over /dev/fuse', async () => {
    turn('Y');
    await cluster.startMount('m1', '--io-uring', 'on');
    const known = async (): Promise<number> => (await cluster.statistics()).fs?.['inodesKnownToKernel'] ?? 0;
    const actor = new Actor();
    const folder = quote(cluster.mount().path('many'));
    await actor.do(`os.mkdir(${folder})\nfor index in range(200): put(${folder} + f'/{index}', b'x')`);
    expect(await known()).toBeGreaterThanOrEqual(200);
    await actor.do(`for index in range(200): os.unlink(${folder} + f'/{index}')`);
    await until('the kernel has forgotten them', async () => (await known()) < 50);
    await actor.end();
  });
});
