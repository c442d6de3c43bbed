/**
 * The files that this client holds a delegation for: what may be cached of each, who has it open, and when it is given back.
 * A delegation outlives the last close (most files are opened again), up to MAX_IDLE of them; opening a file whose delegation
 * suffices says no word to the manager and waits for nothing.
 *
 * Invariants:
 * - Native knows exactly the files in `files`; a file leaves both together.
 * - A file whose delegation is changing (recalled, given back) has `changing` set; whoever wants to open it waits for that.
 * - One acquire per inode at a time: a second answer would replace a record that native has changed meanwhile.
 * - A write delegation's record is native's; it is never replaced by the manager's, except after an uncertain cut.
 */
import { constants } from 'node:os';
import { LRUCache } from 'lru-cache';
import { codeOf, ExtmemError } from '../base/errors.js';
import type { Logger } from '../base/logger.js';
import type { Attr, FileGrant } from '../base/messages.js';
import { isPrivileged } from '../base/mode_bits.js';
import type { NativeMode, NativeMount } from '../binding/index.js';
import { recordChange } from '../base/file_record.js';
import type { Manager } from './manager.js';
import type { KnownRegions } from './regions.js';

export const MAX_IDLE = 10_000;
const MAX_CLOSED_CHANGES = 100_000;

export type OpenMode = 'read' | 'write';
/** Nothing is being done with a file. */
const UNTOUCHED = {
  ...{ uncertain: false, changing: undefined, installing: undefined, turn: 0, soleHolder: false },
  ...{ handingOver: false, paused: false, pausedMs: 0, unclean: false, releaseSent: false, delegation: undefined },
} as const;

export interface HeldFile {
  readonly ino: number;
  mode: NativeMode;
  /** The write delegation whose last record the manager has not been given: as long as it is set, native's is the newer one. */
  delegation: number | undefined;
  /** The strongest right that the manager was asked for: what a shared file may be opened for. */
  asked: OpenMode;
  readers: number;
  writers: number;
  /** Last known attributes; size and times of a write delegation are native's. Serves open files while the manager is dead. */
  attr: Attr;
  /** The kernel's pages of it are those that were current when it was last closed here, and nobody else has written since. */
  kernelPagesValid: boolean;
  /** nlink is 0: it goes with its last holder, here with the last close. */
  unlinked: boolean;
  /** A truncate was asked for and the answer was lost: the manager's record is the truth, not native's. */
  uncertain: boolean;
  /** Set while the delegation changes; never rejects. */
  changing: Promise<void> | undefined;
  /** Change counters of the newest attributes and of the newest record that the manager told of it. Answers and pushes overtake
   *  each other: what is older than these changes nothing any more. */
  attrChange: number;
  recordChange: number;
  /** A cut's record is being installed by native, and nothing else until that is done. Never rejects. */
  installing: Promise<void> | undefined;
  /** Counts changes of the delegation: a grant that waits is void when another came in between. */
  turn: number;
  /** We were fenced since it was opened: nobody knows here what it is now, until it is renewed. */
  isVoid: boolean;
  /** It was void, and the manager has it no more: what is open of it is of no use. */
  isGone: boolean;
  /** An appliance came back with an earlier state of part of it: whoever has it open is told ESTALE, and it is asked for anew. */
  isBehind: boolean;
  /** As far as is known, by its access parameters: whoever asks for more asks the manager. */
  mayRead: boolean;
  mayWrite: boolean;
  /** A write delegation is being recalled: until that is answered nobody else has the file, whatever native does with it. */
  soleHolder: boolean;
  /** The recall is about to be answered: whoever wants to make the file longer asks again after that. */
  handingOver: boolean;
  /** The manager changes the file; its writers wait, since pausedMs, or fail when the manager is away for long. */
  paused: boolean;
  pausedMs: number;
  /** Something of ours lies behind its end that the manager has not been told of. */
  unclean: boolean;
  /** The manager was asked to take it back. Without its answer nobody knows here whose the file is: it is asked again first. */
  releaseSent: boolean;
}

