/**
 * A file's record: size, times, change counter, and the extents that say which pieces of which regions hold its bytes.
 * Encoded as protocol.json says (RecordHeader, ExtentHeader, ExtentMember), the same in the manager, in clients and beside regions.
 *
 * Invariants of a record (decodeRecord refuses any other): extents are sorted by file offset and do not overlap; offsets, lengths
 * and units are whole pages; every column of an extent has as many copies. What no extent covers is a hole and reads as zeros. That no piece of a region belongs to two extents
 * is for the manager to see to, who knows all records.
 * Functions here change nothing that they are given; they answer new records.
 */
import zlib from 'node:zlib';
import { ExtmemError } from './errors.js';
import { ACROSS, LAYOUTS, type AcrossName, type LayoutName, type RegionPiece, type Time } from './messages.js';
import {
  Across,
  ExtentHeaderBytes,
  ExtentMemberBytes,
  LayoutKind,
  MAX_COPIES,
  MAX_LAYOUT_MEMBERS,
  MAX_RECORD_BYTES,
  MemberFlag,
  PAGE_BYTES,
  RECORD_MAGIC,
  RECORD_VERSION,
  RecordHeaderBytes,
} from './protocol.js';

export interface ExtentMember {
  region: number;
  offset: number;
  /** It missed a write, or its appliance lost it: neither read nor written. */
  missing?: true;
  /** May differ from the other copies where its writer was writing when it died: read only when no copy without flags answers. */
  unsynced?: true;
}

/**
 * Byte b lives in column (b / unit) mod columns, at offset (b / unit / columns) * unit + b mod unit of each of its members.
 * One column: b at b. The copies of column j are members j * copies up to (j + 1) * copies.
 */
export interface Extent {
  fileOffset: number;
  length: number;
  unit: number; // of no meaning with one column
  /** Of each column; absent: one. */
  copies?: number;
  members: ExtentMember[];
}

export interface FileRecord {
  ino: number;
  layout: LayoutName;
  /** Of each byte, in extents that are yet to come; absent: one. */
  copies?: number;
  /** What these must not share; absent: they are as far apart as the pool can have them. */
  across?: AcrossName;
  stripeUnit: number;
  size: number;
  mtime: Time;
  ctime: Time;
  change: number;
  /** Grows whenever the manager changes the extents: a record with an older one is not accepted any more. */
  epoch: number;
  extents: Extent[];
}

const CRC_AT = 56;
const MAX_U32 = 0xffffffff;
/** One member: the unit is the length, or the largest page multiple that fits the field. */
const LARGEST_UNIT = MAX_U32 - (MAX_U32 % PAGE_BYTES);

export function encodeRecord(record: FileRecord): Buffer {
  const { extents } = record;
  let bytes = RecordHeaderBytes;
  for (const extent of extents) bytes += ExtentHeaderBytes + extent.members.length * ExtentMemberBytes;
  if (bytes > MAX_RECORD_BYTES)
    throw new ExtmemError(
      'EFBIG',
      `inode ${record.ino} has ${extents.length} extents: its record would be larger than ${MAX_RECORD_BYTES} bytes`,
    );
  const out = Buffer.alloc(bytes);
  writeHeader(out, record, extents.length);
  let at = RecordHeaderBytes;
  for (const extent of extents) {
    const single = columnsOf(extent) === 1;
    writeU64(out, extent.fileOffset, at);
    writeU64(out, extent.length, at + 8);
    out.writeUInt32LE(single ? Math.min(extent.length, LARGEST_UNIT) : extent.unit, at + 16);
    out.writeUInt8(LayoutKind[extentKind(extent)], at + 20);
    out.writeUInt8(copiesOf(extent), at + 21);
    out.writeUInt16LE(extent.members.length, at + 22);
    at += ExtentHeaderBytes;
    for (const member of extent.members) {
      writeU64(out, member.region, at);
      writeU64(out, member.offset + flagsOf(member), at + 8);
      at += ExtentMemberBytes;
    }
  }
  out.writeUInt32LE(crc32(out), CRC_AT);
  return out;
}

/** The same extents under another header, without decoding them. */
export function restampRecord(bytes: Uint8Array, header: Omit<FileRecord, 'extents'>): Buffer {
  const out = Buffer.from(bytes);
  writeHeader(out, header, out.readUInt32LE(52));
  out.writeUInt32LE(crc32(out), CRC_AT);
  return out;
}

