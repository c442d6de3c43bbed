/**
 * Room for what moves: pieces of regions that nobody else carves from meanwhile.
 *
 * What is free in these regions is zero. They are `unborn` as long as they are ours, so that a manager that starts again takes them
 * for nobody's; which they become by release(). Files that have regions of their own to stay in (access parameters) move into such.
 *
 * Owner: the event loop. carve() is synchronous: it holds what it carved, by a ticket, or has changed nothing.
 */
import { ExtmemError } from '../../base/errors.js';
import { columnsOf, copiesOf, type ExtentMember } from '../../base/file_record.js';
import { PAGE_BYTES } from '../../base/protocol.js';
import type { RegionPiece } from '../../base/messages.js';
import { isProtected } from '../access.js';
import type { Appliance, Appliances } from '../appliances.js';
import { isApart, widthOf, type Placed } from '../domains.js';
import { layoutOf, type Inode } from '../inode.js';
import type { MetadataStore, Transaction } from '../metadata_store.js';
import type { PlacementStrategy } from '../placement.js';
import type { Reclaimer, Ticket } from '../reclaim.js';
import { UNBORN_INO, type Region, type Regions } from '../regions.js';
import type { Moved, Slot } from './plan.js';

const MIB = 1024 * 1024;
const GRAIN_BYTES = 64 * 1024;
const LARGEST_REGION_BYTES = 64 * MIB;

export interface RoomParts {
  store: MetadataStore;
  regions: Regions;
  appliances: Appliances;
  reclaimer: Reclaimer;
  placement: PlacementStrategy;
}

/** Where pieces may go. */
export interface Target {
  /** This appliance and no other. */
  to?: string | undefined;
  /** Bytes that are yet to be moved, as far as is known: how large regions are made. */
  expectedBytes: number;
}

export interface Carved {
  moved: Moved[];
  ticket: Ticket;
}

/** What must be had before it can be carved. */
export interface Lack {
  /** Any of these would do, best first. */
  appliances: string[];
  bytes: number;
}

interface Gap {
  region: number;
  offset: number;
  length: number;
}

export class Room {
  private readonly ours = new Set<number>();

  constructor(private readonly parts: RoomParts) {}

  /** Pieces for all of these, in this transaction; or what lacks. Throws EDOMAIN. */
  carve(tx: Transaction, inode: Inode, slots: readonly Slot[], target: Target): Carved | Lack {
    const gaps = this.gapsFor(inode);
    const moved: Moved[] = [];
    const pieces: RegionPiece[] = [];
    for (const slot of slots) {
      const members = new Map<number, ExtentMember>();
      for (const index of slot.meant) {
        const candidates = this.candidates(inode, slot, index, members, target);
        const found = this.takeFrom(gaps, candidates, inode, slot.bytes);
        if (!('region' in found)) return found;
        members.set(index, { region: found.region, offset: found.offset });
        pieces.push(found);
      }
      moved.push({ slot, members });
    }
    this.stampAccess(tx, inode, pieces);
    this.parts.reclaimer.free(tx, pieces, { cutOf: inode.ino });
    const [ticket] = this.parts.reclaimer.ticketsOf(tx);
    if (ticket === undefined) throw new ExtmemError('EINVAL', `inode ${inode.ino}: nothing of it is to be moved`);
    return { moved, ticket };
  }

  /** Throws ENOSPC. */
  async provide(inode: Inode, { appliances: meant, bytes }: Lack, expectedBytes: number): Promise<void> {
    const { appliances } = this.parts;
    for (const id of meant) {
      const appliance = appliances.get(id);
      if (appliance === undefined) continue;
      if (!this.staysApart(inode) && (await this.adopt(id, bytes))) return;
      const room = this.freeGrains(appliance);
      if (room < bytes) continue;
      const wanted = Math.max(bytes, Math.min(LARGEST_REGION_BYTES, Math.max(MIB, expectedBytes)));
      await this.make(inode, id, Math.min(room, Math.ceil(wanted / GRAIN_BYTES) * GRAIN_BYTES));
      return;
    }
    const where =
      meant.length === 0
        ? 'no appliance that is up may have it'
        : `${meant.join(', ')} ${meant.length > 1 ? 'have' : 'has'} not so much left`;
    throw new ExtmemError(
      'ENOSPC',
      `there is no room for ${bytes} bytes of inode ${inode.ino}: ${where}; add an appliance, or delete files`,
    );
  }

