/**
 * The embedded metadata store: LMDB on a local disk, with a journal before it (journal.ts says why).
 *
 * A transaction is in the journal when transact() resolves (those of one turn of the event loop in one write); its writes stay in `pending`, where reads find them, until LMDB has
 * them on disk with the number of the last transaction among them (a checkpoint). What was journalled behind that number is
 * applied when the store is opened.
 * A failed write (disk full) ends the store: what was read from `pending` may already have been told, so nothing goes on.
 *
 * Owner: the event loop.
 */
import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { open, type RootDatabase } from 'lmdb';
import { Packr } from 'msgpackr';
import { ExtmemError, messageOf } from '../base/errors.js';
import { entriesAfter, Journal, type JournalEntry, type Writes } from './journal.js';
import type { MetadataStore, Transaction } from './metadata_store.js';

/** Number of the last transaction that is in LMDB. */
const APPLIED = 'm/applied';
/** A table's letter, a number, and the slashes: what scans of one directory begin with. */
const GROUP_LENGTH = 17;
const CHECKPOINT_MS = 50;
const CHECKPOINT_WRITES = 8192;

const removed = Symbol('removed');

interface PendingWrite {
  value: unknown;
  packed: Uint8Array | undefined;
  sequence: number;
}

const packr = new Packr({ useRecords: false, int64AsType: 'number', copyBuffers: true });

/** Opens or creates the store in the folder `path`. */
export function openLmdbStore(path: string): MetadataStore {
  return new LmdbStore(path);
}

class LmdbStore implements MetadataStore {
  private readonly database: RootDatabase<Buffer, string>;
  private readonly journal: Journal;
  private readonly pending = new Map<string, PendingWrite>();
  /** Keys of `pending` by what they begin with: a directory's entries are found without going through all. */
  private readonly groups = new Map<string, Set<string>>();
  private unwritten: JournalEntry[] = [];
  private journalling: Promise<void> | undefined;
  private sequence: number;
  private checkpointing: Promise<void> | undefined;
  private timer: NodeJS.Timeout | undefined;
  private failure: ExtmemError | undefined;
  private closing = false;

  constructor(path: string) {
    mkdirSync(path, { recursive: true, mode: 0o700 });
    this.database = open<Buffer, string>({
      path: join(path, 'lmdb'),
      encoding: 'binary',
      overlappingSync: true,
      maxReaders: 16,
      noSubdir: false,
    });
    const { journal, entries } = Journal.open(path);
    this.journal = journal;
    this.sequence = this.read<number>(APPLIED) ?? 0;
    const left = entriesAfter(entries, this.sequence);
    if (left.length > 0) {
      this.database.transactionSync(() => {
        for (const { writes } of left) this.putAll(writes);
        this.sequence += left.length;
        void this.database.put(APPLIED, packr.pack(this.sequence));
      });
    }
    journal.clear();
  }

  get<T>(key: string): T | undefined {
    const write = this.pending.get(key);
    if (write !== undefined) return write.value === removed ? undefined : (write.value as T);
    return this.read<T>(key);
  }

  *scan<T>(prefix: string, options: { after?: string; limit?: number } = {}): Iterable<[string, T]> {
    yield* this.scanOver(prefix, options, []);
  }

  count(prefix: string): number {
    return this.database.getKeysCount({ start: prefix, end: `${prefix}\u{10ffff}` });
  }

  transact<T>(body: (tx: Transaction) => T): Promise<T> {
    if (this.failure !== undefined) return Promise.reject(this.failure);
    const writes = new Map<string, unknown>();
    const tx: Transaction = {
      get: <V>(key: string) => {
        if (!writes.has(key)) return this.get<V>(key);
        const value = writes.get(key);
        return value === removed ? undefined : (value as V);
      },
      scan: <V>(prefix: string, options: { after?: string; limit?: number } = {}) => this.scanOver<V>(prefix, options, [writes]),
      put: (key, value) => void writes.set(key, value),
      remove: (key) => void writes.set(key, removed),
    };
    let result: T;
    try {
      result = body(tx);
    } catch (error) {
      return Promise.reject(error instanceof Error ? error : new Error(String(error)));
    }
    if (writes.size === 0) return Promise.resolve(result);
    this.note(writes);
    return this.settled().then(() => result);
  }

  settled(): Promise<void> {
    if (this.failure !== undefined) return Promise.reject(this.failure);
    return this.journalling ?? Promise.resolve();
  }

  async close(): Promise<void> {
    if (this.closing) return;
    this.closing = true;
    clearTimeout(this.timer);
    await this.checkpointing;
    if (this.failure === undefined) await this.checkpoint();
    this.failure ??= new ExtmemError('ECLOSED', "the manager's store is closed");
    await this.database.close();
    this.journal.close();
  }

