/**
 * Fencing a client: every appliance kills its grants, the newest records of what it was writing become the manager's, and only
 * then is what it held given to others. Nothing less takes anything from a client that did not give it back.
 *
 * One fence per client, however many ask for it; all of them wait for its end.
 */
import { decodeRecord } from '../base/file_record.js';
import type { Logger } from '../base/logger.js';
import type { Appliances } from './appliances.js';
import type { Client, Clients } from './clients.js';
import type { Delegations } from './delegations.js';
import type { DirectoryDelegations } from './directory_delegations.js';
import { findFile, type Inode } from './inode.js';
import type { Interest } from './interest.js';
import { times } from './limits.js';
import type { Locks } from './locks.js';
import { keys, type MetadataStore } from './metadata_store.js';
import type { Reclaimer } from './reclaim.js';
import type { Regions } from './regions.js';

export interface FencingParts {
  store: MetadataStore;
  appliances: Appliances;
  clients: Clients;
  delegations: Delegations;
  directories: DirectoryDelegations;
  locks: Locks;
  interest: Interest;
  regions: Regions;
  reclaimer: Reclaimer;
  log: Logger;
  /** Of what it was writing, some copies may have it and others not. */
  writerDied(client: Client): Promise<void>;
}

export class Fencing {
  private readonly underWay = new Map<number, Promise<void>>();
  fences = 0;

  constructor(private readonly parts: FencingParts) {}

  fence(client: Client, why: string): Promise<void> {
    if (client.state === 'gone') return Promise.resolve();
    let fence = this.underWay.get(client.id);
    if (fence === undefined) {
      fence = this.run(client, why).finally(() => this.underWay.delete(client.id));
      this.underWay.set(client.id, fence);
    }
    return fence;
  }

  /** Clients that did not come back within their lease: now, because what they hold is wanted. Those that only fell silent may
   *  live on behind a cut link; they lose what they hold when there is no other way (`also` silent). */
  async fenceOverdue(also?: 'silent'): Promise<void> {
    const meant = [...this.parts.clients.all()].filter((client) => client.isOverdue && (also === 'silent' || !client.fellSilent));
    await Promise.all(meant.map((client) => this.fence(client, 'its lease is over and its provision is wanted')));
  }

  /** Something that a client holds is wanted by another: if its lease is over, it is fenced. Not waited for. */
  wanted(id: number, why: string): void {
    const client = this.parts.clients.get(id);
    if (client === undefined || !client.isOverdue) return;
    this.fence(client, why).catch((error: unknown) => this.parts.log.error({ client: id, error }, 'fencing a client failed'));
  }

  /** Clients for whose locks somebody waits. */
  fenceWanted(): void {
    for (const client of this.parts.locks.wantedClients()) this.wanted(client, 'a lock that it holds is waited for');
  }

  async fenceAbandoned(): Promise<void> {
    const isAbandoned = (client: Client): boolean => client.isOverdue && Date.now() - client.lastSeenAt > times.abandonedMs;
    await Promise.all(
      [...this.parts.clients.all()].filter(isAbandoned).map((client) => this.fence(client, 'it was not heard of for long')),
    );
  }

  /** A clean unmount: everything was given back, no grant needs to be killed. */
  async depart(client: Client): Promise<void> {
    client.state = 'fencing';
    await this.forget(client);
  }

  private async run(client: Client, why: string): Promise<void> {
    const { log, appliances, clients, delegations } = this.parts;
    this.fences++;
    log.warn({ client: client.id, name: client.row.name, why }, 'fencing a client');
    client.state = 'fencing';
    client.tellPresence();
    client.session?.terminate(`fenced: ${why}`);
    await appliances.fenceEverywhere(clients.dead());
    await this.takeNewestRecords(client);
    await this.parts.writerDied(client);
    delegations.died(client);
    await this.forget(client);
    log.info({ client: client.id }, 'client is fenced');
  }

  private async forget(client: Client): Promise<void> {
    const { delegations, directories, locks, interest, regions, reclaimer, clients } = this.parts;
    await locks.releaseClient(client.id);
    await directories.dropClient(client);
    await delegations.dropClient(client);
    interest.forget(client);
    client.state = 'gone';
    for (const region of regions.ofClient(client.id)) void reclaimer.sweep(region);
    await clients.remove(client);
  }

  /** The client put its records beside the regions before it told us: what it fsynced is there. */
  private async takeNewestRecords(client: Client): Promise<void> {
    const { store, appliances, delegations, reclaimer, log } = this.parts;
    const writing = new Set(
      delegations
        .heldBy(client.id)
        .filter(({ holder }) => holder.row.mode === 'write')
        .map(({ ino }) => ino),
    );
    if (writing.size === 0) return;
    const newest = new Map<number, { change: number; record: Uint8Array }>();
    const lists = await Promise.allSettled(appliances.up().map((appliance) => appliances.call(appliance, 'listRecords', {})));
    for (const list of lists) {
      if (list.status === 'rejected') {
        log.warn(
          { client: client.id, error: list.reason as unknown },
          'an appliance did not list its records; what the manager knows of its files counts',
        );
        continue;
      }
      for (const { ino, record } of list.value.records) {
        if (!writing.has(ino)) continue;
        const change = changeOf(record);
        if (change > (newest.get(ino)?.change ?? -1)) newest.set(ino, { change, record });
      }
    }
    const tickets = await store.transact((tx) => {
      for (const [ino, { change, record }] of newest) {
        const inode = tx.get<Inode>(keys.inode(ino));
        if (inode !== undefined && change > findFile(tx, ino).change) delegations.tryCommit(tx, ino, record, client.id);
      }
      return reclaimer.ticketsOf(tx);
    });
    reclaimer.start(tickets);
  }
}

function changeOf(record: Uint8Array): number {
  try {
    return decodeRecord(record).change;
  } catch {
    return -1;
  }
}
