/**
 * What files consist of: records are taken from their writers, cut, extended, and end with their inode.
 *
 * Invariants: every piece that a stored record names is claimed in `regions`, by that record alone; `blocks` of the inode are the
 * bytes of those pieces; `epoch` of the inode grows whenever something else than the write delegation's holder changed the
 * extents, so that a record made before is refused.
 * Every method runs within a transaction's body. It checks first, then writes, and changes memory last: it throws before that
 * or not at all.
 */
import { now } from '../base/clock.js';
import { ExtmemError } from '../base/errors.js';
import {
  allocatedBytes,
  columnMembers,
  columnsOf,
  copiesOf,
  cutExtents,
  decodeRecord,
  encodeRecord,
  extentPieces,
  joinPieces,
  mergeExtents,
  pieces,
  sameExtents,
  shiftExtents,
  subtractPieces,
  type Extent,
  type FileRecord,
} from '../base/file_record.js';
import { hasCopies } from '../base/layout.js';
import { carryMarks } from '../base/marks.js';
import type { RegionPiece, Time } from '../base/messages.js';
import { PAGE_BYTES } from '../base/protocol.js';
import { isProtected } from './access.js';
import { acceptsEpoch, layoutOf, recordHeader, type Inode } from './inode.js';
import { limits } from './limits.js';
import { keys, type ReadView, type Transaction } from './metadata_store.js';
import { putInode } from './names.js';
import type { Reclaimer } from './reclaim.js';
import type { Region, Regions } from './regions.js';

const BLOCK_BYTES = 512;
const NOBODY = 0;

export class Files {
  /** A record has come whose copies do not all count. */
  onMissing: () => void = () => undefined;

  constructor(
    private readonly regions: Regions,
    private readonly reclaimer: Reclaimer,
  ) {}

  /** A record from the holder of the write delegation becomes the file's. Throws ESTALE, EINVAL, EFBIG. */
  commit(tx: Transaction, inode: Inode, bytes: Uint8Array, client: number): Inode {
    const decoded = decodeRecord(bytes);
    const record = this.withMarks(tx, inode, decoded);
    if (record.ino !== inode.ino) throw new ExtmemError('EINVAL', `a record of inode ${record.ino} cannot be that of inode ${inode.ino}`);
    if (!acceptsEpoch(inode, record.epoch))
      throw new ExtmemError(
        'ESTALE',
        `inode ${inode.ino}: its extents were changed since this record (epoch ${record.epoch}, now ${inode.epoch})`,
      );
    if (record.size > limits.fileBytes)
      throw new ExtmemError('EFBIG', `inode ${inode.ino}: ${record.size} bytes are more than a file can have`);
    const stored = tx.get<Uint8Array>(keys.record(inode.ino));
    const encoded = record === decoded ? bytes : encodeRecord(record);
    const extentsChanged = stored === undefined ? record.extents.length > 0 : !sameExtents(stored, encoded);
    const sizeChanged = record.size !== inode.size || !isSameTime(record.mtime, inode.mtime);
    if (!extentsChanged && !sizeChanged && record.change <= inode.change) return inode;
    const next: Inode = {
      ...inode,
      size: record.size,
      mtime: record.mtime,
      ctime: laterOf(inode.ctime, record.ctime),
      change: record.change > inode.change ? record.change : inode.change + 1,
      blocks: extentsChanged ? allocatedBytes(record) / BLOCK_BYTES : inode.blocks,
    };
    // What is protected does not lie beside other files: no slab of a client's is taken for it.
    if (extentsChanged) this.replaceExtents(tx, stored, encoded, record, isProtected(inode) ? NOBODY : client);
    putInode(tx, next);
    return next;
  }

  /** Frees what lies in [offset, offset + length), whole pages of it; with `size`, the file's size is set too. */
  cut(tx: Transaction, inode: Inode, range: { offset: number; length: number }, size?: number): Inode {
    if (size !== undefined && size > limits.fileBytes)
      throw new ExtmemError('EFBIG', `inode ${inode.ino}: ${size} bytes are more than a file can have`);
    const at = now();
    let next: Inode = { ...inode, mtime: at, ctime: at, change: inode.change + 1, ...(size === undefined ? {} : { size }) };
    const stored = tx.get<Uint8Array>(keys.record(inode.ino));
    if (stored !== undefined) {
      const { record, freed } = cutExtents(decodeRecord(stored), range.offset, range.length);
      if (freed.length > 0) {
        next = { ...next, blocks: allocatedBytes(record) / BLOCK_BYTES };
        this.putRecord(tx, { ...recordHeader(next), extents: record.extents });
        this.reclaimer.free(tx, freed, { cutOf: inode.ino });
      }
    }
    // Also where nothing was freed: a record made before must not bring the old size back.
    next = { ...next, epoch: inode.epoch + 1 };
    putInode(tx, next);
    return next;
  }

