/** Running the measuring programs (fio, dd) and reading their figures. */
import { execFile, spawn } from 'node:child_process';
import { promisify } from 'node:util';

const run = promisify(execFile);

export interface Latencies {
  p50: number; // µs
  p90: number;
  p99: number;
  mean: number;
}

/** 4 KiB random reads through mmap, each a fault because the file's pages were dropped before. `random` false: without MADV_RANDOM. */
export async function measureFaults(file: string, options: { bytes: number; random: boolean; pinned: boolean }): Promise<Latencies> {
  const parameters = [
    '--name=fault',
    `--filename=${file}`,
    '--ioengine=mmap',
    '--rw=randread',
    '--bs=4k',
    `--io_size=${options.bytes}`,
    '--size=100%',
    '--invalidate=1',
    `--fadvise_hint=${options.random ? 'random' : '0'}`,
    '--output-format=json',
    '--percentile_list=50:90:99',
    ...(options.pinned ? ['--cpus_allowed=0'] : []),
  ];
  const { stdout } = await run('fio', parameters, { maxBuffer: 1 << 24 });
  const report = JSON.parse(stdout.slice(stdout.indexOf('{'))) as {
    jobs: { error: number; read: { clat_ns: { mean: number; percentile: Record<string, number> } } }[];
  };
  const job = report.jobs[0];
  if (job === undefined || job.error !== 0) throw new Error(`fio failed on ${file}`);
  const { mean, percentile } = job.read.clat_ns;
  const micros = (key: string): number => (percentile[key] ?? NaN) / 1000;
  return { p50: micros('50.000000'), p90: micros('90.000000'), p99: micros('99.000000'), mean: mean / 1000 };
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

/** The file's pages leave the kernel's cache (posix_fadvise(POSIX_FADV_DONTNEED), by dd's nocache flag). */
export async function dropKernelPages(file: string): Promise<void> {
  await run('dd', [`if=${file}`, 'iflag=nocache', 'count=0', 'status=none']);
}

export function median(values: readonly number[]): number {
  const sorted = [...values].sort((left, right) => left - right);
  const middle = Math.floor(sorted.length / 2);
  return sorted.length % 2 === 1 ? (sorted[middle] ?? NaN) : ((sorted[middle - 1] ?? NaN) + (sorted[middle] ?? NaN)) / 2;
}
