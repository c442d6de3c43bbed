/**
 * The regions: where each is, whose it is, and which of its bytes are in use; making and destroying them; rights to them.
 *
 * A region belongs to a client (provision), to one file (dedicated), or to nobody (left by a client that is gone: it is swept,
 * then adopted). `used` is derived: the pieces that records name, and those that no record names any more but that are not yet
 * zeroed. A claim is refused if any byte of it is in use, outside the region, or in a region that is not the claimant's.
 * Region ids are never used again. What an appliance has that is not in this table is destroyed with its next hello.
 *
 * Owner: the event loop. claim() and release() change memory only; they run where nothing can fail any more.
 */
import { ExtmemError } from '../base/errors.js';
import { decodeRecord, pieces } from '../base/file_record.js';
import { issueCapability } from '../base/keys.js';
import type { Logger } from '../base/logger.js';
import type { RegionGrant, RegionPiece } from '../base/messages.js';
import { Right } from '../base/protocol.js';
import type { Appliance, Appliances, RestoredRegion } from './appliances.js';
import type { Terms } from './access.js';
import type { Client } from './clients.js';
import { keys, takeNumber, type MetadataStore, type Transaction } from './metadata_store.js';
import { RangeSet } from './range_set.js';

/** As the store keeps it. client and ino are 0 where they do not apply. */
export interface RegionRow {
  readonly region: number;
  readonly bytes: number;
  readonly appliance: string;
  readonly incarnation: number;
  readonly client: number;
  readonly ino: number;
  readonly lost: boolean;
  /** It came back as it was some time ago, and files that have other copies are not yet rid of this one. */
  readonly stale?: boolean;
  /** The version of its access parameters, once it has had any. */
  readonly access?: number;
}

export class Region {
  readonly used = new RangeSet();
  /** Of `used`: named by no record any more, to be zeroed. */
  freeingBytes = 0;
  /** What its last owner may have left in unused bytes is being zeroed. */
  isSweeping = false;

  constructor(public row: RegionRow) {}

  get id(): number {
    return this.row.region;
  }
  get freeBytes(): number {
    return this.row.bytes - this.used.bytes;
  }
  get hasOwner(): boolean {
    return this.row.client !== 0 || this.row.ino !== 0;
  }
}

/** Owner of regions that are made for a file which does not have them yet. No inode has this number. */
export const UNBORN_INO = Number.MAX_SAFE_INTEGER;

export interface RegionAsk {
  appliance: string;
  bytes: number;
}

export class Regions {
  private readonly regions = new Map<number, Region>();
  private readonly reserved = new Map<string, number>();
  /** What a client may do with a file's own region. */
  termsOf: (client: Client, row: RegionRow) => Terms | undefined = () => undefined;

  constructor(
    private readonly store: MetadataStore,
    private readonly appliances: Appliances,
    private readonly clusterKey: Uint8Array,
    private readonly log: Logger,
  ) {
    for (const [, row] of store.scan<RegionRow>(keys.regions)) this.add(new Region(row));
    for (const [, bytes] of store.scan<Uint8Array>(keys.records)) this.claim(pieces(decodeRecord(bytes)));
  }

  get(id: number): Region | undefined {
    return this.regions.get(id);
  }

  all(): Iterable<Region> {
    return this.regions.values();
  }

  ofClient(client: number): Region[] {
    return [...this.regions.values()].filter((region) => region.row.client === client);
  }

  ofFile(ino: number): Region[] {
    return [...this.regions.values()].filter((region) => region.row.ino === ino);
  }

  reservedBytes(appliance: string): number {
    return this.reserved.get(appliance) ?? 0;
  }

  /** Room for new regions. */
  freeBytes(appliance: Appliance): number {
    return appliance.isUp && !appliance.isDraining ? Math.max(0, appliance.info.donatedBytes - this.reservedBytes(appliance.id)) : 0;
  }

  /** For an appliance that comes (back). */
  accessOn(appliance: string): { region: number; version: number }[] {
    return [...this.regions.values()].flatMap(({ row }) =>
      row.appliance === appliance && row.access !== undefined ? [{ region: row.region, version: row.access }] : [],
    );
  }

