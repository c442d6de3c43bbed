/**
 * A process of the same user on an appliance's host, or root, that takes the shared memory of one mount out of /proc and does with it what
 * the kernel lets it. The mount that it was lent to may be spoilt; another one, on the same appliance, goes on with its own bytes, and
 * nothing is left when the hostile process, its victim and the appliance are gone.
 */
import { readdirSync, readlinkSync } from 'node:fs';
import { afterAll, beforeAll, describe, expect, test } from '@jest/globals';
import { Actor } from './actor.js';
import { quote, timed } from './bad_days.js';
import { TestCluster } from './cluster.js';
import { until } from '../until.js';

const WORDS = `
import signal
def lent(pid):
    """The regions that a process has descriptors of, opened anew for writing."""
    found = []
    for number in os.listdir('/proc/%d/fd' % pid):
        path = '/proc/%d/fd/%s' % (pid, number)
        try:
            if 'extmem-region' in os.readlink(path): found.append(os.open(path, os.O_RDWR))
        except OSError: pass
    return found
def maps(fds): return [mmap.mmap(fd, os.fstat(fd).st_size) for fd in fds if os.fstat(fd).st_size > 0]
F_SETLEASE = 1024
signal.signal(signal.SIGIO, signal.SIG_IGN)
`;

function regionDescriptors(pid: number): number {
  const folder = `/proc/${pid}/fd`;
  return readdirSync(folder).filter((name) => {
    try {
      return readlinkSync(`${folder}/${name}`).includes('extmem-region');
    } catch {
      return false; // closed meanwhile
    }
  }).length;
}

describe('a hostile neighbour with the descriptors of a mount', () => {
  const cluster = new TestCluster({ transport: 'shm', cache: '16M', memory: '512M', appliances: 1 });
  let honest: Actor;
  let hostile: Actor;

  beforeAll(async () => {
    await cluster.start(2);
    honest = new Actor();
    hostile = new Actor();
    await hostile.do(WORDS);
    await honest.do(`data = random.randbytes(8 << 20); put(${quote(cluster.mount('m1').path('data'))}, data)`);
    await honest.do(`victim = random.randbytes(8 << 20); put(${quote(cluster.mount('m2').path('victim'))}, victim)`);
  });
  afterAll(async () => {
    await honest.end();
    await hostile.end();
    await cluster.stop();
  });

  const undisturbed = async (): Promise<void> => {
    const [data, more] = [quote(cluster.mount('m1').path('data')), quote(cluster.mount('m1').path('more'))];
    await cluster.evict('m1');
    expect(
      await timed(honest, `assert get(${data}) == data; put(${more}, data[:1 << 20]); assert get(${more}) == data[:1 << 20]`),
    ).toMatchObject({ error: '' });
  };

  test('filling and leasing them takes nothing from another mount', async () => {
    const pid = cluster.role('m2').pid;
    expect(await hostile.do(`fds = lent(${pid}); kept = maps(fds); len(fds)`)).toBeGreaterThan(0);
    expect(await hostile.do(`[failure(fallocate, fd, 0, os.fstat(fd).st_size, 4096) for fd in fds][0]`)).toBe('EPERM');
    await hostile.do(`[fallocate(fd, 0, 0, os.fstat(fd).st_size) for fd in fds]`);
    await hostile.do(`[failure(fcntl.fcntl, fd, F_SETLEASE, fcntl.F_WRLCK) for fd in fds]`);
    await undisturbed();
  });

  test('cutting them is told to who had them, and harms nobody else', async () => {
    const path = quote(cluster.mount('m2').path('victim'));
    await hostile.do(`[os.ftruncate(fd, 0) for fd in fds]`);
    await cluster.evict('m2');
    expect(await honest.do(`failure(get, ${path})`)).toBe('EIO');
    expect(await hostile.do(`[failure(os.ftruncate, fd, 4096) for fd in fds][0]`)).toBe('EPERM');
    expect(cluster.runs('m2') && cluster.runs('a1')).toBe(true);
    await undisturbed();
  });

  test('when the hostile process, its victim and the appliance are gone, nothing of them is left', async () => {
    await hostile.end();
    await cluster.signal('m2', 'SIGKILL');
    await undisturbed();
    const pid = cluster.role('m1').pid;
    expect(regionDescriptors(pid)).toBeGreaterThan(0);
    await cluster.signal('a1', 'SIGKILL');
    await until('the mount lets go of the memory of an appliance that is gone', () => regionDescriptors(pid) === 0);
  });
});
