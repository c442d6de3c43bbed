/**
 * A cluster of real processes for tests, each started by the CLI as a user would: a manager, appliances, mounts. Everything lives in one
 * folder and on loopback, and is gone after stop().
 */
import { spawn, type ChildProcess } from 'node:child_process';
import { createHash, randomBytes } from 'node:crypto';
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readSync,
  closeSync,
  readdirSync,
  rmSync,
  writeFileSync,
  readFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import type { IoUring } from '../../src/binding/index.js';
import { askMount } from '../../src/fs/mount_control.js';
import { freePort } from '../free_port.js';

export const cli = fileURLToPath(new URL('../../src/cli/main.js', import.meta.url));

const READY_MS = 60_000;
const STOP_MS = 15_000;

/** One process of the cluster. `facts` is what it printed when it was ready. */
export interface Role {
  readonly name: string;
  readonly pid: number;
  readonly facts: Record<string, unknown>;
  /** Resolves with the exit code, or the signal's name. */
  readonly exited: Promise<number | string>;
  readonly child: ChildProcess;
  log(): string;
}

export interface MountRole extends Role {
  readonly mountPoint: string;
  path(name: string): string;
}

export interface Output {
  code: number | null;
  stdout: string;
  stderr: string;
}

export interface ClusterOptions {
  appliances?: number;
  memory?: string; // of each appliance
  transport?: 'auto' | 'shm' | 'tcp';
  /** Default: as EXTMEM_IO_URING says, by which all mount tests run in either mode; else 'off'. */
  ioUring?: IoUring;
  cache?: string;
  /** Whether lost copies are made anew by themselves; default: auto, as shipped. */
  rebuild?: 'auto' | 'off';
  /** The manager serves TLS, with a certificate made for this cluster. Needs openssl. */
  tls?: boolean;
}

export class TestCluster {
  readonly folder = mkdtempSync(join(tmpdir(), 'extmem-test-'));
  readonly token = randomBytes(16).toString('hex');
  readonly environment: NodeJS.ProcessEnv;
  private port = 0;
  private readonly roles = new Map<string, Role>();

  constructor(private readonly options: ClusterOptions = {}) {
    this.environment = {
      ...process.env,
      NODE_OPTIONS: '',
      NODE_NO_WARNINGS: '1',
      XDG_STATE_HOME: this.folder,
      EXTMEM_RUNTIME_DIR: join(this.folder, 'run'),
      EXTMEM_TOKEN: this.token,
      EXTMEM_REBUILD: this.options.rebuild ?? 'auto',
      EXTMEM_IO_URING: this.options.ioUring ?? process.env['EXTMEM_IO_URING'] ?? 'off',
    };
  }

  get manager(): string {
    return `${this.options.tls === true ? 'https://' : ''}127.0.0.1:${this.port}`;
  }

  /** A manager, the appliances, and (unless `mounts` is 0) mounts `m1`, `m2`, ... */
  async start(mounts = 1): Promise<void> {
    await this.startManager();
    for (let index = 1; index <= (this.options.appliances ?? 2); ++index) await this.startAppliance(`a${index}`);
    for (let index = 1; index <= mounts; ++index) await this.startMount(`m${index}`);
  }

  async startManager(): Promise<Role> {
    if (this.port === 0) this.port = await freePort();
    const tls = this.options.tls === true ? await this.certify() : [];
    return this.spawnRole('manager', [
      'manager',
      '--listen',
      `127.0.0.1:${this.port}`,
      '--state-dir',
      join(this.folder, 'manager'),
      ...tls,
    ]);
  }

  startAppliance(id: string, ...flags: string[]): Promise<Role> {
    return this.startApplianceWith([], id, ...flags);
  }

  /** The same behind a command that runs another, as `nice` does. */
  startApplianceWith(runner: readonly string[], id: string, ...flags: string[]): Promise<Role> {
    const memory = this.options.memory ?? '512M';
    const parameters = ['appliance', '--manager', this.manager, '--id', id, '--memory', memory, '--listen', '127.0.0.1', ...flags];
    return this.spawnRole(id, parameters, runner);
  }