  /** Ids of the regions that an appliance of this incarnation holds. */
  idsOn(appliance: string, incarnation: number): number[] {
    return [...this.regions.values()]
      .filter(({ row }) => row.appliance === appliance && row.incarnation === incarnation && !row.lost)
      .map((region) => region.id);
  }

  /** The right of a client to use a region; undefined: the region is unknown, or its appliance owes a fence. */
  grant(client: Client, id: number, rights: number): RegionGrant | undefined {
    const region = this.regions.get(id);
    if (region === undefined || this.appliances.owesFences(region.row.appliance)) return undefined;
    const before = client.granted.get(id);
    const { bytes, appliance, incarnation, access: version = 0 } = region.row;
    const { rights: allowed, via, notAfter } = this.termsOf(client, region.row) ?? { rights: READ_WRITE, via: 0, notAfter: 0 };
    const all = (rights | (before?.rights ?? 0)) & allowed;
    if (all === 0) {
      client.granted.delete(id);
      return undefined;
    }
    const terms = `${version} ${via} ${notAfter}`;
    let capability = before?.capability;
    if (capability === undefined || all !== before?.rights || terms !== before.terms) {
      const ask = { client: client.id, generation: client.generation, rights: all, region: id, version, via, notAfter };
      capability = issueCapability(this.clusterKey, ask);
      client.granted.set(id, { rights: all, terms, capability });
    }
    return { region: id, bytes, appliance, incarnation, capability };
  }

  grantAll(client: Client, ids: Iterable<number>, rights: number): RegionGrant[] {
    const grants: RegionGrant[] = [];
    for (const id of ids) {
      const grant = this.grant(client, id, rights);
      if (grant !== undefined) grants.push(grant);
    }
    return grants;
  }

  /** Throws EINVAL when a record may not name these pieces. They must not overlap each other. */
  checkClaim(some: readonly RegionPiece[], by: { client: number; ino: number }): void {
    for (const { region: id, offset, length } of some) {
      const region = this.regions.get(id);
      if (region === undefined) throw new ExtmemError('EINVAL', `inode ${by.ino}: region ${id} does not exist`);
      if (region.row.ino !== by.ino && (region.row.client === 0 || region.row.client !== by.client))
        throw new ExtmemError('EINVAL', `inode ${by.ino}: region ${id} is not of client ${by.client}'s provision`);
      if (offset + length > region.row.bytes) throw new ExtmemError('EINVAL', `inode ${by.ino}: a piece ends beyond region ${id}`);
      if (region.used.overlaps(offset, length))
        throw new ExtmemError(
          'EINVAL',
          `inode ${by.ino}: bytes ${offset} to ${offset + length} of region ${id} are in use by another file`,
        );
    }
  }

  claim(some: readonly RegionPiece[]): void {
    for (const { region, offset, length } of some) this.regions.get(region)?.used.add(offset, length);
  }

  /** The pieces are zero, and free. */
  release(some: readonly RegionPiece[]): void {
    for (const { region, offset, length } of some) this.regions.get(region)?.used.remove(offset, length);
  }

  /** Makes all of them or none. */
  async create(asks: readonly RegionAsk[], owner: { client?: number; ino?: number }): Promise<Region[]> {
    const made: RegionRow[] = [];
    for (const { appliance, bytes } of asks) this.account(appliance, bytes);
    try {
      const ids = await this.store.transact((tx) => asks.map(() => takeNumber(tx, 'region')));
      const outcomes = await Promise.allSettled(
        asks.map(async ({ appliance: id, bytes }, index) => {
          const appliance = this.appliances.get(id);
          if (appliance === undefined) throw new ExtmemError('EIO', `appliance ${id} is gone`);
          const row: RegionRow = {
            region: ids[index] as number,
            bytes,
            appliance: id,
            incarnation: appliance.info.incarnation,
            client: owner.client ?? 0,
            ino: owner.ino ?? 0,
            lost: false,
          };
          made.push(row);
          await this.appliances.call(appliance, 'createRegion', { region: row.region, bytes, thin: false });
        }),
      );
      const failed = outcomes.find((outcome) => outcome.status === 'rejected');
      if (failed !== undefined) throw failed.reason;
      const stale = made.find((row) => this.appliances.get(row.appliance)?.info.incarnation !== row.incarnation);
      if (stale !== undefined) throw new ExtmemError('EIO', `appliance ${stale.appliance} restarted meanwhile`);
      const regions = made.sort((a, b) => a.region - b.region).map((row) => new Region(row));
      const durable = this.store.transact((tx) => made.forEach((row) => tx.put(keys.region(row.region), row)));
      for (const region of regions) this.add(region);
      await durable;
      return regions;
    } catch (error) {
      this.undo(made);
      throw error;
    } finally {
      for (const { appliance, bytes } of asks) this.account(appliance, -bytes);
    }
  }

