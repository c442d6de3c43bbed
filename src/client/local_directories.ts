/**
 * Directories that this client has to itself: it knows all names in them, and makes and removes files there without asking. The
 * manager hears of it behind (name_journal.ts), and takes a directory back before anybody else sees it.
 *
 * Invariants: `names` of a directory are exactly its names, those that the manager does not know yet included; a file is removed here
 * only while its one name is here and nobody else can know it (`sole`). What is not possible here by these rules is asked of the
 * manager, in order with what was done here: every method that may decline answers undefined then.
 */
import { now } from '../base/clock.js';
import { encodeRecord } from '../base/file_record.js';
import type { Logger } from '../base/logger.js';
import type { Layout } from '../base/layout.js';
import type { Answer, Attr, NameOperation, Time } from '../base/messages.js';
import { S_ISGID } from '../base/mode_bits.js';
import { STRIPE_UNIT_BYTES } from '../base/protocol.js';
import type { NativeMount } from '../binding/index.js';
import type { AttributeCache } from './attribute_cache.js';
import type { BoundedWait } from './bounded_wait.js';
import { isOpen, type HeldFile, type HeldFiles, type OpenMode } from './held_files.js';
import type { ClientOperations } from './manager.js';
import type { NameJournal } from './name_journal.js';

const MAX_DIRECTORIES = 4096;
const MAX_NAMES = 262_144;
const MAX_NAME_BYTES = 255;
const NUMBERS = 4096;

type Delegated = NonNullable<Answer<ClientOperations, 'create'>['delegated']>;

interface LocalDirectory {
  attr: Attr;
  layout: Layout;
  names: Map<string, number>;
}

export interface LocalDirectoryParts {
  journal: NameJournal;
  native: NativeMount;
  cache: AttributeCache;
  held: HeldFiles;
  wait: BoundedWait;
  log: Logger;
}

export class LocalDirectories {
  /** The first is the one that was taken first. */
  private readonly directories = new Map<number, LocalDirectory>();
  private nameCount = 0;
  /** Files whose only name is one that was made here. */
  private readonly sole = new Set<number>();
  /** Files that the manager does not know yet. */
  private readonly unannounced = new Set<number>();
  private numbers = { next: 0, left: 0 };
  private askingNumbers = false;
  /** Files whose name the manager did not take. */
  private readonly refused = new Set<number>();
  /** How often something that was done in a directory turned out not to be possible, and how much of that somebody was told. */
  private readonly failures = new Map<number, { count: number; told: number }>();
  /** Held when the session was lost. */
  private owed: number[] = [];
  private creates = 0;
  private unlinks = 0;

  constructor(private readonly parts: LocalDirectoryParts) {
    parts.journal.listen({
      done: (operation) => this.done(operation),
      failed: (operation, code) => this.failed(operation, code),
    });
  }

  /** So many inode numbers more are worth asking for. */
  get numbersWanted(): number {
    return this.numbers.left < NUMBERS / 2 ? NUMBERS : 0;
  }

  /** A directory that was just made, and is ours. */
  take(attr: Attr, { numbers, ...layout }: Delegated): void {
    if (numbers.count > 0) this.numbers = { next: numbers.first, left: numbers.count };
    this.directories.set(attr.ino, { attr, layout, names: new Map() });
    this.keepBounds();
  }

  /** It is known that there is no such name. */
  isAbsent(parent: number, name: string): boolean {
    const directory = this.directories.get(parent);
    return directory !== undefined && this.parts.journal.alive && !directory.names.has(name) && isShort(name);
  }

  /** A directory's attributes as they are now. The kernel asks for them after every change of its names. */
  attrOf(ino: number): Attr | undefined {
    return this.parts.journal.alive ? this.directories.get(ino)?.attr : undefined;
  }

  /** A new file, held for writing and open. */
  create(parent: number, asked: { name: string; mode: number; uid: number; gid: number; open: OpenMode }): HeldFile | undefined {
    const directory = this.directories.get(parent);
    const { name, mode, uid } = asked;
    if (directory === undefined || directory.names.has(name) || !isShort(name)) return undefined;
    const { journal, held, native } = this.parts;
    const ino = journal.isOpen ? this.takeNumber() : undefined;
    if (ino === undefined) return undefined;
    const at = now();
    const gid = (directory.attr.mode & S_ISGID) === 0 ? asked.gid : directory.attr.gid;
    journal.append({ kind: 'create', parent, name, ino, mode, uid, gid, at });
    this.put(directory, name, ino);
    this.sole.add(ino);
    this.unannounced.add(ino);
    this.touch(directory, at);
    this.creates += 1;
    this.keepBounds();
    const attr: Attr = {
      ...{ ino, kind: 'file', mode, uid, gid, nlink: 1, rdev: 0, size: 0, blocks: 0 },
      ...{ atime: at, mtime: at, ctime: at, change: 1 },
    };
    const header = { ino, ...directory.layout, stripeUnit: STRIPE_UNIT_BYTES, size: 0, mtime: at, ctime: at, change: 1, epoch: 1 };
    const record = encodeRecord({ ...header, extents: [] });
    const file = held.openGranted({ mode: 'write', delegation: 0, attr, record, regions: [] }, asked.open);
    native.setUnannounced(ino, true);
    return file;
  }

