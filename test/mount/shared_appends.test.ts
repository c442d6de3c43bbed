/**
 * Files that several mounts make longer at once: every record lands at the end as it is then, whole, and nobody sees the size
 * before the bytes.
 */
import { afterAll, beforeAll, describe, expect, test } from '@jest/globals';
import { Actor } from './actor.js';
import { succeed, TestCluster } from './cluster.js';

const MOUNTS = 3;

/** What every actor knows: records that say who wrote them, which one they are, and how long they are. */
const PRELUDE = `
import threading, zlib
buffer = mmap.mmap(-1, 1 << 20) # page-aligned, so that the kernel sends a whole MiB at once
def record(who, n, length):
    head = b'%s %06d %07d ' % (who.encode(), n, length)
    body = random.Random('%s%d' % (who, n)).randbytes(length - len(head) - 4)
    return head + body + struct.pack('<I', zlib.crc32(head + body))
def append(fd, data):
    buffer[:len(data)] = data
    written = os.writev(fd, [memoryview(buffer)[:len(data)]])
    assert written == len(data), written
def records(data):
    found, at = [], 0
    while at < len(data):
        who, n, length = data[at:at + 17].split()
        length = int(length)
        one = data[at:at + length]
        assert len(one) == length and struct.unpack('<I', one[-4:])[0] == zlib.crc32(one[:-4]), 'torn at %d' % at
        found.append([who.decode(), int(n)])
        at += length
    return found
`;

