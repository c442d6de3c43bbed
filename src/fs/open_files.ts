/**
 * Open files by native's handle, and how the kernel goes about each: through its page cache, or direct.
 *
 * Where an append lands is decided here, not by the kernel: a descriptor that appends goes direct, so that the kernel sends it whole
 * and keeps nothing of it. A read through the kernel's cache takes the last page first and the size after it, though: a direct append
 * in between shows as zeros. So that the two do not meet, whoever opens a file that an appender has open direct goes direct too, and
 * a file of ours alone that is open through the cache is appended to through the cache.
 */
import { constants } from 'node:fs';
import type { HeldFile, OpenMode } from '../client/held_files.js';
import { O_ACCMODE } from './fuse_wire.js';

export interface OpenFile {
  readonly ino: number;
  readonly mode: OpenMode;
  readonly direct: boolean;
}

export class OpenFiles {
  /** The kernel can map files shared that were opened with FOPEN_DIRECT_IO. Known once native has started. */
  mapsDirect = false;
  private readonly files = new Map<number, OpenFile>();
  private readonly counts = new Map<number, { direct: number; cached: number }>();

  get size(): number {
    return this.files.size;
  }

  has(handle: number): boolean {
    return this.files.has(handle);
  }

  /** Whether an open with these flags is answered with FOPEN_DIRECT_IO. Where that would make mmap fail, only write-only ones are. */
  goesDirect({ ino, mode }: Pick<HeldFile, 'ino' | 'mode'>, flags: number): boolean {
    const { direct, cached } = this.counts.get(ino) ?? { direct: 0, cached: 0 };
    if ((flags & constants.O_APPEND) === 0) return this.mapsDirect && direct > 0;
    const isAlone = mode !== 'shared';
    if (!this.mapsDirect) return !isAlone && (flags & O_ACCMODE) === constants.O_WRONLY;
    return !isAlone || cached === 0;
  }

  add(handle: number, file: OpenFile): void {
    this.files.set(handle, file);
    this.count(file, 1);
  }

  /** Undefined: there is no such handle. */
  take(handle: number): OpenFile | undefined {
    const file = this.files.get(handle);
    if (file === undefined) return undefined;
    this.files.delete(handle);
    this.count(file, -1);
    return file;
  }

  private count({ ino, direct }: OpenFile, by: 1 | -1): void {
    const counts = this.counts.get(ino) ?? { direct: 0, cached: 0 };
    counts[direct ? 'direct' : 'cached'] += by;
    if (counts.direct + counts.cached > 0) this.counts.set(ino, counts);
    else this.counts.delete(ino);
  }
}
