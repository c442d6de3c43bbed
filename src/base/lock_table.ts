/**
 * Advisory file locks: POSIX byte ranges (fcntl) and whole-file flock, which do not see each other. The manager's for files
 * that several clients have open; a client's own for files that it alone has open.
 *
 * Invariants:
 * - Locks of different owners on overlapping ranges of one kind are all read locks.
 * - One owner's ranges do not overlap; neighbours of the same type are joined.
 * - Waiters are served in the order they came: a later one never passes an earlier one that it conflicts with, unless it
 *   holds part of the range already (else an upgrade would wait for somebody who waits for it).
 * - A POSIX wait that would close a cycle fails with EDEADLK. flock waits are not examined (Linux does not either).
 *
 * Runs on the event loop; every method is synchronous, a wait is a promise.
 */
import { ExtmemError } from './errors.js';
import type { Lock } from './messages.js';

export const LOCK_END = Number.MAX_SAFE_INTEGER;
const MAX_LOCKS_PER_INODE = 65536;
const MAX_WAITERS_PER_INODE = 16384;

interface Held {
  owner: string;
  type: 'read' | 'write';
  start: number;
  end: number; // inclusive
  pid: number;
}

interface Waiter {
  lock: Lock;
  id: string | undefined;
  resolve(): void;
  reject(error: ExtmemError): void;
}

interface InodeLocks {
  posix: Held[];
  flock: Held[];
  waiters: Waiter[];
}

export class LockTable {
  private readonly inodes = new Map<number, InodeLocks>();
  private readonly waitersById = new Map<string, Waiter>();
  private readonly waitersByOwner = new Map<string, Set<Waiter>>();

  /** The first lock of another owner that would stand in the way. */
  getlk(lock: Lock): Lock | undefined {
    const locks = this.inodes.get(lock.ino);
    if (locks === undefined || lock.type === 'unlock') return undefined;
    const held = heldOf(locks, lock).find((one) => conflicts(one, lock));
    return held === undefined ? undefined : { ...held, ino: lock.ino, flock: lock.flock };
  }

  /** undefined: done. A promise: the lock is waited for (only with `wait`). Throws EAGAIN, EDEADLK, ENOLCK, EINVAL. */
  setlk(lock: Lock, wait = false, waiterId?: string): Promise<void> | undefined {
    if (lock.start > lock.end) throw new ExtmemError('EINVAL', `lock of inode ${lock.ino}: it ends before it starts`);
    if (lock.type === 'unlock') {
      const locks = this.inodes.get(lock.ino);
      if (locks !== undefined) {
        replaceRange(locks, lock);
        this.serveWaiters(lock.ino, locks);
      }
      return undefined;
    }
    const locks = this.locksOf(lock.ino);
    const blocked = heldOf(locks, lock).some((held) => conflicts(held, lock)) || (wait && isBehind(locks, lock, locks.waiters));
    if (!blocked) {
      if (heldOf(locks, lock).length >= MAX_LOCKS_PER_INODE)
        throw new ExtmemError('ENOLCK', `inode ${lock.ino} has ${MAX_LOCKS_PER_INODE} locks`);
      replaceRange(locks, lock);
      this.serveWaiters(lock.ino, locks); // a downgrade may let others in
      return undefined;
    }
    if (!wait) {
      this.forgetIfEmpty(lock.ino, locks);
      throw new ExtmemError('EAGAIN', `inode ${lock.ino} is locked by another`);
    }
    return this.enqueue(locks, lock, waiterId);
  }

  /** Ends a wait with EINTR. False: there is no such wait (any more). */
  cancel(waiterId: string): boolean {
    const waiter = this.waitersById.get(waiterId);
    if (waiter === undefined) return false;
    this.dropWaiter(waiter);
    waiter.reject(new ExtmemError('EINTR', 'the wait for a lock was cancelled'));
    return true;
  }

  /** Everything that one owner holds on an inode; flock absent: of both kinds. */
  releaseOwner(ino: number, owner: string, flock?: boolean): void {
    const locks = this.inodes.get(ino);
    if (locks === undefined) return;
    if (flock !== true) locks.posix = locks.posix.filter((held) => held.owner !== owner);
    if (flock !== false) locks.flock = locks.flock.filter((held) => held.owner !== owner);
    this.serveWaiters(ino, locks);
  }

