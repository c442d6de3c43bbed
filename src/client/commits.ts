/**
 * Takes file records to the manager: all that come up within one turn of the event loop go in one request.
 *
 * Invariant: a commit resolves only when the record, or a newer one of the same file, survives the death of the manager. While
 * the manager is dead it rejects with ENOTCONN: native then knows whether the record beside the file's first region will do, and
 * goes on counting it as changed, so that `recommit` finds it.
 */
import { ExtmemError } from '../base/errors.js';
import type { Logger } from '../base/logger.js';
import { SessionFailure } from '../base/session.js';
import type { NativeMount } from '../binding/index.js';
import type { HeldFiles } from './held_files.js';
import type { Manager } from './manager.js';

/** Per request; the session's frames end at 64 MiB, one record at 4 MiB. */
const MAX_BATCH_BYTES = 8 * 1024 * 1024;
const MAX_BATCH_RECORDS = 4096;

interface Pending {
  ino: number;
  record: Uint8Array;
  waiters: { resolve: () => void; reject: (error: Error) => void }[];
}

export class Commits {
  private pending = new Map<number, Pending>();
  private scheduled = false;
  private batches = 0;
  private records = 0;

  constructor(
    private readonly manager: Manager,
    private readonly native: NativeMount,
    private readonly held: HeldFiles,
    private readonly log: Logger,
  ) {}

  async commit(ino: number, record: Uint8Array): Promise<void> {
    try {
      await this.queue(ino, record);
    } catch (error) {
      const isStale = error instanceof ExtmemError && error.code === 'ESTALE';
      if (!isStale || this.held.get(ino)?.mode !== 'write') throw error;
      await this.commitAfterCut(ino);
    }
  }

  /** After the session was resumed: every record that changed while the manager was dead. */
  async recommit(): Promise<void> {
    const changed: Pending[] = [];
    for (const file of [...this.held.all()]) {
      // What is being given back takes its record along.
      if (file.delegation === undefined || file.unlinked || file.releaseSent) continue;
      if (file.uncertain) {
        await this.held.reacquire(file);
      } else if (this.native.fileState(file.ino)?.recordChanged === true) {
        changed.push({ ino: file.ino, record: this.native.record(file.ino, false), waiters: [] });
      }
    }
    for (const batch of batchesOf(changed)) await this.send(batch);
    if (changed.length > 0) this.log.info({ files: changed.length }, 'records that changed while the manager was away are with it');
  }

  /** What waits is of the client that we were: the manager is not to get it in another's name. */
  fenced(): void {
    const all = [...this.pending.values()];
    this.pending = new Map();
    for (const one of all) this.settleUnsent(one, new ExtmemError('EIO', `committing inode ${one.ino}: this mount was fenced`));
  }

  counters(): Record<string, number> {
    return { batches: this.batches, records: this.records };
  }

  /** A truncation of ours overtook the record, which was made before it. Now none can come in between. */
  private async commitAfterCut(ino: number): Promise<void> {
    const file = this.held.get(ino);
    await this.native.beginCut(ino, 0, 0);
    try {
      if (this.held.get(ino) !== file) throw new ExtmemError('EIO', `committing inode ${ino}: this mount was fenced meanwhile`);
      await this.queue(ino, this.native.record(ino, false));
    } finally {
      if (this.native.fileState(ino) !== undefined) await this.native.endCut(ino);
    }
  }

  private queue(ino: number, record: Uint8Array): Promise<void> {
    return new Promise((resolve, reject) => {
      const before = this.pending.get(ino);
      const waiters = before?.waiters ?? [];
      waiters.push({ resolve, reject });
      this.pending.set(ino, { ino, record, waiters });
      if (this.scheduled) return;
      this.scheduled = true;
      setImmediate(() => this.sendPending());
    });
  }

  private sendPending(): void {
    this.scheduled = false;
    const all = [...this.pending.values()];
    this.pending = new Map();
    for (const batch of batchesOf(all)) void this.send(batch);
  }

  private async send(batch: Pending[]): Promise<void> {
    this.batches += 1;
    this.records += batch.length;
    try {
      const { failed } = await this.manager.ask('commit', { records: batch.map(({ record }) => record) });
      const codes = new Map(failed.map(({ ino, code }) => [ino, code]));
      for (const one of batch) this.settle(one, codes.get(one.ino));
    } catch (error) {
      for (const one of batch) this.settleUnsent(one, error);
    }
  }

  private settle(one: Pending, code: string | undefined): void {
    if (code === undefined) return one.waiters.forEach(({ resolve }) => resolve());
    const error = new ExtmemError(code, `committing inode ${one.ino}: the manager refused its record with ${code}`);
    if (one.waiters.length === 0) this.log.warn({ ino: one.ino, code }, 'the manager refused a record that changed while it was away');
    for (const { reject } of one.waiters) reject(error);
  }

  private settleUnsent(one: Pending, error: unknown): void {
    // The session may have ended with the question under way, before anybody was told that it has.
    const isLost = !this.manager.alive || (error instanceof SessionFailure && error.reason === 'closed');
    if (isLost && this.held.get(one.ino)?.attr.persisted === true) {
      // The record beside the region would do for memory. That it is in a backing store only the manager can have seen to.
      const unpersisted = new ExtmemError('EIO', `persisting inode ${one.ino}: the manager is not reachable`);
      return one.waiters.forEach(({ reject }) => reject(unpersisted));
    }
    const cause =
      !isLost && error instanceof Error ? error : new ExtmemError('ENOTCONN', `committing inode ${one.ino}: the manager is not reachable`);
    for (const { reject } of one.waiters) reject(cause);
  }
}

function* batchesOf(all: Pending[]): Generator<Pending[]> {
  let batch: Pending[] = [];
  let bytes = 0;
  for (const one of all) {
    if (batch.length > 0 && (batch.length === MAX_BATCH_RECORDS || bytes + one.record.byteLength > MAX_BATCH_BYTES)) {
      yield batch;
      batch = [];
      bytes = 0;
    }
    batch.push(one);
    bytes += one.record.byteLength;
  }
  if (batch.length > 0) yield batch;
}
