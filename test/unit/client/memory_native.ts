/**
 * NativeMount without kernel and memory, for unit tests of the control path: keeps records, modes and handles, writes down what it
 * was told, and lets a test play the writer (`write`) and the kernel (`call`). No bytes are kept.
 */
import { ExtmemError } from '../../../src/base/errors.js';
import { decodeRecord, encodeRecord, type FileRecord } from '../../../src/base/file_record.js';
import type { FileState, NativeMode, NativeMount } from '../../../src/binding/index.js';

interface MemoryFile {
  mode: NativeMode;
  record: FileRecord;
  committedChange: number;
  dirtyBytes: number;
  handles: number;
  locked: boolean;
  cutting: boolean;
}

export interface Told {
  id: number;
  errno: number;
  body: Buffer;
}

export class MemoryNative implements NativeMount {
  readonly files = new Map<number, MemoryFile>();
  readonly replies = new Map<number, Told>();
  readonly answers = new Map<number, Told>();
  readonly log: string[] = [];
  readonly regions = new Map<number, { bytes: number; appliance: string }>();
  readonly appliances = new Set<string>();
  readonly provisions = new Map<number, { next: number; bytes: number }>();
  readonly freed: { region: number; offset: number; length: number }[] = [];
  /** What flushing a file does; a test replaces it to fail. */
  onFlush: (node: number) => Promise<void> = () => Promise.resolve();
  onBeginCut: () => Promise<void> = () => Promise.resolve();
  onPause: () => Promise<void> = () => Promise.resolve();
  onReadsSettled: () => Promise<void> = () => Promise.resolve();
  onYield: () => Promise<void> = () => Promise.resolve();
  onInvalidate: () => Promise<void> = () => Promise.resolve();
  /** Here all handles of a file, those opened later too. */
  readonly broken = new Map<number, number>();
  private readonly handles = new Map<number, number>();
  private readonly waiting = new Map<number, (told: Told) => void>();
  private nextHandle = 0x7f00_0000_1000;
  private isClosed = false;

  start(): { session: '/dev/fuse'; ioUringRefused: string; mapsDirect: boolean } {
    this.log.push('start');
    return { session: '/dev/fuse', ioUringRefused: '', mapsDirect: true };
  }
  reply(id: number, errno: number, body?: Uint8Array): void {
    this.settle(this.replies, id, errno, body);
  }
  answer(id: number, errno: number, record?: Uint8Array): void {
    this.settle(this.answers, id, errno, record);
  }
  rejoin(identity: { client: number }): Promise<void> {
    this.log.push(`rejoin ${identity.client}`);
    this.regions.clear();
    this.provisions.clear();
    return Promise.resolve();
  }
  putAppliance(info: { id: string }): void {
    this.appliances.add(info.id);
  }
  putRegion(grant: { region: number; bytes: number; appliance: string }): void {
    this.regions.set(grant.region, { bytes: grant.bytes, appliance: grant.appliance });
  }
  loseRegions(regions: number[]): void {
    for (const region of regions) this.regions.delete(region);
  }
  removeProvision(): void {}
  addProvision(region: number, used: [number, number][]): void {
    const next = used.reduce((end, [offset, length]) => Math.max(end, offset + length), 0);
    this.provisions.set(region, { next, bytes: this.regions.get(region)?.bytes ?? 0 });
  }
  freeSlabs(pieces: { region: number; offset: number; length: number }[]): void {
    this.freed.push(...pieces);
  }

