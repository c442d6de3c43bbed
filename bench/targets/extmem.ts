/** extmem: a manager, one appliance (a peer is one server too) and a mount, forced to one transport. */
import { spawn, type ChildProcess } from 'node:child_process';
import { mkdir, mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { runtimeFolder } from '../../src/base/mount_socket.js';
import { askMount } from '../../src/fs/mount_control.js';
import { freePort } from '../../test/free_port.js';
import { fill, MIB, run, stopProcess, type Link, type SessionKind, type Target } from './target.js';

const cli = join(dirname(fileURLToPath(import.meta.url)), '../../src/cli/main.js');

export const CACHE_BYTES = 256 * MIB;

export class ExtmemTarget implements Target {
  readonly name: string;
  private home = '';
  private up: ChildProcess | undefined;

  constructor(
    private readonly link: Link,
    private readonly options: { readAhead: boolean } = { readAhead: true },
  ) {
    this.name = options.readAhead ? `extmem ${link}` : 'no read-ahead';
  }
  private get mountPoint(): string {
    return join(this.home, 'mnt');
  }
  get file(): string {
    return join(this.mountPoint, 'bench');
  }
  get folder(): string {
    return this.mountPoint;
  }

  async start(bytes: number): Promise<void> {
    this.home = await mkdtemp(join(tmpdir(), 'extmem-bench-'));
    await mkdir(this.mountPoint);
    const memory = `${Math.ceil(bytes / MIB) * 2 + 1024}MiB`;
    const parameters = [cli, 'up', this.mountPoint, '--json', '--dir', join(this.home, 'state'), '--memory', memory];
    parameters.push('--cache', `${CACHE_BYTES}`, '--appliances', '1', '--transport', this.link);
    parameters.push('--listen', `127.0.0.1:${await freePort()}`);
    if (!this.options.readAhead) parameters.push('--read-ahead', '0');
    this.up = spawn(process.execPath, parameters, { stdio: ['ignore', 'pipe', 'inherit'] });
    const child = this.up;
    await new Promise<void>((resolve, reject) => {
      child.stdout?.once('data', () => resolve());
      child.once('exit', (code) => reject(new Error(`extmem up ended with ${String(code)}`)));
    });
    await fill(this.file, bytes);
  }

  async evict(): Promise<void> {
    await askMount(runtimeFolder(), this.mountPoint, 'POST', '/evict');
  }

  /** O_DIRECT leaves the kernel nothing to keep, so that our cache keeps it. */
  async hold(bytes: number): Promise<void> {
    await this.evict();
    await run('dd', [`if=${this.file}`, 'of=/dev/null', 'iflag=direct', 'bs=1M', `count=${bytes / MIB}`, 'status=none']);
  }

  /** The mount's counters, by group. */
  async statistics(): Promise<Record<string, Record<string, number>>> {
    return JSON.parse(await askMount(runtimeFolder(), this.mountPoint, 'GET', '/status')) as Record<string, Record<string, number>>;
  }

  async session(): Promise<SessionKind> {
    return (await this.statistics())['fuse']?.['session'] as unknown as SessionKind;
  }

  /** Of the processes that were started for it, those in these roles: mount, appliance, manager. */
  async pidsOf(...roles: string[]): Promise<number[]> {
    const found = [this.up?.pid ?? -1];
    const meant: number[] = [];
    for (const pid of found) {
      const children = await readFile(`/proc/${pid}/task/${pid}/children`, 'utf8');
      found.push(...children.trim().split(/\s+/).filter(Boolean).map(Number));
      const [, , role] = (await readFile(`/proc/${pid}/cmdline`, 'utf8')).split('\0');
      if (role !== undefined && roles.includes(role)) meant.push(pid);
    }
    return meant;
  }

  async stop(): Promise<void> {
    if (this.home === '') return; // never started
    await stopProcess(this.up);
    await rm(this.home, { recursive: true, force: true });
  }
}