/** Throws EINVAL for anything that is no valid record. */
export function decodeRecord(bytes: Uint8Array): FileRecord {
  const from = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  if (from.length < RecordHeaderBytes || from.length > MAX_RECORD_BYTES) throw invalid(`it has ${from.length} bytes`);
  if (from.readUInt32LE(0) !== RECORD_MAGIC) throw invalid('it does not begin like one');
  if (from.readUInt16LE(4) !== RECORD_VERSION)
    throw new ExtmemError('EVERSION', `a file record has version ${from.readUInt16LE(4)}, this program knows ${RECORD_VERSION}`);
  const crc = from.readUInt32LE(CRC_AT);
  const copy = Buffer.from(from);
  copy.writeUInt32LE(0, CRC_AT);
  if (crc32(copy) !== crc) throw invalid('its checksum is wrong');
  return {
    ino: readU64(from, 8),
    ...decodeLayout(from.readUInt8(6), from.readUInt8(7)),
    size: readU64(from, 16),
    mtime: timeOf(from.readBigInt64LE(24)),
    ctime: timeOf(from.readBigInt64LE(32)),
    change: readU64(from, 40),
    stripeUnit: from.readUInt32LE(48),
    epoch: from.readUInt32LE(60),
    extents: decodeExtents(from, from.readUInt32LE(52)),
  };
}

/** Whether an encoded record has extents with copies, and one of these, which counts, is in such a region; the record is not
 *  checked. */
export function namesCopies(bytes: Uint8Array, isMeant: (region: number) => boolean = () => true): boolean {
  const from = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  let at = RecordHeaderBytes;
  for (let left = from.readUInt32LE(52); left > 0; left--) {
    const hasCopies = from.readUInt8(at + 20) === LayoutKind.mirror;
    const end = at + ExtentHeaderBytes + from.readUInt16LE(at + 22) * ExtentMemberBytes;
    for (at += ExtentHeaderBytes; at < end; at += ExtentMemberBytes) {
      const isMissing = (from.readUInt8(at + 8) & MemberFlag.missing) !== 0;
      if (hasCopies && !isMissing && isMeant(readU64(from, at))) return true;
    }
  }
  return false;
}

/** Which file an encoded record is of; the record is not checked. */
export function recordIno(bytes: Uint8Array): number {
  if (bytes.length < RecordHeaderBytes) throw invalid(`it has ${bytes.length} bytes`);
  return readU64(Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength), 8);
}

/** How new an encoded record is: its change counter; the record is not checked. */
export function recordChange(bytes: Uint8Array): number {
  if (bytes.length < RecordHeaderBytes) throw invalid(`it has ${bytes.length} bytes`);
  return readU64(Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength), 40);
}

/** How many copies there are of each byte of an extent. */
export function copiesOf(extent: Pick<Extent, 'copies'>): number {
  return extent.copies ?? 1;
}

/** Over how many columns an extent's bytes are dealt out, unit by unit. */
export function columnsOf(extent: Extent): number {
  return extent.members.length / copiesOf(extent);
}

/** The copies of one column. */
export function columnMembers(extent: Extent, column: number): ExtentMember[] {
  const copies = copiesOf(extent);
  return extent.members.slice(column * copies, (column + 1) * copies);
}

export function extentKind(extent: Extent): Exclude<LayoutName, 'raid10'> {
  if (copiesOf(extent) > 1) return 'mirror';
  return extent.members.length > 1 ? 'stripe' : 'concat';
}

/** Where byte `offset` of the file is: all copies, missing ones too, with their flags. None: in a hole. */
export function locateCopies(record: Pick<FileRecord, 'extents'>, offset: number): ExtentMember[] {
  for (const extent of record.extents) {
    const at = offset - extent.fileOffset;
    if (at < 0 || at >= extent.length) continue;
    const { unit } = extent;
    const columns = columnsOf(extent);
    const column = columns === 1 ? 0 : Math.floor(at / unit) % columns;
    const within = columns === 1 ? at : Math.floor(at / unit / columns) * unit + (at % unit);
    return columnMembers(extent, column).map((member) => ({ ...member, offset: member.offset + within }));
  }
  return [];
}

/** Where byte `offset` of the file is read from first; undefined: in a hole, or no copy is left. */
export function locate(record: Pick<FileRecord, 'extents'>, offset: number): ExtentMember | undefined {
  const there = locateCopies(record, offset).filter((member) => member.missing === undefined);
  return there.find((member) => member.unsynced === undefined) ?? there[0];
}