  private note(writes: Map<string, unknown>): void {
    const packed: Writes = new Map();
    for (const [key, value] of writes) packed.set(key, value === removed ? undefined : packr.pack(value));
    const sequence = ++this.sequence;
    this.unwritten.push({ sequence, writes: packed });
    for (const [key, value] of writes) this.setPending(key, { value, packed: packed.get(key), sequence });
    this.journalling ??= Promise.resolve().then(() => this.writeJournal());
  }

  private writeJournal(): void {
    const entries = this.unwritten;
    this.unwritten = [];
    this.journalling = undefined;
    if (this.failure !== undefined) throw this.failure;
    try {
      this.journal.append(entries);
    } catch (error) {
      throw this.fail(error);
    }
    if (this.pending.size >= CHECKPOINT_WRITES) void this.checkpoint();
    else this.timer ??= setTimeout(() => void this.checkpoint(), CHECKPOINT_MS);
  }

  private setPending(key: string, write: PendingWrite): void {
    this.pending.set(key, write);
    const group = key.slice(0, GROUP_LENGTH);
    const keys = this.groups.get(group);
    if (keys === undefined) this.groups.set(group, new Set([key]));
    else keys.add(key);
  }

  private dropPending(key: string): void {
    this.pending.delete(key);
    const group = key.slice(0, GROUP_LENGTH);
    const keys = this.groups.get(group);
    keys?.delete(key);
    if (keys?.size === 0) this.groups.delete(group);
  }

  /** Keys under way that may begin with `prefix`. */
  private pendingKeys(prefix: string): Iterable<string> {
    return prefix.length >= GROUP_LENGTH ? (this.groups.get(prefix.slice(0, GROUP_LENGTH)) ?? []) : this.pending.keys();
  }

  private read<T>(key: string): T | undefined {
    const bytes = this.database.getBinaryFast(key);
    return bytes === undefined ? undefined : (packr.unpack(bytes) as T);
  }

  /** LMDB's entries with those of `pending` and of the layers over it put in their places. */
  private *scanOver<T>(prefix: string, options: { after?: string; limit?: number }, layers: Map<string, unknown>[]): Iterable<[string, T]> {
    const end = `${prefix}\u{10ffff}`;
    const from = options.after ?? prefix;
    const isWanted = (key: string): boolean => key.startsWith(prefix) && (options.after === undefined || key > options.after);
    const over = new Map<string, unknown>();
    for (const key of this.pendingKeys(prefix)) if (isWanted(key)) over.set(key, this.pending.get(key)?.value);
    for (const layer of layers) for (const [key, value] of layer) if (isWanted(key)) over.set(key, value);
    const overKeys = [...over.keys()].sort();
    let left = options.limit ?? Infinity;
    let index = 0;
    for (const key of this.database.getKeys({ start: from, end })) {
      if (!isWanted(key)) continue;
      while (index < overKeys.length && (overKeys[index] as string) < key) {
        const value = over.get(overKeys[index] as string);
        if (value !== removed) {
          yield [overKeys[index] as string, value as T];
          if (--left <= 0) return;
        }
        index++;
      }
      if (over.has(key)) continue; // its turn comes in overKeys
      const value = this.read<T>(key);
      if (value === undefined) continue;
      yield [key, value];
      if (--left <= 0) return;
    }
    for (; index < overKeys.length && left > 0; index++) {
      const key = overKeys[index] as string;
      const value = over.get(key);
      if (value === removed) continue;
      yield [key, value as T];
      left--;
    }
  }

  /** One at a time; what is transacted meanwhile is in the next one. */
  private checkpoint(): Promise<void> {
    this.checkpointing ??= this.checkpointNow()
      .catch((error: unknown) => void this.fail(error))
      .finally(() => {
        this.checkpointing = undefined;
        if (this.pending.size > 0 && this.failure === undefined && !this.closing)
          this.timer ??= setTimeout(() => void this.checkpoint(), CHECKPOINT_MS);
      });
    return this.checkpointing;
  }

  private async checkpointNow(): Promise<void> {
    clearTimeout(this.timer);
    this.timer = undefined;
    await this.journalling; // what is in `pending` is in the journal's present file
    if (this.pending.size === 0) return;
    const last = this.sequence;
    const writes: Writes = new Map();
    for (const [key, { packed }] of this.pending) writes.set(key, packed);
    const dropOld = this.journal.turn();
    await this.database.batch(() => {
      this.putAll(writes);
      void this.database.put(APPLIED, packr.pack(last));
    });
    for (const key of writes.keys()) if ((this.pending.get(key)?.sequence ?? Infinity) <= last) this.dropPending(key);
    await this.database.flushed;
    dropOld();
  }

  private putAll(writes: Writes): void {
    for (const [key, packed] of writes) {
      if (packed === undefined) void this.database.remove(key);
      else void this.database.put(key, Buffer.from(packed.buffer, packed.byteOffset, packed.byteLength));
    }
  }

  private fail(error: unknown): ExtmemError {
    const why = messageOf(error);
    this.failure ??= new ExtmemError('EIO', `the manager's store failed: ${why}; free room on its disk and restart it`, { cause: error });
    return this.failure;
  }
}
