/** Memory of this machine as files: what we are compared with where nothing needs to travel. */
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fill, run, unmount, type Target } from './target.js';

export class TmpfsTarget implements Target {
  readonly name = 'tmpfs';
  folder = '';

  get file(): string {
    return join(this.folder, 'bench');
  }
  async start(bytes: number): Promise<void> {
    this.folder = await mkdtemp(join(tmpdir(), 'tmpfs-bench-'));
    await run('mount', ['-t', 'tmpfs', 'none', this.folder]);
    await fill(this.file, bytes);
  }
  evict(): Promise<void> {
    return Promise.resolve();
  }
  async stop(): Promise<void> {
    if (this.folder === '') return; // never started
    await unmount(this.folder);
    await rm(this.folder, { recursive: true, force: true });
  }
}
