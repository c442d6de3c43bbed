/**
 * What the manager asks of this client: give up what it caches, take over what the others gave up, say what it knows.
 *
 * Invariants: a push is answered only after our own caches and the kernel's are rid of what it names (the kernel's within a
 * bound, see bounded_wait.ts); a recall is answered only after everything dirty is at the appliances and the last record is with the
 * manager (given_up.ts), or with the failure.
 */
import { ExtmemError, messageOf } from '../base/errors.js';
import type { Logger } from '../base/logger.js';
import type { Answer, Ask, FileGrant } from '../base/messages.js';
import type { NativeMount } from '../binding/index.js';
import type { AttributeCache } from './attribute_cache.js';
import type { BoundedWait } from './bounded_wait.js';
import type { DirectoryActivity } from './directory_activity.js';
import type { GivenUp } from './given_up.js';
import { isOpen, type HeldFile, type HeldFiles } from './held_files.js';
import type { LockKeeper } from './lock_keeper.js';
import type { LocalDirectories } from './local_directories.js';
import type { ClientPushes, Manager, PushHandlers } from './manager.js';
import type { KnownRegions } from './regions.js';
import type { Reserve } from './reserve.js';

type PushAsk<Name extends keyof ClientPushes> = Ask<ClientPushes, Name>;
type PushAnswer<Name extends keyof ClientPushes> = Answer<ClientPushes, Name>;

export interface PushParts {
  manager: Manager;
  native: NativeMount;
  cache: AttributeCache;
  held: HeldFiles;
  givenUp: GivenUp;
  regions: KnownRegions;
  reserve: Reserve;
  locks: LockKeeper;
  activity: DirectoryActivity;
  directories: LocalDirectories;
  wait: BoundedWait;
  log: Logger;
}

const WHOLE_FILE = -1;
/** A write that waits for the manager fails before 5 s are over. */
const LONGEST_PAUSE_MS = 4000;
const SETTLE_AGAIN_MS = 1000;
const DONE: Record<string, never> = {};

export class Pushes implements PushHandlers {
  private recalls = 0;
  /** Files of which the kernel is dropping pages. */
  private readonly dropping = new Map<number, Promise<unknown>>();

  constructor(private readonly parts: PushParts) {}

  async recall({ ino, to }: PushAsk<'recall'>): Promise<PushAnswer<'recall'>> {
    this.recalls += 1;
    const { held, cache, givenUp, log } = this.parts;
    cache.invalidateAttr(ino);
    const file = held.get(ino);
    if (file === undefined) {
      await givenUp.deliver(ino);
      return { open: 'none' };
    }
    file.turn += 1; // a grant that waits is void
    try {
      return await held.changeDelegation(file, () => this.giveUp(file, to));
    } catch (error) {
      const why = messageOf(error);
      log.error({ ino, why }, 'a recalled file could not be written back; the manager is told so');
      throw new ExtmemError('EIO', `giving up inode ${ino}: writing it back failed: ${why}`, { cause: error });
    }
  }

  async recallDirectory({ directory }: PushAsk<'recallDirectory'>): Promise<typeof DONE> {
    await this.parts.directories.recalled(directory);
    return DONE;
  }

  /** Answered at once: that this client may have more is written down, and it takes it when it can. */
  grant({ grant }: PushAsk<'grant'>): typeof DONE {
    const { held, log } = this.parts;
    const file = held.get(grant.attr.ino);
    if (file === undefined || file.changing !== undefined || grant.mode === 'none') return DONE;
    file.turn += 1;
    this.takeGrant(file, grant).catch((error: unknown) => log.warn({ ino: file.ino, error }, 'taking a delegation again failed'));
    return DONE;
  }

  attributes({ ino }: PushAsk<'attributes'>): PushAnswer<'attributes'> {
    const file = this.parts.held.get(ino);
    return file?.delegation === undefined ? {} : { record: this.parts.native.record(ino, false) };
  }

  async invalidateEntries({ entries }: PushAsk<'invalidateEntries'>): Promise<typeof DONE> {
    const { cache, native, activity, wait } = this.parts;
    const notices = entries.map(({ parent, name }) => {
      cache.invalidateEntry(parent, name);
      cache.invalidateAttr(parent);
      return activity.settleUnlessBusy(parent, native.invalidateEntry(parent, name));
    });
    await wait.settle(Promise.all(notices), 'names');
    return DONE;
  }

