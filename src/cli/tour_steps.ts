/** The steps of the tour: ordinary programs on ordinary paths. Each step fails by throwing, with a message that shows both sides. */
import { spawn } from 'node:child_process';
import { createHash } from 'node:crypto';
import { createReadStream, readdirSync, readFileSync, statSync } from 'node:fs';
import { open, stat } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { askSocket, socketOfMount } from './endpoint.js';
import { describeMount } from './status.js';

export interface StepOutcome {
  figure?: string;
  lines?: string[];
}

export interface TourStep {
  title: string;
  run: () => Promise<StepOutcome>;
}

export interface TourPlace {
  mountPoint: string;
  /** A folder outside the mount. */
  scratch: string;
  /** Real files, of 100 MB and more together. */
  files: string[];
}

const leastBytes = 100_000_000;
const stepTimeoutMs = 60_000;
const mapProbe = fileURLToPath(new URL('./map_probe.js', import.meta.url));
const written = 'written through a shared mapping';
const writtenAt = 3 * 4096 + 17;

/** Node's executable and the libraries it has mapped; were they too small, the largest files beside them. */
export function findRealFiles(): string[] {
  const mapped = [...readFileSync('/proc/self/maps', 'utf8').matchAll(/\s(\/\S+(?:\.so[\d.]*|\/node))$/gm)].map((match) => match[1] ?? '');
  const files = [...new Set([process.execPath, ...mapped])];
  let bytes = files.reduce((sum, path) => sum + statSync(path).size, 0);
  if (bytes >= leastBytes) return files;
  const folder = dirname(process.execPath);
  const others = readdirSync(folder)
    .map((name) => join(folder, name))
    .filter((path) => !files.includes(path) && (statSync(path, { throwIfNoEntry: false })?.isFile() ?? false))
    .sort((a, b) => statSync(b).size - statSync(a).size);
  for (const path of others) {
    if (bytes >= leastBytes) break;
    files.push(path);
    bytes += statSync(path).size;
  }
  return files;
}

/** Runs a program to its end; what it prints on standard output is the answer. */
function run(command: string, args: string[]): Promise<string> {
  return new Promise((done, failed) => {
    const child = spawn(command, args, {
      stdio: ['ignore', 'pipe', 'pipe'],
      timeout: stepTimeoutMs,
      killSignal: 'SIGKILL',
      env: { ...process.env, LC_ALL: 'C' },
    });
    let output = '';
    let complaint = '';
    child.stdout.on('data', (piece: Buffer) => (output += piece.toString()));
    child.stderr.on('data', (piece: Buffer) => (complaint += piece.toString()));
    child.once('error', failed);
    child.once('close', (code, signal) => {
      if (code === 0) done(output);
      else failed(new Error(`${command} ${args.join(' ')}: ${signal ?? `exit ${code ?? 0}`}\n${complaint.trim()}`));
    });
  });
}

async function probe(...args: string[]): Promise<Record<string, unknown>> {
  return JSON.parse(await run(process.execPath, [mapProbe, ...args])) as Record<string, unknown>;
}

async function hashOf(path: string): Promise<string> {
  const digest = createHash('sha256');
  for await (const piece of createReadStream(path, { highWaterMark: 1 << 20 })) digest.update(piece as Buffer);
  return digest.digest('hex');
}

function expectEqual(what: string, seen: unknown, wanted: unknown): void {
  if (seen !== wanted) throw new Error(`${what}: expected ${String(wanted)}, got ${String(seen)}`);
}

async function timed(work: () => Promise<unknown>, path: string): Promise<StepOutcome> {
  const started = process.hrtime.bigint();
  await work();
  return { figure: await speed(path, Number(process.hrtime.bigint() - started) / 1e6) };
}

async function speed(path: string, ms: number): Promise<string> {
  const { size } = await stat(path);
  return `${(size / 1e6).toFixed(1)} MB, ${Math.round(size / 1e3 / Math.max(ms, 0.001))} MB/s`;
}

export function tourSteps({ mountPoint, scratch, files }: TourPlace): TourStep[] {
  const original = join(scratch, 'original.tar');
  const copy = join(mountPoint, 'node.tar');
  const mapped = join(mountPoint, 'mapped');
  const saved = join(scratch, 'saved.tar');
  const restored = join(mountPoint, 'restored.tar');
  return [
    {
      title: `tar: the node executable and its libraries (${files.length} files), on disk`,
      run: () => timed(() => run('tar', ['-chf', original, '-P', ...files]), original),
    },
    { title: 'cp: into external memory', run: () => timed(() => run('cp', [original, copy]), copy) },
    {
      title: 'caches of this machine emptied: what follows comes over the fabric',
      run: async () => {
        await askSocket(socketOfMount(mountPoint), 'POST', '/evict', stepTimeoutMs);
        return {};
      },
    },
    {
      title: 'mmap by another process: SHA-256 of the file, page by page',
      run: async () => {
        const seen = await probe('hash', copy);
        expectEqual('SHA-256 through the mapping', seen['sha256'], await hashOf(original));
        return { figure: await speed(copy, Number(seen['ms'])) };
      },
    },
    {
      title: 'mmap, shared: a process writes, read(2) here sees it',
      run: async () => {
        await run('truncate', ['-s', '1M', mapped]);
        await probe('write', mapped, String(writtenAt), written);
        expectEqual('read', await readText(mapped, writtenAt, written.length), written);
        expectEqual('the hole before it', await readText(mapped, 0, 8), '\0'.repeat(8));
        return { figure: `'${written}'` };
      },
    },
    { title: 'dd: saved to disk', run: () => timed(() => run('dd', [`if=${copy}`, `of=${saved}`, 'bs=1M', 'status=none']), saved) },
    {
      title: 'dd: restored under another name, fsynced',
      run: () => timed(() => run('dd', [`if=${saved}`, `of=${restored}`, 'bs=1M', 'conv=fsync', 'status=none']), restored),
    },
    { title: 'cmp: the copy and the restored file are equal', run: () => timed(() => run('cmp', [copy, restored]), copy) },
    { title: 'ls -l', run: async () => ({ lines: lines(await run('ls', ['-l', mountPoint])) }) },
    { title: 'stat', run: async () => ({ lines: lines(await run('stat', [copy])) }) },
    {
      title: 'cache and transport, as the mount tells',
      run: async () => ({ lines: describeMount(await askSocket(socketOfMount(mountPoint), 'GET', '/status')) }),
    },
  ];
}

const lines = (text: string): string[] => text.trimEnd().split('\n');

async function readText(path: string, offset: number, length: number): Promise<string> {
  const file = await open(path);
  try {
    const { buffer, bytesRead } = await file.read(Buffer.alloc(length), 0, length, offset);
    return buffer.toString('utf8', 0, bytesRead);
  } finally {
    await file.close();
  }
}
