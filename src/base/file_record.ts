/**
 * A file's record: size, times, change counter, and the extents that say which pieces of which regions hold its bytes.
 * Encoded as protocol.json says (RecordHeader, ExtentHeader, ExtentMember), the same in the manager, in clients and beside regions.
 *
 * Invariants of a record (decodeRecord refuses any other): extents are sorted by file offset and do not overlap; offsets, lengths
 * and units are whole pages. What no extent covers is a hole and reads as zeros. That no piece of a region belongs to two extents
 * is for the manager to see to, who knows all records.
 * Functions here change nothing that they are given; they answer new records.
 */
import zlib from 'node:zlib';
import { ExtmemError } from './errors.js';
import type { LayoutName, RegionPiece, Time } from './messages.js';
import {
  ExtentHeaderBytes,
  ExtentMemberBytes,
  LayoutKind,
  MAX_LAYOUT_MEMBERS,
  MAX_RECORD_BYTES,
  PAGE_BYTES,
  RECORD_MAGIC,
  RECORD_VERSION,
  RecordHeaderBytes,
} from './protocol.js';

export interface ExtentMember {
  region: number;
  offset: number;
}

/** Byte b lives in member (b / unit) mod n, at member offset (b / unit / n) * unit + b mod unit. One member: b at b. */
export interface Extent {
  fileOffset: number;
  length: number;
  unit: number; // of no meaning with one member
  members: ExtentMember[];
}

export interface FileRecord {
  ino: number;
  layout: LayoutName;
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
    const single = extent.members.length === 1;
    writeU64(out, extent.fileOffset, at);
    writeU64(out, extent.length, at + 8);
    out.writeUInt32LE(single ? Math.min(extent.length, LARGEST_UNIT) : extent.unit, at + 16);
    out.writeUInt16LE(single ? LayoutKind.concat : LayoutKind.stripe, at + 20);
    out.writeUInt16LE(extent.members.length, at + 22);
    at += ExtentHeaderBytes;
    for (const member of extent.members) {
      writeU64(out, member.region, at);
      writeU64(out, member.offset, at + 8);
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
    layout: from.readUInt16LE(6) === LayoutKind.concat ? 'concat' : 'stripe',
    size: readU64(from, 16),
    mtime: timeOf(from.readBigInt64LE(24)),
    ctime: timeOf(from.readBigInt64LE(32)),
    change: readU64(from, 40),
    stripeUnit: from.readUInt32LE(48),
    epoch: from.readUInt32LE(60),
    extents: decodeExtents(from, from.readUInt32LE(52)),
  };
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

/** Where byte `offset` of the file is; undefined: in a hole. */
export function locate(record: Pick<FileRecord, 'extents'>, offset: number): ExtentMember | undefined {
  for (const extent of record.extents) {
    const at = offset - extent.fileOffset;
    if (at < 0 || at >= extent.length) continue;
    const { unit, members } = extent;
    const column = members.length === 1 ? 0 : Math.floor(at / unit) % members.length;
    const member = members[column] as ExtentMember;
    const within = members.length === 1 ? at : Math.floor(at / unit / members.length) * unit + (at % unit);
    return { region: member.region, offset: member.offset + within };
  }
  return undefined;
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
 *  rows; rows that lose only a part become extents of one member. */
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
  const width = extent.members.length;
  if (width === 1) {
    const member = extent.members[0] as ExtentMember;
    if (from > 0) kept.push({ ...extent, length: from });
    freed.push({ region: member.region, offset: member.offset + from, length: to - from });
    if (to < extent.length)
      kept.push(single(extent.fileOffset + to, extent.length - to, { region: member.region, offset: member.offset + to }));
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
    const members = extent.members.map(({ region, offset }) => ({ region, offset: offset + afterRow * unit }));
    kept.push({ fileOffset: extent.fileOffset + afterRow * rowBytes, length: extent.length - afterRow * rowBytes, unit, members });
  }
}

/** One row of a stripe loses [from, to) of the extent: what stays of its units become extents of one member each. */
function tearRow(extent: Extent, row: number, from: number, to: number, kept: Extent[], freed: RegionPiece[]): void {
  const { unit, members } = extent;
  members.forEach(({ region, offset }, column) => {
    const start = (row * members.length + column) * unit; // within the extent
    const end = Math.min(start + unit, extent.length);
    const at = offset + row * unit;
    const keep = (first: number, last: number): void => {
      if (first < last) kept.push(single(extent.fileOffset + first, last - first, { region, offset: at + first - start }));
    };
    const free = (first: number, last: number): void => {
      if (first < last) freed.push({ region, offset: at + first - start, length: last - first });
    };
    const cutFrom = Math.min(Math.max(from, start), Math.max(end, start));
    const cutTo = Math.max(cutFrom, Math.min(to, end));
    keep(start, cutFrom);
    free(cutFrom, cutTo);
    keep(cutTo, end);
    free(Math.max(start, end), start + unit); // the part of the unit beyond the extent's end
  });
}

/** Extents of one member that go on where the last one ended, in the file and in the region, become one. */
function joinExtents(extents: readonly Extent[]): Extent[] {
  const out: Extent[] = [];
  for (const extent of extents) {
    const last = out.at(-1);
    const [member] = extent.members;
    const [before] = last?.members ?? [];
    const goesOn =
      last !== undefined &&
      member !== undefined &&
      before !== undefined &&
      extent.members.length === 1 &&
      last.members.length === 1 &&
      last.fileOffset + last.length === extent.fileOffset &&
      before.region === member.region &&
      before.offset + last.length === member.offset;
    if (goesOn) out[out.length - 1] = single(last.fileOffset, last.length + extent.length, before);
    else out.push(extent);
  }
  return out;
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

function single(fileOffset: number, length: number, member: ExtentMember): Extent {
  return { fileOffset, length, unit: Math.min(length, LARGEST_UNIT), members: [member] };
}

function memberBytes(extent: Extent): number {
  const { length, unit, members } = extent;
  return members.length === 1 ? length : Math.ceil(length / (unit * members.length)) * unit;
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
    const width = from.readUInt16LE(at + 22);
    at += ExtentHeaderBytes;
    if (at + width * ExtentMemberBytes > from.length) throw invalid('it ends within an extent');
    if (width < 1 || width > MAX_LAYOUT_MEMBERS) throw invalid(`an extent has ${width} members`);
    if (length < 1 || fileOffset < covered) throw invalid('its extents are empty, overlap, or are not sorted');
    if (!isPages(fileOffset) || !isPages(length) || (width > 1 && (unit < 1 || !isPages(unit))))
      throw invalid('an extent is not made of whole pages');
    covered = fileOffset + length;
    if (!Number.isSafeInteger(covered)) throw invalid('an extent ends beyond the largest file');
    const members: ExtentMember[] = [];
    for (let column = 0; column < width; column++, at += ExtentMemberBytes) {
      const member = { region: readU64(from, at), offset: readU64(from, at + 8) };
      if (member.region < 1 || !isPages(member.offset)) throw invalid('a member names no piece of a region');
      members.push(member);
    }
    extents.push({ fileOffset, length, unit, members });
  }
  if (at !== from.length) throw invalid(`${from.length - at} bytes follow its last extent`);
  return extents;
}

function writeHeader(out: Buffer, header: Omit<FileRecord, 'extents'>, extentCount: number): void {
  out.writeUInt32LE(RECORD_MAGIC, 0);
  out.writeUInt16LE(RECORD_VERSION, 4);
  out.writeUInt16LE(header.layout === 'concat' ? LayoutKind.concat : LayoutKind.stripe, 6);
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
