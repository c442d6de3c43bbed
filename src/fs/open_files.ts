/**
 * Open files by native's handle, and how the kernel goes about each: through its page cache, or direct.
 *
 * Where an append lands is decided here, not by the kernel: a descriptor that appends goes direct, so that the kernel sends each write
 * whole and keeps nothing of it. A read through the kernel's cache takes the last page first and the size after it, though: a direct
 * append in between shows as zeros, until the next read. So whoever opens a file that an appender has open goes direct too.
 */
import { constants } from 'node:fs';
import type { OpenMode } from '../client/held_files.js';
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
  /** How many are open direct, by inode. */
  private readonly direct = new Map<number, number>();

  get size(): number {
    return this.files.size;
  }

  has(handle: number): boolean {
    return this.files.has(handle);
  }

  /** Whether an open with these flags is answered with FOPEN_DIRECT_IO. Where that would make mmap fail, only write-only ones are. */
  goesDirect(ino: number, flags: number): boolean {
    if ((flags & constants.O_APPEND) === 0) return this.mapsDirect && (this.direct.get(ino) ?? 0) > 0;
    return this.mapsDirect || (flags & O_ACCMODE) === constants.O_WRONLY;
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
    if (!direct) return;
    const count = (this.direct.get(ino) ?? 0) + by;
    if (count > 0) this.direct.set(ino, count);
    else this.direct.delete(ino);
  }
}