  putFile(node: number, mode: NativeMode, record: Uint8Array = this.record(node, false)): void {
    const decoded = decodeRecord(record);
    for (const extent of decoded.extents) {
      for (const { region } of extent.members)
        if (!this.regions.has(region)) throw new ExtmemError('EINVAL', `record of ${node} names unknown region ${region}`);
    }
    const before = this.files.get(node);
    this.log.push(`put ${node} ${mode}`);
    this.files.set(node, {
      dirtyBytes: 0,
      handles: 0,
      locked: false,
      cutting: false,
      ...before,
      mode,
      record: decoded,
      committedChange: decoded.change,
    });
  }
  fileState(node: number): FileState | undefined {
    const file = this.files.get(node);
    if (file === undefined) return undefined;
    const { mode, record, dirtyBytes, handles, committedChange } = file;
    const { size, mtime, ctime, change } = record;
    const blocks = record.extents.reduce((sum, extent) => sum + extent.length / 512, 0);
    return { mode, size, blocks, mtime, ctime, change, dirtyBytes, handles, recordChanged: change !== committedChange };
  }
  record(node: number, committed: boolean): Uint8Array {
    const file = this.file(node);
    if (committed) file.committedChange = file.record.change;
    return encodeRecord({ ...file.record, ino: node });
  }
  setTimes(node: number, mtime: [number, number] | undefined, ctime: [number, number] | undefined): void {
    const file = this.file(node);
    file.record = { ...file.record, mtime: mtime ?? file.record.mtime, ctime: ctime ?? file.record.ctime, change: file.record.change + 1 };
  }
  setSize(node: number, size: number): void {
    const file = this.file(node);
    if (file.mode === 'shared') file.record = { ...file.record, size: Math.max(size, file.record.size) };
  }
  setUnannounced(): void {}
  setOwnRegions(): void {}
  setLocked(node: number, locked: boolean): void {
    this.file(node).locked = locked;
  }
  setPrivileged(): void {
    // Only what is written here needs to know.
  }
  openHandle(node: number): number {
    this.file(node).handles += 1;
    const handle = this.nextHandle;
    this.nextHandle += 64;
    this.handles.set(handle, node);
    return handle;
  }
  closeHandle(handle: number): void {
    const node = this.handles.get(handle);
    if (node === undefined) throw new ExtmemError('EBADF', 'no such handle');
    this.handles.delete(handle);
    this.file(node).handles -= 1;
  }
  handleErrno(handle: number): number {
    return this.broken.get(this.handles.get(handle) ?? 0) ?? 0;
  }
  async flushFile(node: number): Promise<void> {
    this.log.push(`flush ${node}`);
    await this.onFlush(node);
    this.file(node).dirtyBytes = 0;
  }
  beginCut(node: number, offset: number, length: number): Promise<void> {
    this.log.push(`beginCut ${node} ${offset} ${length}`);
    this.file(node).cutting = true;
    return this.onBeginCut();
  }
  endCut(node: number, record?: Uint8Array): Promise<void> {
    this.log.push(`endCut ${node} ${record === undefined ? 'failed' : 'done'}`);
    const file = this.file(node);
    file.cutting = false;
    if (record !== undefined) {
      file.record = decodeRecord(record);
      file.committedChange = file.record.change;
    }
    return Promise.resolve();
  }
  async pauseWriters(node: number): Promise<void> {
    this.log.push(`pauseWriters ${node}`);
    await this.onPause();
  }
  resumeWriters(node: number): void {
    this.log.push(`resumeWriters ${node}`);
  }
  refuseWriters(node: number): void {
    this.log.push(`refuseWriters ${node}`);
  }
  async readsSettled(node: number): Promise<void> {
    this.log.push(`readsSettled ${node}`);
    await this.onReadsSettled();
  }
  async yieldEnd(node: number): Promise<void> {
    this.log.push(`yieldEnd ${node}`);
    await this.onYield();
  }
  dropPages(node: number, offset: number, length: number): number {
    this.log.push(`dropPages ${node} ${offset} ${length}`);
    return 0;
  }
  dropFile(node: number): void {
    const file = this.files.get(node);
    if (file !== undefined && file.handles > 0) throw new Error(`file ${node} dropped with ${file.handles} handles`);
    this.log.push(`drop ${node}`);
    this.files.delete(node);
  }
  /** What reading a range does; a test replaces it to fail or to wait. */
  onWarm: (node: number, offset: number, length: number) => Promise<void> = () => Promise.resolve();
  readonly pinned = new Set<number>();
  warmFile(node: number, offset: number, length: number): Promise<void> {
    this.log.push(`warm ${node} ${offset} ${length}`);
    return this.onWarm(node, offset, length);
  }
  setPinned(node: number, pinned: boolean): void {
    this.file(node);
    if (pinned) this.pinned.add(node);
    else this.pinned.delete(node);
  }
  residency(): { cachedBytes: number; pinnedBytes: number } {
    return { cachedBytes: 0, pinnedBytes: 0 };
  }
  forgetKernelPages(): void {}
  settleVoid(node: number): Promise<void> {
    this.log.push(`settleVoid ${node}`);
    this.file(node).dirtyBytes = 0;
    return Promise.resolve();
  }
  renewFile(node: number, mode: NativeMode, record: Uint8Array): void {
    this.putFile(node, mode, record);
  }
  breakHandles(node: number, errno: number): void {
    this.broken.set(node, errno);
  }
  admitMapped(node: number): void {
    this.log.push(`admitMapped ${node}`);
  }
  invalidateInode(node: number, offset: number, length: number): Promise<void> {
    this.log.push(`invalidateInode ${node} ${offset} ${length}`);
    return this.onInvalidate();
  }
  invalidateEntry(parent: number, name: string): Promise<void> {
    this.log.push(`invalidateEntry ${parent} ${name}`);
    return this.onInvalidate();
  }
  watchOperations(): void {}
  takeOperations(): { files: []; otherOperations: number } {
    return { files: [], otherOperations: 0 };
  }
  statistics(): Record<string, unknown> {
    let freeBytes = 0;
    for (const { next, bytes } of this.provisions.values()) freeBytes += bytes - next;
    return { extent: { freeBytes } };
  }
  takeTrace(): [] {
    return [];
  }
  unmount(): void {
    this.log.push('unmount');
  }
  close(): void {
    this.isClosed = true;
  }