  startMount(name: string, ...flags: string[]): Promise<MountRole> {
    return this.startMountWith([], name, ...flags);
  }

  /** The same behind a command that runs another, as `nice` does. */
  async startMountWith(runner: readonly string[], name: string, ...flags: string[]): Promise<MountRole> {
    const mountPoint = join(this.folder, name);
    if (!this.mountPoints().includes(mountPoint)) mkdirSync(mountPoint, { recursive: true }); // else: of a mount that was killed
    const parameters = [
      'mount',
      '--manager',
      this.manager,
      '--name',
      name,
      '--cache',
      this.options.cache ?? '64M',
      '--transport',
      this.options.transport ?? 'auto',
    ];
    const role = await this.spawnRole(name, [...parameters, ...flags, mountPoint], runner);
    return Object.assign(role, { mountPoint, path: (inner: string) => join(mountPoint, inner) });
  }

  running(): Role[] {
    return [...this.roles.values()];
  }

  role(name: string): Role {
    const role = this.roles.get(name);
    if (role === undefined) throw new Error(`no ${name} runs`);
    return role;
  }

  runs(name: string): boolean {
    return this.roles.has(name);
  }

  mount(name = 'm1'): MountRole {
    return this.role(name) as MountRole;
  }

  /** Sends a signal; for those that end the process, waits until it is gone. */
  async signal(name: string, signal: 'SIGKILL' | 'SIGTERM' | 'SIGPWR' | 'SIGSTOP' | 'SIGCONT'): Promise<void> {
    const role = this.role(name);
    process.kill(role.pid, signal);
    if (signal === 'SIGCONT') return;
    if (signal === 'SIGSTOP') {
      while (!isStopped(role.pid)) await sleep(5);
      return;
    }
    await within(role.exited, STOP_MS, `${name} did not end after ${signal}`);
    this.roles.delete(name);
  }

  /** Runs `extmem ...` with this cluster's manager and token. */
  extmem(...parameters: string[]): Promise<Output> {
    return run(process.execPath, [cli, ...parameters], { ...this.environment, EXTMEM_MANAGER: this.manager });
  }

  /** The counters of a running mount. */
  async statistics(name = 'm1'): Promise<Record<string, Record<string, number>>> {
    return JSON.parse(await askMount(join(this.folder, 'run'), this.mount(name).mountPoint, 'GET', '/status')) as Record<
      string,
      Record<string, number>
    >;
  }

  /** Empties our caches and the kernel's for what a mount holds. */
  async evict(name = 'm1'): Promise<void> {
    await askMount(join(this.folder, 'run'), this.mount(name).mountPoint, 'POST', '/evict');
  }

  /** Mounts first, then appliances, then the manager; whatever does not end in time is killed. */
  async stop(): Promise<void> {
    const all = [...this.roles.values()].reverse();
    for (const role of all) {
      if (role.child.exitCode !== null || role.child.signalCode !== null) continue;
      process.kill(role.pid, 'SIGCONT');
      process.kill(role.pid, 'SIGTERM');
      await within(role.exited, STOP_MS, role.name).catch(() => process.kill(role.pid, 'SIGKILL'));
    }
    this.roles.clear();
    for (const where of this.mountPoints()) await run(process.execPath, [cli, 'umount', '--force', where], this.environment);
    rmSync(this.folder, { recursive: true, force: true });
  }

  /** A certificate of 127.0.0.1 that everybody in the cluster checks the manager by; the flags that make the manager show it. */
  private async certify(): Promise<string[]> {
    const [cert, key] = [join(this.folder, 'cert.pem'), join(this.folder, 'key.pem')];
    const subject = ['-subj', '/CN=extmem', '-addext', 'subjectAltName=IP:127.0.0.1'];
    await succeed('openssl', ['req', '-x509', '-newkey', 'rsa:2048', '-nodes', '-days', '2', ...subject, '-out', cert, '-keyout', key]);
    this.environment['EXTMEM_TLS_CA'] = cert;
    return ['--tls-cert', cert, '--tls-key', key];
  }

