/** Running the measuring programs (fio, dd, cp, those of programs/) and reading their figures. */
import { spawn } from 'node:child_process';
import { stat } from 'node:fs/promises';
import { fileURLToPath } from 'node:url';
import type { Figures } from './rows/row.js';
import { run, type Target } from './targets/target.js';

interface FioJob {
  error: number;
  read: { iops: number; bw_bytes: number; clat_ns: { mean: number; percentile: Record<string, number> } };
}

async function fio(name: string, parameters: string[]): Promise<FioJob> {
  const { stdout } = await run('fio', [`--name=${name}`, '--output-format=json', ...parameters], { maxBuffer: 1 << 24 });
  const report = JSON.parse(stdout.slice(stdout.indexOf('{'))) as { jobs: FioJob[] };
  const job = report.jobs[0];
  if (job === undefined || job.error !== 0) throw new Error(`fio ${parameters.join(' ')} failed`);
  return job;
}

export interface Faults {
  /** How much is read in all, 4 KiB at a time. */
  bytes: number;
  /** From the file's first so many bytes; default: all of it. */
  within?: number;
  /** False: without MADV_RANDOM. */
  random?: boolean;
  pinned?: boolean;
}

const faultParameters = (file: string, random: boolean): string[] => [
  `--filename=${file}`,
  '--ioengine=mmap',
  '--rw=randread',
  '--bs=4k',
  '--invalidate=1',
  `--fadvise_hint=${random ? 'random' : '0'}`,
];

/** µs of 4 KiB random reads through mmap, each a fault because the kernel's pages of the file were dropped before. */
export async function measureFaults(file: string, { bytes, within, random = true, pinned = false }: Faults): Promise<Figures> {
  const { read } = await fio('fault', [
    ...faultParameters(file, random),
    `--io_size=${bytes}`,
    `--size=${within ?? '100%'}`,
    '--percentile_list=50:90:99',
    ...(pinned ? ['--cpus_allowed=0'] : []),
  ]);
  const { mean, percentile } = read.clat_ns;
  const micros = (key: string): number => (percentile[key] ?? NaN) / 1000;
  return { p50: micros('50.000000'), p90: micros('90.000000'), p99: micros('99.000000'), mean: mean / 1000 };
}

/** Such faults per second, of two threads, each in its own half of the file. */
export async function measureFaultsOfTwo(file: string, bytes: number): Promise<Figures> {
  const { read } = await fio('faults', [
    ...faultParameters(file, true),
    `--io_size=${bytes}`,
    '--size=50%',
    '--offset_increment=50%',
    '--numjobs=2',
    '--thread',
    '--group_reporting',
  ]);
  return { rate: read.iops };
}

/** 4 KiB random reads per second past the kernel's page cache, eight under way. */
export async function measureDirect(file: string, bytes: number): Promise<Figures> {
  const job = await fio('direct', [
    `--filename=${file}`,
    '--ioengine=libaio',
    '--direct=1',
    '--iodepth=8',
    '--rw=randread',
    '--bs=4k',
    `--io_size=${bytes}`,
    '--size=100%',
  ]);
  return { rate: job.read.iops };
}

/** MB/s of one sequential pass through a mapping, the kernel's pages kept. */
export async function measureScan(file: string): Promise<number> {
  const job = await fio('scan', [`--filename=${file}`, '--ioengine=mmap', '--rw=read', '--bs=1M', '--size=100%', '--invalidate=0']);
  return job.read.bw_bytes / 1e6;
}

/** A program of programs/, which prints its figures as JSON. */
export async function program(name: string, ...parameters: string[]): Promise<Figures> {
  return programUnder([], name, ...parameters);
}

/** The same, started by another command: `runner` stands before it. */
export async function programUnder(runner: string[], name: string, ...parameters: string[]): Promise<Figures> {
  const path = fileURLToPath(new URL(`../../bench/programs/${name}`, import.meta.url));
  const [command = 'python3', ...rest] = [...runner, 'python3', path, ...parameters];
  const { stdout } = await run(command, rest);
  return JSON.parse(stdout) as Figures;
}

/** MB/s of one cp, until the copy is where it belongs. */
export async function measureCopy(from: string, to: string): Promise<number> {
  const { size } = await stat(from);
  const begun = performance.now();
  await run('cp', [from, to]);
  return size / 1e3 / (performance.now() - begun);
}

/** MB/s of one dd. */
export async function measureDd(parameters: string[]): Promise<number> {
  const child = spawn('dd', parameters, { stdio: ['ignore', 'ignore', 'pipe'], env: { ...process.env, LC_ALL: 'C' } });
  let text = '';
  child.stderr.on('data', (chunk: Buffer) => (text += chunk.toString()));
  const code = await new Promise<number | null>((resolve) => child.on('close', resolve));
  const found = /(\d+) bytes .* copied, ([\d.e-]+) s/.exec(text);
  if (code !== 0 || found === null) throw new Error(`dd ${parameters.join(' ')} failed: ${text}`);
  return Number(found[1]) / 1e6 / Number(found[2]);
}

/** Nothing of the target's file is left in a cache of this host. */
export async function cold(target: Target): Promise<void> {
  await dropKernelPages(target.file);
  await target.evict();
}

/** The file's pages leave the kernel's cache (posix_fadvise(POSIX_FADV_DONTNEED), by dd's nocache flag). */
export async function dropKernelPages(file: string): Promise<void> {
  await run('dd', [`if=${file}`, 'iflag=nocache', 'count=0', 'status=none']);
}