  /** True: the file's name is gone, and with it the file unless it is open. */
  unlink(parent: number, name: string): boolean {
    const directory = this.directories.get(parent);
    const ino = directory?.names.get(name);
    if (directory === undefined || ino === undefined || !this.sole.has(ino)) return false;
    const { journal, cache, held } = this.parts;
    const file = held.get(ino);
    if (!journal.isOpen || held.isAcquiring(ino) || !this.mayRemove(file)) return false;
    const at = now();
    const idle = file === undefined || isOpen(file) ? undefined : file;
    const released = idle === undefined ? {} : this.release(idle);
    journal.append({ kind: 'unlink', parent, name, ino, released: idle !== undefined, ...released, at });
    if (file !== undefined && idle === undefined) held.noteAttr({ ...file.attr, nlink: 0, ctime: at, change: file.attr.change + 1 });
    this.remove(directory, name);
    this.sole.delete(ino);
    cache.invalidateEntry(parent, name); // the manager's answers that are under way have not seen it
    cache.invalidateAttr(ino);
    this.touch(directory, at);
    this.unlinks += 1;
    return true;
  }

  /** The manager has given a directory's name to an inode, at our wish. */
  noteName(parent: number, name: string, ino: number): void {
    const directory = this.directories.get(parent);
    if (directory === undefined)
      this.sole.delete(ino); // it went where others see it
    else this.put(directory, name, ino);
  }

  noteRemoval(parent: number, name: string): void {
    const directory = this.directories.get(parent);
    if (directory !== undefined) this.remove(directory, name);
  }

  /** The file has more names than the one that was made here. */
  noteLink(ino: number): void {
    this.sole.delete(ino);
  }

  /** What the manager says of a directory that we changed ourselves. */
  noteAttr(attr: Attr): void {
    const directory = this.directories.get(attr.ino);
    if (directory === undefined) return;
    const { mtime, ctime, change } = directory.attr;
    if (attr.nlink === 0) void this.forget(attr.ino);
    // The answer is older than what was done here meanwhile.
    else directory.attr = attr.change < change ? { ...attr, mtime, ctime, change: change + 1 } : attr;
  }

  /** From now on the manager is asked for everything in it. Resolves when the kernel has dropped its attributes: the manager does
   *  not know that it was told them. */
  async forget(ino: number): Promise<void> {
    const directory = this.directories.get(ino);
    if (directory === undefined) return;
    this.directories.delete(ino);
    this.nameCount -= directory.names.size;
    for (const file of directory.names.values()) this.sole.delete(file);
    this.parts.cache.invalidateAttr(ino);
    await this.parts.wait.settle(this.parts.native.invalidateInode(ino, -1, 0), 'attributes');
  }

  /** Somebody else wants to see it. Resolves when everything done in it is with the manager. */
  async recalled(ino: number): Promise<void> {
    await Promise.all([this.forget(ino), this.parts.journal.answered()]);
  }

  /** Inodes that the manager does not know, and directories in which something was done that it does not know. */
  unwritten(): number[] {
    return [...new Set([...this.unannounced, ...this.parts.journal.unsettledParents()])];
  }

  /** Everything done here so far survives the manager's death. */
  settled(): Promise<void> {
    return this.parts.journal.settled();
  }

  giveBack(some: number[]): void {
    const { journal, log } = this.parts;
    const directories = some.filter((ino) => this.directories.has(ino));
    if (directories.length === 0) return;
    Promise.all(directories.map((ino) => this.forget(ino)))
      .then(() => journal.ask('returnDirectories', { directories }))
      .catch((error: unknown) => {
        if (journal.alive) log.warn({ directories, error }, 'directories could not be given back; they go when somebody asks for them');
      });
  }

  /** The manager may have heard of some of what was asked last, or not: nothing is known any more. */
  async sessionLost(): Promise<void> {
    const held = [...this.directories.keys()];
    this.owed.push(...held);
    this.parts.journal.sessionLost();
    await Promise.all(held.map((ino) => this.forget(ino)));
  }

