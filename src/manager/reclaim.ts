/**
 * What becomes of pieces of regions that no record names any more: they are zeroed on their appliance, then given back to the
 * owner of the region, or kept free for whoever adopts it. Regions of nobody with nothing in them are destroyed.
 *
 * A ticket is written in the transaction that took the pieces out of the record, and removed, for good, before anybody is told
 * that they are free: so no piece is ever zeroed after its new owner wrote to it, nor handed out before it is zero.
 * start() is called when nobody can read the pieces through an old record any more.
 *
 * Owner: the event loop.
 */
import { joinPieces } from '../base/file_record.js';
import type { Logger } from '../base/logger.js';
import type { RegionPiece } from '../base/messages.js';
import { SessionFailure } from '../base/session.js';
import type { Appliance, Appliances } from './appliances.js';
import type { Client, Clients } from './clients.js';
import { times } from './limits.js';
import { keys, takeNumber, type MetadataStore, type Transaction } from './metadata_store.js';
import { UNBORN_INO, type Region, type Regions } from './regions.js';

const PUNCH_BATCH = 2048;

interface FreedRow {
  pieces: RegionPiece[];
  /** Records of deleted files beside their first regions, which go too. */
  records: RecordPlace[];
  /** Files that were cut: their holders hear of it before the pieces are used again. */
  inos?: number[];
}

interface RecordPlace {
  region: number;
  ino: number;
}

export interface Ticket extends FreedRow {
  sequence: number;
  /** Pieces that are not yet zero. */
  left: number;
}

interface Work {
  ticket: Ticket;
  piece: RegionPiece;
}

export class Reclaimer {
  private readonly byTransaction = new WeakMap<Transaction, Ticket>();
  private readonly queues = new Map<string, Work[]>();
  private readonly running = new Set<string>();
  private readonly restored: Ticket[] = [];
  private readonly sweeps = new Set<Promise<void>>();
  private readonly idleWaiters: (() => void)[] = [];
  private unsettled = 0;

  constructor(
    private readonly store: MetadataStore,
    private readonly regions: Regions,
    private readonly appliances: Appliances,
    private readonly clients: Clients,
    private readonly log: Logger,
  ) {
    for (const [key, row] of store.scan<FreedRow>(keys.allFreed)) {
      this.hold(row.pieces);
      this.restored.push({ ...row, records: [], sequence: keys.lastNumber(key), left: row.pieces.length });
    }
  }

  /** Within a transaction that takes pieces out of a record. records: of a file that ends with this; cutOf: one that goes on. */
  free(
    tx: Transaction,
    some: readonly RegionPiece[],
    { records = [], cutOf }: { records?: readonly RecordPlace[]; cutOf?: number } = {},
  ): void {
    if (some.length === 0 && records.length === 0) return;
    let ticket = this.byTransaction.get(tx);
    if (ticket === undefined) {
      ticket = { pieces: [], records: [], inos: [], sequence: takeNumber(tx, 'freed'), left: 0 };
      this.byTransaction.set(tx, ticket);
      // The lists grow until the transaction's body ends; only then is the value packed.
      const { pieces, records, inos } = ticket;
      tx.put(keys.freed(ticket.sequence), { pieces, records, inos: inos ?? [] } satisfies FreedRow);
    }
    if (cutOf !== undefined) ticket.inos?.push(cutOf);
    ticket.pieces.push(...some);
    ticket.left += some.length;
    ticket.records.push(...records);
    this.hold(some);
  }

  /** Pieces of a ticket that was not started belong to a record from now on, of this transaction. */
  keep(tx: Transaction, ticket: Ticket): void {
    tx.remove(keys.freed(ticket.sequence));
    for (const { region: id, length } of ticket.pieces) {
      const region = this.regions.get(id);
      if (region !== undefined) region.freeingBytes -= length;
    }
  }

  /** What a transaction freed: to be started when it is durable and nobody reads there any more. */
  ticketsOf(tx: Transaction): Ticket[] {
    const ticket = this.byTransaction.get(tx);
    return ticket === undefined ? [] : [ticket];
  }

  /** Files that were cut by an earlier life of this manager, which may not have told everybody. */
  restoredCuts(): Set<number> {
    return new Set(this.restored.flatMap(({ inos }) => inos ?? []));
  }

  /** Those that an earlier life of this manager left. */
  startRestored(): void {
    this.start(this.restored.splice(0));
  }