export class HeldFiles {
  /** Told when the last name of a file goes, while it is held. */
  onUnlinked: (ino: number) => void = () => undefined;
  /** Told when a file is not this mount's to write any more: the attributes that the manager told meanwhile are those of before. */
  onWriteEnded: (ino: number) => void = () => undefined;
  private readonly files = new Map<number, HeldFile>();
  /** Held without being open, in the order of their last close. */
  private readonly idle = new Map<number, HeldFile>();
  private readonly acquiring = new Map<number, Promise<void>>();
  /** Change counters at the last close here of files no longer held. */
  private readonly closedChanges = new LRUCache<number, number>({ max: MAX_CLOSED_CHANGES });
  private acquires = 0;
  private reuses = 0;

  constructor(
    private readonly manager: Manager,
    private readonly native: NativeMount,
    private readonly regions: KnownRegions,
    private readonly log: Logger,
    private readonly maxIdle = MAX_IDLE,
  ) {}

  get(ino: number): HeldFile | undefined {
    return this.files.get(ino);
  }

  all(): IterableIterator<HeldFile> {
    return this.files.values();
  }

  /** The file, held for at least `mode`, with one more open. Synchronous when nobody has to be asked. */
  open(ino: number, mode: OpenMode): HeldFile | Promise<HeldFile> {
    const file = this.files.get(ino);
    if (file !== undefined && file.changing === undefined && suffices(file, mode)) {
      this.reuses += 1;
      return this.count(file, mode);
    }
    return this.openAsking(ino, mode);
  }

  /** A file that was created and granted in one step, with one open. */
  openGranted(grant: FileGrant, mode: OpenMode): HeldFile {
    return this.count(this.install(grant, mode), mode);
  }

  /** The manager is being asked for it, and what it answers is not known here yet. */
  isAcquiring(ino: number): boolean {
    return this.acquiring.has(ino);
  }

  /** One open less; with the last one the file is idle, or given back if that is due. */
  close(ino: number, mode: OpenMode): void {
    const file = this.files.get(ino);
    if (file === undefined) return; // fenced or lost meanwhile
    if (mode === 'write') file.writers -= 1;
    else file.readers -= 1;
    if (isOpen(file)) return;
    this.idle.set(ino, file);
    if (file.changing === undefined) this.settleIdle(file);
  }

  /** Attributes that the manager told. Without a name nothing of it needs to be written back. */
  noteAttr(attr: Attr): void {
    const file = this.files.get(attr.ino);
    if (file === undefined || attr.change < file.attrChange) return;
    if (isPrivileged(attr.mode) !== isPrivileged(file.attr.mode)) this.native.setPrivileged(attr.ino, isPrivileged(attr.mode));
    file.attr = attr;
    file.attrChange = attr.change;
    if (file.mode === 'shared') this.native.setSize(attr.ino, attr.size);
    this.native.setOwnRegions(attr.ino, attr.ownRegions === true);
    if (attr.nlink > 0 || file.unlinked) return;
    file.unlinked = true;
    this.onUnlinked(attr.ino);
    if (!isOpen(file) && file.changing === undefined) this.giveBack(file);
  }

  /** A record that the manager told, of a file that is not held for writing. One that was overtaken changes nothing. */
  noteRecord(file: HeldFile, record: Uint8Array): void {
    const change = recordChange(record);
    if (change < file.recordChange) return;
    file.recordChange = change;
    this.native.putFile(file.ino, file.mode, record);
    if (change >= file.attrChange) {
      file.attrChange = change;
    } else if (file.mode === 'shared') {
      this.native.setSize(file.ino, file.attr.size);
      this.native.setTimes(file.ino, file.attr.mtime, file.attr.ctime);
    }
  }

  /** The session was lost: what comes on the next one is newer, whatever it is. */
  forgetChanges(): void {
    for (const file of this.files.values()) file.attrChange = file.recordChange = 0;
  }

