/**
 * Room for files that lie in regions of their own: their mounts have none to carve them from, so that holes are filled here, from
 * what is free in the file's regions, and then from a new one.
 *
 * One at a time per file, apart from the file's turns: whoever is being recalled may need room in order to write back.
 */
import { ExtmemError } from '../base/errors.js';
import type { Extent } from '../base/file_record.js';
import { hasCopies } from '../base/layout.js';
import { PAGE_BYTES } from '../base/protocol.js';
import type { Appliances } from './appliances.js';
import { roundUpToPages, type Files } from './files.js';
import { findFile, layoutOf, type Inode } from './inode.js';
import { KeyedMutex } from './keyed_mutex.js';
import type { MetadataStore, Transaction } from './metadata_store.js';
import type { PlacementStrategy } from './placement.js';
import type { Regions } from './regions.js';

const MIB = 1024 * 1024;
const SMALLEST_REGION_BYTES = MIB;
const LARGEST_REGION_BYTES = 64 * MIB;
const ROUNDS = 8;

export interface OwnRoomParts {
  store: MetadataStore;
  files: Files;
  regions: Regions;
  appliances: Appliances;
  placement: PlacementStrategy;
}

interface Range {
  offset: number;
  length: number;
}

export class OwnRoom {
  private readonly growing = new KeyedMutex();

  constructor(private readonly parts: OwnRoomParts) {}

  /** Every hole in the range is filled. `before`: in the first transaction. Throws ENOSPC. */
  fill(ino: number, asked: Range, before: (tx: Transaction) => void): Promise<Inode> {
    const begin = Math.floor(asked.offset / PAGE_BYTES) * PAGE_BYTES;
    const inode = findFile(this.parts.store, ino);
    if (hasCopies(layoutOf(inode).layout))
      throw new ExtmemError(
        'EOPNOTSUPP',
        `inode ${ino} has copies and access parameters: make it longer with extmem resize; its holes are not filled`,
      );
    const range = { offset: begin, length: roundUpToPages(asked.offset + asked.length) - begin };
    return this.growing.run(ino, async () => {
      await this.parts.store.transact(before);
      for (let round = 0; round < ROUNDS; round++) {
        const { inode, missing } = await this.parts.store.transact((tx) => this.fillFromFree(tx, findFile(tx, ino), range));
        if (missing === 0) return inode;
        await this.addRegion(inode, missing);
      }
      throw new ExtmemError('ENOSPC', `inode ${ino}: ${range.length} bytes could not be found in pieces that are large enough`);
    });
  }

  private fillFromFree(tx: Transaction, inode: Inode, range: Range): { inode: Inode; missing: number } {
    const { files, regions } = this.parts;
    const holes = holesIn(files.extents(tx, inode.ino), range);
    const free = regions
      .ofFile(inode.ino)
      .filter(({ row }) => !row.lost)
      .flatMap((region) => region.used.gaps(region.row.bytes).map((gap) => ({ region: region.id, ...gap })))
      .map(({ region, offset, length }) => wholePages(region, offset, length))
      .filter(({ length }) => length > 0);
    const extents: Extent[] = [];
    let missing = 0;
    for (const hole of holes) {
      let { offset, length } = hole;
      while (length > 0) {
        const gap = free.find((one) => one.length >= length) ?? free[0];
        if (gap === undefined) break;
        const taken = Math.min(gap.length, length);
        extents.push({ fileOffset: offset, length: taken, unit: taken, members: [{ region: gap.region, offset: gap.offset }] });
        offset += taken;
        length -= taken;
        gap.offset += taken;
        gap.length -= taken;
        if (gap.length === 0) free.splice(free.indexOf(gap), 1);
      }
      missing += length;
    }
    return { inode: extents.length === 0 ? inode : files.fill(tx, inode, extents), missing };
  }

  /** As large as is missing, and more of it the larger the file is. */
  private async addRegion(inode: Inode, missing: number): Promise<void> {
    const { regions, appliances, placement, store } = this.parts;
    const [best] = placement.order(
      appliances
        .up()
        .filter((one) => appliances.mayPlace(one.id))
        .map((one) => ({ id: one.id, freeBytes: regions.freeBytes(one) })),
    );
    const room = Math.floor((best?.freeBytes ?? 0) / PAGE_BYTES) * PAGE_BYTES;
    if (best === undefined || room < PAGE_BYTES)
      throw new ExtmemError('ENOSPC', `inode ${inode.ino}: no appliance has memory left; add an appliance, or delete files`);
    const wanted = Math.max(missing, SMALLEST_REGION_BYTES, Math.min(LARGEST_REGION_BYTES, Math.floor((inode.blocks * 512) / 8)));
    const [made] = await regions.create([{ appliance: best.id, bytes: Math.min(room, roundUpToPages(wanted)) }], { ino: inode.ino });
    const version = findFile(store, inode.ino).access?.version;
    if (made !== undefined && version !== undefined) await store.transact((tx) => regions.setRow(tx, made, { access: version }));
  }
}

function wholePages(region: number, offset: number, length: number): { region: number; offset: number; length: number } {
  const begin = roundUpToPages(offset);
  const end = Math.floor((offset + length) / PAGE_BYTES) * PAGE_BYTES;
  return { region, offset: begin, length: Math.max(0, end - begin) };
}

function holesIn(extents: readonly Extent[], { offset, length }: Range): Range[] {
  const holes: Range[] = [];
  let at = offset;
  for (const extent of extents) {
    if (extent.fileOffset >= offset + length) break;
    if (extent.fileOffset > at) holes.push({ offset: at, length: extent.fileOffset - at });
    at = Math.max(at, extent.fileOffset + extent.length);
  }
  if (at < offset + length) holes.push({ offset: at, length: offset + length - at });
  return holes;
}
