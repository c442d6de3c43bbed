/** Memory cgroups, of either version, for tests of what happens when memory is short. */
import { existsSync, mkdirSync, readFileSync, rmdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';

const v1 = '/sys/fs/cgroup/memory';
const v2 = '/sys/fs/cgroup';

export class MemoryCgroup {
  private constructor(
    private readonly folder: string,
    private readonly version: 1 | 2,
  ) {}

  /** `limitBytes` bounds anonymous memory, page cache and kernel memory of all that runs in it; unless it `swaps`, nothing of it is. */
  static create(name: string, limitBytes: number, { swaps = false } = {}): MemoryCgroup {
    const version = existsSync(join(v1, 'memory.limit_in_bytes')) ? 1 : 2;
    if (version === 2) enableMemoryController();
    const folder = join(version === 1 ? v1 : v2, `extmem-test-${process.pid}-${name}`);
    mkdirSync(folder);
    const cgroup = new MemoryCgroup(folder, version);
    cgroup.write(version === 1 ? 'memory.limit_in_bytes' : 'memory.max', String(limitBytes));
    if (version === 2) cgroup.write('memory.swap.max', swaps ? 'max' : '0');
    else if (!swaps) cgroup.write('memory.swappiness', '0');
    return cgroup;
  }

  /** What must stand before a command for it to run in here. */
  runner(): string[] {
    return ['sh', '-c', 'echo $$ > "$0" && exec "$@"', join(this.folder, 'cgroup.procs')];
  }

  /** Processes that the kernel killed in here because its memory was used up. */
  get oomKills(): number {
    const text = this.read(this.version === 1 ? 'memory.oom_control' : 'memory.events');
    return Number(/^oom_kill (\d+)$/m.exec(text)?.[1] ?? NaN);
  }

  get usedBytes(): number {
    return Number(this.read(this.version === 1 ? 'memory.usage_in_bytes' : 'memory.current'));
  }

  /** The kernel's pages of files that processes in here brought in. */
  get cachedBytes(): number {
    const text = this.read('memory.stat');
    return Number((this.version === 1 ? /^total_cache (\d+)$/m : /^file (\d+)$/m).exec(text)?.[1] ?? NaN);
  }

  /** Everything in it must have ended. */
  remove(): void {
    rmdirSync(this.folder);
  }

  private read(name: string): string {
    return readFileSync(join(this.folder, name), 'utf8');
  }

  private write(name: string, value: string): void {
    writeFileSync(join(this.folder, name), value);
  }
}

function enableMemoryController(): void {
  if (!readFileSync(join(v2, 'cgroup.controllers'), 'utf8').includes('memory'))
    throw new Error('the kernel offers no memory controller here: the tests of memory pressure need one');
  writeFileSync(join(v2, 'cgroup.subtree_control'), '+memory');
}