  setRow(tx: Transaction, region: Region, change: Partial<RegionRow>): void {
    region.row = { ...region.row, ...change };
    tx.put(keys.region(region.id), region.row);
  }

  /** Forgets regions and has them destroyed; an appliance that is down does it at its next hello. */
  async destroy(regions: readonly Region[]): Promise<void> {
    if (regions.length === 0) return;
    const durable = this.store.transact((tx) => regions.forEach((region) => tx.remove(keys.region(region.id))));
    const byAppliance = new Map<string, number[]>();
    for (const { id, row } of regions) {
      if (!this.regions.delete(id)) continue;
      if (row.lost) continue;
      this.account(row.appliance, -row.bytes);
      byAppliance.set(row.appliance, [...(byAppliance.get(row.appliance) ?? []), id]);
    }
    await durable;
    await Promise.all([...byAppliance].map(([appliance, ids]) => this.destroyOn(appliance, ids)));
  }

  /** What an incarnation of an appliance held is gone. Answers the ids. */
  async lose(appliance: string, incarnation: number): Promise<number[]> {
    const lost = [...this.regions.values()].filter(
      ({ row }) => row.appliance === appliance && row.incarnation === incarnation && !row.lost,
    );
    const durable = this.store.transact((tx) => {
      for (const region of lost) {
        this.setRow(tx, region, { lost: true });
        this.account(appliance, -region.row.bytes);
      }
    });
    await durable;
    return lost.map((region) => region.id);
  }

  /** An appliance has begun again with what its backing store had. Answers the ids of what is gone, and of what is there as it was
   *  some time ago. */
  async restore(appliance: Appliance, before: number, restored: readonly RestoredRegion[]): Promise<{ lost: number[]; behind: number[] }> {
    const { id, info } = appliance;
    const found = new Map(restored.map((region) => [region.region, region]));
    const held = [...this.regions.values()].filter(({ row }) => row.appliance === id && row.incarnation === before && !row.lost);
    const isThere = (region: Region): boolean => found.get(region.id)?.bytes === region.row.bytes;
    const lost = held.filter((region) => !isThere(region));
    const there = held.filter(isThere);
    await this.store.transact((tx) => {
      for (const region of there) {
        const stale = found.get(region.id)?.exact !== true;
        if (stale || before !== info.incarnation) this.setRow(tx, region, { incarnation: info.incarnation, stale });
      }
      for (const region of lost) {
        this.setRow(tx, region, { lost: true });
        this.account(id, -region.row.bytes);
      }
    });
    const behind = there.filter((region) => found.get(region.id)?.exact !== true);
    return { lost: lost.map((region) => region.id), behind: behind.map((region) => region.id) };
  }

  private add(region: Region): void {
    this.regions.set(region.id, region);
    if (!region.row.lost) this.account(region.row.appliance, region.row.bytes);
  }

  private account(appliance: string, bytes: number): void {
    this.reserved.set(appliance, (this.reserved.get(appliance) ?? 0) + bytes);
  }

  private undo(made: readonly RegionRow[]): void {
    for (const { appliance, region } of made) void this.destroyOn(appliance, [region]);
  }

  private async destroyOn(id: string, regions: number[]): Promise<void> {
    const appliance = this.appliances.get(id);
    if (appliance?.isUp !== true) return;
    try {
      await this.appliances.call(appliance, 'destroyRegions', { regions });
    } catch (error) {
      this.log.warn({ appliance: id, regions, error }, 'regions could not be destroyed; the appliance does it when it registers again');
    }
  }
}

export const READ_WRITE = Right.read | Right.write;