  /** Plays an application that writes [0, size): carves one extent for what is new, makes it dirty. */
  write(node: number, size: number): void {
    const file = this.file(node);
    const { record } = file;
    const covered = record.extents.reduce((end, extent) => Math.max(end, extent.fileOffset + extent.length), 0);
    const length = Math.ceil((size - covered) / 4096) * 4096;
    const extents = [...record.extents];
    if (length > 0) extents.push({ fileOffset: covered, length, unit: length, members: [this.carve(length)] });
    const seconds = Math.floor(Date.now() / 1000);
    file.record = {
      ...record,
      size: Math.max(size, record.size),
      change: record.change + 1,
      mtime: [seconds, 1],
      ctime: [seconds, 1],
      extents,
    };
    file.dirtyBytes += size;
  }

  /** The reply to a request, or answer to an upcall, once it is there. */
  told(kind: 'replies' | 'answers', id: number): Promise<Told> {
    const there = this[kind].get(id);
    return there !== undefined ? Promise.resolve(there) : new Promise((resolve) => this.waiting.set(id, resolve));
  }

  private carve(length: number): { region: number; offset: number } {
    for (const [region, room] of this.provisions) {
      if (room.bytes - room.next < length) continue;
      const offset = room.next;
      room.next += length;
      return { region, offset };
    }
    throw new ExtmemError('ENOSPC', 'no room in the provision');
  }

  private settle(kind: Map<number, Told>, id: number, errno: number, body: Uint8Array | undefined): void {
    if (this.isClosed) throw new ExtmemError('ECLOSED', 'closed');
    if (kind.has(id)) throw new Error(`request ${id} was answered twice`);
    const told = { id, errno, body: Buffer.from(body ?? []) };
    kind.set(id, told);
    this.waiting.get(id)?.(told);
    this.waiting.delete(id);
  }

  private file(node: number): MemoryFile {
    const file = this.files.get(node);
    if (file === undefined) throw new ExtmemError('ENOENT', `native does not know file ${node}`);
    return file;
  }
}