  async invalidate({ ino, offset, length, attr, record, cut }: PushAsk<'invalidate'>): Promise<typeof DONE> {
    const { cache, held, native, wait } = this.parts;
    cache.invalidateAttr(ino);
    const file = held.get(ino);
    if (file !== undefined) {
      if (record !== undefined) await this.takeRecord(file, record); // first: a size without its extents reads as zeros
      if (attr !== undefined) held.noteAttr(attr);
      if (cut === true) await this.endPause(file, offset, length);
    }
    if (length === 0) {
      await wait.settle(native.invalidateInode(ino, -1, 0), 'attributes');
      return DONE;
    }
    if (held.get(ino) !== undefined) native.dropPages(ino, offset, length);
    if (file !== undefined) await this.dropKernelPages(file, offset, length);
    else await wait.settle(native.invalidateInode(ino, offset, length), 'pages');
    return DONE;
  }

  async pauseWriters({ ino }: PushAsk<'pauseWriters'>): Promise<typeof DONE> {
    const file = this.parts.held.get(ino);
    if (file === undefined) return DONE;
    file.paused = true;
    file.pausedMs = performance.now();
    await this.parts.native.pauseWriters(ino);
    return DONE;
  }

  async yieldEnd({ ino }: PushAsk<'yieldEnd'>): Promise<PushAnswer<'yieldEnd'>> {
    const file = this.parts.held.get(ino);
    if (file === undefined) return { unclean: false };
    await this.parts.native.yieldEnd(ino);
    const { unclean } = file;
    file.unclean = false;
    return { unclean };
  }

  /** The manager is away: what it did to files whose writers wait for it is not known. It may be back soon; if not, they fail. */
  refusePaused(): void {
    const { held, native } = this.parts;
    for (const file of held.all()) {
      if (!file.paused) continue;
      const { pausedMs } = file;
      const refuse = (): void => {
        if (file.paused && file.pausedMs === pausedMs && held.get(file.ino) === file) native.refuseWriters(file.ino);
      };
      setTimeout(refuse, Math.max(0, pausedMs + LONGEST_PAUSE_MS - performance.now())).unref();
    }
  }

  /** It is back: its record is what it did. And it hears of what it was not told. */
  async settlePaused(): Promise<void> {
    const { held, manager, native, log } = this.parts;
    const settle = async (file: HeldFile): Promise<void> => {
      if (file.unclean) await manager.ask('giveUpEnd', { ino: file.ino });
      file.unclean = false;
      if (!file.paused) return;
      await held.reacquire(file);
      file.paused = false;
      native.resumeWriters(file.ino);
    };
    const meant = [...held.all()].filter(({ paused, unclean }) => paused || unclean);
    const ended = await Promise.allSettled(meant.map(settle));
    const left = ended.filter((one) => one.status === 'rejected');
    for (const one of left) log.warn({ error: one.reason as unknown }, 'a shared file could not be taken up again yet');
    // On the next session it is tried anyhow.
    if (left.length > 0 && manager.alive) setTimeout(() => void this.settlePaused(), SETTLE_AGAIN_MS).unref();
  }

  /** What the kernel still holds locked for its writers it gives back only when they go on. */
  private async endPause(file: HeldFile, offset: number, length: number): Promise<void> {
    const { native, held } = this.parts;
    const { ino } = file;
    if (held.get(ino) !== file) return;
    if (length !== 0) native.dropPages(ino, offset, length);
    file.paused = false;
    native.resumeWriters(ino);
    await native.readsSettled(ino);
  }

  /** The kernel has dropped what it was told to, or the time for it is over; undefined: it has nothing to drop. */
  kernelSettled(ino: number): Promise<unknown> | undefined {
    return this.dropping.get(ino);
  }

  access({ ino, read, write, ownRegions, regions }: PushAsk<'access'>): typeof DONE {
    this.parts.regions.put(regions);
    this.parts.native.setOwnRegions(ino, ownRegions);
    const file = this.parts.held.get(ino);
    if (file !== undefined) this.parts.held.setAllowed(file, { read, write });
    return DONE;
  }

  retire({ regions }: PushAsk<'retire'>): typeof DONE {
    this.parts.regions.retire(regions);
    return DONE;
  }

  freed({ pieces }: PushAsk<'freed'>): typeof DONE {
    this.parts.native.freeSlabs(pieces);
    return DONE;
  }

  appliances({ appliances, lostRegions }: PushAsk<'appliances'>): typeof DONE {
    this.parts.regions.putAppliances(appliances);
    this.parts.regions.lose(lostRegions);
    void this.parts.reserve.spread();
    return DONE;
  }

  counters(): Record<string, number> {
    return { recalls: this.recalls };
  }

