/** The npm package fuse-native serving one file from memory, so that ADR 0001 can be measured again. */
import { spawn, type ChildProcess } from 'node:child_process';
import { existsSync } from 'node:fs';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { stopProcess, Unavailable, unmount, type Target } from './target.js';

const root = fileURLToPath(new URL('../../../', import.meta.url));
const installed = join(root, 'build/bench/fuse-native/node_modules/fuse-native');
const program = join(root, 'bench/programs/fuse_native.cjs');

export class FuseNativeTarget implements Target {
  readonly name = 'fuse-native';
  readonly folder = undefined;
  private home = '';
  private daemon: ChildProcess | undefined;

  get file(): string {
    return join(this.home, 'file');
  }

  async start(bytes: number): Promise<void> {
    if (!existsSync(installed)) throw new Unavailable('fuse-native is not installed: scripts/setup --bench says why');
    this.home = await mkdtemp(join(tmpdir(), 'fuse-native-bench-'));
    const child = spawn(process.execPath, [program, installed, this.home, String(bytes)], { stdio: ['ignore', 'pipe', 'pipe'] });
    this.daemon = child;
    let complaint = '';
    child.stderr.on('data', (piece: Buffer) => (complaint += piece.toString()));
    await new Promise<void>((resolve, reject) => {
      child.stdout.once('data', () => resolve());
      child.once('exit', () => reject(new Unavailable(`fuse-native does not start here: ${complaint.trim().split('\n').pop() ?? ''}`)));
    });
  }
  evict(): Promise<void> {
    return Promise.resolve(); // it has no cache of its own
  }
  async stop(): Promise<void> {
    if (this.home === '') return; // never started
    if (this.daemon?.exitCode === null) await unmount(this.home);
    await stopProcess(this.daemon);
    await rm(this.home, { recursive: true, force: true });
  }
}
