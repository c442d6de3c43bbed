/** nbdkit's memory plugin under nbdfuse, with kernel_cache (without it warm reads go back to the server). */
import { type ChildProcess } from 'node:child_process';
import { mkdir, mkdtemp, rm, stat } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { freePort } from '../../test/free_port.js';
import { until } from '../../test/until.js';
import { fill, launch, run, START_MS, stopProcess, unmount, type Link, type Target } from './target.js';

export class NbdFuseTarget implements Target {
  readonly name: string;
  readonly folder = undefined;
  private home = '';
  private server: ChildProcess | undefined;
  private fuse: ChildProcess | undefined;

  constructor(private readonly link: Link) {
    this.name = `nbdfuse ${link === 'shm' ? 'unix' : 'tcp'}`;
  }
  get file(): string {
    return join(this.home, 'mnt', 'nbd');
  }

  async start(bytes: number): Promise<void> {
    this.home = await mkdtemp(join(tmpdir(), 'nbdfuse-bench-'));
    await mkdir(join(this.home, 'mnt'));
    const socket = join(this.home, 'socket');
    const port = await freePort();
    const where = this.link === 'shm' ? ['-U', socket] : ['-i', '127.0.0.1', '-p', String(port)];
    this.server = await launch('nbdkit', ['-f', ...where, 'memory', String(bytes)], ['ignore', 'ignore', 'inherit']);
    const uri = this.link === 'shm' ? `nbd+unix:///?socket=${socket}` : `nbd://127.0.0.1:${port}`;
    await until('nbdkit is ready', () => run('nbdinfo', ['--size', uri]).then(() => true), START_MS);
    this.fuse = await launch('nbdfuse', ['-o', 'kernel_cache', this.file, uri], ['ignore', 'ignore', 'inherit']);
    await until('nbdfuse is ready', () => stat(this.file).then(({ size }) => size === bytes), START_MS);
    await fill(this.file, bytes);
  }
  evict(): Promise<void> {
    return Promise.resolve(); // it has no cache of its own
  }
  async stop(): Promise<void> {
    if (this.home === '') return; // never started
    await unmount(join(this.home, 'mnt'));
    await stopProcess(this.fuse);
    await stopProcess(this.server);
    await rm(this.home, { recursive: true, force: true });
  }
}
