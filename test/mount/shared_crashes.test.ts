/** Files that several mounts write, while one of them, or the manager, is killed. */
import { afterEach, beforeEach, describe, expect, test } from '@jest/globals';
import { Actor } from './actor.js';
import { succeed, TestCluster } from './cluster.js';

const RECORD = `
import zlib
def record(who, n):
    head = b'%s %06d %05d ' % (who.encode(), n, length := random.Random('%s%d' % (who, n)).randint(30, 20_000))
    body = random.Random(n).randbytes(length - len(head) - 4)
    return head + body + struct.pack('<I', zlib.crc32(head + body))
def records(data):
    found, at = [], 0
    while at < len(data):
        who, n, length = data[at:at + 15].split()
        one = data[at:at + int(length)]
        assert len(one) == int(length) and struct.unpack('<I', one[-4:])[0] == zlib.crc32(one[:-4]), 'torn at %d' % at
        found.append([who.decode(), int(n)])
        at += int(length)
    return found
acknowledged = []
def append(who, numbers):
    fd = os.open('log', os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    for n in numbers:
        try:
            if os.write(fd, record(who, n)) > 0: acknowledged.append([who, n])
        except OSError: pass
    try: os.close(fd)
    except OSError: pass
`;

describe('appenders of three mounts', () => {
  let cluster: TestCluster;
  let actors: Actor[];

  beforeEach(async () => {
    cluster = new TestCluster({ transport: 'tcp', cache: '32M', memory: '512M' });
    await cluster.start(3);
    actors = ['m1', 'm2', 'm3'].map((name) => new Actor(cluster.mount(name).mountPoint));
    await Promise.all(actors.map((actor) => actor.do(RECORD)));
  }, 120_000);
  afterEach(async () => {
    await Promise.all(actors.map((actor) => actor.end()));
    await cluster.stop();
  }, 120_000);

  const acknowledged = async (actor: Actor): Promise<[string, number][]> => actor.do(`acknowledged`);

  /** All of these are there, whole, and of nobody anything twice or out of order. */
  async function checkLog(reader: Actor, wanted: [string, number][]): Promise<void> {
    const found = await reader.do<[string, number][]>(`records(get('log'))`);
    const there = new Set(found.map((one) => one.join()));
    expect(there.size).toBe(found.length);
    expect(wanted.filter((one) => !there.has(one.join()))).toEqual([]);
    for (const who of ['a', 'b', 'c']) {
      const own = found.filter(([name]) => name === who).map(([, n]) => n);
      expect(own).toEqual([...own].sort((one, other) => one - other));
    }
  }

  test('one is killed -9: the others go on, and what lies behind the end when it died is nobody’s', async () => {
    const [a, b, c] = actors as [Actor, Actor, Actor];
    await a.do(`append('a', range(5))`);
    const endless = a.do(`append('a', range(5, 1_000_000))`).catch(() => undefined);
    const others = Promise.all([b.do(`append('b', range(60))`), c.do(`append('c', range(60))`)]);
    await cluster.signal('m1', 'SIGKILL');
    await others;
    await a.end();
    await endless;
    expect([...(await acknowledged(b)), ...(await acknowledged(c))]).toHaveLength(120);
    await checkLog(c, [
      ...(await acknowledged(b)),
      ...(await acknowledged(c)),
      ...Array.from({ length: 5 }, (_, n): [string, number] => ['a', n]),
    ]);
    // A gap over what it may have left there reads as zeros.
    const size = await b.do<number>(
      `fd = os.open('log', os.O_RDWR); size = os.fstat(fd).st_size; os.pwrite(fd, b'end', size + 300_000); size`,
    );
    expect(await c.do(`get('log')[${size}:] == bytes(300_000) + b'end'`)).toBe(true);
    await b.do(`os.close(fd)`);
  }, 120_000);

  test('the manager is killed -9 and comes back: what was acknowledged is there, what was not is there whole or not at all', async () => {
    const [a, b, c] = actors as [Actor, Actor, Actor];
    const writing = Promise.all([a.do(`append('a', range(400))`), b.do(`append('b', range(400))`)]);
    await c.do(`
fd = os.open('log', os.O_CREAT | os.O_RDONLY)
while os.fstat(fd).st_size < 200_000: pass
os.close(fd)`);
    await cluster.signal('manager', 'SIGKILL');
    await writing;
    await cluster.startManager();
    await c.do(`
while True:
    try:
        records(get('log'))
        break
    except OSError: pass`);
    const named: [Actor, string][] = [
      [a, 'a'],
      [b, 'b'],
    ];
    // Each mount finds the manager again when it does.
    for (const [actor, name] of named)
      await actor.do(`
fd, n = None, 1000
while n < 1020:
    try:
        if fd is None: fd = os.open('log', os.O_WRONLY | os.O_APPEND)
        os.write(fd, record('${name}', n)); acknowledged.append(['${name}', n]); n += 1
    except OSError: pass
os.close(fd)`);
    const wanted = [...(await acknowledged(a)), ...(await acknowledged(b))];
    expect(wanted.filter(([, n]) => n >= 1000)).toHaveLength(40);
    await checkLog(c, wanted);
  }, 120_000);

  test('cp into a file that another has open, and copy_file_range, are seen there', async () => {
    const [a, b] = actors as [Actor, Actor];
    await a.do(
      `data = random.randbytes(3_000_000); put('source', data); fd = os.open('copy', os.O_CREAT | os.O_RDWR); os.pwrite(fd, b'old' * 10, 0)`,
    );
    await b.do(`fd = os.open('copy', os.O_RDWR); os.pread(fd, 30, 0)`);
    await succeed('cp', ['source', 'copy'], cluster.mount('m2').mountPoint);
    expect(await a.do(`os.fstat(fd).st_size, os.pread(fd, 3_000_000, 0) == data`)).toEqual([3_000_000, true]);
    await b.do(`src = os.open('source', os.O_RDONLY); os.copy_file_range(src, fd, 1_000_000, 500_000, 2_900_000)`);
    expect(await a.do(`os.fstat(fd).st_size, os.pread(fd, 4_000_000, 2_900_000) == data[500_000:1_500_000]`)).toEqual([3_900_000, true]);
    await Promise.all([a, b].map((actor) => actor.do(`os.close(fd)`)));
  }, 60_000);

  test('sqlite of three mounts at once in rollback mode loses no row', async () => {
    const rows = 40;
    const path = (mount: string): string => cluster.mount(mount).path('three.db');
    await succeed('sqlite3', [path('m1'), 'create table t (who text, n integer)']);
    const inserts = (who: string): string => Array.from({ length: rows }, (_, n) => `insert into t values ('${who}', ${n});`).join('\n');
    await Promise.all(
      ['m1', 'm2', 'm3'].map((mount) => succeed('sqlite3', ['-bail', '-cmd', '.timeout 60000', path(mount), inserts(mount)])),
    );
    const found = await succeed('sqlite3', [path('m2'), 'pragma integrity_check; select count(*), count(distinct who || n) from t']);
    expect(found.trim()).toBe(`ok\n${3 * rows}|${3 * rows}`);
  }, 120_000);
});
