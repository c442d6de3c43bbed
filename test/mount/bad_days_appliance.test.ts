/**
 * An appliance is killed and started again: what it held is gone, and whoever asks for that is told EIO, soon and never zeros.
 * Everything else goes on: files of other appliances, names, new files.
 */
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from '@jest/globals';
import { until } from '../until.js';
import { Actor } from './actor.js';
import { clusterStatus, LIMIT_MS, makeConcatFolder, makeFileOn, peerState, quote, timed } from './bad_days.js';
import { TestCluster, within } from './cluster.js';

const SMALL = `random.randbytes(40_000)`;

describe.each(['tcp', 'shm'] as const)('an appliance killed, over %s', (transport) => {
  const cluster = new TestCluster({ transport, cache: '32M', memory: '256M' });
  let actor: Actor;
  let folder = '';

  const fileOn = (appliance: string, data = SMALL): Promise<string> => makeFileOn(cluster, actor, folder, appliance, data).then(quote);
  const killA1 = (): Promise<void> => cluster.signal('a1', 'SIGKILL');
  const startA1 = async (): Promise<void> => {
    await cluster.startAppliance('a1');
    await until('the manager counts it', async () => (await clusterStatus(cluster)).appliances.every(({ state }) => state === 'up'));
  };
  const failsSoon = async (code: string): Promise<void> => {
    const { error, ms } = await timed(actor, code);
    expect({ code, error }).toEqual({ code, error: 'EIO' });
    expect(ms).toBeLessThan(LIMIT_MS);
  };
  const succeedsSoon = async (code: string): Promise<void> => {
    const { error, ms } = await timed(actor, code);
    expect({ code, error }).toEqual({ code, error: '' });
    expect(ms).toBeLessThan(LIMIT_MS);
  };

  beforeAll(async () => {
    await cluster.start();
    const first = new Actor();
    folder = await makeConcatFolder(cluster, first, 'on-one');
    await first.end();
  });
  afterAll(() => cluster.stop());
  beforeEach(() => void (actor = new Actor()));
  afterEach(() => actor.end());

  test('its pages are EIO on read, before and after it is back; files elsewhere are undisturbed', async () => {
    const lost = await fileOn('a1');
    const other = await fileOn('a2');
    await actor.do(`f = os.open(${lost}, os.O_RDWR); g = os.open(${other}, os.O_RDWR); data = os.pread(g, 1 << 20, 0)`);
    await cluster.evict();
    await killA1();
    await failsSoon(`os.pread(f, 4096, 0)`);
    await succeedsSoon(`assert os.pread(g, 1 << 20, 0) == data; os.pwrite(g, b'new', 0); os.fsync(g)`);
    await startA1();
    await failsSoon(`os.pread(f, 4096, 0)`);
    await failsSoon(`get(${lost})`);
    await succeedsSoon(`assert os.pread(g, 1 << 20, 0) == b'new' + data[3:]`);
    await succeedsSoon(`put(${lost} + '.new', data)`);
    await cluster.evict();
    await succeedsSoon(`assert get(${lost} + '.new') == data`);
  });

  test('what was written to it and not fsynced is reported by fsync, to each who has the file open', async () => {
    const lost = await fileOn('a1');
    await actor.do(`f = os.open(${lost}, os.O_RDWR); g = os.open(${lost}, os.O_RDWR)`);
    await killA1();
    await timed(actor, `os.pwrite(f, b'x' * 10000, 0)`); // accepted while its share of the dirty limit lasts
    await failsSoon(`os.fsync(f)`);
    await failsSoon(`os.fsync(g)`);
    await startA1();
    await cluster.evict();
    await failsSoon(`get(${lost})`);
    await timed(actor, `os.close(f)`);
    await timed(actor, `os.close(g)`);
  });

  test('an error is told once to each open file, then no more until the next', async () => {
    const lost = await fileOn('a1');
    await actor.do(`f = os.open(${lost}, os.O_RDWR); g = os.open(${lost}, os.O_RDWR); os.pread(f, 8192, 0)`);
    await killA1();
    await succeedsSoon(`os.pwrite(f, b'x' * 4096, 0)`); // within its share of the dirty limit
    await failsSoon(`os.fsync(f)`);
    await startA1();
    await until('the mount knows what is lost', async () => (await timed(actor, `os.fsync(f)`)).error === '');
    await succeedsSoon(`os.fsync(f); os.fsync(f)`);
    await failsSoon(`os.fsync(g)`);
    await succeedsSoon(`os.fsync(g); os.close(g)`);
    await failsSoon(`os.pwrite(f, b'y' * 4096, 0)`); // known to be in vain
    await succeedsSoon(`os.ftruncate(f, 0); os.pwrite(f, b'anew', 0); os.fsync(f); os.close(f)`);
    await cluster.evict();
    await succeedsSoon(`assert get(${lost}) == b'anew'`);
  });

  test('dirty pages that are lost do not take room from those of new files there', async () => {
    const lost = await fileOn('a1', 'bytes(8 << 20)');
    await actor.do(`f = os.open(${lost}, os.O_RDWR)`);
    await killA1();
    const fill = `
for at in range(0, 8 << 20, 65536):
    try: os.pwrite(f, b'x' * 65536, at)
    except OSError as error: failed = errno.errorcode[error.errno]; break
failed`;
    expect(await actor.do(fill)).toBe('EIO'); // its share of the dirty limit is used up
    await startA1();
    const fresh = await fileOn('a1');
    await succeedsSoon(`g = os.open(${fresh}, os.O_RDWR); os.pwrite(g, bytes(3 << 20), 0); os.fsync(g); os.close(g)`);
    await timed(actor, `os.close(f)`);
  });

  test('close reports what could not be written', async () => {
    const lost = await fileOn('a1');
    await actor.do(`f = os.open(${lost}, os.O_RDWR)`);
    await killA1();
    const written = await timed(actor, `os.pwrite(f, b'x' * 10000, 0)`);
    expect(['', 'EIO']).toContain(written.error);
    await failsSoon(`os.pwrite(f, b'y', 0) if ${written.error === 'EIO' ? 'True' : 'False'} else os.close(f)`);
    await startA1();
  });

  test('a mapping: SIGBUS on its pages, EIO at msync', async () => {
    const lost = await fileOn('a1');
    const victim = new Actor();
    await actor.do(`f = os.open(${lost}, os.O_RDWR); m = mmap.mmap(f, 40_000); first = m[0]`);
    await victim.do(`f = os.open(${lost}, os.O_RDWR); m = mmap.mmap(f, 40_000)`);
    await killA1();
    await startA1();
    await actor.do(`m[0] = 7`);
    await failsSoon(`m.flush()`);
    await cluster.evict();
    const touched = victim.do(`m[20000]`);
    await expect(within(touched, LIMIT_MS, 'touching a lost page')).rejects.toThrow(/the actor ended/);
  });

  test('the damaged file can be removed, or truncated to nothing and written anew', async () => {
    const removed = await fileOn('a1');
    const rewritten = await fileOn('a1');
    await cluster.evict();
    await killA1();
    await succeedsSoon(`os.unlink(${removed})`);
    await startA1();
    await failsSoon(`get(${rewritten})`);
    await succeedsSoon(`put(${rewritten}, b'whole again')`); // O_TRUNC
    await cluster.evict();
    await succeedsSoon(`assert get(${rewritten}) == b'whole again'`);
    expect(await actor.do(`os.path.exists(${removed})`)).toBe(false);
    await succeedsSoon(`os.unlink(${rewritten})`);
  });

  test('writing to a damaged file never makes zeros of what is lost', async () => {
    const lost = await fileOn('a1');
    await killA1();
    await startA1();
    await actor.do(`f = os.open(${lost}, os.O_RDWR)`);
    await timed(actor, `os.pwrite(f, b'y' * 100, 8192 + 50)`);
    await timed(actor, `os.pwrite(f, b'z' * 4096, 4096)`);
    await timed(actor, `os.fsync(f)`);
    await cluster.evict();
    await failsSoon(`os.pread(f, 4096, 0)`);
    await failsSoon(`os.pread(f, 4096, 16384)`);
    await timed(actor, `os.close(f)`);
  });

  test('a striped file of both: only the part that was there is EIO', async () => {
    const striped = quote(cluster.mount().path('striped'));
    await actor.do(`data = random.randbytes(16 << 20); put(${striped}, data); f = os.open(${striped}, os.O_RDWR)`);
    await cluster.evict();
    await killA1();
    await startA1();
    const outcome = await actor.do<string[]>(`
found = []
for at in range(0, 16 << 20, 2 << 20):
    try: found.append('same' if os.pread(f, 2 << 20, at) == data[at:at + (2 << 20)] else 'other')
    except OSError as error: found.append(errno.errorcode[error.errno])
found`);
    expect(new Set(outcome)).toEqual(new Set(['same', 'EIO']));
    await succeedsSoon(`os.close(f); os.unlink(${striped})`);
  });

  test('after all of that, new files lie on the appliance that was started again', async () => {
    const made = await fileOn('a1');
    await cluster.evict();
    await succeedsSoon(`assert len(get(${made})) == 40_000`);
    // Each thread of the mount has its own connection, and the slowest has not come back yet.
    await until('the mount reaches it', async () => (await peerState(cluster, 'a1')) === 'up');
  });
});