  /** A range goes or comes within the file, and what follows it moves. Throws EINVAL, EFBIG. */
  shift(tx: Transaction, inode: Inode, how: 'collapse' | 'insert', { offset, length }: { offset: number; length: number }): Inode {
    if (offset % PAGE_BYTES !== 0 || length % PAGE_BYTES !== 0 || length === 0)
      throw new ExtmemError('EINVAL', `inode ${inode.ino}: whole pages of ${PAGE_BYTES} bytes are taken out or put in`);
    if (hasCopies(layoutOf(inode).layout))
      throw new ExtmemError('EOPNOTSUPP', `inode ${inode.ino} has copies, of which it is kept which count, by offset: nothing of it moves`);
    const end = how === 'collapse' ? offset + length : offset;
    if (end >= inode.size)
      throw new ExtmemError('EINVAL', `inode ${inode.ino}: nothing follows byte ${end} that could move; change its size instead`);
    const size = inode.size + (how === 'collapse' ? -length : length);
    if (size > limits.fileBytes) throw new ExtmemError('EFBIG', `inode ${inode.ino}: ${size} bytes are more than a file can have`);
    const at = now();
    let next: Inode = { ...inode, size, mtime: at, ctime: at, change: inode.change + 1, epoch: inode.epoch + 1 };
    const stored = tx.get<Uint8Array>(keys.record(inode.ino));
    if (stored !== undefined) {
      const { record, freed } = shiftExtents(decodeRecord(stored), how, offset, length);
      next = { ...next, blocks: allocatedBytes(record) / BLOCK_BYTES };
      this.putRecord(tx, { ...recordHeader(next), extents: record.extents });
      this.reclaimer.free(tx, freed, { cutOf: inode.ino });
    }
    putInode(tx, next);
    return next;
  }

  /** Whole pages behind the end hold what somebody wrote who did not live to tell of it. The end's own page is zeroed by whoever
   *  makes the file longer. */
  cutBeyondEnd(tx: Transaction, inode: Inode): Inode {
    const stored = tx.get<Uint8Array>(keys.record(inode.ino));
    if (stored === undefined) return inode;
    const { record, freed } = cutExtents(decodeRecord(stored), inode.size, Infinity);
    if (freed.length === 0) return inode;
    const next: Inode = { ...inode, change: inode.change + 1, epoch: inode.epoch + 1, blocks: allocatedBytes(record) / BLOCK_BYTES };
    this.putRecord(tx, { ...recordHeader(next), extents: record.extents });
    this.reclaimer.free(tx, freed, { cutOf: inode.ino });
    putInode(tx, next);
    return next;
  }

  /** Shared mode: extents proposed for holes. Answers the pieces that were not taken. */
  extend(tx: Transaction, inode: Inode, bytes: Uint8Array, client: number): { inode: Inode; unused: RegionPiece[] } {
    const proposed = decodeRecord(bytes);
    if (proposed.ino !== inode.ino)
      throw new ExtmemError('EINVAL', `a record of inode ${proposed.ino} was proposed for inode ${inode.ino}`);
    const stored = tx.get<Uint8Array>(keys.record(inode.ino));
    const current: FileRecord = { ...recordHeader(inode), extents: stored === undefined ? [] : decodeRecord(stored).extents };
    // Made before a truncation: nothing of it can be taken. What is the caller's own and in no file goes back to it.
    if (!acceptsEpoch(inode, proposed.epoch))
      return { inode, unused: this.unclaimed(subtractPieces(pieces(proposed), pieces(current)), client) };
    const { record, added, unused } = mergeExtents(current, proposed);
    if (added.length === 0) return { inode, unused };
    const taken = checkedPieces(added, inode.ino);
    this.regions.checkClaim(taken, { client: isProtected(inode) ? NOBODY : client, ino: inode.ino });
    const next: Inode = { ...inode, blocks: allocatedBytes(record) / BLOCK_BYTES, ctime: now(), change: inode.change + 1 };
    this.putRecord(tx, { ...record, ...recordHeader(next) });
    putInode(tx, next);
    this.regions.claim(taken);
    return { inode: next, unused };
  }

  /** Members are marked, or no more; the pieces stay. Answers the same inode when nothing changes. */
  mark(tx: Transaction, inode: Inode, change: (extents: Extent[]) => Extent[]): Inode {
    const before = this.extents(tx, inode.ino);
    const after = change(before);
    if (after === before) return inode;
    const epoch = inode.epoch + 1;
    const since = inode.marked?.to === inode.epoch ? inode.marked.since : inode.epoch;
    const next: Inode = { ...inode, change: inode.change + 1, epoch, marked: { since, to: epoch } };
    this.putRecord(tx, { ...recordHeader(next), extents: after });
    putInode(tx, next);
    return next;
  }

