/**
 * The store's journal: transactions that LMDB does not have on disk yet, in two files that are used in turn.
 *
 * An LMDB commit costs 0.5 to 1 ms (fsync, two threads); appending 500 bytes to a file costs 10 µs and survives kill -9 just as
 * well. So a transaction is appended here, and LMDB gets many at once. After a machine's crash a tail may be missing or torn: what
 * is applied is the unbroken run of sequence numbers that follows what LMDB has, so that the state is one that existed.
 *
 * Frame: u32 length, u32 CRC-32 of the payload; payload: f64 sequence, u32 count, then per write u16 key length, key,
 * u32 value length (REMOVED: none), value.
 */
import { closeSync, ftruncateSync, openSync, readFileSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import { crc32 } from '../base/file_record.js';

const REMOVED = 0xffffffff;
const HEADER_BYTES = 8;
const FILES = ['journal-a', 'journal-b'] as const;

/** A value is packed; undefined: the key is removed. */
export type Writes = Map<string, Uint8Array | undefined>;

export interface JournalEntry {
  sequence: number;
  writes: Writes;
}

export class Journal {
  private readonly descriptors: number[];
  private readonly sizes = [0, 0];
  private current = 0;

  private constructor(descriptors: number[]) {
    this.descriptors = descriptors;
  }

  /** And what the last life left in it; it stays there until clear(). */
  static open(dir: string): { journal: Journal; entries: JournalEntry[] } {
    const paths = FILES.map((name) => join(dir, name));
    const descriptors = paths.map((path) => openSync(path, 'a+', 0o600));
    const entries = paths.flatMap((path) => readEntries(readFileSync(path))).sort((a, b) => a.sequence - b.sequence);
    return { journal: new Journal(descriptors), entries };
  }

  /** Nothing of it is needed any more. */
  clear(): void {
    this.descriptors.forEach((descriptor, index) => {
      ftruncateSync(descriptor, 0);
      this.sizes[index] = 0;
    });
  }

  /** When it returns, the entries survive the death of this process. */
  append(entries: readonly JournalEntry[]): void {
    const [first] = entries;
    const frame = entries.length === 1 && first !== undefined ? encodeEntry(first) : Buffer.concat(entries.map(encodeEntry));
    const descriptor = this.descriptors[this.current] as number;
    const size = this.sizes[this.current] as number;
    let written = 0;
    try {
      while (written < frame.length) written += writeSync(descriptor, frame, written);
    } catch (error) {
      ftruncateSync(descriptor, size); // no torn frame before what may follow
      throw error;
    }
    this.sizes[this.current] = size + frame.length;
  }

  /** What is appended from now on goes to the other file. Answers how to drop what was there before. */
  turn(): () => void {
    const old = this.current;
    this.current = 1 - old;
    return () => {
      ftruncateSync(this.descriptors[old] as number, 0);
      this.sizes[old] = 0;
    };
  }

  close(): void {
    for (const descriptor of this.descriptors) closeSync(descriptor);
  }
}

/** The unbroken run of entries that follows number `applied`. */
export function entriesAfter(entries: readonly JournalEntry[], applied: number): JournalEntry[] {
  const unbroken: JournalEntry[] = [];
  for (const entry of entries) if (entry.sequence === applied + unbroken.length + 1) unbroken.push(entry);
  return unbroken;
}

function encodeEntry({ sequence, writes }: JournalEntry): Buffer {
  let bytes = HEADER_BYTES + 12;
  for (const [key, value] of writes) bytes += 6 + Buffer.byteLength(key) + (value?.length ?? 0);
  const frame = Buffer.allocUnsafe(bytes);
  frame.writeDoubleLE(sequence, HEADER_BYTES);
  frame.writeUInt32LE(writes.size, HEADER_BYTES + 8);
  let at = HEADER_BYTES + 12;
  for (const [key, value] of writes) {
    const keyBytes = frame.write(key, at + 2);
    frame.writeUInt16LE(keyBytes, at);
    at += 2 + keyBytes;
    at = frame.writeUInt32LE(value?.length ?? REMOVED, at);
    if (value !== undefined) {
      frame.set(value, at);
      at += value.length;
    }
  }
  frame.writeUInt32LE(bytes - HEADER_BYTES, 0);
  frame.writeUInt32LE(crc32(frame.subarray(HEADER_BYTES)), 4);
  return frame;
}

/** The whole frames that a file begins with. */
function readEntries(file: Buffer): JournalEntry[] {
  const entries: JournalEntry[] = [];
  for (let at = 0; at + HEADER_BYTES <= file.length;) {
    const payload = file.subarray(at + HEADER_BYTES, at + HEADER_BYTES + file.readUInt32LE(at));
    if (payload.length < 12 || payload.length !== file.readUInt32LE(at) || crc32(payload) !== file.readUInt32LE(at + 4)) break;
    entries.push(readEntry(payload));
    at += HEADER_BYTES + payload.length;
  }
  return entries;
}

function readEntry(payload: Buffer): JournalEntry {
  const writes: Writes = new Map();
  let at = 12;
  for (let count = payload.readUInt32LE(8); count > 0; count--) {
    const keyBytes = payload.readUInt16LE(at);
    const key = payload.toString('utf8', at + 2, at + 2 + keyBytes);
    at += 2 + keyBytes;
    const valueBytes = payload.readUInt32LE(at);
    at += 4;
    writes.set(key, valueBytes === REMOVED ? undefined : payload.subarray(at, at + valueBytes));
    if (valueBytes !== REMOVED) at += valueBytes;
  }
  return { sequence: payload.readDoubleLE(0), writes };
}
