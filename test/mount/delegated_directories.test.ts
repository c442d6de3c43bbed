/**
 * Directories that a mount has to itself, by real processes: others see all of it at any moment, and what was promised of it is there
 * after kill -9 of mount or manager. EXTMEM_TREE_FILES: how large the tree is (100000 takes minutes).
 */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from '@jest/globals';
import { until } from '../until.js';
import { Actor } from './actor.js';
import { quote, sessionState } from './bad_days.js';
import { succeed, TestCluster, within } from './cluster.js';

const TREE_FILES = Number(process.env['EXTMEM_TREE_FILES'] ?? 2000);
const FILES_PER_FOLDER = 100;

/** A child makes and removes files, and notes what it began, and what has returned. Content follows from the name. */
const WORK = `
def content(name): return random.Random(name).randbytes(random.Random(name).randrange(1, 9000))
def work(folder, note, first=0):
    index = first
    while True:
        name = f'f{index:06}'; index += 1
        print('making', name, file=note); put(f'{folder}/{name}', content(name)); print('made', name, file=note)
        if index % 3: continue
        print('removing', name, file=note); os.unlink(f'{folder}/{name}')
        if index % 30: continue
        fd = os.open(folder, os.O_RDONLY); os.fsync(fd); os.close(fd); print('synced', name, file=note)
def promised(path):
    """What must be there, what must not, and what may be either way."""
    there, gone, open_to_doubt = set(), set(), set()
    for line in open(path):
        what, name = line.split()
        if what == 'making': open_to_doubt.add(name)
        elif what == 'made': open_to_doubt.discard(name); there.add(name)
        elif what == 'removing': there.discard(name); open_to_doubt.add(name)
        elif what == 'synced': gone |= {name for name in open_to_doubt}; open_to_doubt = set()
    return there, gone, open_to_doubt
def complaints(folder, path):
    there, gone, _ = promised(path)
    names = set(os.listdir(folder))
    wrong = [f'{name} is missing' for name in there - names] + [f'{name} is back' for name in gone & names]
    wrong += [f'{name} has other bytes' for name in there & names if get(f'{folder}/{name}') != content(name)]
    for name in names: os.stat(f'{folder}/{name}')
    return wrong + ([] if len(there) > 20 else ['too few files'])
`;

