/**
 * Which appliances and regions native knows. A record may name regions that this client was never granted (another client
 * carved them); before native gets such a record it gets the regions, else their pages would be EIO.
 */
import type { ApplianceInfo, RegionGrant } from '../base/messages.js';
import {
  decodeCapability,
  decodeExtentHeader,
  decodeExtentMember,
  decodeRecordHeader,
  ExtentHeaderBytes,
  ExtentMemberBytes,
  MemberFlag,
  RecordHeaderBytes,
  Right,
} from '../base/protocol.js';
import type { NativeMount } from '../binding/index.js';
import type { Manager } from './manager.js';

/** A mount is provisioned on so many appliances without having run short. */
const SPREAD = 16;

export class KnownRegions {
  /** Where each region is, of which life of that appliance, and whether we may write to it. */
  private readonly known = new Map<number, { appliance: string; incarnation: number; writable: boolean }>();
  /** Regions that we carve files from. */
  private readonly provision = new Set<number>();
  private readonly up = new Set<string>();
  private readonly draining = new Set<string>();
  /** Appliances that native knows, and those that have been down for as long as this mount has known them. */
  private readonly placed = new Set<string>();
  private readonly away = new Set<string>();
  /** An appliance came back with an earlier state of these. */
  onBehind: (regions: ReadonlySet<number>) => void = () => undefined;

  constructor(
    private readonly manager: Manager,
    private readonly native: NativeMount,
  ) {}

  putAppliances(appliances: readonly ApplianceInfo[]): void {
    this.up.clear();
    this.draining.clear();
    for (const { id, draining } of appliances) if (draining === true) this.draining.add(id);
    for (const { id, hostId, rack = '', address, port, linkName, incarnation, verbs, state, store, moreEndpoints = [] } of appliances) {
      // One that is down keeps its last address: native finds out by itself, and it may come back there.
      if (state !== 'up' && !this.placed.has(id)) this.away.add(id);
      if (state !== 'up') continue;
      this.away.delete(id);
      this.up.add(id);
      this.placed.add(id);
      this.native.putAppliance({ id, hostId, rack, address, port, moreEndpoints, linkName, incarnation, verbs: verbs === true });
      const gone = [...this.known].filter(([, where]) => where.appliance === id && where.incarnation !== incarnation);
      this.lose(gone.map(([region]) => region));
      if (store !== undefined && gone.length > 0) this.onBehind(new Set(gone.map(([region]) => region)));
    }
  }

  put(grants: readonly RegionGrant[]): void {
    for (const { region, bytes, appliance, incarnation, capability } of grants) {
      if (this.away.has(appliance)) continue; // what has copies is read elsewhere
      this.native.putRegion({ region, bytes, appliance, capability });
      const view = new DataView(capability.buffer, capability.byteOffset, capability.byteLength);
      const writable = (decodeCapability(view, 0).rights & Right.write) !== 0;
      this.known.set(region, { appliance, incarnation, writable });
    }
  }

  /** Regions to carve files from. */
  putProvision(grants: readonly RegionGrant[]): void {
    this.put(grants);
    for (const { region, used } of grants) {
      this.native.addProvision(region, used ?? []);
      this.provision.add(region);
    }
  }

  /** What was carved there stays, and is committed as ever. */
  retire(regions: readonly number[]): void {
    for (const region of regions) {
      this.provision.delete(region);
      this.native.removeProvision(region);
    }
  }

  /** Appliances that are up and on which nothing is provisioned to us: they joined, or were started again. At most so many that files spread well. */
  unprovisioned(): string[] {
    const provisioned = new Set([...this.provision].map((region) => this.known.get(region)?.appliance));
    const lacking = [...this.up].filter((id) => !provisioned.has(id) && !this.draining.has(id));
    return lacking.slice(0, Math.max(0, SPREAD - provisioned.size));
  }

  lose(regions: readonly number[]): void {
    for (const region of regions) {
      this.known.delete(region);
      this.provision.delete(region);
    }
    if (regions.length > 0) this.native.loseRegions([...regions]);
  }

  /** We were fenced: nothing is granted to us any more. */
  clear(): void {
    this.known.clear();
    this.provision.clear();
  }

  /** Asks the manager for what the record names and native does not have yet, or may only read while the file is `forWriting`. */
  async fetchFor(record: Uint8Array, forWriting: boolean): Promise<void> {
    const regions = this.lackingIn(record, forWriting);
    if (regions.length > 0) this.put((await this.manager.ask('regions', { regions })).regions);
  }

  private lackingIn(record: Uint8Array, forWriting: boolean): number[] {
    return [...regionsIn(record)].filter((region) => {
      const known = this.known.get(region);
      return known === undefined || (forWriting && !known.writable);
    });
  }
}

/** The regions that a file's record names, but for copies that do not count. */
export function regionsIn(record: Uint8Array): Set<number> {
  const regions = new Set<number>();
  const view = new DataView(record.buffer, record.byteOffset, record.byteLength);
  let at = RecordHeaderBytes;
  for (let left = decodeRecordHeader(view, 0).extentCount; left > 0; left -= 1) {
    const { memberCount } = decodeExtentHeader(view, at);
    at += ExtentHeaderBytes;
    for (let member = 0; member < memberCount; member += 1, at += ExtentMemberBytes) {
      const { region, offset } = decodeExtentMember(view, at);
      if ((offset & BigInt(MemberFlag.missing)) === 0n) regions.add(Number(region));
    }
  }
  return regions;
}