/** Whether two encoded records name the same pieces at the same places. */
export function sameExtents(one: Uint8Array, other: Uint8Array): boolean {
  return one.length === other.length && Buffer.compare(one.subarray(RecordHeaderBytes), other.subarray(RecordHeaderBytes)) === 0;
}

/** The pieces of regions that an extent occupies, whole units also where the file ends inside one. */
export function extentPieces(extent: Extent): RegionPiece[] {
  const length = memberBytes(extent);
  return extent.members.map(({ region, offset }) => ({ region, offset, length }));
}

/** All pieces that a record occupies: sorted, neighbours joined. */
export function pieces(record: Pick<FileRecord, 'extents'>): RegionPiece[] {
  return joinPieces(record.extents.flatMap(extentPieces));
}

export function allocatedBytes(record: Pick<FileRecord, 'extents'>): number {
  let bytes = 0;
  for (const extent of record.extents) bytes += memberBytes(extent) * extent.members.length;
  return bytes;
}

export interface Cut {
  record: FileRecord;
  freed: RegionPiece[];
}

/** Takes [offset, offset+length) out of the file. Both are rounded inwards to whole pages. Striped extents are cut on whole
 *  rows; rows that lose only a part become extents of one column. */
export function cutExtents(record: FileRecord, offset: number, length: number): Cut {
  const start = Math.ceil(offset / PAGE_BYTES) * PAGE_BYTES;
  const end = Number.isFinite(length) ? Math.floor((offset + length) / PAGE_BYTES) * PAGE_BYTES : Infinity;
  const kept: Extent[] = [];
  const freed: RegionPiece[] = [];
  for (const extent of record.extents) {
    const from = Math.max(0, start - extent.fileOffset);
    const to = Math.min(extent.length, end - extent.fileOffset);
    if (from >= to) kept.push(extent);
    else cutExtent(extent, from, to, kept, freed);
  }
  return { record: { ...record, extents: joinExtents(kept) }, freed: joinPieces(freed) };
}

/** Whole pages: what follows offset + length moves to offset (collapse), or what follows offset moves behind a hole (insert). Only
 *  offsets in the file change, no byte is moved. */
export function shiftExtents(record: FileRecord, how: 'collapse' | 'insert', offset: number, length: number): Cut {
  const before = cutExtents(record, offset, Infinity).record.extents;
  const gone = how === 'collapse' ? length : 0;
  const by = how === 'collapse' ? -length : length;
  const after = cutExtents(record, 0, offset + gone).record.extents.map((extent) => ({ ...extent, fileOffset: extent.fileOffset + by }));
  const freed = gone > 0 ? cutExtents(record, offset, gone).freed : [];
  return { record: { ...record, extents: joinExtents([...before, ...after]) }, freed };
}

export interface Merge {
  record: FileRecord;
  /** Extents of `proposed` that became part of the record. */
  added: Extent[];
  /** Pieces that `proposed` named and the record does not. */
  unused: RegionPiece[];
}

/** Fills holes of `current` with extents of `proposed`; where both have bytes, those of `current` stay. */
export function mergeExtents(current: FileRecord, proposed: FileRecord): Merge {
  const added: Extent[] = [];
  const left: RegionPiece[] = [];
  for (const extent of proposed.extents) {
    let rest: FileRecord = { ...proposed, extents: [extent] };
    for (const there of overlapping(current.extents, extent)) {
      const cut = cutExtents(rest, there.fileOffset, there.length);
      rest = cut.record;
      left.push(...cut.freed);
    }
    added.push(...rest.extents);
  }
  const extents = joinExtents([...current.extents, ...added].sort((a, b) => a.fileOffset - b.fileOffset));
  return { record: { ...current, extents }, added, unused: subtractPieces(left, pieces(current)) };
}

/** What of `some` is not in `others`. Both may be unsorted; the answer is sorted and joined. */
export function subtractPieces(some: readonly RegionPiece[], others: readonly RegionPiece[]): RegionPiece[] {
  const taken = joinPieces(others);
  const out: RegionPiece[] = [];
  let index = 0;
  for (const piece of joinPieces(some)) {
    let { offset } = piece;
    const end = piece.offset + piece.length;
    const isBefore = (other: RegionPiece): boolean =>
      other.region < piece.region || (other.region === piece.region && other.offset + other.length <= piece.offset);
    while (index < taken.length && isBefore(taken[index] as RegionPiece)) index++;
    for (let at = index; at < taken.length; at++) {
      const other = taken[at] as RegionPiece;
      if (other.region !== piece.region || other.offset >= end) break;
      if (other.offset > offset) out.push({ region: piece.region, offset, length: other.offset - offset });
      offset = Math.max(offset, other.offset + other.length);
    }
    if (offset < end) out.push({ region: piece.region, offset, length: end - offset });
  }
  return out;
}

