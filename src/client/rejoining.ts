/**
 * Going on after a fence: the manager gave our files to others (we did not answer in time), and has made a new client of us. Files
 * that are open here are void until the manager says what they are now; what of them was not written back is lost, and each open
 * file says so once. Files that somebody held locks of go on for those who open them anew: whoever relied on a lock is told EIO.
 * docs/semantics.md has what each call answers, ADR 0010 why.
 *
 * Invariant: nothing of the former client goes out in the new one's name. Native has lost all regions, provisions and questions
 * before the first ask of the new session; whoever was at work here on a file finds that it is not the same HeldFile any more.
 */
import { constants } from 'node:os';
import type { Logger } from '../base/logger.js';
import type { NativeMount } from '../binding/index.js';
import type { Commits } from './commits.js';
import type { GivenUp } from './given_up.js';
import type { HeldFile, HeldFiles } from './held_files.js';
import type { LocalDirectories } from './local_directories.js';
import type { LockKeeper } from './lock_keeper.js';
import type { Manager } from './manager.js';
import type { Hello } from './manager_session.js';
import type { KnownRegions } from './regions.js';
import type { Reserve } from './reserve.js';

/** A file that the manager could not say anything about (its holder cannot give it up, say) is asked for again. */
const RETRY_MS = 1000;

export interface RejoiningParts {
  manager: Manager;
  native: NativeMount;
  held: HeldFiles;
  directories: LocalDirectories;
  locks: LockKeeper;
  commits: Commits;
  givenUp: GivenUp;
  regions: KnownRegions;
  reserve: Reserve;
  log: Logger;
}

export class Rejoining {
  private retry: NodeJS.Timeout | undefined;
  private fences = 0;
  private lostFiles = 0;
  private lostBytes = 0;

  constructor(private readonly parts: RejoiningParts) {}

  /** Before any other ask of the new session. */
  async begin({ client, generation, key, appliances }: Hello): Promise<void> {
    const { native, held, directories, locks, commits, givenUp, regions, reserve } = this.parts;
    this.fences += 1;
    this.tellLost();
    const rejoined = native.rejoin({ client, clientGeneration: generation, clientKey: key });
    commits.fenced();
    givenUp.fenced();
    directories.fenced();
    const locked = locks.fenced();
    regions.clear();
    held.voidAll();
    for (const ino of locked) if (held.get(ino) !== undefined) native.breakHandles(ino, constants.errno.EIO);
    await rejoined;
    regions.putAppliances(appliances);
    for (const file of held.all()) if (file.isVoid) this.dropKernelPages(file);
    // Once this has returned the session is alive, and anything may be asked.
    setImmediate(() => {
      this.renewAll();
      void reserve.refill();
    });
  }

  /** Every file that is void still. Not waited for: a file whose holder is slow holds up nobody else. */
  renewAll(): void {
    const { held, manager, log } = this.parts;
    clearTimeout(this.retry);
    const meant = [...held.all()].filter(({ isVoid, changing }) => isVoid && changing === undefined);
    const renewals = meant.map((file) =>
      held.renew(file).catch((error: unknown) => log.warn({ ino: file.ino, error }, 'what a file is since the fence is not known yet')),
    );
    void Promise.all(renewals).then(() => {
      const isLeft = [...held.all()].some(({ isVoid }) => isVoid);
      if (isLeft && manager.alive) this.retry = setTimeout(() => this.renewAll(), RETRY_MS).unref();
    });
  }

  stop(): void {
    clearTimeout(this.retry);
  }

  counters(): Record<string, number> {
    return { fences: this.fences, lostFiles: this.lostFiles, lostBytes: this.lostBytes };
  }

  private tellLost(): void {
    const { native, held, log } = this.parts;
    const lost: number[] = [];
    for (const { ino, mode } of held.all()) {
      const state = native.fileState(ino);
      if (state === undefined || (state.dirtyBytes === 0 && !(mode === 'write' && state.recordChanged))) continue;
      lost.push(ino);
      this.lostBytes += state.dirtyBytes;
    }
    this.lostFiles += lost.length;
    log.error(
      { lostFiles: lost.length, inodes: lost.slice(0, 10) },
      'this mount was fenced: it did not answer in time, and the manager gave its files to others. It goes on as a new client; what was not written back is lost',
    );
  }

  /** Pages that mappings have dirtied before the fence come with it, and are refused; then they are taken again. */
  private dropKernelPages(file: HeldFile): void {
    const { native, held, log } = this.parts;
    const { ino } = file;
    native.invalidateInode(ino, 0, -1).then(
      () => {
        if (held.get(ino) === file) native.admitMapped(ino);
      },
      (error: unknown) => log.warn({ ino, error }, 'the kernel did not drop what it had of a file before the fence'),
    );
  }
}
