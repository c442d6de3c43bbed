/**
 * The budget of the hot path, counted on a real mount: a hit costs the kernel's request and our reply, and nothing else. System calls are
 * counted by strace, allocations by a library that is preloaded into the mount (test/native/count_allocations_preload.cc), both only of
 * the threads that serve the kernel.
 */
import { spawn, spawnSync, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { readdirSync, readFileSync, truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import { afterAll, beforeAll, expect, test } from '@jest/globals';
import { onOperations } from '../../src/client/index.js';
import { python } from '../python.js';
import { until } from '../until.js';
import { hasProgram, succeed, TestCluster } from './cluster.js';

const root = fileURLToPath(new URL('../../../', import.meta.url));
const preload = join(root, 'build/native/plain/bin/count_allocations_preload.so');

const PAGE = 4096;
const PAGES = 2048;
/** Heartbeats of the connections, and what the kernel asks besides: so many in a hundred requests. */
const STRAY_PERCENT = 2;

const overUring = process.env['EXTMEM_IO_URING'] === 'on';
/** What takes a request from the kernel, and gives the reply back. */
const exchange = overUring ? ['io_uring_enter'] : ['epoll_wait', 'read', 'writev'];
const replying = overUring ? 'io_uring_enter' : 'writev';

const cluster = new TestCluster({ appliances: 1, transport: 'tcp', cache: '64M' });
const allocations = join(cluster.folder, 'allocations');
let threads: number[] = [];

interface Counts {
  requests: number;
  calls: Map<string, number>;
  allocations: number;
}

function allocationsOfThreads(): number {
  const table = readFileSync(allocations);
  let sum = 0;
  for (let at = 0; at < table.length; at += 16)
    if (threads.includes(Number(table.readBigUInt64LE(at)))) sum += Number(table.readBigUInt64LE(at + 8));
  return sum;
}

/** Attaches to the threads; answers what ends it and tells how often they made each call. */
async function countCalls(): Promise<() => Promise<Map<string, number>>> {
  const summary = join(cluster.folder, 'calls');
  const strace = spawn('strace', ['-c', '-o', summary, ...threads.flatMap((thread) => ['-p', String(thread)])], {
    stdio: ['ignore', 'ignore', 'pipe'],
  });
  let attached = 0;
  for await (const line of createInterface(strace.stderr)) if (line.includes('attached') && ++attached === threads.length) break;
  if (attached < threads.length) throw new Error('strace may not attach to a process of the same user here (ptrace)');
  return async () => {
    strace.kill('SIGINT');
    await once(strace, 'exit');
    const rows = readFileSync(summary, 'utf8').matchAll(/^\s*[\d.]+\s+[\d.]+\s+\d+\s+(\d+)\s+(?:\d+\s+)?([a-z_]\w*)$/gm);
    return new Map([...rows].flatMap(([, calls, name = '']) => (name === 'total' ? [] : [[name, Number(calls)]])));
  };
}

/** A program that says when it is ready, waits for a line, works, and ends: only its work is counted. */
async function counted(script: string): Promise<Counts> {
  const child: ChildProcess = spawn(python, ['-c', script], { stdio: ['pipe', 'pipe', 'inherit'] });
  if (child.stdin === null || child.stdout === null) throw new Error('no pipes');
  const lines = createInterface(child.stdout)[Symbol.asyncIterator]();
  expect((await lines.next()).value).toBe('ready');
  const requests = async (): Promise<number> => (await cluster.statistics())['fuse']?.['requests'] ?? 0;
  const stop = await countCalls();
  const before = { requests: await requests(), allocations: allocationsOfThreads() };
  child.stdin.write('go\n');
  expect((await lines.next()).value).toBe('done');
  const counts = {
    requests: (await requests()) - before.requests,
    allocations: allocationsOfThreads() - before.allocations,
    calls: await stop(),
  };
  child.stdin.end();
  await once(child, 'exit');
  return counts;
}

const file = (): string => cluster.mount().path('file');
const touch = (first: number, count: number): string =>
  `import mmap, os, random, sys\nfd = os.open(${JSON.stringify(file())}, os.O_RDONLY)\nm = mmap.mmap(fd, 0, prot=mmap.PROT_READ)\n` +
  `m.madvise(mmap.MADV_RANDOM)\nprint('ready', flush=True)\nsys.stdin.readline()\n` +
  `for page in random.Random(1).sample(range(${first}, ${first + count}), ${count}): m[page * ${PAGE}]\nprint('done', flush=True)\nsys.stdin.readline()`;

/** Our cache has the file's first pages, and the kernel's has none: what is read with O_DIRECT it does not keep. */
async function holdFile(): Promise<void> {
  await cluster.evict();
  await succeed('dd', [`if=${file()}`, 'of=/dev/null', 'bs=64K', 'iflag=direct', 'status=none']);
}

const beyond = ({ calls }: Counts, allowed: readonly string[]): number =>
  [...calls].filter(([name]) => !allowed.includes(name)).reduce((sum, [, count]) => sum + count, 0);

const canCount = hasProgram('strace') && spawnSync('strace', ['-o', '/dev/null', 'true']).status === 0;
const testWhereCounted = canCount ? test : test.skip;

beforeAll(async () => {
  if (!canCount) return;
  await succeed('make', ['-C', join(root, 'native'), 'preloads']);
  writeFileSync(allocations, '');
  truncateSync(allocations, 16 * 256);
  await cluster.startManager();
  await cluster.startAppliance('a1');
  const mount = await cluster.startMountWith(['env', `LD_PRELOAD=${preload}`, `EXTMEM_ALLOCATIONS=${allocations}`], 'm1');
  threads = readdirSync(`/proc/${mount.pid}/task`)
    .filter((thread) => readFileSync(`/proc/${mount.pid}/task/${thread}/comm`, 'utf8').trim() === 'extmem-fuse')
    .map(Number);
  expect(threads.length).toBeGreaterThan(0);
  await succeed('dd', ['if=/dev/urandom', `of=${file()}`, `bs=${PAGE}`, `count=${2 * PAGES}`, 'conv=fsync', 'status=none']);
}, 120_000);
afterAll(() => cluster.stop());

testWhereCounted(
  'a hit makes no system call but to take the request and to reply, and allocates nothing',
  async () => {
    await holdFile();
    const warm = await counted(touch(0, PAGES)); // what is taken once, and kept
    expect(warm.requests).toBeGreaterThanOrEqual(PAGES);
    const counts = await counted(touch(PAGES, PAGES));
    const strays = (counts.requests * STRAY_PERCENT) / 100;
    expect(counts.requests).toBeGreaterThanOrEqual(PAGES);
    expect(counts.calls.get(replying)).toBeGreaterThan(0);
    expect(beyond(counts, exchange)).toBeLessThanOrEqual(strays);
    expect(counts.calls.get(replying)).toBeLessThanOrEqual((overUring ? 2 : 1) * counts.requests + strays);
    expect(counts.allocations).toBeLessThanOrEqual(strays);
  },
  120_000,
);

testWhereCounted(
  'the same while somebody watches what is read and written',
  async () => {
    const runtimeDir = process.env['EXTMEM_RUNTIME_DIR'];
    process.env['EXTMEM_RUNTIME_DIR'] = cluster.environment['EXTMEM_RUNTIME_DIR'] ?? '';
    let reads = 0;
    const watch = await onOperations(cluster.mount().mountPoint, ({ files }) => (reads += files.reduce((sum, one) => sum + one.reads, 0)), {
      intervalMs: 100,
    });
    try {
      await holdFile();
      const counts = await counted(touch(0, PAGES));
      const strays = (counts.requests * STRAY_PERCENT) / 100;
      expect(beyond(counts, exchange)).toBeLessThanOrEqual(strays);
      expect(counts.allocations).toBeLessThanOrEqual(strays);
      await until('it was told', () => reads >= PAGES);
    } finally {
      watch.close();
      if (runtimeDir === undefined) delete process.env['EXTMEM_RUNTIME_DIR'];
      else process.env['EXTMEM_RUNTIME_DIR'] = runtimeDir;
    }
  },
  120_000,
);

testWhereCounted(
  'what goes beyond the budget is counted: the calls of a miss, and the allocations of a request to the control path',
  async () => {
    await cluster.evict();
    const missed = await counted(touch(0, PAGES));
    expect(beyond(missed, exchange)).toBeGreaterThan(PAGES / 2); // to ask the appliance and to receive
    const asked = await counted(
      `import os, sys\nprint('ready', flush=True)\nsys.stdin.readline()\n` +
        `for number in range(${PAGES}): os.path.exists(${JSON.stringify(cluster.mount().mountPoint)} + f'/none-{number}')\n` +
        `print('done', flush=True)\nsys.stdin.readline()`,
    );
    expect(asked.allocations).toBeGreaterThanOrEqual(asked.requests);
  },
  120_000,
);