/** Sorted by region and offset; what touches or overlaps is one. */
export function joinPieces(some: readonly RegionPiece[]): RegionPiece[] {
  const sorted = [...some].sort((a, b) => a.region - b.region || a.offset - b.offset);
  const out: RegionPiece[] = [];
  for (const piece of sorted) {
    const last = out.at(-1);
    if (last !== undefined && last.region === piece.region && last.offset + last.length >= piece.offset) {
      last.length = Math.max(last.length, piece.offset + piece.length - last.offset);
    } else if (piece.length > 0) out.push({ ...piece });
  }
  return out;
}

function cutExtent(extent: Extent, from: number, to: number, kept: Extent[], freed: RegionPiece[]): void {
  const width = columnsOf(extent);
  if (width === 1) {
    if (from > 0) kept.push({ ...extent, length: from });
    for (const { region, offset } of extent.members) freed.push({ region, offset: offset + from, length: to - from });
    if (to < extent.length) kept.push(oneColumn(extent.fileOffset + to, extent.length - to, moved(extent.members, to)));
    return;
  }
  const { unit } = extent;
  const rowBytes = unit * width;
  const rows = Math.ceil(extent.length / rowBytes);
  const firstRow = Math.floor(from / rowBytes); // rows before it stay
  const afterRow = to >= extent.length ? rows : Math.floor(to / rowBytes) + (to % rowBytes === 0 ? 0 : 1); // and from this one on
  const isWholeFirst = from % rowBytes === 0;
  if (firstRow > 0) kept.push({ ...extent, length: firstRow * rowBytes });
  // Rows that lose all their bytes go in one piece per member; the first and the last may be torn.
  const isWholeLast = to >= extent.length || to % rowBytes === 0;
  const wholeFrom = isWholeFirst ? firstRow : firstRow + 1;
  const wholeTo = isWholeLast ? afterRow : afterRow - 1;
  if (!isWholeFirst) tearRow(extent, firstRow, from, to, kept, freed);
  if (wholeTo > wholeFrom) {
    for (const { region, offset } of extent.members)
      freed.push({ region, offset: offset + wholeFrom * unit, length: (wholeTo - wholeFrom) * unit });
  }
  if (!isWholeLast && (afterRow - 1 > firstRow || isWholeFirst)) tearRow(extent, afterRow - 1, from, to, kept, freed);
  if (afterRow < rows) {
    const skipped = afterRow * rowBytes;
    const members = moved(extent.members, afterRow * unit);
    kept.push({ ...extent, fileOffset: extent.fileOffset + skipped, length: extent.length - skipped, members });
  }
}

/** One row of a stripe loses [from, to) of the extent: what stays of its units become extents of one column each. */
function tearRow(extent: Extent, row: number, from: number, to: number, kept: Extent[], freed: RegionPiece[]): void {
  const { unit } = extent;
  const columns = columnsOf(extent);
  for (let column = 0; column < columns; column++) {
    const start = (row * columns + column) * unit; // within the extent
    const end = Math.min(start + unit, extent.length);
    const members = moved(columnMembers(extent, column), row * unit);
    const keep = (first: number, last: number): void => {
      if (first < last) kept.push(oneColumn(extent.fileOffset + first, last - first, moved(members, first - start)));
    };
    const free = (first: number, last: number): void => {
      if (first >= last) return;
      for (const { region, offset } of members) freed.push({ region, offset: offset + first - start, length: last - first });
    };
    const cutFrom = Math.min(Math.max(from, start), Math.max(end, start));
    const cutTo = Math.max(cutFrom, Math.min(to, end));
    keep(start, cutFrom);
    free(cutFrom, cutTo);
    keep(cutTo, end);
    free(Math.max(start, end), start + unit); // the part of the unit beyond the extent's end
  }
}

/** Extents that go on where the last one ended, in the file and in every member, become one. */
export function joinExtents(extents: readonly Extent[]): Extent[] {
  const out: Extent[] = [];
  for (const extent of extents) {
    const last = out.at(-1);
    if (last !== undefined && goesOn(last, extent)) out[out.length - 1] = joined(last, extent);
    else out.push(extent);
  }
  return out;
}

