/**
 * What read-ahead is worth, with the access patterns of real programs: beside a mount of ours without it. Of the pages that were asked of
 * our cache, how many were there; and how many were fetched that nobody asked for, for each that somebody did.
 */
import { readdir, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { codeOf } from '../../src/base/errors.js';
import { dropKernelPages, program } from '../measure.js';
import { ExtmemTarget } from '../targets/extmem.js';
import { run, Unavailable, type Target } from '../targets/target.js';
import type { Comparison, Figures, Row } from './row.js';

interface Pattern {
  id: string;
  title: string;
  /** The file or folder that it works on, made if it is not there. */
  prepare(target: Target): Promise<string>;
  work(path: string): Promise<Figures>;
  /** Of the pages asked for, percent: at least so many are there, at most so many more are fetched. */
  here: number | 'shown';
  unused: number | 'shown';
}

/** One of programs/access_patterns.py. */
const programmed = (id: string, title: string, here: number | 'shown', unused: number): Pattern => ({
  id,
  title,
  async prepare({ file }) {
    const path = `${file}-${id.startsWith('sqlite') ? 'sqlite' : 'pages'}`;
    await program('access_patterns.py', 'prepare', id, path);
    return path;
  },
  work: (path) => program('access_patterns.py', 'run', id, path),
  here,
  unused,
});

/** By RocksDB's own benchmark program. */
async function rocksdb(path: string, ...parameters: string[]): Promise<void> {
  const all = [`--db=${path}`, '--num=500000', '--value_size=200', '--compression_type=none', '--open_files=64', ...parameters];
  await run('db_bench', all, { maxBuffer: 1 << 24 }).catch((error: unknown) => {
    throw codeOf(error) === 'ENOENT' ? new Unavailable('db_bench is not installed (Debian: rocksdb-tools)') : error;
  });
}

const rocksdbPattern = (benchmark: string, title: string, here: number | 'shown', unused: number | 'shown'): Pattern => ({
  id: `rocksdb-${benchmark}`,
  title,
  async prepare({ file }) {
    const path = `${file}-rocksdb`;
    const isThere = await stat(path).catch(() => undefined);
    if (isThere === undefined) await rocksdb(path, '--benchmarks=fillrandom,compact');
    return path;
  },
  async work(path) {
    const begun = performance.now();
    await rocksdb(path, `--benchmarks=${benchmark}`, '--use_existing_db=true', '--readonly=true', '--reads=100000', '--cache_size=8388608');
    return { seconds: (performance.now() - begun) / 1000 };
  },
  here,
  unused,
});

const patterns: readonly Pattern[] = [
  programmed('sqlite-scan', 'sqlite, table scanned', 90, 5),
  programmed('sqlite-index', 'sqlite, index built', 90, 5),
  rocksdbPattern('readseq', 'RocksDB, scan that stops midway', 90, 25),
  rocksdbPattern('readrandom', 'RocksDB, random reads', 'shown', 5),
  programmed('column-chunks', 'columnar file, one column by mmap', 75, 25),
  programmed('column-fields', 'fixed records, one field by mmap', 90, 5),
  programmed('backwards', '64 KiB at a time, backwards', 90, 5),
  programmed('noise', 'in order, one in ten at random', 80, 5),
  programmed('random', 'random', 'shown', 5),
];

async function dropAllKernelPages(path: string): Promise<void> {
  if (!(await stat(path)).isDirectory()) return dropKernelPages(path);
  for (const name of await readdir(path)) await dropKernelPages(join(path, name));
}

async function pagesOf(target: Target): Promise<{ hits: number; asked: number; unused: number }> {
  if (!(target instanceof ExtmemTarget)) throw new Error(`${target.name} has no cache of ours`);
  const { cache = {} } = await target.statistics();
  const of = (name: string): number => cache[name] ?? 0;
  return { hits: of('hits'), asked: of('hits') + of('misses'), unused: of('readAhead') - of('readAheadUsed') };
}

async function measure(target: Target, pattern: Pattern): Promise<Figures> {
  const path = await pattern.prepare(target);
  await dropAllKernelPages(path);
  await target.evict();
  const before = await pagesOf(target);
  const figures = await pattern.work(path);
  const after = await pagesOf(target);
  const asked = after.asked - before.asked;
  return { ...figures, here: (100 * (after.hits - before.hits)) / asked, unused: (100 * (after.unused - before.unused)) / asked };
}

function comparisonsOf({ title, here, unused }: Pattern): Comparison[] {
  const share = { unit: '% of those asked for', alone: true } as const;
  return [
    { figure: 'seconds', title: `read-ahead: ${title}`, unit: 's', better: 'lower', reach: { tcp: 'shown' } },
    { figure: 'here', title: `read-ahead: ${title}: pages that were there`, better: 'higher', reach: { tcp: here }, ...share },
    { figure: 'unused', title: `read-ahead: ${title}: pages fetched in vain`, better: 'lower', reach: { tcp: unused }, ...share },
  ];
}

/** Over tcp: over shm nothing that is read enters our cache. */
export const readAheadRows: readonly Row[] = patterns.map((pattern) => ({
  id: `ahead-${pattern.id}`,
  group: 'read-ahead',
  peer: 'no read-ahead',
  comparisons: comparisonsOf(pattern),
  measure: (target) => measure(target, pattern),
}));
