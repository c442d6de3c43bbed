/**
 * A mount that does not answer (stopped, or cut off from the manager) loses what it holds to whoever asks for it. When it is back it
 * goes on under the same mount point as another client: it changes nothing that is others' now, says EIO for what it had not
 * written back, and everything else works at once.
 */
import { connect, createServer, type Server, type Socket } from 'node:net';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from '@jest/globals';
import { until } from '../until.js';
import { Actor } from './actor.js';
import { clusterStatus, LIMIT_MS, quote, timed } from './bad_days.js';
import { TestCluster } from './cluster.js';

/** A recall's time-out, the appliances' acknowledgements, and a machine that has much else to do. */
const TAKEN_WITHIN_MS = 12_000;

interface Fences {
  fences: number;
  lostFiles: number;
  lostBytes: number;
}

async function fencesOf(cluster: TestCluster, mount: string): Promise<Fences> {
  const { client } = (await cluster.statistics(mount)) as unknown as { client: { fences: Fences } };
  return client.fences;
}

describe.each(['tcp', 'shm'] as const)('a mount that was stopped, over %s', (transport) => {
  const cluster = new TestCluster({ transport, cache: '32M', memory: '512M' });
  let fences = 0;
  let a: Actor;
  let b: Actor;

  beforeAll(() => cluster.start(2));
  afterAll(() => cluster.stop());
  beforeEach(() => {
    a = new Actor(cluster.mount('m1').mountPoint);
    b = new Actor(cluster.mount('m2').mountPoint);
  });
  afterEach(async () => {
    process.kill(cluster.mount('m1').pid, 'SIGCONT');
    await Promise.all([a.end(), b.end()]);
  });

  /** The other mount does something that needs what the stopped one holds. */
  const takeWhileStopped = async (code: string): Promise<void> => {
    await cluster.signal('m1', 'SIGSTOP');
    const { error, ms } = await timed(b, code);
    expect(error).toBe('');
    expect(ms).toBeLessThan(TAKEN_WITHIN_MS);
  };

  const goOn = async (): Promise<Fences> => {
    fences += 1;
    await cluster.signal('m1', 'SIGCONT');
    await until('the mount has joined again', async () => (await fencesOf(cluster, 'm1')).fences === fences);
    return fencesOf(cluster, 'm1');
  };

  test('its file goes to who asks; it says EIO once for what was not written back, and goes on with what the file is now', async () => {
    await a.do(`f = os.open('held', os.O_RDWR | os.O_CREAT); os.write(f, b'a' * 65536); os.fsync(f); clean = os.open('held', os.O_RDONLY)`);
    await a.do(`g = os.open('other', os.O_RDWR | os.O_CREAT); os.write(g, b'g' * 100_000); os.fsync(g)`);
    await a.do(`os.pwrite(f, b'n' * 40_000, 65536)`); // its size is not with the manager
    const { lostFiles } = await fencesOf(cluster, 'm1');
    await takeWhileStopped(`h = os.open('held', os.O_RDWR); before = os.pread(h, 200_000, 0)`);
    expect(await b.do(`before == b'a' * 65536`)).toBe(true);
    await b.do(`os.pwrite(h, b'b' * 65536, 0); os.fsync(h); put('made', b'meanwhile')`);
    expect((await goOn()).lostFiles).toBe(lostFiles + 1);

    await cluster.evict('m2');
    expect(await b.do(`os.pread(h, 200_000, 0) == b'b' * 65536`)).toBe(true);
    expect(await a.fails(`os.fsync(f)`)).toBe('EIO');
    await a.do(`os.fsync(f)`);
    expect(await a.do(`os.pread(f, 200_000, 0) == b'b' * 65536, os.pread(clean, 200_000, 0) == b'b' * 65536`)).toEqual([true, true]);
    expect(await a.do(`os.fstat(f).st_size`)).toBe(65536);
    // Another file that it held, with nothing lost: as if nothing had happened.
    expect(await a.do(`os.pread(g, 200_000, 0) == b'g' * 100_000`)).toBe(true);
    await a.do(`os.pwrite(g, b'G', 5); os.fsync(g); os.close(g)`);
    expect(await b.do(`get('other')[4:7]`)).toBe('gGg');
    // And everything else.
    expect(await a.do(`get('made')`)).toBe('meanwhile');
    await a.do(`os.pwrite(f, b'c', 0); os.fsync(f); put('after', bytes(3 << 20)); os.rename('after', 'renamed')`);
    expect(await b.do(`os.pread(h, 2, 0), os.path.getsize('renamed')`)).toEqual(['cb', 3 << 20]);
    expect((await clusterStatus(cluster)).clients).toHaveLength(2);
  });

  test('what a mapping has stored is not brought over what others wrote; msync says so', async () => {
    await a.do(`f = os.open('mapped', os.O_RDWR | os.O_CREAT); os.write(f, b'a' * 65536); os.fsync(f); m = mmap.mmap(f, 65536)`);
    await a.do(`m[0] = m[20_000] = ord('a'); m.flush(); m[0] = ord('a')`); // the page is here, and writable
    await cluster.signal('m1', 'SIGSTOP');
    await a.do(`m[0:4] = b'LOST'`);
    expect((await timed(b, `h = os.open('mapped', os.O_RDWR); os.pwrite(h, b'b' * 65536, 0); os.fsync(h)`)).error).toBe('');
    await goOn();
    expect(await a.fails(`m.flush()`)).toBe('EIO');
    await until('the kernel has dropped the page', async () => (await a.do(`bytes(m[0:4])`)) === 'bbbb');
    await cluster.evict('m2');
    expect(await b.do(`os.pread(h, 65536, 0) == b'b' * 65536`)).toBe(true);
    // From now on it is a mapping like any other.
    await a.do(`m[0:4] = b'kept'; m.flush()`);
    expect(await b.do(`os.pread(h, 5, 0)`)).toBe('keptb');
  });

  test('whoever relied on a lock is told EIO on that descriptor; a new one is good', async () => {
    await a.do(`f = os.open('locked', os.O_RDWR | os.O_CREAT); os.write(f, b'a' * 100); os.fsync(f); fcntl.lockf(f, fcntl.LOCK_EX)`);
    await takeWhileStopped(`h = os.open('locked', os.O_RDWR); fcntl.lockf(h, fcntl.LOCK_EX); os.pwrite(h, b'b', 0)`);
    await goOn();
    for (const call of [
      'os.pread(f, 10, 0)',
      `os.pwrite(f, b'x', 0)`,
      'os.ftruncate(f, 3)',
      'fcntl.lockf(f, fcntl.LOCK_EX | fcntl.LOCK_NB)',
    ])
      expect([call, await a.fails(call)]).toEqual([call, 'EIO']);
    expect(await a.fails(`os.close(f)`)).toBe('EIO');
    await a.do(`f = os.open('locked', os.O_RDWR)`);
    expect(await a.fails(`fcntl.lockf(f, fcntl.LOCK_EX | fcntl.LOCK_NB)`)).toMatch(/EAGAIN|EACCES/);
    await b.do(`fcntl.lockf(h, fcntl.LOCK_UN)`);
    expect(await a.do(`fcntl.lockf(f, fcntl.LOCK_EX | fcntl.LOCK_NB); os.pread(f, 2, 0)`)).toBe('ba');
  });

  test('a file that was removed meanwhile is ESTALE where it was open', async () => {
    await a.do(`f = os.open('removed', os.O_RDWR | os.O_CREAT); os.write(f, b'a' * 100); os.fsync(f)`);
    await takeWhileStopped(`h = os.open('removed', os.O_RDWR); os.unlink('removed'); os.close(h)`);
    await goOn();
    await until('that is known', async () => (await a.fails(`os.pread(f, 10, 0)`)) === 'ESTALE');
    expect(await a.fails(`os.pwrite(f, b'x', 0)`)).toBe('ESTALE');
    expect(await a.do(`os.path.exists('removed')`)).toBe(false);
  });

  test('a writer that is stopped in the middle: what it was told is written is there, of whole rounds', async () => {
    await a.do(`
f = os.open('busy', os.O_RDWR | os.O_CREAT); synced = 0
def round():
    global synced
    os.pwrite(f, (synced + 1).to_bytes(8, 'big') * 8192, 0); os.fsync(f); synced += 1
def is_told_to_end():
    try: return os.stat('end') is not None
    except FileNotFoundError: return False
def work():
    while not is_told_to_end(): round()
round()`);
    const changed = await b.do<number>(`os.stat('busy').st_mtime_ns`);
    const working = timed(a, 'work()');
    await until('it is at it', async () => (await b.do<number>(`os.stat('busy').st_mtime_ns`)) > changed);
    await takeWhileStopped(`h = os.open('busy', os.O_RDWR); there = os.pread(h, 65536, 0); put('end', b'')`);
    await goOn();
    expect((await working).error).toMatch(/^$|EIO/); // EIO if it was stopped between a write and its fsync
    const synced = await a.do<number>('synced');
    // The round under way when it was stopped may have ended after the fence, as another client's.
    const rounds = `[(${synced} + n).to_bytes(8, 'big') * 512 for n in (-1, 0, 1)]`;
    expect(await b.do(`len(there), all(there[at:at+4096] in ${rounds} for at in range(0, 65536, 4096))`)).toEqual([65536, true]);
  });
});