describe.each(['tcp', 'shm'] as const)('appends of several mounts over %s', (transport) => {
  const cluster = new TestCluster({ transport, cache: '32M', memory: '512M' });
  const actors: Actor[] = [];

  beforeAll(async () => {
    await cluster.start(MOUNTS);
    for (let mount = 1; mount <= MOUNTS; ++mount) {
      const actor = new Actor(cluster.mount(`m${mount}`).mountPoint);
      await actor.do(PRELUDE);
      actors.push(actor);
    }
  }, 120_000);
  afterAll(async () => {
    await Promise.all(actors.map((actor) => actor.end()));
    await cluster.stop();
  }, 120_000);

  async function checkRecords(name: string, count: number): Promise<void> {
    const wanted = Array.from({ length: MOUNTS * count }, (_, index) => [`w${index % MOUNTS}`, Math.floor(index / MOUNTS)]);
    for (const actor of actors) {
      const found = await actor.do<[string, number][]>(`records(get('${name}'))`);
      const inOrder = [...found].sort(([one, m], [other, n]) => m - n || one.localeCompare(other));
      expect(inOrder).toEqual(wanted);
      for (let index = 0; index < MOUNTS; ++index) {
        const own = found.filter(([who]) => who === `w${index}`).map(([, n]) => n);
        expect(own).toEqual(Array.from({ length: count }, (_, n) => n));
      }
    }
  }

  test.each([
    ['small', 100, 40],
    ['over pages', 60, 30_000],
    ['of a MiB', 4, 1 << 20],
  ])(
    'records %s: none is lost, torn or out of its writer’s order',
    async (what, count, most) => {
      const name = `log ${what}`;
      await Promise.all(
        actors.map((actor, index) =>
          actor.do(`
fd = os.open('${name}', os.O_CREAT | os.O_RDWR | os.O_APPEND)
for n in range(${count}): append(fd, record('w${index}', n, ${most} if ${most} == 1 << 20 else random.Random(n).randint(30, ${most})))
os.close(fd)`),
        ),
      );
      await checkRecords(name, count);
    },
    120_000,
  );

  test('of shells, as >> makes them', async () => {
    const lines = 60;
    const script = (who: number): string => `i=0; while [ $i -lt ${lines} ]; do echo "line $i of ${who}" >> shell; i=$((i+1)); done`;
    await Promise.all(actors.map((_, index) => succeed('bash', ['-c', script(index)], cluster.mount(`m${index + 1}`).mountPoint)));
    const wanted = actors.flatMap((_, who) => Array.from({ length: lines }, (_item, index) => `line ${index} of ${who}`));
    const found = await actors[2]!.do<string>(`get('shell')`);
    expect(found.trimEnd().split('\n').sort()).toEqual(wanted.sort());
  }, 120_000);

  test('one descriptor that becomes O_APPEND later, and one that was opened before the file was shared', async () => {
    const [a, b] = actors as [Actor, Actor];
    await a.do(`fa = os.open('later', os.O_CREAT | os.O_RDWR | os.O_APPEND); os.write(fa, b'one ')`);
    await b.do(`fb = os.open('later', os.O_RDWR); fcntl.fcntl(fb, fcntl.F_SETFL, os.O_APPEND); os.write(fb, b'two ')`);
    await a.do(`os.write(fa, b'three ')`);
    await b.do(`os.write(fb, b'four ')`);
    for (const actor of [a, b]) expect(await actor.do(`get('later')`)).toBe('one two three four ');
    await b.do(`os.close(fb)`);
    await a.do(`os.write(fa, b'five')`); // alone again: its kernel believes the end elsewhere
    for (const actor of [a, b]) expect(await actor.do(`get('later')`)).toBe('one two three four five');
    await a.do(`os.close(fa)`);
  });

  test('a descriptor that appends can be mapped, and the mapping sees what both append', async () => {
    const [a, b] = actors as [Actor, Actor];
    await a.do(`fa = os.open('mapped', os.O_CREAT | os.O_RDWR | os.O_APPEND); os.write(fa, b'a' * 5000)`);
    await b.do(`fb = os.open('mapped', os.O_WRONLY | os.O_APPEND); os.write(fb, b'b' * 3000)`);
    expect(await a.do(`os.fstat(fa).st_size, (m := mmap.mmap(fa, 8000))[:] == b'a' * 5000 + b'b' * 3000`)).toEqual([8000, true]);
    await b.do(`os.write(fb, b'c' * 100)`);
    expect(await a.do(`os.fstat(fa).st_size, m.resize(8100), m[7990:] == b'b' * 10 + b'c' * 100`)).toEqual([8100, null, true]);
    await a.do(`m[0:1] = b'A'; m.flush(); m.close(); os.close(fa)`);
    expect(await b.do(`get('mapped')[:2]`)).toBe('Aa');
    await b.do(`os.close(fb)`);
  });

  test('whoever follows the file sees whole records only: no size without the bytes', async () => {
    const count = 150;
    const reader = `
fd = os.open('followed', os.O_CREAT | os.O_RDWR)
at, whole = 0, b''
while whole.count(b'.') < ${2 * count}:
    size = os.fstat(fd).st_size
    if size == at: continue
    more = os.pread(fd, size - at, at)
    assert b'\\0' not in more, (at, size, more[:40])
    at += len(more)
    whole += more
os.close(fd)
whole.count(b'.')`;
    const writer = (who: string): string => `
fd = os.open('followed', os.O_CREAT | os.O_WRONLY | os.O_APPEND)
for n in range(${count}): os.write(fd, b'${who}' * random.randint(1, 3000) + b'.')
os.close(fd)`;
    const [a, b, c] = actors as [Actor, Actor, Actor];
    const [, , seen] = await Promise.all([a.do(writer('a')), b.do(writer('b')), c.do(reader)]);
    expect(seen).toBe(2 * count);
  }, 120_000);

  test('whoever reads on the mount that appends sees whole records only', async () => {
    const count = 150;
    const local = new Actor(cluster.mount('m1').mountPoint);
    const [a, b] = actors as [Actor, Actor];
    const openLog = `fd = os.open('beside', os.O_CREAT | os.O_WRONLY | os.O_APPEND)`;
    await Promise.all([a.do(openLog), b.do(openLog)]);
    const writer = (who: string): string => `
for n in range(${count}): os.write(fd, b'${who}' * random.randint(1, 900) + b'.')
os.close(fd)`;
    const reader = `
fd = os.open('beside', os.O_CREAT | os.O_RDONLY)
data = b''
while data.count(b'.') < ${2 * count}:
    data = os.pread(fd, 1 << 20, 0)
    assert b'\\0' not in data, data.index(b'\\0')
os.close(fd)
data.count(b'.')`;
    const [, , seen] = await Promise.all([a.do(writer('a')), b.do(writer('b')), local.do(reader)]);
    expect(seen).toBe(2 * count);
    await local.end();
  }, 120_000);

  test('two that extend a file by pwrite, each behind the other, keep each other’s bytes', async () => {
    const rounds = 120;
    const [a, b] = actors as [Actor, Actor];
    // Slots of 700 bytes, several to a page; a writes the even ones, b the odd ones, so that each leaves a gap before the end.
    const writer = (who: number): string => `
fd = os.open('slots', os.O_CREAT | os.O_RDWR)
for n in range(${who}, ${2 * rounds}, 2): os.pwrite(fd, bytes([1 + n % 250]) * 700, n * 700)
os.close(fd)`;
    await Promise.all([a.do(writer(0)), b.do(writer(1))]);
    for (const actor of [a, b])
      expect(
        await actor.do(
          `data = get('slots'); [n for n in range(${2 * rounds}) if data[n * 700:n * 700 + 700] != bytes([1 + n % 250]) * 700]`,
        ),
      ).toEqual([]);
  }, 120_000);

  test('an appender, and another that truncates: a record is there whole from its first byte on, or cut off', async () => {
    const [a, b] = actors as [Actor, Actor];
    await Promise.all([
      a.do(`
fd = os.open('rolled', os.O_CREAT | os.O_WRONLY | os.O_APPEND)
for n in range(200): os.write(fd, b'<' + b'x' * random.randint(1, 5000) + b'>')
os.close(fd)`),
      b.do(`
fd = os.open('rolled', os.O_CREAT | os.O_RDWR)
for n in range(30):
    os.ftruncate(fd, 0)
    data = os.pread(fd, 1 << 20, 0)
    assert b'\\0' not in data and (not data or (data[:1] == b'<' and data[-1:] == b'>')), (data[:20], data[-20:])
os.close(fd)`),
    ]);
    const data = await a.do<string>(`get('rolled')`);
    expect(data.replace(/<x+>/g, '')).toBe('');
  }, 120_000);
});