  /** Runs a change of the delegation; opens wait for it. `change` must not wait for another change of the same file. */
  async changeDelegation<Result>(file: HeldFile, change: () => Promise<Result>): Promise<Result> {
    const changed = change();
    const settled = changed.then(
      () => undefined,
      () => undefined,
    );
    file.changing = settled;
    try {
      return await changed;
    } finally {
      this.clearChanging(file, settled);
      if (this.files.get(file.ino) === file && !isOpen(file)) this.settleIdle(file);
    }
  }

  /** The delegation is gone (recalled to nothing, or given back): native forgets the file. It must not be open. */
  forget(file: HeldFile): void {
    if (this.files.get(file.ino) !== file) return;
    if (file.kernelPagesValid && !file.unlinked) {
      const state = this.native.fileState(file.ino);
      if (state !== undefined) this.closedChanges.set(file.ino, state.change);
    }
    this.files.delete(file.ino);
    this.idle.delete(file.ino);
    this.native.dropFile(file.ino);
    if (file.mode === 'write') this.onWriteEnded(file.ino);
  }

  /** What an open answered with keep_cache would be right for; from here on the kernel's pages count as valid. */
  takeKeepCache(file: HeldFile): boolean {
    if (file.mode === 'shared') return false;
    const keep = file.kernelPagesValid;
    file.kernelPagesValid = true;
    return keep;
  }

  /** After the session was resumed: what could not be given back while the manager was dead. */
  giveBackOwed(): void {
    for (const file of [...this.idle.values()]) if (file.changing === undefined && isOwed(file)) this.giveBack(file);
  }

  /** A new grant of a file after an uncertain cut: the manager's record replaces native's. */
  async reacquire(file: HeldFile): Promise<void> {
    const grant = await this.manager.ask('acquire', { ino: file.ino, mode: file.asked });
    this.install(grant, file.asked);
  }

  /** We were fenced, and native knows: what is open stays, void, until `renew`; the rest is forgotten. Whoever was at work on a file
   *  finds by its identity that it is not the one any more. */
  voidAll(): void {
    for (const file of [...this.files.values()]) {
      file.kernelPagesValid = false;
      if (!isOpen(file)) this.forget(file);
      else this.files.set(file.ino, { ...file, mode: 'read', ...UNTOUCHED, isVoid: true });
    }
  }

  /** Part of it is not what it was: nothing of it is used any more by who has it open now. */
  fallBehind(file: HeldFile): void {
    file.isBehind = true;
    file.kernelPagesValid = false;
    this.native.breakHandles(file.ino, constants.errno.ESTALE);
    if (!isOpen(file) && file.changing === undefined) this.giveBack(file);
  }

  /** What its access parameters allow has changed. Whoever has it open and may do nothing of it any more is told EACCES from now on,
   *  also when it is allowed again; the appliances see to the rest. */
  setAllowed(file: HeldFile, may: { read: boolean; write: boolean }): void {
    file.mayRead = may.read;
    file.mayWrite = may.write;
    if (may.read || (may.write && file.readers === 0)) return;
    file.kernelPagesValid = false;
    this.native.breakHandles(file.ino, constants.errno.EACCES);
    this.native.dropPages(file.ino, 0, -1);
    this.native.invalidateInode(file.ino, 0, -1).catch((error: unknown) => {
      this.log.warn({ ino: file.ino, error }, 'the kernel did not drop what it had of a file that may not be read any more');
    });
  }

  /** Asks the manager what a void file is now. Rejects when that cannot be known yet. */
  renew(file: HeldFile): Promise<void> {
    return this.changeDelegation(file, () => this.renewVoid(file));
  }

  counters(): Record<string, number> {
    return { held: this.files.size, idle: this.idle.size, acquires: this.acquires, reuses: this.reuses };
  }

  private async openAsking(ino: number, mode: OpenMode): Promise<HeldFile> {
    for (;;) {
      const file = this.files.get(ino);
      const underWay = file?.changing ?? this.acquiring.get(ino);
      if (underWay !== undefined) {
        await underWay;
        continue;
      }
      if (file !== undefined && suffices(file, mode)) return this.count(file, mode);
      if (file?.isBehind === true || file?.releaseSent === true) {
        await this.giveBackFirst(file);
        continue;
      }
      if (file?.isGone === true) throw new ExtmemError('ESTALE', `opening inode ${ino}: it is gone since this mount was fenced`);
      await (file?.isVoid === true ? this.renew(file) : this.acquire(ino, mode));
    }
  }

