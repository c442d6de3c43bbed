/**
 * Locks on real mounts: fcntl and flock exclude processes of one mount and of two, go with whoever held them (a closed file, a killed
 * process, a killed mount), and can be given up while they are waited for. Who would wait for ever is told so.
 */
import { afterAll, afterEach, beforeAll, describe, expect, test } from '@jest/globals';
import { until } from '../until.js';
import { Actor } from './actor.js';
import { TestCluster, within } from './cluster.js';

/** Generous: no promise hangs on it, only that the test ends. */
const SOON_MS = 20_000;
const BUSY = /^(EAGAIN|EWOULDBLOCK|EACCES)$/;
const DEADLOCK = /^EDEADL(K|OCK)$/; // one number, two names

const cluster = new TestCluster({ transport: 'tcp', cache: '32M', memory: '256M' });
let actors: Actor[] = [];

beforeAll(() => cluster.start(2));
afterEach(() => endActors());
afterAll(() => cluster.stop());

/** Also those that wait in the kernel: nothing of a test is left for the next one. */
async function endActors(): Promise<void> {
  const all = actors;
  actors = [];
  await Promise.all(all.map((actor) => actor.end()));
}

function on(mount: string): Actor {
  const actor = new Actor(cluster.mount(mount).mountPoint);
  actors.push(actor);
  return actor;
}

/** So many processes of a mount wait for locks now. */
function waiting(mount: string, count: number): Promise<void> {
  return until(`${count} wait on ${mount}`, async () => {
    const { client } = (await cluster.statistics(mount)) as unknown as { client: { locks: { waiting: number } } };
    return client.locks.waiting === count;
  });
}

const open = (name: string): string => `${name} = os.open('${name}', os.O_CREAT | os.O_RDWR)`;
const soon = <T>(promise: Promise<T>, what: string): Promise<T> => within(promise, SOON_MS, what);

const kinds = [
  { kind: 'fcntl', take: (how: string): string => `fcntl.lockf(f, fcntl.${how})` },
  { kind: 'flock', take: (how: string): string => `fcntl.flock(f, fcntl.${how})` },
];
const places = [
  ['m1', 'm1'],
  ['m1', 'm2'],
] as const;
const cases = kinds.flatMap((one) => places.map(([here, there]) => ({ ...one, here, there })));

describe.each(cases)('$kind, $here and $there', ({ kind, take, here, there }) => {
  let a: Actor;
  let b: Actor;
  const path = `${kind}-${here}-${there}`;
  const openIt = `f = os.open('${path}', os.O_CREAT | os.O_RDWR)`;
  const both = async (): Promise<void> => {
    a = on(here);
    b = on(there);
    await a.do(openIt);
    await b.do(openIt);
  };

  test('an exclusive lock keeps everybody else out, until it is released', async () => {
    await both();
    await a.do(take('LOCK_EX'));
    expect(await b.fails(take('LOCK_EX | fcntl.LOCK_NB'))).toMatch(BUSY);
    expect(await b.fails(take('LOCK_SH | fcntl.LOCK_NB'))).toMatch(BUSY);
    await a.do(take('LOCK_UN'));
    await b.do(take('LOCK_EX | fcntl.LOCK_NB'));
    expect(await a.fails(take('LOCK_SH | fcntl.LOCK_NB'))).toMatch(BUSY);
  });

  test('shared locks are held together, and keep a writer out', async () => {
    await both();
    await a.do(take('LOCK_SH'));
    await b.do(take('LOCK_SH | fcntl.LOCK_NB'));
    const c = on(there);
    expect(await c.fails(`${openIt}; ${take('LOCK_EX | fcntl.LOCK_NB')}`)).toMatch(BUSY);
    await a.do(take('LOCK_UN'));
    expect(await c.fails(take('LOCK_EX | fcntl.LOCK_NB'))).toMatch(BUSY);
    await b.do(take('LOCK_UN'));
    await c.do(take('LOCK_EX | fcntl.LOCK_NB'));
  });

  test('whoever waits gets it when the file is closed', async () => {
    await both();
    await a.do(take('LOCK_EX'));
    const waits = b.do(take('LOCK_EX'));
    await waiting(there, 1);
    await a.do('os.close(f)');
    await soon(waits, 'the one who waits');
  });

  test('whoever waits gets it when the process that has it is killed', async () => {
    await both();
    await a.do(take('LOCK_EX'));
    const waits = b.do(take('LOCK_EX'));
    await waiting(there, 1);
    await a.end('SIGKILL');
    await soon(waits, 'the one who waits');
  });

  test('a signal ends the wait with EINTR, and the lock goes past who gave up', async () => {
    await both();
    await a.do(take('LOCK_EX'));
    await b.do(`
import signal
class Alarm(Exception): pass
def ring(*_): raise Alarm()
signal.signal(signal.SIGUSR1, ring)`);
    const waits = b.fails(take('LOCK_EX'));
    await waiting(there, 1);
    process.kill(b.pid, 'SIGUSR1');
    expect(await soon(waits, 'the one who is interrupted')).toBe('Alarm');
    await waiting(there, 0);
    await a.do(take('LOCK_UN'));
    await a.do(take('LOCK_EX | fcntl.LOCK_NB')); // nobody got it meanwhile
    expect(await b.fails(take('LOCK_SH | fcntl.LOCK_NB'))).toMatch(BUSY);
  });

  test('a process that is killed while it waits leaves nothing behind', async () => {
    await both();
    await a.do(take('LOCK_EX'));
    const waits = b.do(take('LOCK_EX')).catch(() => 'killed');
    await waiting(there, 1);
    await b.end('SIGKILL');
    expect(await waits).toBe('killed');
    await waiting(there, 0);
    await a.do(take('LOCK_UN'));
    await on(there).do(`${openIt}; ${take('LOCK_EX | fcntl.LOCK_NB')}`);
  });
});

