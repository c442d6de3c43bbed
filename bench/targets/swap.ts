/**
 * What one uses without us when memory is short: a swap file on this machine's disk, or compressed memory (zram). Not a file system:
 * what works on it maps nobody's memory, and is limited by a memory cgroup.
 */
import { readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { run, Unavailable, type Target } from './target.js';

const ZRAM_CONTROL = '/sys/class/zram-control';
/** Before whatever the machine swaps to otherwise. */
const PRIORITY = '1000';

export class SwapTarget implements Target {
  readonly file = '-';
  readonly folder = undefined;
  private device = '';

  constructor(readonly name: 'swap file' | 'zram') {}

  async start(bytes: number): Promise<void> {
    try {
      await (this.name === 'zram' ? this.makeZram(bytes * 2) : this.makeFile(bytes * 2));
      await run('mkswap', [this.device]);
      await run('swapon', ['--priority', PRIORITY, this.device]);
    } catch (error) {
      await this.stop();
      throw new Unavailable(`no ${this.name} can be had here: ${error instanceof Error ? error.message.trim() : String(error)}`);
    }
  }

  evict(): Promise<void> {
    return Promise.resolve();
  }

  async stop(): Promise<void> {
    const { device } = this;
    this.device = '';
    if (device === '') return;
    await run('swapoff', [device]).catch(() => undefined); // it was not on
    if (this.name === 'swap file') return rm(device, { force: true });
    await writeFile(join(ZRAM_CONTROL, 'hot_remove'), device.slice('/dev/zram'.length));
  }

  private async makeFile(bytes: number): Promise<void> {
    this.device = join(tmpdir(), `extmem-bench-swap-${process.pid}`);
    await run('fallocate', ['-l', String(bytes), this.device]);
    await run('chmod', ['600', this.device]);
  }

  private async makeZram(bytes: number): Promise<void> {
    const number = (await readFile(join(ZRAM_CONTROL, 'hot_add'), 'utf8')).trim();
    this.device = `/dev/zram${number}`;
    await writeFile(`/sys/block/zram${number}/disksize`, String(bytes));
  }
}
