/**
 * The locks of files that more than one client may have open: one table for all clients, kept in the store so that they survive
 * this process. Owners are named `client:owner`; a client's locks go with it.
 *
 * A client that is gone for good is only noticed when what it held is wanted: whoever is refused or made to wait by a lock makes
 * its client `wanted`, and the fence follows when that client's lease is over.
 *
 * Owner: the event loop.
 */
import { ExtmemError } from '../base/errors.js';
import { LockTable } from '../base/lock_table.js';
import type { Lock } from '../base/messages.js';
import { keys, type MetadataStore } from './metadata_store.js';

export class Locks {
  private readonly table = new LockTable();

  constructor(private readonly store: MetadataStore) {
    for (const [, locks] of store.scan<Lock[]>(keys.allLocks)) this.table.importLocks(locks);
  }

  getlk(client: number, lock: Lock): Lock | undefined {
    return this.table.getlk(ownedBy(client, lock));
  }

  /** `refusedBy` is told whose lock is in the way, when nobody is to wait for it. */
  async setlk(
    client: number,
    ask: { lock: Lock; wait: boolean; waiter?: string },
    refusedBy: (client: number) => void = () => undefined,
  ): Promise<void> {
    const waiter = ask.waiter === undefined ? undefined : `${client}:${ask.waiter}`;
    const lock = ownedBy(client, ask.lock);
    try {
      await this.table.setlk(lock, ask.wait, waiter);
    } catch (error) {
      const inTheWay = error instanceof ExtmemError && error.code === 'EAGAIN' ? this.table.getlk(lock) : undefined;
      if (inTheWay !== undefined) refusedBy(clientOf(inTheWay.owner));
      throw error;
    }
    await this.save([ask.lock.ino]);
  }

  cancel(client: number, waiter: string): void {
    this.table.cancel(`${client}:${waiter}`);
  }

  /** A session of the client ended: whoever waited on it was told so already, and would not know of a lock that came later. */
  cancelWaits(client: number): void {
    this.table.cancelOwners((owner) => clientOf(owner) === client);
  }

  /** The client holds exactly these: it kept them by itself while it alone had the file, or was cut off while they changed. */
  async restate(client: number, ino: number, locks: readonly Lock[]): Promise<void> {
    const theirs = locks.filter((lock) => lock.ino === ino).map((lock) => ownedBy(client, lock));
    this.table.restate(ino, (owner) => clientOf(owner) === client, theirs);
    await this.save([ino]);
  }

  async releaseClient(client: number): Promise<void> {
    await this.save(this.table.releaseOwners((owner) => clientOf(owner) === client));
  }

  /** Clients whose locks somebody waits for. */
  wantedClients(): Set<number> {
    return new Set([...this.table.wanted()].map(clientOf));
  }

  dropInode(ino: number): void {
    this.table.dropInode(ino);
  }

  private async save(inos: Iterable<number>): Promise<void> {
    await this.store.transact((tx) => {
      for (const ino of inos) {
        const locks = this.table.exportInode(ino);
        if (locks.length > 0) tx.put(keys.locks(ino), locks);
        else if (tx.get(keys.locks(ino)) !== undefined) tx.remove(keys.locks(ino));
      }
    });
  }
}

function ownedBy(client: number, lock: Lock): Lock {
  return { ...lock, owner: `${client}:${lock.owner}` };
}

function clientOf(owner: string): number {
  return Number.parseInt(owner, 10);
}
