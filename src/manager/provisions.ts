/**
 * Provisions (B12): regions of a client's own, from which it carves files by itself.
 *
 * First what clients that are gone have left is adopted, then regions are made on the appliances that are up: of SLAB_REGION_BYTES
 * or more each while there is plenty, of whatever is left (down to 64 KiB) when there is not. Memory is taken in full (thick),
 * so that what a client was given never turns out to be missing. ENOSPC only when there is nothing at all.
 */
import { ExtmemError } from '../base/errors.js';
import type { Logger } from '../base/logger.js';
import type { RegionGrant } from '../base/messages.js';
import { SLAB_REGION_BYTES } from '../base/protocol.js';
import type { Appliances } from './appliances.js';
import type { Client, Clients } from './clients.js';
import type { Fencing } from './fencing.js';
import { limits, times } from './limits.js';
import type { MetadataStore } from './metadata_store.js';
import type { PlacementStrategy } from './placement.js';
import type { Reclaimer } from './reclaim.js';
import { READ_WRITE, type Region, type RegionAsk, type Regions } from './regions.js';

const MIB = 1024 * 1024;
const SMALLEST_REGION_BYTES = 64 * 1024;

export interface ProvisionParts {
  store: MetadataStore;
  regions: Regions;
  appliances: Appliances;
  clients: Clients;
  fencing: Fencing;
  reclaimer: Reclaimer;
  placement: PlacementStrategy;
  log: Logger;
}

export class Provisions {
  constructor(private readonly parts: ProvisionParts) {}

  /** `only`: these appliances, or none. */
  async provision(client: Client, bytes: number, only?: readonly string[]): Promise<RegionGrant[]> {
    if (bytes < 1) throw new ExtmemError('EINVAL', 'a provision of no bytes was asked for');
    await this.parts.fencing.fenceOverdue();
    const adopted = await this.adopt(client, bytes, only);
    const missing = bytes - sumOf(adopted, (region) => region.freeBytes);
    const made = missing > 0 ? await this.make(client, missing, adopted, only) : [];
    const regions = [...adopted, ...made].filter((region) => this.isStillFit(region));
    if (client.state !== 'live') {
      for (const region of regions) void this.parts.reclaimer.sweep(region);
      throw new ExtmemError('EIO', `client ${client.id} was fenced`);
    }
    if (regions.length > 0) return this.grants(client, regions);
    // The memory of clients that may be dead: their leases end soon.
    if (only === undefined && (await this.waitForOverdue())) return this.provision(client, bytes);
    throw new ExtmemError('ENOSPC', 'no appliance has memory left; add an appliance, or delete files');
  }

  /** Its appliance may have begun to be drained meanwhile. */
  private isStillFit(region: Region): boolean {
    if (this.parts.appliances.get(region.row.appliance)?.isDraining !== true) return true;
    void this.parts.reclaimer.sweep(region);
    return false;
  }

  private grants(client: Client, regions: readonly Region[]): RegionGrant[] {
    // What came free in an adopted region since, and waits to be told, is not in `used` any more: it is told by that, once.
    const adopted = new Set(regions.map(({ id }) => id));
    client.freed = client.freed.filter((piece) => !adopted.has(piece.region));
    const grants: RegionGrant[] = [];
    for (const region of regions) {
      const grant = this.parts.regions.grant(client, region.id, READ_WRITE);
      if (grant !== undefined) grants.push({ ...grant, used: region.used.list() });
    }
    return grants;
  }

  /** Regions of nobody with room in them, until there is enough. */
  private async adopt(client: Client, bytes: number, only: readonly string[] | undefined): Promise<Region[]> {
    const { regions, appliances, store } = this.parts;
    const isFit = (region: Region): boolean =>
      only?.includes(region.row.appliance) !== false &&
      !region.hasOwner &&
      !region.isSweeping &&
      !region.row.lost &&
      region.freeBytes > 0 &&
      appliances.get(region.row.appliance)?.isUp === true &&
      appliances.mayPlace(region.row.appliance);
    const adopted: Region[] = [];
    let room = 0;
    await store.transact((tx) => {
      for (const region of regions.all()) {
        if (room >= bytes) break;
        if (!isFit(region)) continue;
        regions.setRow(tx, region, { client: client.id });
        room += region.freeBytes;
        adopted.push(region);
      }
    });
    return adopted;
  }