  /** Nothing moves any more (to this appliance): the regions are anybody's, and go where they are empty. */
  async release(appliance?: string): Promise<void> {
    const { store, regions, reclaimer } = this.parts;
    const held = [...this.ours].flatMap((id) => regions.get(id) ?? []).filter(({ row }) => (appliance ?? row.appliance) === row.appliance);
    for (const { id } of held) this.ours.delete(id);
    await store.transact((tx) => held.forEach((region) => regions.setRow(tx, region, { ino: 0 })));
    await Promise.all(held.map((region) => reclaimer.destroyIfEmpty(region)));
  }

  /** Appliances that may have a member, best first. */
  private candidates(inode: Inode, slot: Slot, index: number, carved: ReadonlyMap<number, ExtentMember>, target: Target): string[] {
    const { appliances, regions, placement } = this.parts;
    const copies = copiesOf(slot.extent);
    const column = Math.floor(index / copies);
    const others: Placed[] = [];
    const beside = new Set<string>(); // of other columns: a stripe is to be wide
    slot.extent.members.forEach((member, at) => {
      if (at === index || (slot.meant.includes(at) && !carved.has(at)) || (member.missing === true && !carved.has(at))) return;
      const info = this.infoOf(carved.get(at)?.region ?? member.region);
      if (info === undefined) return;
      if (Math.floor(at / copies) === column) others.push(info);
      else if (columnsOf(slot.extent) > 1) beside.add(info.id);
    });
    const { across } = layoutOf(inode);
    const usable = appliances.up().filter((one) => this.isUsable(one, inode, target));
    const fit = usable.filter(({ info }) => isApart(info, others, across));
    if (fit.length === 0 && usable.length > 0 && others.length > 0)
      throw new ExtmemError(
        'EDOMAIN',
        `inode ${inode.ino}: no appliance that is up, and may have a copy, is another ${across ?? 'one'} than those of the other copies`,
      );
    const order = placement.order(fit.map(({ id }) => ({ id, freeBytes: this.roomOn(id) })));
    const widths = ['none', 'appliance', 'host', 'rack'];
    const rank = (id: string): number => {
      const info = appliances.get(id)?.info;
      const width = info === undefined || others.length === 0 || across !== undefined ? 0 : widths.indexOf(widthOf([...others, info]));
      return width * 2 + (beside.has(id) ? 0 : 1);
    };
    return order
      .filter(({ id }) => regions.freeBytes(appliances.get(id) as Appliance) > 0 || this.roomOn(id) > 0)
      .map(({ id }) => id)
      .sort((a, b) => rank(b) - rank(a));
  }

  private isUsable({ id, info }: Appliance, inode: Inode, { to }: Target): boolean {
    if (to !== undefined && id !== to) return false;
    if (!this.parts.appliances.mayPlace(id)) return false;
    return inode.durability !== 'persisted' || info.store !== undefined;
  }

  private infoOf(region: number): Placed | undefined {
    const row = this.parts.regions.get(region)?.row;
    return row === undefined || row.lost ? undefined : this.parts.appliances.get(row.appliance)?.info;
  }

  /** What could be had there, in what is ours, or anybody's. */
  private roomOn(id: string): number {
    const { regions, appliances } = this.parts;
    const appliance = appliances.get(id);
    let bytes = appliance === undefined ? 0 : regions.freeBytes(appliance);
    for (const region of regions.all())
      if (region.row.appliance === id && !region.row.lost && (this.ours.has(region.id) || isNobodys(region))) bytes += region.freeBytes;
    return bytes;
  }

