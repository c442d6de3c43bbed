/**
 * Memory moves while it is in use (ADR 0027): a stretch of a file at a time, in the file's turn.
 *
 * Room for the stretch is carved, and held by a ticket that survives. Whoever writes to the file writes back and waits; the appliances
 * that are to have the stretch read it from those that have it; the file's record names the new pieces; everybody who has the file open
 * takes that record; the old pieces are zeroed, and free. Whatever dies meanwhile, one of two things is left: the old record
 * and a ticket of the new pieces, or the new record and a ticket of the old ones.
 */
import { ExtmemError } from '../../base/errors.js';
import { copiesOf, type Extent } from '../../base/file_record.js';
import { clientKey, issueCapability } from '../../base/keys.js';
import type { Ask, appliancePushes, Endpoint, RegionPiece } from '../../base/messages.js';
import { Right } from '../../base/protocol.js';
import type { Appliance, Appliances } from '../appliances.js';
import type { Contents } from '../contents.js';
import type { Delegations } from '../delegations.js';
import type { Files } from '../files.js';
import { attrOf, findFile, type Inode } from '../inode.js';
import type { Interest } from '../interest.js';
import { limits, times } from '../limits.js';
import { keys, takeNumber, type MetadataStore } from '../metadata_store.js';
import type { Persistence } from '../persistence.js';
import type { Reclaimer } from '../reclaim.js';
import type { RegionRow, Regions } from '../regions.js';
import { findSlot, planStretch, replaceSlots, type Choice, type Slot } from './plan.js';
import type { Carved, Lack, Room, Target } from './room.js';

export interface MoverParts {
  store: MetadataStore;
  clusterKey: Uint8Array;
  files: Files;
  regions: Regions;
  appliances: Appliances;
  reclaimer: Reclaimer;
  delegations: Delegations;
  interest: Interest;
  contents: Contents;
  persistence: Persistence;
  room: Room;
}

export interface Order extends Target {
  choose: Choice;
  /** Nobody has asked for it: no mount that is away is fenced for it. */
  gently: boolean;
}

type CopyAsk = Ask<typeof appliancePushes, 'copy'>;
interface CopyPiece {
  to: RegionPiece;
  from: { origin: string; region: number; bytes: number; offset: number }[];
}

/** No client ever has such a number: in their names appliances read from one another. */
const FIRST_COPIER = 2 ** 52;
const GENERATION = 1;
/** What changes while a stretch is being prepared is planned anew. */
const ATTEMPTS = 40;
/** Where there is no room in one piece, there may be in smaller ones. */
const SMALLEST_STRETCH_BYTES = 128 * 1024;

export class Mover {
  private readonly copiers = new Map<string, number>();

  constructor(private readonly parts: MoverParts) {}

  /** Moves what comes next of a file; answers how many bytes, 0: nothing is left to be moved. Throws ENOSPC, EDOMAIN; EBUSY: a mount
   *  that has it open is away (gently); EIO, ETIMEDOUT, ECANCELED when it could not be copied: then all is as it was. */
  async moveStretch(ino: number, order: Order): Promise<number> {
    let limitBytes = limits.stretchBytes;
    for (let attempt = 1; ; attempt++) {
      const done = await this.tryStretch(ino, order, limitBytes).catch((error: unknown) => {
        if (error instanceof ExtmemError && error.code === 'EAGAIN' && attempt < ATTEMPTS) return undefined;
        throw error;
      });
      if (typeof done === 'number') return done;
      if (done === undefined) continue;
      const inode = findFile(this.parts.store, ino);
      try {
        await this.parts.room.provide(inode, done, order.expectedBytes);
      } catch (error) {
        if (!(error instanceof ExtmemError && error.code === 'ENOSPC') || limitBytes <= SMALLEST_STRETCH_BYTES) throw error;
        limitBytes /= 4;
      }
      if (attempt >= ATTEMPTS) throw new ExtmemError('EAGAIN', `inode ${ino} changes too fast to be moved; try again later`);
    }
  }

  private tryStretch(ino: number, order: Order, limitBytes: number): Promise<number | Lack> {
    const { store, files, delegations, contents, room } = this.parts;
    return delegations.turns.run(ino, async () => {
      if (store.get<Inode>(keys.inode(ino))?.kind !== 'file') return 0; // removed meanwhile
      const plan = (): Slot[] => planStretch(files.extents(store, ino), order.choose, limitBytes);
      try {
        let slots = plan();
        if (slots.length === 0 && delegations.hasWriter(ino, undefined)) {
          await contents.settleWriters(ino, order.gently); // where they have written since their last commit is not known here
          slots = plan();
        }
        if (slots.length === 0) return 0;
        const carved = await store.transact((tx) => room.carve(tx, findFile(tx, ino), slots, order));
        if (!('ticket' in carved)) return carved;
        await this.moveCarved(ino, carved, order);
        return slots.reduce((sum, { bytes, meant }) => sum + bytes * meant.length, 0);
      } finally {
        delegations.rebalance(ino);
      }
    });
  }