function joined(last: Extent, extent: Extent): Extent {
  const length = last.length + extent.length;
  return columnsOf(last) === 1 ? oneColumn(last.fileOffset, length, last.members) : { ...last, length };
}

function goesOn(last: Extent, extent: Extent): boolean {
  const columns = columnsOf(last);
  return (
    columns === columnsOf(extent) &&
    last.members.length === extent.members.length &&
    (columns === 1 || (last.unit === extent.unit && last.length % (last.unit * columns) === 0)) &&
    last.fileOffset + last.length === extent.fileOffset &&
    extent.members.every((member, index) => {
      const before = last.members[index] as ExtentMember;
      return before.region === member.region && before.offset + memberBytes(last) === member.offset && flagsOf(before) === flagsOf(member);
    })
  );
}

/** After so many bytes of each member (whole units, of several columns); the second is absent where nothing is left. */
export function splitExtent(extent: Extent, bytes: number): [Extent, Extent | undefined] {
  const columns = columnsOf(extent);
  const length = bytes * columns;
  if (length >= extent.length) return [extent, undefined];
  const rest = moved(extent.members, bytes);
  if (columns === 1)
    return [oneColumn(extent.fileOffset, length, extent.members), oneColumn(extent.fileOffset + length, extent.length - length, rest)];
  return [
    { ...extent, length },
    { ...extent, fileOffset: extent.fileOffset + length, length: extent.length - length, members: rest },
  ];
}

function* overlapping(extents: readonly Extent[], extent: Extent): Generator<Extent> {
  const end = extent.fileOffset + extent.length;
  let low = 0;
  let high = extents.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    const there = extents[middle] as Extent;
    if (there.fileOffset + there.length <= extent.fileOffset) low = middle + 1;
    else high = middle;
  }
  for (let at = low; at < extents.length; at++) {
    const there = extents[at] as Extent;
    if (there.fileOffset >= end) return;
    yield there;
  }
}

/** One column, with as many copies as there are members. */
export function oneColumn(fileOffset: number, length: number, members: readonly ExtentMember[]): Extent {
  const copies = members.length > 1 ? { copies: members.length } : {};
  return { fileOffset, length, unit: Math.min(length, LARGEST_UNIT), ...copies, members: [...members] };
}

/** The same members, `bytes` further into each. */
function moved(members: readonly ExtentMember[], bytes: number): ExtentMember[] {
  return members.map((member) => ({ ...member, offset: member.offset + bytes }));
}

/** How many bytes of each member an extent occupies. */
export function memberBytes(extent: Extent): number {
  const columns = columnsOf(extent);
  return columns === 1 ? extent.length : Math.ceil(extent.length / (extent.unit * columns)) * extent.unit;
}

function flagsOf({ missing, unsynced }: ExtentMember): number {
  return (missing === true ? MemberFlag.missing : 0) + (unsynced === true ? MemberFlag.unsynced : 0);
}

function decodeExtents(from: Buffer, count: number): Extent[] {
  const extents: Extent[] = [];
  let at = RecordHeaderBytes;
  let covered = 0;
  for (let index = 0; index < count; index++) {
    if (at + ExtentHeaderBytes > from.length) throw invalid('it ends within an extent');
    const fileOffset = readU64(from, at);
    const length = readU64(from, at + 8);
    const unit = from.readUInt32LE(at + 16);
    const kind = from.readUInt8(at + 20);
    const copies = from.readUInt8(at + 21) || 1;
    const width = from.readUInt16LE(at + 22);
    at += ExtentHeaderBytes;
    if (at + width * ExtentMemberBytes > from.length) throw invalid('it ends within an extent');
    if (width < 1 || width > MAX_LAYOUT_MEMBERS) throw invalid(`an extent has ${width} members`);
    if (copies > MAX_COPIES || width % copies !== 0) throw invalid(`an extent has ${width} members and ${copies} copies`);
    if (length < 1 || fileOffset < covered) throw invalid('its extents are empty, overlap, or are not sorted');
    if (!isPages(fileOffset) || !isPages(length) || (width > copies && (unit < 1 || !isPages(unit))))
      throw invalid('an extent is not made of whole pages');
    covered = fileOffset + length;
    if (!Number.isSafeInteger(covered)) throw invalid('an extent ends beyond the largest file');
    const members: ExtentMember[] = [];
    for (let column = 0; column < width; column++, at += ExtentMemberBytes) {
      members.push(decodeMember(readU64(from, at), readU64(from, at + 8)));
    }
    const extent = { fileOffset, length, unit, ...(copies > 1 ? { copies } : {}), members };
    if (LayoutKind[extentKind(extent)] !== kind) throw invalid(`an extent of kind ${kind} has ${width} members and ${copies} copies`);
    extents.push(extent);
  }
  if (at !== from.length) throw invalid(`${from.length - at} bytes follow its last extent`);
  return extents;
}

