/**
 * The locks of files that more than one client may have open: one table for all clients, kept in the store so that they survive
 * this process. Owners are named `client:owner`; a client's locks go with it.
 *
 * Owner: the event loop.
 */
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

  async setlk(client: number, ask: { lock: Lock; wait: boolean; waiter?: string }): Promise<void> {
    const waiter = ask.waiter === undefined ? undefined : `${client}:${ask.waiter}`;
    await this.table.setlk(ownedBy(client, ask.lock), ask.wait, waiter);
    await this.save([ask.lock.ino]);
  }

  cancel(client: number, waiter: string): void {
    this.table.cancel(`${client}:${waiter}`);
  }

  /** Locks that a client held by itself while it alone had the file open. */
  async import(client: number, locks: readonly Lock[]): Promise<void> {
    if (locks.length === 0) return;
    this.table.importLocks(locks.map((lock) => ownedBy(client, lock)));
    await this.save(new Set(locks.map((lock) => lock.ino)));
  }

  async releaseClient(client: number): Promise<void> {
    await this.save(this.table.releaseOwners((owner) => owner.startsWith(`${client}:`)));
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
