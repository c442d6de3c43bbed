/**
 * Locks (POSIX ranges and flock) of the processes on this mount. As long as this client holds a file's write delegation nobody
 * else has it open, and its locks are kept here with no word to the manager. They are moved to the manager when the file is
 * recalled, and when somebody waits for one of them while somebody else of this mount waits at the manager: who waits for whom
 * must be known in one place, or two who wait for each other would never be told (EDEADLK). From then on, until the file is
 * closed, the manager keeps them; so it does, from their first lock, with files that were shared or open for reading only
 * (another client may have those open too).
 *
 * Invariants:
 * - All locks of one file are in one place, so that processes of this mount exclude each other in any case.
 * - POSIX waits of this mount are all here or all at the manager.
 * - `granted` is what the manager granted, as far as its answers came. What a lost session left in doubt is restated in the
 *   next one, before anything else is asked there.
 */
import { setImmediate as nextTurn } from 'node:timers/promises';
import { LRUCache } from 'lru-cache';
import { ExtmemError } from '../base/errors.js';
import { LOCK_END, LockTable } from '../base/lock_table.js';
import type { Lock } from '../base/messages.js';
import type { NativeMount } from '../binding/index.js';
import type { HeldFiles } from './held_files.js';
import type { Manager } from './manager.js';

/** Interrupts that came before the request that they are for: the two are read by different threads. */
const EARLY_INTERRUPTS = 256;

interface Wait {
  readonly lock: Lock;
  /** In which life of this mount it began. */
  readonly life: number;
  place: 'here' | 'manager' | 'between';
  interrupted: boolean;
}

export class LockKeeper {
  private readonly table = new LockTable();
  private readonly granted = new LockTable();
  /** Files whose locks the manager keeps, with the owners (kind and id) that may hold some. */
  private readonly atManager = new Map<number, Set<string>>();
  /** Files of whose locks the manager may know something else than we do. */
  private readonly doubtful = new Set<number>();
  /** Requests that wait for a lock, by the kernel's `unique`. */
  private readonly waits = new Map<number, Wait>();
  private readonly early = new LRUCache<number, true>({ max: EARLY_INTERRUPTS });
  private moves = 0;
  /** Counts the clients that this mount has been. */
  private life = 0;

  constructor(
    private readonly manager: Manager,
    private readonly native: NativeMount,
    private readonly held: HeldFiles,
  ) {}

  /** The lock that stands in the way, if any. */
  getlk(lock: Lock): Lock | undefined | Promise<Lock | undefined> {
    if (this.isHere(lock.ino)) return this.table.getlk(lock);
    return this.getlkAsking(lock);
  }

  /** undefined: done. Rejects EAGAIN (taken), EINTR (interrupted while waiting), EDEADLK. */
  setlk(lock: Lock, wait: boolean, unique: number): undefined | Promise<undefined> {
    if (!this.isHere(lock.ino)) return this.setlkSlowly(lock, wait, unique);
    const waiting = this.table.setlk(lock, wait, String(unique));
    return waiting === undefined ? this.noteLocked(lock.ino) : this.setlkSlowly(lock, wait, unique, waiting);
  }

  /** A signal: whoever waits for a lock with this request stops waiting. */
  interrupt(unique: number): void {
    const wait = this.waits.get(unique);
    if (wait === undefined) {
      this.early.set(unique, true);
      return;
    }
    wait.interrupted = true;
    if (wait.place === 'here') this.table.cancel(String(unique));
    else if (wait.place === 'manager') this.manager.ask('cancelLock', { waiter: String(unique) }).catch(() => undefined);
  }

  /** close(2) drops the POSIX locks of a process, the last close of a descriptor its flock. */
  releaseOwner(ino: number, owner: string, flock: boolean): undefined | Promise<undefined> {
    const owners = this.atManager.get(ino);
    if (owners === undefined) {
      this.table.releaseOwner(ino, owner, flock);
      return this.noteLocked(ino);
    }
    this.granted.releaseOwner(ino, owner, flock);
    if (!owners.delete(ownerKey(owner, flock))) return undefined;
    this.noteLocked(ino);
    const unlock: Lock = { ino, owner, flock, type: 'unlock', start: 0, end: LOCK_END, pid: 0 };
    return this.manager.ask('setlk', { lock: unlock, wait: false }).then(
      () => undefined,
      () => void this.doubtful.add(ino),
    );
  }

  /** For the answer to a recall: what was held here; undefined when the manager keeps the locks already. Those who wait here go
   *  on waiting at the manager. */
  handOver(ino: number): Lock[] | undefined {
    if (this.atManager.has(ino)) return undefined;
    const locks = this.table.exportInode(ino);
    this.atManager.set(ino, new Set(locks.map((lock) => ownerKey(lock.owner, lock.flock))));
    this.granted.importLocks(locks);
    this.table.dropInode(ino);
    return locks;
  }

  /** The file is not open any more: no lock is left, and the next ones may be kept here again. */
  closed(ino: number): void {
    this.atManager.delete(ino);
    this.table.dropInode(ino);
    this.granted.dropInode(ino);
    this.noteLocked(ino);
  }

  /** The client that we were is fenced, and its locks are gone. Answers the files of which somebody here held some. Waits end. */
  fenced(): number[] {
    this.life += 1;
    const locked = new Set([...this.table.lockedInodes(), ...this.granted.lockedInodes()]);
    const known = [...this.atManager.keys(), ...locked];
    this.table.clear();
    this.granted.clear();
    this.atManager.clear();
    this.doubtful.clear();
    for (const ino of known) this.noteLocked(ino);
    return [...locked];
  }