describe('a directory that one mount fills', () => {
  const cluster = new TestCluster({ transport: 'tcp', cache: '32M', memory: '512M' });
  let a: Actor;
  let b: Actor;
  const made = (mount: string): string => join(cluster.folder, `note-${mount}`);
  const lines = (mount: string): number => readFileSync(made(mount), 'utf8').split('\n').length;
  const start = (actor: Actor, name: string, note: string): Promise<unknown> =>
    actor.do(`note = open(${quote(made(note))}, 'w', buffering=1); folder = ${quote(cluster.mount('m1').path(name))}; os.mkdir(folder)`);

  beforeAll(async () => {
    await cluster.start(2);
    [a, b] = [new Actor(), new Actor()];
    await Promise.all([a.do(WORK), b.do(WORK)]);
  }, 60_000);
  afterAll(async () => {
    await Promise.all([a.end(), b.end()]);
    await cluster.stop();
  }, 60_000);

  test('what was made before another began to list it is in the list, and what was removed is not', async () => {
    const folder = cluster.mount('m2').path('listed');
    await a.do(`os.mkdir(${quote(cluster.mount('m1').path('listed'))})`);
    for (let round = 0; round < 15; round += 1) {
      const path = quote(cluster.mount('m1').path(`listed/r${round}`));
      await a.do(`put(${path}, b'x' * ${round}); put(${path} + '-gone', b'y'); os.unlink(${path} + '-gone')`);
      if (round < 5) continue; // a good start before anybody looks
      const expected = Array.from({ length: round + 1 }, (_, index) => `r${index}`).sort();
      expect(await b.do(`sorted(os.listdir(${quote(folder)}))`)).toEqual(expected);
      expect(await b.do(`os.stat(${quote(folder)} + '/r${round}').st_size`)).toBe(round);
    }
  });

  test('two mounts that fill one directory each see all of both', async () => {
    const [one, other] = [quote(cluster.mount('m1').path('both')), quote(cluster.mount('m2').path('both'))];
    await a.do(`os.mkdir(${one})`);
    const fill = (who: string, folder: string): string => `for i in range(150): put(f'{${folder}}/${who}{i}', b'${who}' * i)`;
    await Promise.all([a.do(fill('a', one)), b.do(fill('b', other))]);
    const check = (folder: string): string =>
      `len(os.listdir(${folder})), all(get(f'{${folder}}/{w}{i}') == w.encode() * i for i in range(150) for w in 'ab')`;
    expect(await a.do(check(one))).toEqual([300, true]);
    expect(await b.do(check(other))).toEqual([300, true]);
    await Promise.all([
      a.do(`for i in range(150): os.unlink(f'{${one}}/b{i}')`),
      b.do(`for i in range(150): os.unlink(f'{${other}}/a{i}')`),
    ]);
    await b.do(`os.rmdir(${other})`);
    expect(await a.do(`os.path.exists(${one})`)).toBe(false);
  });

  test('the manager killed in the middle: what had returned is there when it is back, and both mounts see the same', async () => {
    await start(a, 'm', 'manager');
    const working = a.fails(`work(folder, note)`);
    await until('it is at it', () => lines('manager') > 400);
    await cluster.signal('manager', 'SIGKILL');
    expect(await within(working, 10_000, 'the worker ends')).toBe('EIO');
    await cluster.startManager();
    for (const mount of ['m1', 'm2'])
      await until(`${mount} is back`, () => sessionState(cluster, mount).then((state) => state === 'alive'));
    const names = (mount: string): string => `sorted(os.listdir(${quote(cluster.mount(mount).path('m'))}))`;
    const seen = await b.do<string[]>(names('m2'));
    expect(await a.do(names('m1'))).toEqual(seen);
    expect(await b.do(`complaints(${quote(cluster.mount('m2').path('m'))}, ${quote(made('manager'))})`)).toEqual([]);
  }, 60_000);

  test('the mount killed in the middle: what it had promised is there for another, and no room is lost', async () => {
    await start(a, 'k', 'mount');
    const working = a.fails(`work(folder, note)`);
    await until('it is at it', () => lines('mount') > 400);
    await cluster.signal('m1', 'SIGKILL');
    await within(working, 10_000, 'the worker ends');
    const root = quote(cluster.mount('m2').mountPoint);
    // What was written by then was closed as well: of removals only those before the last fsync are promised.
    expect(await b.do(`complaints(${root} + '/k', ${quote(made('mount'))})`)).toEqual([]);
    await b.do(`import shutil
for name in os.listdir(${root}): shutil.rmtree(f'{${root}}/{name}')`);
    await until('all room is free', () => b.do<boolean>(`room = os.statvfs(${root}); room.f_bfree == room.f_blocks`));
  }, 60_000);
});

describe('a tree of files', () => {
  const cluster = new TestCluster({ transport: 'tcp', cache: '128M', memory: '1G' });
  beforeAll(() => cluster.start(2), 60_000);
  afterAll(() => cluster.stop(), 60_000);

  test(
    `${TREE_FILES} of them: copied in, looked at, listed, searched, compared from another mount, removed`,
    async () => {
      const [source, tree] = [join(cluster.folder, 'source'), cluster.mount('m1').path('tree')];
      const actor = new Actor();
      await actor.do(`
os.mkdir(${quote(source)})
for i in range(${TREE_FILES}):
    folder = f'${source}/d{i // ${FILES_PER_FOLDER}:04}'
    if i % ${FILES_PER_FOLDER} == 0: os.mkdir(folder)
    put(f'{folder}/f{i:06}', f'file {i} of many\\n'.encode() * (i % 50 + 1))`);
      await actor.end();
      await succeed('cp', ['-r', source, tree]);
      const counted = async (...command: string[]): Promise<number> =>
        Number(await succeed('sh', ['-c', '"$@" | wc -l', 'sh', ...command]));
      expect(await counted('find', tree, '-type', 'f', '-size', '+0', '-newermt', '2000-01-01')).toBe(TREE_FILES);
      expect(await counted('ls', '-lR', tree)).toBeGreaterThan(TREE_FILES);
      expect(await counted('grep', '-rl', `file ${TREE_FILES - 1} of many`, tree)).toBe(1);
      await succeed('diff', ['-r', source, cluster.mount('m2').path('tree')]);
      await succeed('rm', ['-r', tree]);
      await succeed('test', ['!', '-e', cluster.mount('m2').path('tree')]);
    },
    TREE_FILES * 20 + 60_000,
  );
});