  private async giveBackFirst(file: HeldFile): Promise<void> {
    const { ino } = file;
    if (isOpen(file))
      throw new ExtmemError(
        'ESTALE',
        `opening inode ${ino}: an appliance came back with an earlier state of it; close it everywhere first`,
      );
    this.startRelease(file);
    await file.changing;
    if (this.files.get(ino) === file) throw new ExtmemError('EIO', `opening inode ${ino}: what it was could not be given back yet`);
  }

  private async renewVoid(file: HeldFile): Promise<void> {
    const { ino } = file;
    await this.native.settleVoid(ino);
    if (!isOpen(file)) return this.forget(file);
    const asked = file.writers > 0 ? 'write' : 'read';
    let grant: FileGrant;
    try {
      grant = await this.manager.ask('acquire', { ino, mode: asked });
    } catch (error) {
      if (codeOf(error) !== 'ENOENT') throw error;
      this.native.breakHandles(ino, constants.errno.ESTALE);
      file.isVoid = false;
      file.isGone = file.unlinked = true;
      this.onUnlinked(ino);
      return;
    }
    if (this.files.get(ino) !== file) return; // fenced once more
    const { attr, mode, record, delegation } = grant;
    if (mode === 'none') throw new ExtmemError('EIO', `renewing inode ${ino}: the manager granted nothing`);
    this.regions.put(grant.regions);
    this.native.renewFile(ino, mode, record);
    this.native.setPrivileged(ino, isPrivileged(attr.mode));
    this.native.setOwnRegions(ino, attr.ownRegions === true);
    Object.assign(file, {
      mode,
      delegation,
      asked,
      attr,
      attrChange: attr.change,
      recordChange: attr.change,
      unlinked: attr.nlink === 0,
      isVoid: false,
    });
  }

  private async acquire(ino: number, mode: OpenMode): Promise<void> {
    this.acquires += 1;
    const asked = this.manager.ask('acquire', { ino, mode }).then((grant) => {
      const file = this.install(grant, mode);
      if (mode === 'write') file.mayWrite = true;
      else file.mayRead = true;
      if (!suffices(file, mode)) throw new ExtmemError('EIO', `opening inode ${ino} for ${mode}: the manager granted ${grant.mode} only`);
    });
    const settled = asked.catch(() => undefined);
    this.acquiring.set(ino, settled);
    try {
      await asked;
    } finally {
      this.acquiring.delete(ino);
    }
  }

  private install(grant: FileGrant, asked: OpenMode): HeldFile {
    const { attr, mode, record, delegation } = grant;
    if (mode === 'none') throw new ExtmemError('EIO', `opening inode ${attr.ino}: the manager granted nothing`);
    this.regions.put(grant.regions);
    const before = this.files.get(attr.ino);
    if (before !== undefined) {
      this.installAgain(before, grant);
      before.asked = before.asked === 'write' ? 'write' : asked;
      return before;
    }
    this.native.putFile(attr.ino, mode, record);
    if (isPrivileged(attr.mode)) this.native.setPrivileged(attr.ino, true);
    if (attr.ownRegions === true) this.native.setOwnRegions(attr.ino, true);
    const closedAt = this.closedChanges.get(attr.ino);
    const file: HeldFile = {
      ino: attr.ino,
      mode,
      asked,
      readers: 0,
      writers: 0,
      attr,
      kernelPagesValid: closedAt !== undefined && closedAt === this.native.fileState(attr.ino)?.change,
      unlinked: attr.nlink === 0,
      ...UNTOUCHED,
      delegation,
      attrChange: attr.change,
      recordChange: attr.change,
      isVoid: false,
      isGone: false,
      isBehind: false,
      mayRead: true,
      mayWrite: true,
    };
    this.files.set(attr.ino, file);
    return file;
  }

