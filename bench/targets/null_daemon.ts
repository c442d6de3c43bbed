/** The null daemon: native/fuse with nothing below, on the same kind of session as the mount that it is beside. */
import { spawn, type ChildProcess } from 'node:child_process';
import { existsSync } from 'node:fs';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { stopProcess, Unavailable, type SessionKind, type Target } from './target.js';

const program = fileURLToPath(new URL('../../../build/native/plain/bin/bench.path.null_daemon_main', import.meta.url));

export class NullDaemonTarget implements Target {
  readonly name: string;
  readonly folder = undefined;
  private home = '';
  private daemon: ChildProcess | undefined;

  constructor(private readonly session: SessionKind) {
    this.name = `null daemon on ${session}`;
  }
  get file(): string {
    return join(this.home, 'null');
  }

  async start(bytes: number): Promise<void> {
    if (!existsSync(program)) throw new Unavailable('the null daemon is not built: run scripts/setup --bench');
    this.home = await mkdtemp(join(tmpdir(), 'null-bench-'));
    const uring = this.session === 'io_uring' ? 'on' : 'off';
    const child = spawn(program, [this.home, String(bytes), uring], { stdio: ['ignore', 'pipe', 'inherit'] });
    this.daemon = child;
    await new Promise<void>((resolve, reject) => {
      child.stdout.once('data', () => resolve());
      child.once('exit', (code) => reject(new Error(`the null daemon ended with ${String(code)}`)));
    });
  }
  evict(): Promise<void> {
    return Promise.resolve(); // it has nothing
  }
  async stop(): Promise<void> {
    if (this.home === '') return; // never started
    await stopProcess(this.daemon);
    await rm(this.home, { recursive: true, force: true });
  }
}
