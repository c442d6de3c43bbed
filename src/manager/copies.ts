/**
 * Which copies of files count is decided here alone. A copy that missed a write, or whose appliance lost it, becomes missing; those
 * whose writer died become unsynced but for one. Each such change grows the file's epoch, survives, and is known to everybody who
 * has the file before whoever asked is answered: so nobody reads what missed a write.
 *
 * Nothing here waits for a file's turn: a writer may need its answer in order to answer a recall.
 */
import { namesCopies, type Extent } from '../base/file_record.js';
import type { Logger } from '../base/logger.js';
import { dropPlaces, dropRegions, unsync } from '../base/marks.js';
import type { Answer, Ask, clientOperations } from '../base/messages.js';
import { RECALL_TIMEOUT_MS } from '../base/protocol.js';
import type { Client, Clients } from './clients.js';
import type { Delegations, Holder } from './delegations.js';
import type { Files } from './files.js';
import { attrOf, findFile, recordOf, type Inode } from './inode.js';
import { keys, type MetadataStore } from './metadata_store.js';
import type { Reclaimer } from './reclaim.js';
import type { Regions } from './regions.js';

type Operations = typeof clientOperations;

/** Files whose extents are looked at in one transaction. */
const FILES_AT_ONCE = 256;

export interface CopiesParts {
  store: MetadataStore;
  files: Files;
  regions: Regions;
  reclaimer: Reclaimer;
  clients: Clients;
  delegations: Delegations;
  log: Logger;
  fence(client: Client, why: string): Promise<void>;
}

export class Copies {
  /** Copies of files count no more, or may differ. */
  onChanged: () => void = () => undefined;

  constructor(private readonly parts: CopiesParts) {}

  /** Some copies did not take a write that others took. The answer says which count now. */
  async drop(client: Client, ask: Ask<Operations, 'dropCopies'>): Promise<Answer<Operations, 'dropCopies'>> {
    const { store, files, delegations, reclaimer } = this.parts;
    const { ino } = ask;
    await delegations.answerTaken(ino, client);
    const holder = delegations.checkWriter(client, ino);
    const tickets = await store.transact((tx) => {
      if (ask.record !== undefined && holder.row.mode === 'write') files.commit(tx, findFile(tx, ino), ask.record, client.id);
      const before = findFile(tx, ino);
      const after = files.mark(tx, before, (extents) => dropPlaces(extents, ask.places));
      if (after !== before) delegations.extentsChanged(ino, client);
      return reclaimer.ticketsOf(tx);
    });
    reclaimer.start(tickets);
    const inode = findFile(store, ino);
    this.parts.log.warn({ ino, client: client.id, copies: ask.places.length }, 'copies of a file did not take a write; they count no more');
    await this.tell(inode, delegations.others(ino, client), 'surely');
    this.onChanged();
    return { record: recordOf(store, inode) };
  }

  /** The manager itself wrote to a file, and these did not take it. */
  async dropPlaces(ino: number, places: readonly { region: number; offset: number }[]): Promise<void> {
    await this.markAll([ino], (extents) => dropPlaces(extents, places), 'surely');
  }

  /** What regions held is gone, or back as it was some time ago: where files have another copy, that counts and these do not. */
  async sweep(): Promise<void> {
    const { store, regions, log } = this.parts;
    const stale = [...regions.all()].filter(({ row }) => row.lost || row.stale === true);
    if (stale.length === 0) return;
    const gone = new Set(stale.map(({ id }) => id));
    const meant: number[] = [];
    for (const [key, record] of store.scan<Uint8Array>(keys.records))
      if (namesCopies(record, (region) => gone.has(region))) meant.push(keys.lastNumber(key));
    const marked = await this.markAll(meant, (extents) => dropRegions(extents, (region) => gone.has(region)), 'later');
    await store.transact((tx) => {
      for (const region of stale) if (region.row.stale === true) regions.setRow(tx, region, { stale: false });
    });
    if (marked > 0) log.warn({ files: marked }, 'files have fewer copies since an appliance lost theirs');
  }

  /** A writer is dead: what it was writing may be in some copies and not in others. Before anybody else writes to the files. */
  async writerDied(client: Client): Promise<void> {
    const { store, delegations } = this.parts;
    const written = delegations.heldBy(client.id).filter(({ holder: { row } }) => row.mode !== 'read' && row.open === 'write');
    const meant = written.flatMap(({ ino }) => {
      const record = store.get<Uint8Array>(keys.record(ino));
      return record !== undefined && namesCopies(record) ? [ino] : [];
    });
    await this.markAll(meant, unsync, 'surely', client);
  }

  /** Answers how many files have changed. */
  private async markAll(
    inos: readonly number[],
    change: (extents: Extent[]) => Extent[],
    how: 'surely' | 'later',
    except?: Client,
  ): Promise<number> {
    const { store, files, delegations } = this.parts;
    let count = 0;
    for (let at = 0; at < inos.length; at += FILES_AT_ONCE) {
      const changed = await store.transact((tx) =>
        inos.slice(at, at + FILES_AT_ONCE).flatMap((ino) => {
          const before = tx.get<Inode>(keys.inode(ino));
          if (before?.kind !== 'file') return [];
          const after = files.mark(tx, before, change);
          if (after === before) return [];
          delegations.extentsChanged(ino, undefined);
          return [after];
        }),
      );
      count += changed.length;
      const told = changed.map((inode) => this.tell(inode, delegations.others(inode.ino, except), how));
      // Later: they have found out by themselves that those regions are gone.
      if (how === 'surely') await Promise.all(told);
    }
    if (count > 0) this.onChanged();
    return count;
  }

  /** All of these have the record when this resolves; whoever does not take it `surely` is fenced. */
  private async tell(inode: Inode, holders: readonly Holder[], how: 'surely' | 'later'): Promise<void> {
    const { clients, store, delegations } = this.parts;
    await Promise.all(
      holders.map(async (holder) => {
        const client = clients.get(holder.client);
        // Whoever writes alone has found out by itself, and has the newer record; it is told with what it is granted next.
        if (client?.state !== 'live' || holder.row.mode === 'write') return;
        delegations.newsFor(inode.ino, holder);
        const news = { ino: inode.ino, offset: 0, length: 0, attr: attrOf(inode), record: recordOf(store, inode) };
        const told = await clients.tell(client, 'invalidate', news, { limitMs: RECALL_TIMEOUT_MS, again: true });
        if (told.status !== 'answered' && how === 'surely')
          await this.parts.fence(client, `it did not take which copies of inode ${inode.ino} count (${told.status})`);
      }),
    );
  }
}