  /** Locks and waits of every owner that is meant (a client that died). Answers the inodes whose locks changed. */
  releaseOwners(isMeant: (owner: string) => boolean): number[] {
    const changed: number[] = [];
    this.cancelOwners(isMeant);
    for (const [ino, locks] of [...this.inodes]) {
      const before = locks.posix.length + locks.flock.length;
      locks.posix = locks.posix.filter((held) => !isMeant(held.owner));
      locks.flock = locks.flock.filter((held) => !isMeant(held.owner));
      if (locks.posix.length + locks.flock.length !== before) changed.push(ino);
      this.serveWaiters(ino, locks);
    }
    return changed;
  }

  /** Ends the waits of every owner that is meant, with EINTR: whoever waited will not hear of it any more. */
  cancelOwners(isMeant: (owner: string) => boolean): void {
    for (const [ino, locks] of [...this.inodes]) {
      const meant = locks.waiters.filter((one) => isMeant(one.lock.owner));
      for (const waiter of meant) {
        this.dropWaiter(waiter);
        waiter.reject(new ExtmemError('EINTR', 'whoever waited for this lock is gone'));
      }
      if (meant.length > 0) this.serveWaiters(ino, locks);
    }
  }

  /** What the owners that are meant hold of an inode is `locks`, and nothing else. Not checked against what others hold. */
  restate(ino: number, isMeant: (owner: string) => boolean, locks: readonly Lock[]): void {
    const there = this.locksOf(ino);
    there.posix = there.posix.filter((held) => !isMeant(held.owner));
    there.flock = there.flock.filter((held) => !isMeant(held.owner));
    this.importLocks(locks);
    this.serveWaiters(ino, there);
  }

  /** Owners of locks that somebody waits for. */
  wanted(): Set<string> {
    const owners = new Set<string>();
    if (this.waitersByOwner.size === 0) return owners;
    for (const locks of this.inodes.values()) {
      for (const { lock } of locks.waiters) for (const held of heldOf(locks, lock)) if (conflicts(held, lock)) owners.add(held.owner);
    }
    return owners;
  }

  /** The inode is gone, or its locks live elsewhere from now on: waits end with EAGAIN. */
  dropInode(ino: number): void {
    const locks = this.inodes.get(ino);
    if (locks === undefined) return;
    for (const waiter of [...locks.waiters]) {
      this.dropWaiter(waiter);
      waiter.reject(new ExtmemError('EAGAIN', `the locks of inode ${ino} have moved`));
    }
    this.inodes.delete(ino);
  }

  lockedInodes(): number[] {
    return [...this.inodes.keys()].filter((ino) => this.hasLocks(ino));
  }

  /** As dropInode, of all. */
  clear(): void {
    for (const ino of [...this.inodes.keys()]) this.dropInode(ino);
  }

  hasLocks(ino: number): boolean {
    const locks = this.inodes.get(ino);
    return locks !== undefined && locks.posix.length + locks.flock.length > 0;
  }

  exportInode(ino: number): Lock[] {
    const locks = this.inodes.get(ino);
    if (locks === undefined) return [];
    return [...locks.posix.map((held) => ({ ...held, ino, flock: false })), ...locks.flock.map((held) => ({ ...held, ino, flock: true }))];
  }

  /** Takes over locks that were valid elsewhere: they are not checked against each other. */
  importLocks(locks: readonly Lock[]): void {
    for (const lock of locks) if (lock.type !== 'unlock') replaceRange(this.locksOf(lock.ino), lock);
  }

  private enqueue(locks: InodeLocks, lock: Lock, id: string | undefined): Promise<void> {
    if (locks.waiters.length >= MAX_WAITERS_PER_INODE)
      throw new ExtmemError('ENOLCK', `${MAX_WAITERS_PER_INODE} wait for locks of inode ${lock.ino}`);
    if (id !== undefined && this.waitersById.has(id)) throw new ExtmemError('EINVAL', `there is a wait named ${id} already`);
    if (!lock.flock && this.wouldDeadlock(locks, lock))
      throw new ExtmemError('EDEADLK', `waiting for a lock of inode ${lock.ino} would never end`);
    return new Promise((resolve, reject) => {
      const waiter: Waiter = { lock, id, resolve, reject };
      locks.waiters.push(waiter);
      if (id !== undefined) this.waitersById.set(id, waiter);
      const ofOwner = this.waitersByOwner.get(lock.owner) ?? new Set();
      this.waitersByOwner.set(lock.owner, ofOwner.add(waiter));
    });
  }