  /** Another mode for a file that is known here: by an acquire's answer, or because the others went away. */
  installAgain(file: HeldFile, { mode, attr, record, delegation }: FileGrant): void {
    if (mode === 'none') return;
    file.turn += 1;
    const nativeIsNewer = file.delegation !== undefined && file.delegation === delegation && !file.uncertain;
    if (file.mode === 'write' && !nativeIsNewer) file.recordChange = 0; // given up, or uncertain: the manager's is the truth
    if (!nativeIsNewer) {
      this.noteRecord(file, record);
      this.native.putFile(file.ino, mode);
    } else if (file.mode !== mode) {
      this.native.putFile(file.ino, mode); // it could not be given up
    }
    if (file.mode === 'shared' || mode === 'shared') file.kernelPagesValid = false;
    file.mode = mode;
    file.delegation = delegation;
    file.uncertain = false;
    this.noteAttr(attr);
  }

  private count(file: HeldFile, mode: OpenMode): HeldFile {
    if (mode === 'write') file.writers += 1;
    else file.readers += 1;
    this.idle.delete(file.ino);
    return file;
  }

  private settleIdle(file: HeldFile): void {
    this.idle.delete(file.ino);
    this.idle.set(file.ino, file); // now the youngest
    if (isOwed(file)) return this.giveBack(file);
    if (this.idle.size <= this.maxIdle) return;
    for (const oldest of this.idle.values()) {
      if (oldest.changing !== undefined) continue;
      return this.giveBack(oldest);
    }
  }

  /** In the background; a file that cannot be written back, or whose manager is dead, stays held and idle. */
  private giveBack(file: HeldFile): void {
    if (this.manager.alive) this.startRelease(file);
  }

  private startRelease(file: HeldFile): void {
    const settled: Promise<void> = this.release(file).then(
      () => this.clearChanging(file, settled),
      (error: unknown) => {
        this.clearChanging(file, settled);
        if (this.manager.alive)
          this.log.warn({ ino: file.ino, error }, 'a file that is not open could not be given back to the manager; it stays held');
      },
    );
    file.changing = settled;
  }

  /** A recall may have begun meanwhile, whose own end clears it. */
  private clearChanging(file: HeldFile, settled: Promise<void>): void {
    if (file.changing === settled) file.changing = undefined;
  }

  private async release(file: HeldFile): Promise<void> {
    const { ino } = file;
    let record: Uint8Array | undefined;
    if (isToTell(file)) {
      if (!file.unlinked && (this.native.fileState(ino)?.dirtyBytes ?? 0) > 0) await this.native.flushFile(ino);
      if (this.files.get(ino) !== file) return; // fenced meanwhile: it is not ours to give back
      // Also of an unlinked file: only so does the manager learn which of our pieces are free again.
      if (this.native.fileState(ino)?.recordChanged === true) record = this.native.record(ino, false);
    }
    file.releaseSent = true;
    await this.manager.ask('release', { ino, ...(record === undefined ? {} : { record }) });
    this.forget(file);
  }
}

export function isOpen(file: HeldFile): boolean {
  return file.readers + file.writers > 0;
}

/** It has what the manager has not. What it could not give up, and may not write any more, is lost. */
function isToTell({ mode, delegation, mayWrite }: HeldFile): boolean {
  return mode === 'write' || (delegation !== undefined && mayWrite);
}

function suffices(file: HeldFile, mode: OpenMode): boolean {
  if (file.isVoid || file.isGone || file.isBehind || file.releaseSent || !(mode === 'write' ? file.mayWrite : file.mayRead)) return false;
  return file.mode === 'write' || mode === 'read' || (file.mode === 'shared' && file.asked === 'write');
}

/** Not worth keeping once it is closed: shared files hold others up, unlinked ones hold memory. */
function isOwed(file: HeldFile): boolean {
  return file.mode === 'shared' || file.unlinked || file.isBehind || file.releaseSent || !file.mayRead || !file.mayWrite;
}
