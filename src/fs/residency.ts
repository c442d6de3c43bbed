/**
 * Which files are in local memory, as a user wants it: evict, warm and pin one file, told by its inode.
 *
 * A pinned file is kept open by the mount itself, so that its delegation stays, and its clean pages are never evicted. Room for all
 * of it, as long as it is when it is pinned, is reserved; a pin ends at unpin, when the file's last name goes, and with the mount.
 * While another mount writes it the file is shared: then nothing of it is cached, and its pages come back as they are read.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import { LRUCache } from 'lru-cache';
import { ExtmemError, messageOf } from '../base/errors.js';
import { formatSize } from '../base/size.js';
import type { HeldFile } from '../client/held_files.js';
import type { MountClient } from '../client/mount_client.js';

const PAGE_BYTES = 4096;
/** So much is read before progress is noted. */
const WARM_STEP_BYTES = 8 * 1024 * 1024;
/** Of those that have ended, for whoever asks how. */
const KEPT_WARMINGS = 1000;
const WHOLE_FILE = -1;

export interface Warming {
  offset: number;
  doneBytes: number;
  totalBytes: number;
  /** Asked for, and left out: more than there is room for. */
  leftOutBytes: number;
  state: 'running' | 'done' | 'failed';
  error?: { code: string; message: string };
}

export interface FileResidency {
  ino: number;
  sizeBytes: number;
  cachedBytes: number;
  dirtyBytes: number;
  pinned: boolean;
  pinnedBytes: number;
  warming?: Warming;
}

export interface ResidencyLimits {
  cacheBytes: number;
  dirtyBytes: number;
  /** Of the cache, how much may be pinned. */
  pinLimitBytes: number;
}

export class Residency {
  /** Pinned files: what is reserved for each, and the path by which it was pinned. */
  private readonly pins = new Map<number, { bytes: number; path: string }>();
  private readonly warmings = new LRUCache<number, Warming & { ended: Promise<void> }>({ max: KEPT_WARMINGS });
  private running = 0;

  constructor(
    private readonly client: MountClient,
    private readonly limits: ResidencyLimits,
  ) {
    client.held.onUnlinked = (ino) => this.unpin(ino);
  }

  /** How much of a file is here; with `waitMs`, once its warming has ended, or then. */
  async tell(ino: number, waitMs = 0): Promise<FileResidency> {
    const warming = this.warmings.get(ino);
    if (warming?.state === 'running' && waitMs > 0) {
      const timer = new AbortController();
      await Promise.race([warming.ended, sleep(waitMs, undefined, { signal: timer.signal }).catch(() => undefined)]);
      timer.abort();
    }
    return this.describe(ino);
  }

  /** Drops what is clean, here and in the kernel. What a mapping has dirtied in the kernel becomes dirty here. */
  async evict(ino: number): Promise<FileResidency & { droppedBytes: number }> {
    const droppedBytes = await this.drop(ino);
    return { ...this.describe(ino), droppedBytes };
  }

  /** The same for all files that are held here. */
  async evictAll(): Promise<void> {
    await Promise.allSettled([...this.client.held.all()].map(({ ino }) => this.drop(ino)));
  }

  /** Begins to read a range into the cache. One warming per file at a time: a second one waits for nothing and changes nothing. */
  async warm(ino: number, range: { offset: number; length?: number }): Promise<FileResidency> {
    if (this.warmings.get(ino)?.state !== 'running') await this.beginWarming(ino, range);
    return this.describe(ino);
  }

  /** Reserves room, keeps what is here, and begins to read the rest. ENOMEM: it does not fit. */
  async pin(ino: number, path: string): Promise<FileResidency> {
    if (!this.pins.has(ino)) {
      const file = await this.open(ino);
      try {
        if (this.pins.has(ino)) throw new ExtmemError('EBUSY', `inode ${ino} is being pinned by somebody else`);
        this.reserve(file, path);
      } catch (error) {
        this.client.held.close(ino, 'read');
        throw error;
      }
      this.client.native.setPinned(ino, true);
    }
    return this.warm(ino, { offset: 0 });
  }

  /** Answers whether it was pinned. Its pages stay until they are evicted like any others. */
  unpin(ino: number): boolean {
    if (!this.pins.delete(ino)) return false;
    const { held, native } = this.client;
    if (held.get(ino) !== undefined) native.setPinned(ino, false);
    held.close(ino, 'read');
    return true;
  }

