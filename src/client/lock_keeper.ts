/**
 * Locks (POSIX ranges and flock) of the processes on this mount. As long as this client holds a file's write delegation nobody
 * else has it open, and its locks are kept here with no word to the manager. When the file is recalled they are handed over, and
 * from then on, until the file is closed, the manager keeps them: so do files that were shared, or open for reading
 * only (another client may have those open too), from their first lock.
 *
 * Invariant: all locks of one file are in one place, so that processes of this mount exclude each other in any case.
 */
import { setImmediate as nextTurn } from 'node:timers/promises';
import { ExtmemError } from '../base/errors.js';
import { LOCK_END, LockTable } from '../base/lock_table.js';
import type { Lock } from '../base/messages.js';
import type { NativeMount } from '../binding/index.js';
import type { HeldFiles } from './held_files.js';
import type { Manager } from './manager.js';

interface Wait {
  place: 'here' | 'manager' | 'between';
  interrupted: boolean;
}

export class LockKeeper {
  private readonly table = new LockTable();
  /** Files whose locks the manager keeps, with the owners (kind and id) that may hold some. */
  private readonly atManager = new Map<number, Set<string>>();
  /** Requests that wait for a lock, by the kernel's `unique`. */
  private readonly waits = new Map<number, Wait>();

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
    if (waiting === undefined) return this.noteLocked(lock.ino);
    return this.setlkSlowly(lock, wait, unique, waiting);
  }

  /** A signal: whoever waits for a lock with this request stops waiting. */
  interrupt(unique: number): void {
    const wait = this.waits.get(unique);
    if (wait === undefined) return;
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
    if (!owners.delete(ownerKey(owner, flock))) return undefined;
    this.noteLocked(ino);
    const unlock: Lock = { ino, owner, flock, type: 'unlock', start: 0, end: LOCK_END, pid: 0 };
    return this.manager.ask('setlk', { lock: unlock, wait: false }).then(
      () => undefined,
      () => undefined, // dead: the manager drops a client's locks with the client
    );
  }

  /** For the answer to a recall: what was held here. Those who wait here go on waiting at the manager. */
  handOver(ino: number): Lock[] {
    if (this.atManager.has(ino)) return [];
    const locks = this.table.exportInode(ino);
    this.atManager.set(ino, new Set(locks.map((lock) => ownerKey(lock.owner, lock.flock))));
    this.table.dropInode(ino);
    return locks;
  }

  /** The file is not open any more: no lock is left, and the next ones may be kept here again. */
  closed(ino: number): void {
    this.atManager.delete(ino);
    this.table.dropInode(ino);
    this.noteLocked(ino);
  }

  private isHere(ino: number): boolean {
    const file = this.held.get(ino);
    return file?.mode === 'write' && file.changing === undefined && !this.atManager.has(ino);
  }

  private async getlkAsking(lock: Lock): Promise<Lock | undefined> {
    await this.delegationSettled(lock.ino);
    if (this.isHere(lock.ino)) return this.table.getlk(lock);
    return (await this.manager.ask('getlk', lock)).conflict;
  }

  private async setlkSlowly(lock: Lock, wait: boolean, unique: number, waiting?: Promise<void>): Promise<undefined> {
    const state: Wait = { place: waiting === undefined ? 'between' : 'here', interrupted: false };
    if (wait) this.waits.set(unique, state);
    try {
      if (waiting !== undefined && (await this.waitHere(lock.ino, waiting))) return undefined;
      state.place = 'between';
      await this.delegationSettled(lock.ino);
      if (state.interrupted) throw new ExtmemError('EINTR', `waiting for a lock of inode ${lock.ino} was interrupted`);
      if (this.isHere(lock.ino)) {
        state.place = 'here';
        const again = this.table.setlk(lock, wait, String(unique));
        if (again === undefined || (await this.waitHere(lock.ino, again))) return this.noteLocked(lock.ino);
        throw new ExtmemError('EINTR', `waiting for a lock of inode ${lock.ino}: the file changed hands twice meanwhile; try again`);
      }
      state.place = 'manager';
      await this.setlkAtManager(lock, wait, unique);
      return undefined;
    } finally {
      if (wait) this.waits.delete(unique);
    }
  }

  /** True: granted. False: the file's locks have moved to the manager; the wait goes on there. */
  private async waitHere(ino: number, waiting: Promise<void>): Promise<boolean> {
    try {
      await waiting;
      this.noteLocked(ino);
      return true;
    } catch (error) {
      if (error instanceof ExtmemError && error.code === 'EAGAIN') return false;
      throw error;
    }
  }

  private async setlkAtManager(lock: Lock, wait: boolean, unique: number): Promise<void> {
    const owners = this.atManager.get(lock.ino) ?? new Set();
    this.atManager.set(lock.ino, owners);
    if (lock.type !== 'unlock') owners.add(ownerKey(lock.owner, lock.flock)); // before the answer: a close must release it
    this.noteLocked(lock.ino);
    await this.manager.ask('setlk', { lock, wait, ...(wait ? { waiter: String(unique) } : {}) });
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