  /** Whether whoever blocks this lock waits, through others, for its owner. */
  private wouldDeadlock(locks: InodeLocks, lock: Lock): boolean {
    const seen = new Set<string>();
    const toVisit = blockers(locks, lock, locks.waiters);
    for (let owner = toVisit.pop(); owner !== undefined; owner = toVisit.pop()) {
      if (owner === lock.owner) return true;
      if (seen.has(owner)) continue;
      seen.add(owner);
      for (const waiter of this.waitersByOwner.get(owner) ?? []) {
        const there = this.inodes.get(waiter.lock.ino);
        if (there !== undefined && !waiter.lock.flock)
          toVisit.push(...blockers(there, waiter.lock, there.waiters.slice(0, there.waiters.indexOf(waiter))));
      }
    }
    return false;
  }

  private serveWaiters(ino: number, locks: InodeLocks): void {
    const still: Waiter[] = [];
    for (const waiter of [...locks.waiters]) {
      const isBlocked = heldOf(locks, waiter.lock).some((held) => conflicts(held, waiter.lock)) || isBehind(locks, waiter.lock, still);
      if (isBlocked) {
        still.push(waiter);
        continue;
      }
      replaceRange(locks, waiter.lock);
      this.dropWaiter(waiter);
      waiter.resolve();
    }
    this.forgetIfEmpty(ino, locks);
  }

  private dropWaiter(waiter: Waiter): void {
    const locks = this.inodes.get(waiter.lock.ino);
    if (locks !== undefined) locks.waiters = locks.waiters.filter((one) => one !== waiter);
    if (waiter.id !== undefined) this.waitersById.delete(waiter.id);
    const ofOwner = this.waitersByOwner.get(waiter.lock.owner);
    ofOwner?.delete(waiter);
    if (ofOwner?.size === 0) this.waitersByOwner.delete(waiter.lock.owner);
  }

  private locksOf(ino: number): InodeLocks {
    let locks = this.inodes.get(ino);
    if (locks === undefined) {
      locks = { posix: [], flock: [], waiters: [] };
      this.inodes.set(ino, locks);
    }
    return locks;
  }

  private forgetIfEmpty(ino: number, locks: InodeLocks): void {
    if (locks.posix.length + locks.flock.length + locks.waiters.length === 0) this.inodes.delete(ino);
  }
}

function heldOf(locks: InodeLocks, lock: Lock): Held[] {
  return lock.flock ? locks.flock : locks.posix;
}

function overlaps(one: { start: number; end: number }, other: { start: number; end: number }): boolean {
  return one.start <= other.end && other.start <= one.end;
}

function conflicts(held: Held | Lock, lock: Lock): boolean {
  return held.owner !== lock.owner && (held.type === 'write' || lock.type === 'write') && overlaps(held, lock);
}

function isBehind(locks: InodeLocks, lock: Lock, earlier: readonly Waiter[]): boolean {
  if (!earlier.some((waiter) => waiter.lock.flock === lock.flock && conflicts(waiter.lock, lock))) return false;
  return !heldOf(locks, lock).some((held) => held.owner === lock.owner && overlaps(held, lock));
}

function blockers(locks: InodeLocks, lock: Lock, earlier: readonly Waiter[]): string[] {
  const owners = heldOf(locks, lock)
    .filter((held) => conflicts(held, lock))
    .map((held) => held.owner);
  if (isBehind(locks, lock, earlier)) {
    for (const waiter of earlier) if (waiter.lock.flock === lock.flock && conflicts(waiter.lock, lock)) owners.push(waiter.lock.owner);
  }
  return owners;
}

/** Gives the range of `lock` its type for its owner: what the owner had there is replaced, neighbours are joined. */
function replaceRange(locks: InodeLocks, lock: Lock): void {
  const kept: Held[] = [];
  let start = lock.start;
  let end = lock.end;
  for (const held of heldOf(locks, lock)) {
    if (held.owner !== lock.owner) {
      kept.push(held);
      continue;
    }
    const touches = held.start <= lock.end + 1 && lock.start <= held.end + 1;
    if (held.type === lock.type && touches) {
      start = Math.min(start, held.start);
      end = Math.max(end, held.end);
      continue;
    }
    if (!overlaps(held, lock)) {
      kept.push(held);
      continue;
    }
    if (held.start < lock.start) kept.push({ ...held, end: lock.start - 1 });
    if (held.end > lock.end) kept.push({ ...held, start: lock.end + 1 });
  }
  if (lock.type !== 'unlock') kept.push({ owner: lock.owner, type: lock.type, start, end, pid: lock.pid });
  if (lock.flock) locks.flock = kept;
  else locks.posix = kept;
}