test('fcntl locks of two mounts on ranges that do not touch do not meet; the one in the way is told', async () => {
  const a = on('m1');
  const b = on('m2');
  for (const actor of [a, b]) await actor.do(open('ranges'));
  await a.do(`fcntl.lockf(ranges, fcntl.LOCK_EX, 100, 0)`);
  await b.do(`fcntl.lockf(ranges, fcntl.LOCK_EX | fcntl.LOCK_NB, 100, 100)`);
  expect(await b.fails(`fcntl.lockf(ranges, fcntl.LOCK_EX | fcntl.LOCK_NB, 100, 50)`)).toMatch(BUSY);
  const inTheWay = await b.do<number[]>(
    `struct.unpack('hhqqi4x', fcntl.fcntl(ranges, fcntl.F_GETLK, struct.pack('hhqqi4x', fcntl.F_WRLCK, 0, 50, 0, 0)))`,
  );
  expect(inTheWay.slice(2)).toEqual([0, 100, a.pid]);
});

describe('whoever would wait for ever is told: EDEADLK', () => {
  // Alone on one mount, a file's locks are kept there; with a reader on the other mount, they are the manager's.
  const lock = (name: string): string => `fcntl.lockf(${name}, fcntl.LOCK_EX)`;
  const unlock = (name: string): string => `fcntl.lockf(${name}, fcntl.LOCK_UN)`;
  let round = 0;
  let x = '';
  let y = '';
  const fresh = (): void => {
    round += 1;
    x = `x${round}`;
    y = `y${round}`;
  };
  const share = (name: string, mount: string): Promise<unknown> => on(mount).do(`os.open('${name}', os.O_CREAT | os.O_RDWR)`);

  test.each([
    { mounts: ['m1', 'm1'], shared: 'neither' },
    { mounts: ['m1', 'm1'], shared: 'x' },
    { mounts: ['m1', 'm1'], shared: 'y' },
    { mounts: ['m1', 'm1'], shared: 'both' },
    { mounts: ['m1', 'm2'], shared: 'both' },
  ])('two files, processes on $mounts, open elsewhere: $shared', async ({ mounts: [here = '', there = ''], shared }) => {
    fresh();
    const p = on(here);
    const q = on(there);
    for (const actor of [p, q]) await actor.do(`${open(x)}; ${open(y)}`);
    if (shared === 'x' || shared === 'both') await share(x, 'm2');
    if (shared === 'y' || shared === 'both') await share(y, 'm2');
    await p.do(lock(x));
    await q.do(lock(y));
    const first = p.do(lock(y));
    await waiting(here, 1);
    expect(await soon(q.fails(lock(x)), 'the one who closes the circle')).toMatch(DEADLOCK);
    await q.do(unlock(y)); // it still has what it had
    await soon(first, 'the other one');
  });

  test.each(places)('ranges of one file, processes on %s and %s', async (here, there) => {
    fresh();
    const p = on(here);
    const q = on(there);
    for (const actor of [p, q]) await actor.do(open(x));
    await p.do(`fcntl.lockf(${x}, fcntl.LOCK_EX, 1, 0)`);
    await q.do(`fcntl.lockf(${x}, fcntl.LOCK_EX, 1, 1)`);
    const first = p.do(`fcntl.lockf(${x}, fcntl.LOCK_EX, 1, 1)`);
    await waiting(here, 1);
    expect(await soon(q.fails(`fcntl.lockf(${x}, fcntl.LOCK_EX, 1, 0)`), 'the one who closes the circle')).toMatch(DEADLOCK);
    await q.do(`os.close(${x})`);
    await soon(first, 'the other one');
  });

  test('a circle of three, over two mounts, over a lock that one mount kept by itself', async () => {
    fresh();
    const z = `z${round}`;
    const p = on('m1');
    const q = on('m1');
    const r = on('m2');
    for (const actor of [p, q]) await actor.do([x, y, z].map(open).join('; '));
    await r.do(`${open(y)}; ${open(z)}`);
    await p.do(lock(x)); // m1's own
    await q.do(lock(y));
    await r.do(lock(z));
    const qWaits = q.do(lock(x));
    await waiting('m1', 1);
    const rWaits = r.do(lock(y));
    await waiting('m2', 1);
    expect(await soon(p.fails(lock(z)), 'the one who closes the circle')).toMatch(DEADLOCK);
    await p.do(unlock(x));
    await soon(qWaits, 'the next');
    await q.do(`${unlock(x)}; ${unlock(y)}`);
    await soon(rWaits, 'the last');
  });

  test('two who wait for a third are not told so', async () => {
    fresh();
    const p = on('m1');
    const q = on('m1');
    const r = on('m2');
    for (const actor of [p, q, r]) await actor.do(`${open(x)}; ${open(y)}`);
    await p.do(`${lock(x)}; ${lock(y)}`);
    const qWaits = q.do(lock(x));
    const rWaits = r.do(lock(y));
    await waiting('m1', 1);
    await waiting('m2', 1);
    await p.end();
    await soon(Promise.all([qWaits, rWaits]), 'both');
  });
});