  /** Where something is mounted in this cluster's folder, alive or dead. */
  private mountPoints(): string[] {
    const places = readFileSync('/proc/self/mountinfo', 'utf8')
      .split('\n')
      .map((line) => line.split(' ')[4] ?? '');
    return places.filter((where) => where.startsWith(this.folder));
  }

  private async spawnRole(name: string, parameters: string[], runner: readonly string[] = []): Promise<Role> {
    const [program, ...rest] = [...runner, process.execPath, cli, ...parameters, '--json'];
    const child = spawn(program, rest, { env: this.environment, stdio: ['ignore', 'pipe', 'pipe'] });
    let text = '';
    let log = '';
    const exited = new Promise<number | string>((resolve) => child.once('exit', (code, signal) => resolve(signal ?? code ?? -1)));
    child.stderr.on('data', (piece: Buffer) => (log += piece.toString()));
    const ready = new Promise<Record<string, unknown>>((resolve, reject) => {
      child.stdout.on('data', (piece: Buffer) => {
        text += piece.toString();
        const facts = parseFacts(text);
        if (facts !== undefined) resolve(facts);
      });
      child.once('exit', (code, signal) => reject(new Error(`${name} ended (${signal ?? code ?? ''}) before it was ready: ${log}${text}`)));
    });
    const facts = await within(ready, READY_MS, `${name} was not ready in time: ${log}`);
    const role: Role = { name, pid: child.pid ?? -1, facts, exited, child, log: () => log };
    this.roles.set(name, role);
    return role;
  }
}

function parseFacts(text: string): Record<string, unknown> | undefined {
  try {
    return JSON.parse(text) as Record<string, unknown>;
  } catch {
    return undefined;
  }
}

/** Whether no thread of a process runs any more: SIGSTOP reaches each of them in its own time. */
function isStopped(pid: number): boolean {
  return readdirSync(`/proc/${pid}/task`).every((thread) =>
    /^State:\s*[TD]/m.test(readFileSync(`/proc/${pid}/task/${thread}/status`, 'utf8')),
  );
}

export async function within<T>(promise: Promise<T>, ms: number, complaint: string): Promise<T> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<never>((_resolve, reject) => (timer = setTimeout(() => reject(new Error(complaint)), ms)));
  try {
    return await Promise.race([promise, late]);
  } finally {
    clearTimeout(timer);
  }
}

/** A program, to its end. Calls on the mount go through programs or the asynchronous fs functions: this process must stay responsive. */
export function run(
  program: string,
  parameters: readonly string[],
  environment: NodeJS.ProcessEnv = process.env,
  folder?: string,
): Promise<Output> {
  return new Promise((resolve, reject) => {
    const child = spawn(program, parameters, {
      env: environment,
      stdio: ['ignore', 'pipe', 'pipe'],
      ...(folder === undefined ? {} : { cwd: folder }),
    });
    const output: Output = { code: null, stdout: '', stderr: '' };
    child.stdout.on('data', (piece: Buffer) => (output.stdout += piece.toString()));
    child.stderr.on('data', (piece: Buffer) => (output.stderr += piece.toString()));
    child.once('error', reject);
    child.once('close', (code) => resolve({ ...output, code }));
  });
}

/** A program that must succeed; answers what it printed. */
export async function succeed(program: string, parameters: readonly string[], folder?: string): Promise<string> {
  const { code, stdout, stderr } = await run(program, parameters, process.env, folder);
  if (code !== 0) throw new Error(`${program} ${parameters.join(' ')}: exit ${code ?? 0}: ${stderr}${stdout}`);
  return stdout;
}

/** A file of random bytes outside the mount. */
export function makeRandomFile(path: string, bytes: number): string {
  writeFileSync(path, randomBytes(bytes));
  return hashFile(path);
}

export function hashFile(path: string): string {
  const digest = createHash('sha256');
  const fd = openSync(path, 'r');
  const piece = Buffer.alloc(1 << 20);
  for (let got = readSync(fd, piece); got > 0; got = readSync(fd, piece)) digest.update(piece.subarray(0, got));
  closeSync(fd);
  return digest.digest('hex');
}

export const hasProgram = (name: string): boolean =>
  (process.env['PATH'] ?? '').split(':').some((folder) => existsSync(join(folder, name)));