  /** The session is lost: what was asked on it may have been done or not. */
  sessionLost(): void {
    for (const ino of this.atManager.keys()) this.doubtful.add(ino);
  }

  /** Tells the manager on a new session what is held. To be called before anything else is asked there. */
  async restate(): Promise<void> {
    const inos = [...this.doubtful];
    this.doubtful.clear();
    await Promise.all(inos.map((ino) => this.restateOne(ino, this.granted.exportInode(ino))));
  }

  counters(): Record<string, number> {
    return { atManager: this.atManager.size, waiting: this.waits.size, moves: this.moves };
  }

  private async restateOne(ino: number, locks: Lock[]): Promise<void> {
    try {
      await this.manager.ask('restateLocks', { ino, locks });
    } catch {
      this.doubtful.add(ino);
    }
  }

  private isHere(ino: number): boolean {
    const file = this.held.get(ino);
    return file?.mode === 'write' && file.changing === undefined && !this.atManager.has(ino);
  }

  private posixWaits(place: Wait['place']): Wait[] {
    return [...this.waits.values()].filter((wait) => wait.place === place && !wait.lock.flock);
  }

  private moveToManager(ino: number): void {
    const locks = this.handOver(ino);
    if (locks === undefined) return;
    this.moves += 1;
    void this.restateOne(ino, locks); // the manager has them before anything that is asked from here on
  }

  private async getlkAsking(lock: Lock): Promise<Lock | undefined> {
    await this.delegationSettled(lock.ino);
    if (this.isHere(lock.ino)) return this.table.getlk(lock);
    return (await this.manager.ask('getlk', lock)).conflict;
  }

  private async setlkSlowly(lock: Lock, wait: boolean, unique: number, waiting?: Promise<void>): Promise<undefined> {
    const state: Wait = { lock, life: this.life, place: 'between', interrupted: this.early.delete(unique) };
    if (wait) this.waits.set(unique, state);
    try {
      for (let waitsHere = waiting; ;) {
        if (waitsHere !== undefined && (await this.waitHere(state, unique, waitsHere))) return this.noteLocked(lock.ino);
        await this.delegationSettled(lock.ino);
        this.checkGoesOn(state);
        if (!this.isHere(lock.ino)) break;
        waitsHere = this.table.setlk(lock, wait, String(unique));
        if (waitsHere === undefined) return this.noteLocked(lock.ino);
      }
      await this.setlkAtManager(lock, wait, unique, state);
      return undefined;
    } finally {
      if (wait) this.waits.delete(unique);
    }
  }

  /** True: granted. False: the file's locks have moved to the manager; the wait goes on there. */
  private async waitHere(state: Wait, unique: number, waiting: Promise<void>): Promise<boolean> {
    const { lock } = state;
    state.place = 'here';
    if (state.interrupted) this.table.cancel(String(unique));
    else if (!lock.flock && this.posixWaits('manager').length > 0) this.moveToManager(lock.ino);
    try {
      await waiting;
      return true;
    } catch (error) {
      state.place = 'between';
      if (error instanceof ExtmemError && error.code === 'EAGAIN') return false;
      throw error;
    }
  }

  private async setlkAtManager(lock: Lock, wait: boolean, unique: number, state: Wait): Promise<void> {
    state.place = 'manager';
    if (wait && !lock.flock && this.moveWaits()) {
      await nextTurn(); // those who waited here before us ask before us
      this.checkGoesOn(state);
    }
    const owners = this.atManager.get(lock.ino) ?? new Set();
    this.atManager.set(lock.ino, owners);
    if (lock.type !== 'unlock') owners.add(ownerKey(lock.owner, lock.flock)); // before the answer: a close must release it
    this.noteLocked(lock.ino);
    if (lock.type === 'unlock') void this.granted.setlk(lock);
    await this.manager.ask('setlk', { lock, wait, ...(wait ? { waiter: String(unique) } : {}) });
    const isOpen = this.atManager.get(lock.ino) === owners && owners.has(ownerKey(lock.owner, lock.flock));
    if (isOpen) this.granted.importLocks([lock]);
  }

  /** Whoever waits here is to wait at the manager. */
  private moveWaits(): boolean {
    const waits = this.posixWaits('here');
    for (const { lock } of waits) this.moveToManager(lock.ino);
    return waits.length > 0;
  }

  private checkGoesOn({ lock, interrupted, life }: Wait): void {
    if (life !== this.life) throw new ExtmemError('EIO', `locking inode ${lock.ino}: this mount was fenced meanwhile`);
    if (interrupted) throw new ExtmemError('EINTR', `waiting for a lock of inode ${lock.ino} was interrupted`);
  }

  /** Waits out a recall, until its answer with our locks is on the way to the manager. */
  private async delegationSettled(ino: number): Promise<void> {
    for (let changing = this.held.get(ino)?.changing; changing !== undefined; changing = this.held.get(ino)?.changing) {
      await changing;
      await nextTurn();
    }
  }

  private noteLocked(ino: number): undefined {
    const owners = this.atManager.get(ino);
    const locked = owners === undefined ? this.table.hasLocks(ino) : owners.size > 0;
    if (this.held.get(ino) !== undefined) this.native.setLocked(ino, locked);
    return undefined;
  }
}

function ownerKey(owner: string, flock: boolean): string {
  return flock ? `flock ${owner}` : `posix ${owner}`;
}