describe('a mount that dies with locks', () => {
  test.each(kinds)('$kind: after its lease whoever waits, and whoever only tries, gets them', async ({ kind, take }) => {
    const doomed = `doomed-${kind}`;
    await cluster.startMount(doomed);
    const a = on('m1');
    const b = on('m2');
    const held = ['waited', 'tried'].map((name) => `${name}-${kind}`);
    const holder = on(doomed);
    for (const name of held) await holder.do(`f = os.open('${name}', os.O_CREAT | os.O_RDWR); ${take('LOCK_EX')}`);
    await a.do(`f = os.open('${held[0] ?? ''}', os.O_RDWR)`);
    await b.do(`f = os.open('${held[1] ?? ''}', os.O_RDWR)`);
    const waits = a.do(take('LOCK_EX'));
    await waiting('m1', 1);
    expect(await b.fails(take('LOCK_EX | fcntl.LOCK_NB'))).toMatch(BUSY);
    await cluster.signal(doomed, 'SIGKILL');
    await soon(waits, 'the one who waits');
    await until('the one who tries', async () => (await b.fails(take('LOCK_EX | fcntl.LOCK_NB'))).startsWith('no failure'));
  });

  test('it is only tried for, nobody waits: it is free after the lease', async () => {
    await cluster.startMount('doomed');
    const b = on('m2');
    await on('doomed').do(`${open('alone')}; fcntl.lockf(alone, fcntl.LOCK_EX)`);
    await b.do(open('alone'));
    expect(await b.fails('fcntl.lockf(alone, fcntl.LOCK_EX | fcntl.LOCK_NB)')).toMatch(BUSY);
    await cluster.signal('doomed', 'SIGKILL');
    await until('it is free', async () => (await b.fails('fcntl.lockf(alone, fcntl.LOCK_EX | fcntl.LOCK_NB)')).startsWith('no failure'));
  });

  test('stopped, not dead: whoever waits gets the lock when the lease is over', async () => {
    await cluster.startMount('stopped');
    const b = on('m2');
    const holder = on('stopped');
    await holder.do(`${open('kept')}; fcntl.lockf(kept, fcntl.LOCK_EX)`);
    await b.do(open('kept'));
    const waits = b.do('fcntl.lockf(kept, fcntl.LOCK_EX)');
    await waiting('m2', 1);
    await cluster.signal('stopped', 'SIGSTOP');
    await soon(waits, 'the one who waits');
    await cluster.signal('stopped', 'SIGKILL');
  });
});

test('the manager is killed and comes back: locks are as they were, waits have ended', async () => {
  const a = on('m1');
  const b = on('m2');
  for (const actor of [a, b]) await actor.do(`${open('through')}; ${open('closed')}`);
  await a.do(`fcntl.lockf(through, fcntl.LOCK_EX); fcntl.lockf(closed, fcntl.LOCK_EX)`);
  const waits = b.fails('fcntl.lockf(through, fcntl.LOCK_EX)');
  await waiting('m2', 1);
  await cluster.signal('manager', 'SIGKILL');
  expect(await soon(waits, 'the one who waits')).toBe('EIO');
  await a.do(`fcntl.lockf(through, fcntl.LOCK_UN, 0, 1000)`).catch(() => undefined); // nobody can be told of it
  await a.fails(`os.close(closed)`);
  await cluster.startManager();
  await until('it may be tried for', async () => BUSY.test(await b.fails('fcntl.lockf(through, fcntl.LOCK_EX | fcntl.LOCK_NB)')));
  await until('what was closed meanwhile is free', async () =>
    (await b.fails('fcntl.lockf(closed, fcntl.LOCK_EX | fcntl.LOCK_NB)')).startsWith('no failure'),
  );
});
