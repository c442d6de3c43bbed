/**
 * Programs whose use of a mount is recorded. Each runs as it is, with the kernel's page cache before ours; in a memory cgroup, so that the
 * kernel keeps little; or past the kernel's cache (O_DIRECT), where the program can.
 */
import { mkdir } from 'node:fs/promises';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { fill as fillFile, MIB, run } from '../targets/target.js';

export type Caching = 'kernel' | 'short' | 'direct';

export interface Place {
  folder: string;
  caching: Caching;
  /** Runs a command where its memory is limited, if it is. */
  run(command: string, ...parameters: string[]): Promise<string>;
  /** Nothing is left in the kernel's cache nor in ours. */
  cool(): Promise<void>;
}

export interface Workload {
  id: string;
  title: string;
  caching: readonly Caching[];
  /** Of the program and the kernel's pages for it, where they are short. */
  shortBytes: number;
  record(place: Place): Promise<void>;
}

const root = fileURLToPath(new URL('../../../', import.meta.url));

async function fill(place: Place, name: string, bytes: number): Promise<string> {
  const file = join(place.folder, name);
  await fillFile(file, bytes);
  return file;
}

function fio(place: Place, file: string, ...parameters: string[]): Promise<string> {
  const common = [`--filename=${file}`, `--direct=${place.caching === 'direct' ? 1 : 0}`, '--ioengine=psync', '--bs=4k', '--size=100%'];
  return place.run('fio', ...common, '--invalidate=0', '--fadvise_hint=0', ...parameters);
}

const zipf = (requests: number, seed: number): string[] => [
  '--random_distribution=zipf:1.1',
  '--norandommap',
  `--io_size=${requests * 4096}`,
  `--randseed=${seed}`,
];

async function skewedReads(place: Place): Promise<void> {
  const file = await fill(place, 'zipf', 256 * MIB);
  await place.cool();
  await fio(place, file, '--name=zipf', '--rw=randread', ...zipf(200_000, 1));
}

/** Twice, the program goes on to other pages and leaves the former for good. */
async function shiftingReads(place: Place): Promise<void> {
  const file = await fill(place, 'shifting', 256 * MIB);
  await place.cool();
  for (const phase of [0, 1, 2])
    await fio(place, file, '--name=shift', '--rw=randread', ...zipf(80_000, phase + 1), `--offset=${phase * 80}M`, '--size=80M');
}

async function readsAndScans(place: Place): Promise<void> {
  const file = await fill(place, 'mixed', 256 * MIB);
  await place.cool();
  const mixed = ['--name=mixed', '--rw=randrw', '--rwmixread=80', ...zipf(60_000, 1), '--size=128M'];
  const scan = ['--name=scan', '--rw=read', '--bs=64k', '--offset=128M', '--size=128M', '--loops=2'];
  await fio(place, file, ...mixed, ...scan);
}

async function database(place: Place): Promise<void> {
  const rows = 400_000;
  const file = join(place.folder, 'database');
  const sqlite = (sql: string): Promise<string> => place.run('sqlite3', file, `PRAGMA cache_size=-1024; ${sql}`);
  const series = (count: number): string => `WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i + 1 < ${count})`;
  // A product of two uniform numbers: small ones are likelier.
  const points = (count: number): string =>
    `${series(count)} SELECT sum(length(v)) FROM n CROSS JOIN t ON t.id = (abs(random()) % 1000) * (abs(random()) % 1000) * ${rows} / 1000000 + (i & 0)`;
  await sqlite(
    `PRAGMA page_size=4096; CREATE TABLE t(id INTEGER PRIMARY KEY, k TEXT, v TEXT); ${series(rows)} INSERT INTO t SELECT i, hex(randomblob(8)), hex(randomblob(100)) FROM n;`,
  );
  await sqlite('CREATE INDEX k ON t(k);');
  await sqlite(`${points(30_000)};`);
  await sqlite('SELECT sum(length(v)) FROM t;');
  await sqlite(`${points(30_000)};`);
  await sqlite("SELECT count(*) FROM t WHERE k < '4';");
  await sqlite(
    `BEGIN; ${series(5000)} UPDATE t SET v = hex(randomblob(100)) WHERE id IN (SELECT i * 16 FROM n); COMMIT; ${points(30_000)};`,
  );
}

async function columns(place: Place): Promise<void> {
  const file = await fill(place, 'columns', 256 * MIB);
  await place.cool();
  await place.run('python3', join(root, 'bench/programs/column_scans.py'), file, '16', '60');
}

async function smallFiles(place: Place): Promise<void> {
  const tree = join(place.folder, 'tree');
  await mkdir(tree);
  // Sources that are here anyway: thousands of small files.
  for (const name of ['@types', 'typescript', '@typescript-eslint', 'eslint', '@jest', '@babel', 'fastify'])
    await run('cp', ['-rL', join(root, 'node_modules', name), join(tree, name.replace('@', 'at-'))]);
  const git = (...parameters: string[]): Promise<string> =>
    place.run('git', '-C', tree, '-c', 'user.name=bench', '-c', 'user.email=bench@localhost', '-c', 'gc.auto=0', ...parameters);
  await git('init', '-q');
  await git('add', '.');
  await git('commit', '-q', '-m', 'all');
  await place.cool();
  await git('grep', '-c', 'interface');
  await place.run('grep', '-rc', 'export', join(tree, 'fastify'), join(tree, 'eslint'));
  await git('grep', '-c', 'export function');
  await place.run('grep', '-rc', 'import', join(tree, 'fastify'), join(tree, 'eslint'));
  await git('status', '--short');
  await git('repack', '-adq');
  await git('grep', '-c', 'async');
  await git('fsck', '--no-progress');
}

async function sorting(place: Place): Promise<void> {
  const text = join(place.folder, 'text');
  await run('sh', ['-c', 'openssl rand 60000000 | base64 -w 76 > "$0" && sync -d "$0"', text]);
  await mkdir(join(place.folder, 'tmp'));
  await place.cool();
  await place.run('sort', '-S', '8M', '--parallel=1', '-T', join(place.folder, 'tmp'), '-o', join(place.folder, 'sorted'), text);
  await place.run('sort', '-c', join(place.folder, 'sorted'));
  await place.run(
    'sort',
    '-S',
    '8M',
    '--parallel=1',
    '-u',
    '-T',
    join(place.folder, 'tmp'),
    '-o',
    `${text}-2`,
    text,
    join(place.folder, 'sorted'),
  );
}

export const workloads: readonly Workload[] = [
  { id: 'zipf', title: 'random reads, skewed', caching: ['direct', 'short'], shortBytes: 48 * MIB, record: skewedReads },
  { id: 'shifting', title: 'the same, moving on', caching: ['direct', 'short'], shortBytes: 48 * MIB, record: shiftingReads },
  {
    id: 'mixed',
    title: 'skewed reads and writes beside a scan',
    caching: ['direct', 'short'],
    shortBytes: 48 * MIB,
    record: readsAndScans,
  },
  { id: 'columns', title: 'columns through a mapping', caching: ['kernel', 'short'], shortBytes: 64 * MIB, record: columns },
  { id: 'sqlite', title: 'sqlite', caching: ['kernel', 'short'], shortBytes: 24 * MIB, record: database },
  { id: 'tree', title: 'git and grep', caching: ['kernel', 'short'], shortBytes: 64 * MIB, record: smallFiles },
  { id: 'sort', title: 'sort', caching: ['kernel', 'short'], shortBytes: 32 * MIB, record: sorting },
];