  start(tickets: readonly Ticket[]): void {
    for (const ticket of tickets) {
      this.unsettled++;
      this.removeRecords(ticket.records);
      if (ticket.pieces.length === 0) void this.settle(ticket, []);
      const whole = this.wholeRegions(ticket.pieces);
      if (whole.length > 0) void this.destroyWhole(ticket, whole);
      for (const piece of ticket.pieces) {
        if (whole.some((region) => region.id === piece.region)) continue;
        const region = this.regions.get(piece.region);
        if (region === undefined || region.row.lost) void this.settle(ticket, [piece]);
        else this.enqueue(region.row.appliance, { ticket, piece });
      }
    }
  }

  /** An appliance came up: what waited for it goes on. */
  resume(appliance: Appliance): void {
    void this.drain(appliance.id);
  }

  /** Regions were lost: nothing of them needs to be zeroed. */
  dropLost(appliance: string): void {
    const queue = this.queues.get(appliance) ?? [];
    const isLost = ({ piece }: Work): boolean => this.regions.get(piece.region)?.row.lost !== false;
    this.queues.set(
      appliance,
      queue.filter((work) => !isLost(work)),
    );
    for (const { ticket, piece } of queue.filter(isLost)) void this.settle(ticket, [piece]);
  }

  /** Resolves when everything started so far is free, or waits for an appliance that is down. */
  async idle(): Promise<void> {
    if (this.unsettled > 0) await new Promise<void>((resolve) => this.idleWaiters.push(resolve));
  }

  /** A region whose owner is gone: all that is not in use is zeroed, whatever was left there; then it is nobody's. */
  sweep(region: Region): Promise<void> {
    if (region.isSweeping) return Promise.resolve();
    region.isSweeping = true;
    const sweep: Promise<void> = this.sweepNow(region).finally(() => this.sweeps.delete(sweep));
    this.sweeps.add(sweep);
    return sweep;
  }

  /** Resolves when one of the sweeps under way has ended; false: there is none. */
  async oneSwept(): Promise<boolean> {
    if (this.sweeps.size === 0) return false;
    await Promise.race(this.sweeps);
    return true;
  }

  private async sweepNow(region: Region): Promise<void> {
    const appliance = this.appliances.get(region.row.appliance);
    try {
      if (!region.row.lost) {
        if (appliance?.isUp !== true) return; // again when it is up
        const gaps = region.used.gaps(region.row.bytes).map((gap) => ({ region: region.id, ...gap }));
        if (region.used.bytes > 0) {
          for (let at = 0; at < gaps.length; at += PUNCH_BATCH)
            await this.appliances.call(appliance, 'punch', { pieces: gaps.slice(at, at + PUNCH_BATCH) });
        }
      }
      await this.store.transact((tx) => this.regions.setRow(tx, region, { client: 0 }));
    } catch (error) {
      this.log.warn({ region: region.id, error }, 'sweeping a region failed; it is tried again when its appliance registers');
      return;
    } finally {
      region.isSweeping = false;
    }
    await this.destroyIfEmpty(region);
  }

  /** A region of nobody, or of a file that was cut, with nothing in it goes. */
  async destroyIfEmpty(region: Region): Promise<void> {
    const { client, ino } = region.row;
    if (client !== 0 || ino === UNBORN_INO || region.used.bytes > 0 || region.isSweeping || this.regions.get(region.id) !== region) return;
    try {
      await this.regions.destroy([region]);
    } catch (error) {
      this.log.error({ region: region.id, error }, 'an empty region could not be destroyed');
    }
  }

  /** Tells a client which pieces of its provision are free; what it could not be told waits for its return. */
  async tellFreed(client: Client): Promise<void> {
    if (client.tellingFreed) return;
    client.tellingFreed = true;
    try {
      while (client.freed.length > 0 && client.isConnected) {
        // Told twice would be worse than lost: a region's owner would give the same bytes out twice.
        const told = client.freed.splice(0, PUNCH_BATCH);
        const outcome = await this.clients.tell(client, 'freed', { pieces: told }, { limitMs: times.leaseMs });
        if (outcome.status !== 'answered')
          this.log.warn(
            { client: client.id, pieces: told.length },
            'a client did not hear of free pieces; they are free again when it unmounts',
          );
      }
    } finally {
      client.tellingFreed = false;
    }
  }

  private hold(some: readonly RegionPiece[]): void {
    for (const piece of some) {
      const region = this.regions.get(piece.region);
      if (region === undefined) continue;
      region.used.add(piece.offset, piece.length);
      region.freeingBytes += piece.length;
    }
  }