  private async moveCarved(ino: number, { moved, ticket }: Carved, how: { gently: boolean }): Promise<void> {
    const { store, files, reclaimer, interest, contents } = this.parts;
    const lives = this.livesOf(ticket.pieces);
    let isMoved = false;
    try {
      await contents.whileStill(
        ino,
        async () => {
          await this.copy(ino, moved);
          const { inode, tickets } = await store.transact((tx) => {
            this.checkThere(lives);
            const inode = files.move(tx, findFile(tx, ino), replaceSlots(files.extents(tx, ino), moved));
            reclaimer.keep(tx, ticket);
            return { inode, tickets: reclaimer.ticketsOf(tx) };
          });
          isMoved = true;
          await Promise.all([contents.tellMoved(inode), interest.tell(undefined, { entries: [], attributes: [attrOf(inode)] })]);
          reclaimer.start(tickets);
        },
        how,
      );
    } finally {
      if (!isMoved) reclaimer.start([ticket]);
    }
  }

  /** Nobody writes to the file meanwhile. */
  private async copy(ino: number, moved: Carved['moved']): Promise<void> {
    const { store, files, regions, appliances, persistence } = this.parts;
    const extents = files.extents(store, ino);
    const byTarget = new Map<string, CopyPiece[]>();
    for (const { slot, members } of moved) {
      const present = findSlot(extents, slot);
      for (const [index, { region, offset }] of members) {
        const target = regions.get(region)?.row.appliance ?? '';
        const from = this.sourcesOf(present, index);
        if (from.length === 0) throw new ExtmemError('EIO', `inode ${ino}: no good copy of byte ${present.fileOffset} can be read`);
        byTarget.set(target, [...(byTarget.get(target) ?? []), { to: { region, offset, length: slot.bytes }, from }]);
      }
    }
    const endMs = performance.now() + times.copyMs;
    const ends = await Promise.allSettled(
      [...byTarget].map(async ([id, pieces]) => {
        const appliance = appliances.get(id);
        if (appliance === undefined) throw new ExtmemError('EIO', `appliance ${id} is gone`);
        await appliances.call(appliance, 'copy', await this.askFor(id, pieces), times.copyMs + 500);
      }),
    );
    const failed = ends.find((end) => end.status === 'rejected');
    if (failed !== undefined) throw failed.reason;
    if (findFile(store, ino).durability === 'persisted')
      await persistence.persistPieces(
        [...byTarget.values()].flat().map(({ to }) => to),
        { timeoutMs: Math.max(1, endMs - performance.now()) },
      );
  }

  /** Good copies, of appliances that are up. */
  private sourcesOf(extent: Extent, index: number): CopyPiece['from'] {
    const { regions, appliances } = this.parts;
    const copies = copiesOf(extent);
    const first = Math.floor(index / copies) * copies;
    return extent.members.slice(first, first + copies).flatMap(({ region, offset, missing, unsynced }) => {
      const row = regions.get(region)?.row;
      if (missing === true || unsynced === true || row === undefined || row.lost || row.stale === true) return [];
      return appliances.get(row.appliance)?.isUp === true ? [{ origin: row.appliance, region, bytes: row.bytes, offset }] : [];
    });
  }

  private async askFor(target: string, pieces: readonly CopyPiece[]): Promise<CopyAsk> {
    const { clusterKey, regions, appliances } = this.parts;
    const client = await this.copierOf(target);
    const origins = new Map<string, CopyAsk['origins'][number]>();
    const granted = pieces.map(({ to, from }) => ({
      to,
      from: from.map((source) => {
        const row = regions.get(source.region)?.row;
        const appliance = appliances.get(source.origin);
        if (row === undefined || appliance === undefined) throw new ExtmemError('EIO', `region ${source.region} is gone`);
        origins.set(source.origin, originOf(appliance, row));
        const ask = { client, generation: GENERATION, rights: Right.read, region: source.region, version: row.access ?? 0 };
        return { ...source, capability: issueCapability(clusterKey, ask) };
      }),
    }));
    const key = clientKey(clusterKey, client, GENERATION);
    return { client, generation: GENERATION, key, limitMs: times.copyMs, origins: [...origins.values()], pieces: granted };
  }

  /** One for each appliance: their connections replace each other only on purpose. */
  private async copierOf(appliance: string): Promise<number> {
    const known = this.copiers.get(appliance);
    if (known !== undefined) return known;
    const number = FIRST_COPIER + (await this.parts.store.transact((tx) => takeNumber(tx, 'copier')));
    this.copiers.set(appliance, number);
    return number;
  }

  private livesOf(pieces: readonly RegionPiece[]): Map<number, number | undefined> {
    return new Map(pieces.map(({ region }) => [region, this.parts.regions.get(region)?.row.incarnation]));
  }

  /** What was copied to is in memory that has been there all the while. */
  private checkThere(lives: ReadonlyMap<number, number | undefined>): void {
    for (const [region, life] of lives) {
      const row = this.parts.regions.get(region)?.row;
      if (row === undefined || row.lost || row.stale === true || row.incarnation !== life)
        throw new ExtmemError('EIO', `region ${region} was lost while it was being copied to`);
    }
  }
}

function originOf({ id, info }: Appliance, { incarnation }: RegionRow): { id: string; incarnation: number; endpoints: Endpoint[] } {
  return { id, incarnation, endpoints: [{ address: info.address, port: info.port }, ...(info.moreEndpoints ?? [])] };
}
