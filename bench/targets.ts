/** What is measured: a file on an extmem mount, and a file on nbdfuse over nbdkit's memory plugin (the peer), at its best. */
import { execFile, spawn, type ChildProcess } from 'node:child_process';
import { mkdir, mkdtemp, rm, stat } from 'node:fs/promises';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { runtimeFolder } from '../src/cli/endpoint.js';
import { askMount } from '../src/fs/mount_control.js';

const run = promisify(execFile);
const cli = join(dirname(fileURLToPath(import.meta.url)), '../src/cli/main.js');

export type Link = 'shm' | 'tcp';

export interface Target {
  readonly name: string;
  readonly file: string;
  start(bytes: number): Promise<void>;
  /** Our own cache too, not only the kernel's, forgets the file. */
  evict(): Promise<void>;
  stop(): Promise<void>;
}

async function until(ready: () => Promise<boolean>, what: string): Promise<void> {
  const deadline = Date.now() + 30_000;
  while (!(await ready())) {
    if (Date.now() > deadline) throw new Error(`${what} was not ready in 30 s`);
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}

async function freePort(): Promise<number> {
  const server = createServer();
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const address = server.address();
  await new Promise((resolve) => server.close(resolve));
  if (address === null || typeof address === 'string') throw new Error('no free port');
  return address.port;
}

async function stopProcess(child: ChildProcess | undefined): Promise<void> {
  if (child === undefined || child.exitCode !== null || child.signalCode !== null) return;
  const gone = new Promise((resolve) => child.once('exit', resolve));
  child.kill('SIGTERM');
  await gone;
}

/** A manager, one appliance (the peer is one server too) and a mount, forced to one transport. */
export class ExtmemTarget implements Target {
  readonly name: string;
  private folder = '';
  private up: ChildProcess | undefined;

  constructor(private readonly link: Link) {
    this.name = `extmem ${link}`;
  }
  private get mountPoint(): string {
    return join(this.folder, 'mnt');
  }
  get file(): string {
    return join(this.mountPoint, 'bench');
  }

  async start(bytes: number): Promise<void> {
    this.folder = await mkdtemp(join(tmpdir(), 'extmem-bench-'));
    await mkdir(this.mountPoint);
    const memory = `${Math.ceil(bytes / (1 << 20)) * 2 + 512}MiB`;
    const parameters = [cli, 'up', this.mountPoint, '--json', '--dir', join(this.folder, 'state'), '--memory', memory];
    parameters.push('--cache', '256MiB', '--appliances', '1', '--transport', this.link, '--listen', `127.0.0.1:${await freePort()}`);
    this.up = spawn(process.execPath, parameters, { stdio: ['ignore', 'pipe', 'inherit'] });
    const child = this.up;
    await new Promise<void>((resolve, reject) => {
      child.stdout?.once('data', () => resolve());
      child.once('exit', (code) => reject(new Error(`extmem up ended with ${String(code)}`)));
    });
    await run('dd', ['if=/dev/urandom', `of=${this.file}`, 'bs=1M', `count=${bytes / (1 << 20)}`, 'conv=fsync', 'status=none']);
  }
  async evict(): Promise<void> {
    await askMount(runtimeFolder(), this.mountPoint, 'POST', '/evict');
  }
  async stop(): Promise<void> {
    await stopProcess(this.up);
    await rm(this.folder, { recursive: true, force: true });
  }
}

/** nbdkit memory + nbdfuse with kernel_cache. */
export class NbdFuseTarget implements Target {
  readonly name: string;
  private folder = '';
  private server: ChildProcess | undefined;
  private fuse: ChildProcess | undefined;

  constructor(private readonly link: Link) {
    this.name = `nbdfuse ${link === 'shm' ? 'unix' : 'tcp'}`;
  }
  get file(): string {
    return join(this.folder, 'mnt', 'nbd');
  }

  async start(bytes: number): Promise<void> {
    this.folder = await mkdtemp(join(tmpdir(), 'nbdfuse-bench-'));
    await mkdir(join(this.folder, 'mnt'));
    const socket = join(this.folder, 'socket');
    const port = await freePort();
    const where = this.link === 'shm' ? ['-U', socket] : ['-i', '127.0.0.1', '-p', String(port)];
    this.server = spawn('nbdkit', ['-f', ...where, 'memory', String(bytes)], { stdio: ['ignore', 'ignore', 'inherit'] });
    const uri = this.link === 'shm' ? `nbd+unix:///?socket=${socket}` : `nbd://127.0.0.1:${port}`;
    await until(async () => (await run('nbdinfo', ['--size', uri]).catch(() => null)) !== null, 'nbdkit');
    this.fuse = spawn('nbdfuse', ['-o', 'kernel_cache', this.file, uri], { stdio: ['ignore', 'ignore', 'inherit'] });
    await until(async () => ((await stat(this.file).catch(() => null))?.size ?? 0) === bytes, 'nbdfuse');
    await run('dd', ['if=/dev/urandom', `of=${this.file}`, 'bs=1M', `count=${bytes / (1 << 20)}`, 'conv=fsync,notrunc', 'status=none']);
  }
  evict(): Promise<void> {
    return Promise.resolve(); // it has no cache of its own
  }
  async stop(): Promise<void> {
    if (this.folder === '') return; // never started
    await run('umount', [join(this.folder, 'mnt')]).catch(() => run('umount', ['-l', join(this.folder, 'mnt')]));
    await stopProcess(this.fuse);
    await stopProcess(this.server);
    await rm(this.folder, { recursive: true, force: true });
  }
}