  statistics(): { pinned: (FileResidency & { path: string })[]; reservedBytes: number; warming: number } {
    const pinned = [...this.pins].map(([ino, { path }]) => ({ path, ...this.describe(ino) }));
    return { pinned, reservedBytes: this.reservedBytes(), warming: this.running };
  }

  private async drop(ino: number): Promise<number> {
    const { native } = this.client;
    await native.invalidateInode(ino, 0, WHOLE_FILE);
    return this.pins.has(ino) ? 0 : native.dropPages(ino, 0, WHOLE_FILE);
  }

  private describe(ino: number): FileResidency {
    const { native } = this.client;
    const state = native.fileState(ino);
    const warming = this.warmings.get(ino);
    const told: FileResidency = {
      ino,
      sizeBytes: state?.size ?? 0,
      dirtyBytes: state?.dirtyBytes ?? 0,
      ...native.residency(ino),
      pinned: this.pins.has(ino),
    };
    if (warming === undefined) return told;
    const { ended: _, ...shown } = warming;
    return { ...told, warming: shown };
  }

  private async open(ino: number): Promise<HeldFile> {
    const file = await this.client.held.open(ino, 'read');
    if (file.attr.kind === 'file' && !file.unlinked) return file;
    this.client.held.close(ino, 'read');
    throw new ExtmemError(file.unlinked ? 'ENOENT' : 'EINVAL', `inode ${ino} is ${file.unlinked ? 'unlinked' : 'no file'}`);
  }

  private reserve(file: HeldFile, path: string): void {
    const bytes = Math.ceil(this.sizeOf(file) / PAGE_BYTES) * PAGE_BYTES;
    const { pinLimitBytes, cacheBytes } = this.limits;
    const taken = this.reservedBytes();
    if (taken + bytes > pinLimitBytes)
      throw new ExtmemError(
        'ENOMEM',
        `pinning ${formatSize(bytes)} does not fit: of this mount's cache of ${formatSize(cacheBytes)}, ${formatSize(pinLimitBytes)} may be pinned, ` +
          `and ${formatSize(taken)} are; unpin something (extmem status lists what is pinned), or mount with a larger --cache`,
      );
    this.pins.set(file.ino, { bytes, path });
  }

  private reservedBytes(): number {
    let sum = 0;
    for (const { bytes } of this.pins.values()) sum += bytes;
    return sum;
  }

  private sizeOf(file: HeldFile): number {
    return this.client.native.fileState(file.ino)?.size ?? file.attr.size;
  }

  private async beginWarming(ino: number, { offset, length }: { offset: number; length?: number }): Promise<void> {
    const file = await this.open(ino);
    const wanted = Math.max(0, Math.min(length ?? Infinity, this.sizeOf(file) - offset));
    const { cacheBytes, dirtyBytes } = this.limits;
    const reserved = this.reservedBytes() - (this.pins.get(ino)?.bytes ?? 0);
    const totalBytes = Math.min(wanted, Math.max(0, cacheBytes - dirtyBytes - reserved));
    const warming: Warming = { offset, doneBytes: 0, totalBytes, leftOutBytes: wanted - totalBytes, state: 'running' };
    this.running += 1;
    const ended = this.runWarming(ino, warming).finally(() => {
      this.running -= 1;
      this.client.held.close(ino, 'read');
    });
    this.warmings.set(ino, Object.assign(warming, { ended }));
  }

  /** Never rejects. */
  private async runWarming(ino: number, warming: Warming): Promise<void> {
    try {
      while (warming.doneBytes < warming.totalBytes) {
        const step = Math.min(WARM_STEP_BYTES, warming.totalBytes - warming.doneBytes);
        await this.client.native.warmFile(ino, warming.offset + warming.doneBytes, step);
        warming.doneBytes += step;
      }
      warming.state = 'done';
    } catch (error) {
      const shared = error instanceof Error && 'code' in error && error.code === 'EBUSY';
      const code = shared ? 'EBUSY' : 'EIO';
      const message = shared
        ? 'another mount has the file open and one of you writes it: nothing of it is cached now'
        : `reading it failed: ${messageOf(error)}`;
      Object.assign(warming, { state: 'failed', error: { code, message } });
    }
  }
}