  /** The same bytes lie elsewhere: in pieces that are held by a ticket, which is kept in the same transaction. */
  move(tx: Transaction, inode: Inode, extents: readonly Extent[]): Inode {
    const before = this.extents(tx, inode.ino);
    const next: Inode = { ...inode, change: inode.change + 1, epoch: inode.epoch + 1 };
    this.putRecord(tx, { ...recordHeader(next), extents: [...extents] });
    putInode(tx, next);
    const freed = subtractPieces(before.flatMap(extentPieces), extents.flatMap(extentPieces));
    const stays = new Set(besideOf(extents));
    const records = besideOf(before)
      .filter((region) => !stays.has(region))
      .map((region) => ({ region, ino: inode.ino }));
    this.reclaimer.free(tx, freed, { records, cutOf: inode.ino });
    return next;
  }

  /** Shared mode: a range was written through; the file is at least so long. */
  wrote(tx: Transaction, inode: Inode, size: number, mtime: Time): Inode {
    const next: Inode = {
      ...inode,
      size: Math.max(inode.size, size),
      mtime: laterOf(inode.mtime, mtime),
      ctime: laterOf(inode.ctime, mtime),
      change: inode.change + 1,
    };
    putInode(tx, next);
    return next;
  }

  /** Extents of regions that are the file's own (HTTP create and resize). */
  append(tx: Transaction, inode: Inode, extents: readonly Extent[], size: number): Inode {
    const stored = tx.get<Uint8Array>(keys.record(inode.ino));
    const before = stored === undefined ? [] : decodeRecord(stored).extents;
    const all = [...before, ...extents].sort((a, b) => a.fileOffset - b.fileOffset);
    const overlaps = all.some(
      (extent, index) => index > 0 && extent.fileOffset < (all[index - 1] as Extent).fileOffset + (all[index - 1] as Extent).length,
    );
    if (overlaps) throw new ExtmemError('EAGAIN', `inode ${inode.ino} grew meanwhile; try again`);
    const taken = checkedPieces(extents, inode.ino);
    this.regions.checkClaim(taken, { client: NOBODY, ino: inode.ino });
    const at = now();
    const next: Inode = {
      ...inode,
      size,
      blocks: allocatedBytes({ extents: all }) / BLOCK_BYTES,
      mtime: at,
      ctime: at,
      change: inode.change + 1,
      epoch: inode.epoch + 1,
    };
    this.putRecord(tx, { ...recordHeader(next), extents: all });
    putInode(tx, next);
    this.regions.claim(taken);
    return next;
  }

  /** Extents of regions that are the file's own, for holes: whoever holds the file is told. */
  fill(tx: Transaction, inode: Inode, extents: readonly Extent[]): Inode {
    const stored = tx.get<Uint8Array>(keys.record(inode.ino));
    const all = [...(stored === undefined ? [] : decodeRecord(stored).extents), ...extents].sort((a, b) => a.fileOffset - b.fileOffset);
    const taken = checkedPieces(extents, inode.ino);
    this.regions.checkClaim(taken, { client: NOBODY, ino: inode.ino });
    const next: Inode = { ...inode, blocks: allocatedBytes({ extents: all }) / BLOCK_BYTES, ctime: now(), change: inode.change + 1 };
    this.putRecord(tx, { ...recordHeader(next), extents: all });
    putInode(tx, next);
    this.regions.claim(taken);
    return next;
  }

  /** The inode has no name and no holder: all of it goes. */
  destroy(tx: Transaction, inode: Inode): void {
    const { ino } = inode;
    tx.remove(keys.inode(ino));
    tx.remove(keys.xattrs(ino));
    tx.remove(keys.orphan(ino));
    tx.remove(keys.locks(ino));
    tx.remove(keys.timed(ino));
    const stored = tx.get<Uint8Array>(keys.record(ino));
    if (stored === undefined) return;
    tx.remove(keys.record(ino));
    const { extents } = decodeRecord(stored);
    const beside = besideOf(extents).map((region) => ({ region, ino }));
    const own = this.ownRegions(extents, ino);
    for (const region of own) this.regions.setRow(tx, region, { ino: 0 });
    this.reclaimer.free(tx, joinPieces(extents.flatMap(extentPieces)), { records: beside });
  }

  extents(view: ReadView, ino: number): Extent[] {
    const stored = view.get<Uint8Array>(keys.record(ino));
    return stored === undefined ? [] : decodeRecord(stored).extents;
  }