  /** New regions on every appliance with room, except where enough was adopted. */
  private async make(client: Client, bytes: number, adopted: readonly Region[], only: readonly string[] | undefined): Promise<Region[]> {
    const { regions, appliances, placement } = this.parts;
    const full = new Set<string>();
    const isFit = (id: string): boolean => only?.includes(id) !== false && !full.has(id) && appliances.mayPlace(id);
    const made: Region[] = [];
    const order = (): { id: string; freeBytes: number }[] =>
      placement
        .order(
          appliances
            .up()
            .filter(({ id }) => isFit(id))
            .map((one) => ({ id: one.id, freeBytes: regions.freeBytes(one) })),
        )
        .filter((candidate) => candidate.freeBytes >= SMALLEST_REGION_BYTES);
    for (let room = 0; room < bytes;) {
      const candidates = order().slice(0, limits.provisionSpread);
      if (candidates.length === 0) break;
      const size = this.sizeFor(bytes - room, candidates.length);
      const asks = this.asksFor(candidates, size, adopted);
      const outcomes = await Promise.allSettled(asks.map((ask) => regions.create([ask], { client: client.id })));
      outcomes.forEach((outcome, index) => {
        const ask = asks[index] as RegionAsk;
        if (outcome.status === 'fulfilled') {
          made.push(...outcome.value);
          room += ask.bytes;
          return;
        }
        full.add(ask.appliance); // not to be asked again for this request
        this.parts.log.warn(
          { appliance: ask.appliance, bytes: ask.bytes, error: outcome.reason as unknown },
          'an appliance refused a region',
        );
      });
    }
    return made;
  }

  /** One slab region each, or larger ones for a large wish while the pool has much more than that. */
  private sizeFor(bytes: number, count: number): number {
    const { regions, appliances } = this.parts;
    const free = sumOf(appliances.up(), (one) => regions.freeBytes(one));
    let size = SLAB_REGION_BYTES;
    while (size * count < bytes && size < limits.largestProvisionRegionBytes && size * 2 * count <= free / 8) size *= 2;
    return size;
  }

  private asksFor(candidates: readonly { id: string; freeBytes: number }[], size: number, adopted: readonly Region[]): RegionAsk[] {
    const adoptedOn = (id: string): number =>
      sumOf(
        adopted.filter((region) => region.row.appliance === id),
        (region) => region.freeBytes,
      );
    const lacking = candidates.filter(({ id }) => adoptedOn(id) < size);
    return (lacking.length > 0 ? lacking : candidates).map(({ id, freeBytes }) => ({
      appliance: id,
      bytes: freeBytes >= size ? size : roundDown(freeBytes),
    }));
  }

  /** False: nobody is away whose memory could come free. */
  private async waitForOverdue(): Promise<boolean> {
    const { clients, regions } = this.parts;
    const away = [...clients.all()].filter(
      (client) => client.state === 'live' && !client.isConnected && regions.ofClient(client.id).length > 0,
    );
    if (away.length === 0) return this.parts.reclaimer.oneSwept();
    await Promise.all(away.map((client) => client.waitForPresence(Math.min(times.leaseMs, client.leaseLeftMs))));
    await this.parts.fencing.fenceOverdue('silent');
    return away.some((client) => !client.isConnected);
  }
}

function roundDown(bytes: number): number {
  return bytes >= MIB ? Math.floor(bytes / MIB) * MIB : Math.floor(bytes / SMALLEST_REGION_BYTES) * SMALLEST_REGION_BYTES;
}

function sumOf<T>(items: readonly T[], bytesOf: (item: T) => number): number {
  return items.reduce((sum, item) => sum + bytesOf(item), 0);
}