  /** With no writer within, and none of our cuts under way: what the manager told of those is newer than the grant. The kernel's
   *  pages are those of now, by the notices of shared mode. Dropping them would make the kernel ignore attributes that it is
   *  asking for at the same time, and a read that asks where the file ends would end at an older end. */
  private async takeGrant(file: HeldFile, grant: FileGrant): Promise<void> {
    const { held, native, regions } = this.parts;
    const { turn, ino } = file;
    const isVoid = (): boolean => file.turn !== turn || file.changing !== undefined || held.get(ino) !== file;
    await native.beginCut(ino, 0, 0); // finds nothing to cut: only the writers wait
    try {
      if (isVoid()) return;
      native.dropPages(ino, 0, WHOLE_FILE);
      regions.put(grant.regions);
      held.installAgain(file, grant);
    } finally {
      if (native.fileState(ino) !== undefined) await native.endCut(ino); // not closed and given back meanwhile
    }
  }

  /** A file open for writing cannot keep `read`; one that is not open keeps nothing. */
  private async giveUp(file: HeldFile, to: PushAsk<'recall'>['to']): Promise<PushAnswer<'recall'>> {
    const { native } = this.parts;
    try {
      if (to === 'read' && file.writers === 0 && isOpen(file)) await this.downgradeToRead(file);
      else await this.downgradeToShared(file);
      return await this.handOver(file);
    } finally {
      if (file.handingOver) {
        file.handingOver = false;
        const now = this.parts.held.get(file.ino);
        // Not those of a file that was renewed after a fence meanwhile: whoever pauses it resumes it.
        if (now === undefined || now === file) native.resumeWriters(file.ino);
      }
    }
  }

  private async handOver(file: HeldFile): Promise<PushAnswer<'recall'>> {
    const { ino } = file;
    const { held, locks, native, givenUp } = this.parts;
    if (file.delegation !== undefined) givenUp.note(file, native.record(ino, false));
    file.soleHolder = false;
    if (!isOpen(file)) held.forget(file);
    await givenUp.deliver(ino);
    if (held.get(ino) === undefined) {
      locks.closed(ino);
      return { open: 'none' };
    }
    this.checkHeld(file);
    native.record(ino, true);
    const handed = locks.handOver(ino); // now, not before: a file that cannot be given up keeps its locks
    const open = file.writers > 0 ? 'write' : isOpen(file) ? 'read' : 'none';
    file.asked = file.writers > 0 ? 'write' : 'read'; // what the manager counts it as from now on
    if (open === 'none') {
      held.forget(file);
      locks.closed(ino);
    }
    return { open, ...(handed === undefined ? {} : { locks: handed }) };
  }

  /** Between two steps this mount may have been fenced: then the file is another's to give up. */
  private checkHeld(file: HeldFile): void {
    if (this.parts.held.get(file.ino) !== file) throw new ExtmemError('EIO', 'this mount was fenced meanwhile');
  }

  private async downgradeToRead(file: HeldFile): Promise<void> {
    if (file.mode !== 'write') return;
    const { held, native } = this.parts;
    await native.flushFile(file.ino);
    this.checkHeld(file);
    native.putFile(file.ino, 'read');
    file.mode = 'read';
    held.onWriteEnded(file.ino);
  }

  private async downgradeToShared(file: HeldFile): Promise<void> {
    const { ino } = file;
    const { held, native } = this.parts;
    if (file.mode !== 'shared') {
      file.soleHolder = file.mode === 'write';
      // The kernel's dirty pages of mappings come to our cache while they still may wait there …
      if (file.writers > 0) await this.dropKernelPages(file, 0, WHOLE_FILE);
      this.checkHeld(file);
      native.putFile(ino, 'shared');
      file.mode = 'shared';
      held.onWriteEnded(ino);
    }
    // … and those dirtied meanwhile go through.
    await this.dropKernelPages(file, 0, WHOLE_FILE);
    await native.flushFile(ino);
    this.checkHeld(file);
    native.dropPages(ino, 0, WHOLE_FILE);
    if (file.writers === 0) return;
    // Whoever writes after the answer has the manager's leave for it: none is half way.
    file.handingOver = true;
    await native.yieldEnd(ino);
    this.checkHeld(file);
    await native.pauseWriters(ino);
    this.checkHeld(file);
  }

  private async dropKernelPages(file: HeldFile, offset: number, length: number): Promise<void> {
    const { ino } = file;
    const { native, wait } = this.parts;
    file.kernelPagesValid = false;
    const dropped: Promise<unknown> = Promise.all([
      this.dropping.get(ino),
      wait.settle(native.invalidateInode(ino, offset, length), 'pages'),
    ]);
    this.dropping.set(ino, dropped);
    await dropped;
    if (this.dropping.get(ino) === dropped) this.dropping.delete(ino);
  }

  private async takeRecord(file: HeldFile, record: Uint8Array): Promise<void> {
    const { held, regions } = this.parts;
    await regions.fetchFor(record, file.asked === 'write');
    await file.installing;
    // Until a write delegation's last record is with the manager, native's is the newer one.
    if (held.get(file.ino) === file && file.delegation === undefined) held.noteRecord(file, record);
  }
}