/** Carries connections to the manager; `cut()` keeps every byte and every new connection from it, `heal()` begins anew. */
class Cutter {
  private readonly server: Server;
  private readonly sockets = new Set<Socket>();
  private isCut = false;
  port = 0;

  constructor(private readonly target: number) {
    this.server = createServer((client) => {
      const manager = connect(this.target, '127.0.0.1');
      for (const [one, other] of [
        [client, manager],
        [manager, client],
      ] as const) {
        this.sockets.add(one);
        one.on('error', () => undefined);
        one.on('close', () => other.destroy());
        one.on('data', (bytes: Buffer) => {
          if (!this.isCut) other.write(bytes);
        });
      }
    });
  }

  async listen(): Promise<void> {
    await new Promise<void>((resolve) => this.server.listen(0, '127.0.0.1', resolve));
    const address = this.server.address();
    if (address !== null && typeof address === 'object') this.port = address.port;
  }

  cut(): void {
    this.isCut = true;
  }

  heal(): void {
    this.isCut = false;
    for (const socket of this.sockets) socket.destroy();
    this.sockets.clear();
  }

  async close(): Promise<void> {
    this.heal();
    await new Promise((resolve) => this.server.close(resolve));
  }
}

describe.each(['tcp', 'shm'] as const)('a mount that is cut off from the manager alone, over %s', (transport) => {
  const cluster = new TestCluster({ transport, cache: '32M', memory: '256M' });
  let cutter: Cutter;
  let a: Actor;
  let b: Actor;

  beforeAll(async () => {
    await cluster.start(0);
    cutter = new Cutter(Number(cluster.manager.split(':').at(-1)));
    await cutter.listen();
    await cluster.startMount('m1', '--manager', `127.0.0.1:${cutter.port}`);
    await cluster.startMount('m2');
    [a, b] = [new Actor(), new Actor()];
    await a.do(`os.chdir(${quote(cluster.mount('m1').mountPoint)})`); // not at its start: that would keep the cutter waiting
    await b.do(`os.chdir(${quote(cluster.mount('m2').mountPoint)})`);
  });
  afterAll(async () => {
    await Promise.all([a.end(), b.end()]);
    await cutter.close();
    await cluster.stop();
  });

  test('what it writes from the fence on goes nowhere and is told; nothing hangs; when the way is back it goes on', async () => {
    await a.do(`f = os.open('held', os.O_RDWR | os.O_CREAT); os.write(f, b'a' * 65536); os.fsync(f)`);
    cutter.cut();
    await a.do(`os.pwrite(f, b'A' * 4096, 0); os.fsync(f)`); // still its file: beside the region it is durable
    const { error, ms } = await timed(b, `h = os.open('held', os.O_RDWR); os.pwrite(h, b'b' * 4096, 4096); os.fsync(h)`);
    expect(error).toBe('');
    expect(ms).toBeLessThan(TAKEN_WITHIN_MS);
    const late = [`os.pwrite(f, b'X' * 65536, 0)`, `os.fsync(f)`, `os.pread(f, 4096, 32768)`, `os.stat('new')`];
    for (const call of late) expect((await timed(a, call)).ms).toBeLessThan(LIMIT_MS);
    expect(await a.fails(`os.fsync(f)`)).toBe('EIO');
    const now = `b'A' * 4096 + b'b' * 4096 + b'a' * 57344`;
    await cluster.evict('m2');
    expect(await b.do(`os.pread(h, 65536, 0) == ${now}`)).toBe(true);
    cutter.heal();
    await until('the mount has joined again', async () => (await fencesOf(cluster, 'm1')).fences === 1);
    expect(await b.do(`os.pread(h, 65536, 0) == ${now}`)).toBe(true);
    await timed(a, `os.fsync(f)`);
    expect(await a.do(`os.fsync(f); os.pread(f, 65536, 0) == ${now}`)).toBe(true);
  });
});