  /** Of what counts: missing copies are neither read nor written. */
  regionIds(extents: readonly Extent[]): Set<number> {
    const ids = new Set<number>();
    for (const extent of extents) for (const { region, missing } of extent.members) if (missing === undefined) ids.add(region);
    return ids;
  }

  /** All regions of its own, also those that a cut has emptied. */
  private ownRegions(extents: readonly Extent[], ino: number): Region[] {
    const dedicated = extents.some(({ members }) => members.some(({ region }) => this.regions.get(region)?.row.ino === ino));
    return dedicated ? this.regions.ofFile(ino) : [];
  }

  private replaceExtents(tx: Transaction, stored: Uint8Array | undefined, bytes: Uint8Array, record: FileRecord, client: number): void {
    const { ino } = record;
    const before = stored === undefined ? [] : decodeRecord(stored).extents;
    const { older, newer } = differing(before, record.extents);
    const oldPieces = older.flatMap(extentPieces);
    const newPieces = checkedPieces(newer, ino);
    const added = subtractPieces(newPieces, oldPieces);
    this.regions.checkClaim(added, { client, ino });
    if (record.extents.length === 0) tx.remove(keys.record(ino));
    else tx.put(keys.record(ino), Buffer.from(bytes)); // as its writer encodes it: the next one is compared byte by byte
    this.reclaimer.free(tx, subtractPieces(oldPieces, newPieces));
    this.regions.claim(added);
  }

  /** Which copies count is not for a writer to say, but for those that it has seen lost. */
  private withMarks(tx: Transaction, inode: Inode, record: FileRecord): FileRecord {
    if (!record.extents.some((extent) => copiesOf(extent) > 1)) return record;
    const extents = carryMarks(record.extents, this.extents(tx, inode.ino), record.epoch === inode.epoch);
    if (extents.some(({ members }) => members.some(({ missing }) => missing === true))) this.onMissing();
    return extents === record.extents ? record : { ...record, extents };
  }

  private putRecord(tx: Transaction, record: FileRecord): void {
    if (record.extents.length === 0) tx.remove(keys.record(record.ino));
    else tx.put(keys.record(record.ino), encodeRecord(record));
  }

  private unclaimed(some: readonly RegionPiece[], client: number): RegionPiece[] {
    return some.filter(({ region: id, offset, length }) => {
      const region = this.regions.get(id);
      return region !== undefined && region.row.client === client && !region.used.overlaps(offset, length);
    });
  }
}

/** The regions that a file's record is kept beside. */
function besideOf([first]: readonly Extent[]): number[] {
  return first === undefined ? [] : columnMembers(first, 0).map(({ region }) => region);
}

/** Throws EINVAL if a piece is named twice. */
function checkedPieces(extents: readonly Extent[], ino: number): RegionPiece[] {
  const joined = joinPieces(extents.flatMap(extentPieces));
  const bytes = joined.reduce((sum, piece) => sum + piece.length, 0);
  if (bytes !== allocatedBytes({ extents: [...extents] }))
    throw new ExtmemError('EINVAL', `inode ${ino}: a record names bytes of a region twice`);
  return joined;
}

/** Both lists without what they begin and end with in common: records mostly grow at their end. */
function differing(before: readonly Extent[], after: readonly Extent[]): { older: Extent[]; newer: Extent[] } {
  let start = 0;
  while (start < before.length && start < after.length && isSameExtent(before[start] as Extent, after[start] as Extent)) start++;
  let fromEnd = 0;
  while (
    fromEnd < before.length - start &&
    fromEnd < after.length - start &&
    isSameExtent(before[before.length - 1 - fromEnd] as Extent, after[after.length - 1 - fromEnd] as Extent)
  )
    fromEnd++;
  return { older: before.slice(start, before.length - fromEnd), newer: after.slice(start, after.length - fromEnd) };
}

function isSameExtent(one: Extent, other: Extent): boolean {
  if (one.fileOffset !== other.fileOffset || one.length !== other.length || one.members.length !== other.members.length) return false;
  if (copiesOf(one) !== copiesOf(other) || (columnsOf(one) > 1 && one.unit !== other.unit)) return false;
  return one.members.every(
    (member, index) => member.region === other.members[index]?.region && member.offset === other.members[index]?.offset,
  );
}

function isSameTime(one: Time, other: Time): boolean {
  return one[0] === other[0] && one[1] === other[1];
}

export function laterOf(one: Time, other: Time): Time {
  return one[0] > other[0] || (one[0] === other[0] && one[1] >= other[1]) ? one : other;
}

export function roundUpToPages(bytes: number): number {
  return Math.ceil(bytes / PAGE_BYTES) * PAGE_BYTES;
}