  /** Regions of nobody in which all that is left is this ticket's. */
  private wholeRegions(some: readonly RegionPiece[]): Region[] {
    const bytes = new Map<number, number>();
    for (const piece of some) bytes.set(piece.region, (bytes.get(piece.region) ?? 0) + piece.length);
    const whole: Region[] = [];
    for (const [id, freed] of bytes) {
      const region = this.regions.get(id);
      if (region !== undefined && !region.hasOwner && !region.isSweeping && region.used.bytes === freed) whole.push(region);
    }
    return whole;
  }

  private async destroyWhole(ticket: Ticket, whole: Region[]): Promise<void> {
    try {
      await this.regions.destroy(whole);
    } catch (error) {
      this.log.error({ error }, 'regions could not be destroyed');
    }
    await this.settle(
      ticket,
      ticket.pieces.filter((piece) => whole.some((region) => region.id === piece.region)),
    );
  }

  private enqueue(appliance: string, work: Work): void {
    const queue = this.queues.get(appliance);
    if (queue === undefined) this.queues.set(appliance, [work]);
    else queue.push(work);
    void this.drain(appliance);
  }

  private async drain(id: string): Promise<void> {
    const appliance = this.appliances.get(id);
    if (appliance === undefined || this.running.has(id)) return;
    this.running.add(id);
    await Promise.resolve(); // what else is freed in this turn goes along
    try {
      for (let queue = this.queues.get(id); queue !== undefined && queue.length > 0 && appliance.isUp; queue = this.queues.get(id)) {
        const batch = queue.slice(0, PUNCH_BATCH);
        await this.punch(appliance, batch);
        const done = new Set(batch);
        this.queues.set(
          id,
          (this.queues.get(id) ?? []).filter((work) => !done.has(work)),
        );
        const byTicket = new Map<Ticket, RegionPiece[]>();
        for (const { ticket, piece } of batch) {
          const some = byTicket.get(ticket);
          if (some === undefined) byTicket.set(ticket, [piece]);
          else some.push(piece);
        }
        await Promise.all([...byTicket].map(([ticket, some]) => this.settle(ticket, some)));
      }
    } catch (error) {
      if (!(error instanceof SessionFailure))
        this.log.error({ appliance: id, error }, 'zeroing freed pieces failed; it is tried again when the appliance registers');
    } finally {
      this.running.delete(id);
    }
  }

  private async punch(appliance: Appliance, batch: readonly Work[]): Promise<void> {
    const wanted = batch.map((work) => work.piece).filter((piece) => this.regions.get(piece.region)?.row.lost === false);
    // Files written one after the other lie side by side.
    if (wanted.length > 0) await this.appliances.call(appliance, 'punch', { pieces: joinPieces(wanted) });
  }

  private removeRecords(records: readonly RecordPlace[]): void {
    const byAppliance = new Map<string, RecordPlace[]>();
    for (const record of records) {
      const id = this.regions.get(record.region)?.row.appliance;
      if (id === undefined) continue;
      const there = byAppliance.get(id);
      if (there === undefined) byAppliance.set(id, [record]);
      else there.push(record);
    }
    for (const [id, there] of byAppliance) {
      const appliance = this.appliances.get(id);
      if (appliance?.isUp !== true) continue;
      this.appliances.call(appliance, 'removeRecords', { records: there }).catch((error: unknown) => {
        // A record that stays behind names an inode that will never exist again.
        this.log.debug({ appliance: id, records: there.length, error }, 'records stay beside their regions');
      });
    }
  }

  private async settle(ticket: Ticket, some: readonly RegionPiece[]): Promise<void> {
    ticket.left -= some.length;
    if (ticket.left > 0) return;
    try {
      await this.store.transact((tx) => tx.remove(keys.freed(ticket.sequence)));
    } catch {
      return; // the store is gone, and the manager with it
    }
    this.regions.release(ticket.pieces);
    const owners = new Set<Client>();
    for (const piece of ticket.pieces) {
      const region = this.regions.get(piece.region);
      if (region === undefined) continue;
      region.freeingBytes -= piece.length;
      const owner = this.clients.get(region.row.client);
      if (owner !== undefined && owner.state === 'live' && !region.row.lost) {
        owner.freed.push(piece);
        owners.add(owner);
      } else if (region.row.client === 0) void this.destroyIfEmpty(region);
    }
    for (const owner of owners) void this.tellFreed(owner);
    this.unsettled--;
    if (this.unsettled === 0) for (const resolve of this.idleWaiters.splice(0)) resolve();
  }
}