  private gapsFor(inode: Inode): Gap[] {
    const { regions } = this.parts;
    const meant = this.staysApart(inode) ? regions.ofFile(inode.ino) : [...this.ours].flatMap((id) => regions.get(id) ?? []);
    return meant
      .filter(({ row }) => !row.lost)
      .flatMap((region) => region.used.gaps(region.row.bytes).map(({ offset, length }) => wholePages(region.id, offset, length)));
  }

  /** On the best that can have it: not on one that is nearer to the other copies only because there is a gap already. */
  private takeFrom(gaps: Gap[], candidates: readonly string[], inode: Inode, bytes: number): RegionPiece | Lack {
    for (const [rank, id] of candidates.entries()) {
      const gap = gaps.find(({ region, length }) => length >= bytes && this.parts.regions.get(region)?.row.appliance === id);
      if (gap === undefined && this.canProvide(id, inode, bytes)) return { appliances: candidates.slice(rank), bytes };
      if (gap === undefined) continue;
      const piece = { region: gap.region, offset: gap.offset, length: bytes };
      gap.offset += bytes;
      gap.length -= bytes;
      return piece;
    }
    return { appliances: [...candidates], bytes };
  }

  private canProvide(id: string, inode: Inode, bytes: number): boolean {
    const appliance = this.parts.appliances.get(id);
    if (appliance === undefined) return false;
    return this.freeGrains(appliance) >= bytes || (!this.staysApart(inode) && this.findAdoptable(id, bytes) !== undefined);
  }

  private freeGrains(appliance: Appliance): number {
    return Math.floor(this.parts.regions.freeBytes(appliance) / GRAIN_BYTES) * GRAIN_BYTES;
  }

  /** It has regions of its own, and does not lie beside other files. */
  private staysApart(inode: Inode): boolean {
    return isProtected(inode) || this.parts.regions.ofFile(inode.ino).length > 0;
  }

  /** A file's access parameters may have changed since its region was made. */
  private stampAccess(tx: Transaction, inode: Inode, pieces: readonly RegionPiece[]): void {
    if (!isProtected(inode) || inode.access === undefined) return;
    const { version } = inode.access;
    for (const { region: id } of pieces) {
      const region = this.parts.regions.get(id);
      if (region !== undefined && region.row.access !== version) this.parts.regions.setRow(tx, region, { access: version });
    }
  }

  /** A region of nobody's there, with room for so much. */
  private async adopt(id: string, bytes: number): Promise<boolean> {
    const { store, regions } = this.parts;
    const found = this.findAdoptable(id, bytes);
    if (found === undefined) return false;
    this.ours.add(found.id);
    await store.transact((tx) => regions.setRow(tx, found, { ino: UNBORN_INO }));
    return true;
  }

  private findAdoptable(id: string, bytes: number): Region | undefined {
    const hasRoom = (region: Region): boolean =>
      region.used.gaps(region.row.bytes).some(({ offset, length }) => wholePages(region.id, offset, length).length >= bytes);
    return [...this.parts.regions.all()].find((region) => region.row.appliance === id && isNobodys(region) && hasRoom(region));
  }

  private async make(inode: Inode, appliance: string, bytes: number): Promise<void> {
    const own = this.staysApart(inode);
    const [made] = await this.parts.regions.create([{ appliance, bytes }], { ino: own ? inode.ino : UNBORN_INO });
    if (made !== undefined && !own) this.ours.add(made.id);
  }
}

function isNobodys(region: Region): boolean {
  return !region.hasOwner && !region.isSweeping && !region.row.lost;
}

function wholePages(region: number, offset: number, length: number): Gap {
  const begin = Math.ceil(offset / PAGE_BYTES) * PAGE_BYTES;
  return { region, offset: begin, length: Math.max(0, Math.floor((offset + length) / PAGE_BYTES) * PAGE_BYTES - begin) };
}
