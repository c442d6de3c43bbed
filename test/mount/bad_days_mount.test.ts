/**
 * The mount is killed, stopped, or told to go: what was fsynced is there for the next one, whose provision is the old one's, and nothing
 * is left behind. Mounting where that cannot be says what to do.
 */
import { mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { spawn } from 'node:child_process';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from '@jest/globals';
import { until } from '../until.js';
import { Actor } from './actor.js';
import { clusterStatus, LIMIT_MS, quote, timed } from './bad_days.js';
import { freePort } from '../free_port.js';
import { cli, run, TestCluster, within } from './cluster.js';

const isMounted = (path: string): boolean =>
  readFileSync('/proc/self/mountinfo', 'utf8')
    .split('\n')
    .some((line) => line.split(' ')[4] === path);
const isAlive = (pid: number): boolean => {
  try {
    return !/^State:\s+[ZX]/m.test(readFileSync(`/proc/${pid}/status`, 'utf8'));
  } catch {
    return false;
  }
};

describe.each(['tcp', 'shm'] as const)('a mount killed while it is busy, over %s', (transport) => {
  const cluster = new TestCluster({ transport, cache: '32M', memory: '512M' });

  beforeAll(() => cluster.start());
  afterAll(() => cluster.stop());

  test('what was fsynced is there byte for byte, the provision is adopted, and everything can be read', async () => {
    const reserved = async (): Promise<number> =>
      (await clusterStatus(cluster)).appliances.reduce((sum, one) => sum + one.reservedBytes, 0);
    const WRITERS = 4;
    const writers = Array.from({ length: WRITERS }, () => new Actor());
    const journals = await Promise.all(
      writers.map(async (writer, index) => {
        const journal = join(cluster.folder, `journal-${index}`);
        // Each file is a seed's bytes; the journal says, after the fsync, which seed and length are promised.
        await writer.do(`
root = ${quote(cluster.mount().mountPoint)}; journal = open(${quote(journal)}, 'w', buffering=1)
def content(seed, length): return random.Random(seed).randbytes(length)
def work():
    seed = ${index} * 1_000_000
    while True:
        seed += 1
        name = f'{root}/w${index}-{seed % 40}'; length = random.randrange(1, 600_000)
        print('begin', name, seed, length, file=journal)
        f = os.open(name, os.O_RDWR | os.O_CREAT)
        os.pwrite(f, content(seed, length), 0); os.ftruncate(f, length); os.fsync(f); os.close(f)
        print('synced', name, seed, length, file=journal)`);
        return journal;
      }),
    );
    const working = writers.map((writer) => writer.fails('work()'));
    await until('the writers are at it', () => journals.every((journal) => readFileSync(journal, 'utf8').split('\n').length > 100));
    const before = await reserved();
    await cluster.signal('m1', 'SIGKILL');
    await Promise.all(working);
    const { code, stdout, stderr } = await cluster.extmem('umount', join(cluster.folder, 'm1'));
    expect({ code, stderr }).toEqual({ code: 0, stderr: '' });
    expect(stdout).toMatch(/cleaned away/);
    await cluster.startMount('m1');
    const reader = new Actor();
    const outcome = await within(
      reader.do<string[]>(`
promised = {}; touched = {}
for index in range(${WRITERS}):
    for line in open(f'${cluster.folder}/journal-{index}'):
        what, name, seed, length = line.split()
        if what == 'synced': promised[name] = (int(seed), int(length)); touched.pop(name, None)
        else: touched[name] = (int(seed), int(length))
wrong = []
for name, (seed, length) in promised.items():
    data = get(name)
    if name in touched: continue  # was being overwritten: readable is enough
    if data != random.Random(seed).randbytes(length): wrong.append(name)
for name in os.listdir(${quote(cluster.mount().mountPoint)}): get(${quote(cluster.mount().mountPoint)} + '/' + name)
wrong + ([] if len(promised) > 20 else ['too few files'])`),
      60_000,
      'reading everything back',
    );
    expect(outcome).toEqual([]);
    expect((await clusterStatus(cluster)).clients).toHaveLength(1);
    expect(await reserved()).toBeLessThanOrEqual(2 * before);
    // Growing past its own provision takes the room that the old one left: nothing is reserved for nobody.
    await reader.do(`put(${quote(cluster.mount().path('after'))}, bytes(200 << 20))`);
    await until('the provision is adopted', async () => (await clusterStatus(cluster)).clients[0]?.provisionBytes === (await reserved()));
    for (const actor of [...writers, reader]) await actor.end();
  });
});

describe('taking a mount away', () => {
  const cluster = new TestCluster({ cache: '32M', memory: '256M' });
  let actor: Actor;

  beforeAll(() => cluster.start(0));
  afterAll(() => cluster.stop());
  beforeEach(async () => {
    await cluster.startMount('m1');
    actor = new Actor();
  });
  afterEach(() => actor.end());

  const force = async (): Promise<void> => {
    const started = Date.now();
    const { code, stderr } = await within(cluster.extmem('umount', '--force', join(cluster.folder, 'm1')), LIMIT_MS, 'umount --force');
    expect({ code, stderr }).toEqual({ code: 0, stderr: '' });
    expect(Date.now() - started).toBeLessThan(LIMIT_MS);
    expect(isMounted(join(cluster.folder, 'm1'))).toBe(false);
  };

  test('--force while its process is stopped, with files open and calls under way', async () => {
    const path = quote(cluster.mount().path('stuck'));
    await actor.do(`f = os.open(${path}, os.O_RDWR | os.O_CREAT); os.write(f, bytes(1 << 20)); os.fsync(f)`);
    await cluster.evict();
    await cluster.signal('m1', 'SIGSTOP');
    const stuck = timed(actor, `os.pread(f, 4096, 0)`);
    await force();
    expect((await within(stuck, LIMIT_MS, 'the call under way')).error).not.toBe('');
    await within(cluster.mount().exited, 10_000, 'the mount process ends by itself');
  });

  test('--force while its process is dead', async () => {
    await actor.do(`f = os.open(${quote(cluster.mount().path('dead'))}, os.O_RDWR | os.O_CREAT); os.write(f, b'x')`);
    await cluster.signal('m1', 'SIGKILL');
    await force();
  });

  test('a killed mount is cleaned away by the next one', async () => {
    await actor.do(`f = os.open(${quote(cluster.mount().path('again'))}, os.O_RDWR | os.O_CREAT); os.write(f, b'x'); os.fsync(f)`);
    await cluster.signal('m1', 'SIGKILL');
    await cluster.startMount('m1');
    expect(await actor.do(`get(${quote(cluster.mount().path('again'))})`)).toBe('x');
    await force();
    await within(cluster.mount().exited, 10_000, 'the mount process ends by itself');
  });

  test('umount while files are open: EBUSY, and the mount goes on', async () => {
    await actor.do(`f = os.open(${quote(cluster.mount().path('busy'))}, os.O_RDWR | os.O_CREAT); os.write(f, b'x')`);
    const { code, stderr } = await cluster.extmem('umount', cluster.mount().mountPoint);
    expect(code).not.toBe(0);
    expect(stderr).toMatch(/still in use; close them/);
    await actor.do(`os.write(f, b'y'); os.close(f)`);
    expect((await cluster.extmem('umount', cluster.mount().mountPoint)).code).toBe(0);
    await within(cluster.mount().exited, 10_000, 'the mount process ends');
  });
});

describe('where one cannot mount', () => {
  const cluster = new TestCluster({ appliances: 0, memory: '256M', cache: '32M' });
  beforeAll(() => cluster.start(1));
  afterAll(() => cluster.stop());

  const refused = async (path: string, ...flags: string[]): Promise<string> => {
    const { code, stderr } = await within(cluster.extmem('mount', '--cache', '32M', ...flags, path), 15_000, `mounting on ${path}`);
    expect(code).not.toBe(0);
    return stderr;
  };

  test('no such folder: the message says so, and how to make it', async () => {
    expect(await refused(join(cluster.folder, 'missing'))).toMatch(/there is no such folder; create it, or add --mkdir/);
  });

  test('mounted already: the message says how to unmount', async () => {
    expect(await refused(cluster.mount().mountPoint)).toMatch(/is mounted there already; unmount it first with: extmem umount/);
  });

  test('not a directory, or not empty', async () => {
    const file = join(cluster.folder, 'file');
    writeFileSync(file, 'x');
    expect(await refused(file)).toMatch(/is not a directory; choose an empty folder/);
    mkdirSync(join(cluster.folder, 'full'));
    writeFileSync(join(cluster.folder, 'full', 'inside'), 'x');
    expect(await refused(join(cluster.folder, 'full'))).toMatch(/is not empty/);
  });

  test('no manager: the message says how to start or name one', async () => {
    mkdirSync(join(cluster.folder, 'empty'));
    expect(await refused(join(cluster.folder, 'empty'), '--manager', `127.0.0.1:${await freePort()}`)).toMatch(
      /no manager answers at .*extmem manager/,
    );
  });

  test('no FUSE: the message says how to get it', async () => {
    const place = join(cluster.folder, 'fuseless');
    mkdirSync(place);
    // A host without the device: a /dev of its own, with nothing of ours in it.
    const { code, stderr } = await run(
      'unshare',
      [
        '-m',
        'sh',
        '-c',
        'mount -t tmpfs none /dev && mknod -m 666 /dev/null c 1 3 && exec "$@"',
        'sh',
        process.execPath,
        cli,
        'mount',
        place,
      ],
      { ...cluster.environment, EXTMEM_MANAGER: cluster.manager },
    );
    expect(code).not.toBe(0);
    expect(stderr).toMatch(/\/dev\/fuse is not usable here.*modprobe fuse/);
  });

  test('no appliance: it mounts and warns, a write says ENOSPC, and one that joins cures it', async () => {
    expect(cluster.mount().log()).toMatch(/no appliance yet: writes fail with ENOSPC until one joins/);
    const actor = new Actor();
    const path = quote(cluster.mount().path('first'));
    const { error, ms } = await timed(actor, `f = os.open(${path}, os.O_RDWR | os.O_CREAT); os.write(f, b'x')`);
    expect(error).toBe('ENOSPC');
    expect(ms).toBeLessThan(LIMIT_MS);
    await actor.do(`assert os.stat(${path}).st_size == 0; os.mkdir(${quote(cluster.mount().path('folder'))})`);
    await cluster.startAppliance('a1');
    await until('there is room', async () => (await timed(actor, `os.write(f, b'x'); os.fsync(f)`)).error === '');
    await actor.end();
  });
});

describe('extmem up', () => {
  test('SIGINT leaves no process, no mount and no socket', async () => {
    const cluster = new TestCluster({});
    const mountPoint = join(cluster.folder, 'up');
    const dir = join(cluster.folder, 'state');
    const parameters = ['up', '--dir', dir, '--memory', '256M', '--listen', '127.0.0.1:0', '--json', mountPoint];
    const child = spawn(process.execPath, [cli, ...parameters], { env: cluster.environment, stdio: ['ignore', 'pipe', 'pipe'] });
    let text = '';
    child.stdout.on('data', (piece: Buffer) => (text += piece.toString()));
    const exited = new Promise<number | null>((resolve) => child.once('exit', resolve));
    await until('it is up', () => isMounted(mountPoint) && text.includes('}'), 30_000);
    const family = (await run('ps', ['-A', '-o', 'pid=,args='])).stdout
      .split('\n')
      .filter((line) => line.includes(cluster.folder))
      .map((line) => Number.parseInt(line, 10));
    expect(family.length).toBeGreaterThanOrEqual(4);
    const actor = new Actor();
    await actor.do(`put(${quote(join(mountPoint, 'file'))}, bytes(1 << 20))`);
    await actor.end();
    child.kill('SIGINT');
    expect(await within(exited, 20_000, 'extmem up ends')).not.toBeNull();
    expect(family.filter(isAlive)).toEqual([]);
    expect(isMounted(mountPoint)).toBe(false);
    const sockets = readdirSync(cluster.folder, { recursive: true }).filter((name) => String(name).endsWith('.sock'));
    expect(sockets).toEqual([]);
    await cluster.stop();
  });
});
