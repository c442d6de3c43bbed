/**
 * An appliance is emptied (B20): nothing new is placed there, clients carve no more from what they have there, what files have there
 * moves away (jobs.ts), and its regions go when nothing is left in them.
 *
 * A client's region is nobody's only when this manager knows every piece that was carved from it: after the client has said that it
 * carves no more, it gives back the directories that it has to itself, and everybody who writes to a file that it has open for writing
 * writes back and waits for a moment. Pieces that no record names then are free, and are zeroed.
 */
import { ExtmemError } from '../../base/errors.js';
import { decodeRecord } from '../../base/file_record.js';
import { RECALL_TIMEOUT_MS } from '../../base/protocol.js';
import type { Appliances } from '../appliances.js';
import type { Client, Clients } from '../clients.js';
import type { Contents } from '../contents.js';
import type { Delegations } from '../delegations.js';
import type { DirectoryDelegations } from '../directory_delegations.js';
import type { Inode } from '../inode.js';
import { keys, type MetadataStore } from '../metadata_store.js';
import type { Reclaimer } from '../reclaim.js';
import type { Region, Regions } from '../regions.js';

export interface DrainParts {
  store: MetadataStore;
  appliances: Appliances;
  regions: Regions;
  reclaimer: Reclaimer;
  clients: Clients;
  delegations: Delegations;
  directories: DirectoryDelegations;
  contents: Contents;
  fence(client: Client, why: string): Promise<void>;
}

/** Files that are brought to rest at once. */
const FILES_AT_ONCE = 16;

export class Draining {
  constructor(private readonly parts: DrainParts) {}

  /** What is there still. */
  regionsOn(appliance: string): Region[] {
    return [...this.parts.regions.all()].filter(({ row }) => row.appliance === appliance && !row.lost);
  }

  /** Whether an encoded record of a file names something that is there. */
  namer(appliance: string): (record: Uint8Array) => boolean {
    const meant = new Set(this.regionsOn(appliance).map(({ id }) => id));
    return (record) => decodeRecord(record).extents.some(({ members }) => members.some(({ region }) => meant.has(region)));
  }

  /** No region there is a client's when this resolves; those with nothing in them go. Throws EAGAIN when a client does not answer. */
  async vacate(appliance: string): Promise<void> {
    const { clients, reclaimer } = this.parts;
    const byClient = new Map<number, Region[]>();
    for (const region of this.regionsOn(appliance)) {
      const { client } = region.row;
      if (client === 0) void reclaimer.destroyIfEmpty(region);
      else byClient.set(client, [...(byClient.get(client) ?? []), region]);
    }
    for (const [id, held] of byClient) {
      const client = clients.get(id);
      if (client !== undefined) await this.retire(client, held);
      await Promise.all(held.map((region) => reclaimer.sweep(region)));
    }
  }

  private async retire(client: Client, held: readonly Region[]): Promise<void> {
    const { clients, directories, delegations } = this.parts;
    const regions = held.map(({ id }) => id);
    const told = await clients.tell(client, 'retire', { regions }, { limitMs: RECALL_TIMEOUT_MS, again: true });
    if (told.status === 'gone') return this.parts.fence(client, 'its lease is over, and an appliance is to be emptied');
    if (told.status !== 'answered')
      throw new ExtmemError('EAGAIN', `client ${client.id} (${client.name}) does not give back what it has there (${told.status})`);
    await directories.recallFrom(client);
    const written = delegations.heldBy(client.id).filter(({ holder: { row } }) => row.mode === 'write' || row.open === 'write');
    for (let at = 0; at < written.length; at += FILES_AT_ONCE)
      await Promise.all(written.slice(at, at + FILES_AT_ONCE).map(({ ino }) => this.rest(ino)));
  }

  /** Everything that was written to it is known here. */
  private async rest(ino: number): Promise<void> {
    const { store, delegations, contents } = this.parts;
    await delegations.turns.run(ino, async () => {
      if (store.get<Inode>(keys.inode(ino))?.kind !== 'file') return;
      try {
        await contents.whileStill(ino, () => contents.tellSame(ino));
      } finally {
        if (delegations.isHeld(ino)) delegations.rebalance(ino);
      }
    });
  }
}