function decodeMember(region: number, flagged: number): ExtentMember {
  const flags = flagged % PAGE_BYTES;
  if (region < 1 || flags > (MemberFlag.missing | MemberFlag.unsynced)) throw invalid('a member names no piece of a region');
  return {
    region,
    offset: flagged - flags,
    ...(flags & MemberFlag.missing ? { missing: true } : {}),
    ...(flags & MemberFlag.unsynced ? { unsynced: true } : {}),
  };
}

function decodeLayout(kind: number, spread: number): Pick<FileRecord, 'layout' | 'copies' | 'across'> {
  const layout = LAYOUTS.find((name) => LayoutKind[name] === kind);
  const copies = spread & 0xf;
  const across = ACROSS.find((name) => Across[name] === spread >> 4);
  const isKnown = copies <= MAX_COPIES && (across !== undefined || spread >> 4 === Across.widest);
  if (layout === undefined || !isKnown) throw invalid(`its layout is ${kind} with ${copies} copies, apart by ${spread >> 4}`);
  return { layout, ...(copies > 1 ? { copies } : {}), ...(across === undefined ? {} : { across }) };
}

function writeHeader(out: Buffer, header: Omit<FileRecord, 'extents'>, extentCount: number): void {
  out.writeUInt32LE(RECORD_MAGIC, 0);
  out.writeUInt16LE(RECORD_VERSION, 4);
  out.writeUInt8(LayoutKind[header.layout], 6);
  out.writeUInt8((header.copies ?? 1) | (Across[header.across ?? 'widest'] << 4), 7);
  writeU64(out, header.ino, 8);
  writeU64(out, header.size, 16);
  out.writeBigInt64LE(nanoseconds(header.mtime), 24);
  out.writeBigInt64LE(nanoseconds(header.ctime), 32);
  writeU64(out, header.change, 40);
  out.writeUInt32LE(header.stripeUnit, 48);
  out.writeUInt32LE(extentCount, 52);
  out.writeUInt32LE(0, CRC_AT);
  out.writeUInt32LE(header.epoch, 60);
}

function isPages(bytes: number): boolean {
  return bytes % PAGE_BYTES === 0;
}

function nanoseconds([seconds, rest]: Time): bigint {
  return BigInt.asIntN(64, BigInt(seconds) * 1_000_000_000n + BigInt(rest));
}

function timeOf(total: bigint): Time {
  const rest = ((total % 1_000_000_000n) + 1_000_000_000n) % 1_000_000_000n;
  return [Number((total - rest) / 1_000_000_000n), Number(rest)];
}

function writeU64(out: Buffer, value: number, at: number): void {
  out.writeUInt32LE(value % 2 ** 32, at);
  out.writeUInt32LE(Math.floor(value / 2 ** 32), at + 4);
}

function readU64(from: Buffer, at: number): number {
  const value = from.readUInt32LE(at) + from.readUInt32LE(at + 4) * 2 ** 32;
  if (!Number.isSafeInteger(value)) throw invalid('a number in it is beyond 2^53');
  return value;
}

function invalid(why: string): ExtmemError {
  return new ExtmemError('EINVAL', `not a valid file record: ${why}`);
}

let crcTable: Uint32Array | undefined;

/** Node has zlib.crc32 from 20.15 on. */
export function crc32(bytes: Uint8Array): number {
  if (typeof zlib.crc32 === 'function') return zlib.crc32(bytes);
  crcTable ??= Uint32Array.from({ length: 256 }, (_, index) => {
    let value = index;
    for (let bit = 0; bit < 8; bit++) value = value & 1 ? (value >>> 1) ^ 0xedb88320 : value >>> 1;
    return value;
  });
  let crc = MAX_U32;
  for (const byte of bytes) crc = (crc >>> 8) ^ (crcTable[(crc ^ byte) & 0xff] as number);
  return (crc ^ MAX_U32) >>> 0;
}