  async sessionResumed(): Promise<void> {
    await this.parts.journal.sessionResumed();
    if (this.owed.length > 0) await this.parts.journal.ask('returnDirectories', { directories: this.owed });
    this.owed = [];
  }

  /** The directories that the former client had are whoever's asks first. */
  fenced(): void {
    this.owed = [];
    for (const ino of [...this.directories.keys()]) void this.forget(ino); // taken while the session was being resumed
    this.parts.journal.fenced();
  }

  /** The manager does not know the file yet: what is promised of it is not kept by its record alone. */
  isUnannounced(ino: number): boolean {
    return this.unannounced.has(ino);
  }

  /** The manager does not know it, and never will: what is promised of it is not kept. */
  isRefused(ino: number): boolean {
    return this.refused.has(ino);
  }

  /** What whoever opens the directory now need not be told again (as errseq: what nobody was told of yet, it is). */
  failuresTold(ino: number): number {
    return this.failures.get(ino)?.told ?? 0;
  }

  /** How often an operation in this directory failed after it had been answered. Whoever asks tells it. */
  tellFailures(ino: number): number {
    const failures = this.failures.get(ino);
    if (failures === undefined) return 0;
    failures.told = failures.count;
    return failures.count;
  }

  counters(): Record<string, number> {
    const { creates, unlinks } = this;
    return { held: this.directories.size, names: this.nameCount, creates, unlinks, ...this.parts.journal.counters() };
  }

  /** Its delegation goes back with the name. */
  private release(file: HeldFile): { record?: Uint8Array } {
    const { native, held } = this.parts;
    // So the manager learns which of our pieces are free again.
    const record = native.fileState(file.ino)?.recordChanged === true ? { record: native.record(file.ino, false) } : {};
    file.unlinked = true;
    held.forget(file);
    return record;
  }

  /** Nothing of it is on its way to an appliance: it might arrive after the memory is somebody else's. */
  private mayRemove(file: HeldFile | undefined): boolean {
    if (file === undefined) return true;
    if (file.changing !== undefined || file.mode !== 'write' || file.uncertain) return false;
    return isOpen(file) || (this.parts.native.fileState(file.ino)?.dirtyBytes ?? 0) === 0;
  }

  /** As the manager does it when it hears of the operation. */
  private touch(directory: LocalDirectory, at: Time): void {
    const { attr } = directory;
    directory.attr = { ...attr, mtime: at, ctime: at, change: attr.change + 1 };
    this.parts.cache.dropAttr(attr.ino);
  }

  private put(directory: LocalDirectory, name: string, ino: number): void {
    if (!directory.names.has(name)) this.nameCount += 1;
    directory.names.set(name, ino);
  }

  private remove(directory: LocalDirectory, name: string): void {
    if (directory.names.delete(name)) this.nameCount -= 1;
  }

  private keepBounds(): void {
    if (this.directories.size <= MAX_DIRECTORIES && this.nameCount <= MAX_NAMES) return;
    const oldest = this.directories.keys().next();
    if (oldest.done !== true) this.giveBack([oldest.value]);
  }

  private takeNumber(): number | undefined {
    if (this.numbers.left < NUMBERS / 4) this.askNumbers();
    if (this.numbers.left === 0) return undefined;
    this.numbers.left -= 1;
    return this.numbers.next++;
  }

  private askNumbers(): void {
    if (this.askingNumbers) return;
    this.askingNumbers = true;
    const { journal, log } = this.parts;
    journal
      .ask('inodeNumbers', { count: NUMBERS })
      .then(({ first, count }) => void (this.numbers = { next: first, left: count }))
      .catch((error: unknown) => journal.alive && log.warn({ error }, 'no inode numbers could be had; the manager makes files meanwhile'))
      .finally(() => (this.askingNumbers = false));
  }

  private done(operation: NameOperation): void {
    if (operation.kind !== 'create') return;
    this.unannounced.delete(operation.ino);
    this.parts.native.setUnannounced(operation.ino, false);
  }

  private failed(operation: NameOperation, code: string): void {
    const { kind, parent, name, ino } = operation;
    this.unannounced.delete(ino);
    if (kind === 'create') this.refused.add(ino);
    const failures = this.failures.get(parent) ?? { count: 0, told: 0 };
    failures.count += 1;
    this.failures.set(parent, failures);
    this.parts.log.error(
      { kind, directory: parent, name, ino, code },
      'the manager refused what was answered as done here; fsync of the directory says so',
    );
    this.giveBack([parent]);
    this.parts.cache.dropEntry(parent, name);
    this.parts.native.invalidateEntry(parent, name).catch(() => undefined);
  }
}

function isShort(name: string): boolean {
  return name.length <= MAX_NAME_BYTES / 3 || Buffer.byteLength(name) <= MAX_NAME_BYTES;
}
