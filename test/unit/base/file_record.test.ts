/** File records: encoding, and cut and merge held against a map of pages. */
import { describe, expect, test } from '@jest/globals';
import {
  allocatedBytes,
  crc32,
  cutExtents,
  decodeRecord,
  encodeRecord,
  joinPieces,
  locate,
  locateCopies,
  mergeExtents,
  pieces,
  restampRecord,
  sameExtents,
  subtractPieces,
  type Extent,
  type ExtentMember,
  type FileRecord,
} from '../../../src/base/file_record.js';
import { ExtentHeaderBytes, PAGE_BYTES, RecordHeaderBytes } from '../../../src/base/protocol.js';
import type { RegionPiece } from '../../../src/base/messages.js';

const seed = Number(process.env['EXTMEM_SEED'] ?? Date.now() % 2 ** 31);
console.log(`file_record: EXTMEM_SEED=${seed}`);

/** mulberry32: the same numbers for the same seed. */
function randomFrom(start: number): (below: number) => number {
  let state = start;
  return (below) => {
    state = (state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) % below;
  };
}

function emptyRecord(extents: Extent[] = []): FileRecord {
  return {
    ino: 7,
    layout: 'stripe',
    stripeUnit: 2 * PAGE_BYTES,
    size: 12345,
    mtime: [1700000000, 123456789],
    ctime: [-5, 999999999],
    change: 2 ** 40 + 3,
    epoch: 9,
    extents,
  };
}

function randomExtents(random: (below: number) => number, regionFrom: number): Extent[] {
  const extents: Extent[] = [];
  let page = 0;
  let region = regionFrom;
  for (let count = random(6); count > 0; count--) {
    page += random(5);
    const pages = 1 + random(30);
    const width = 1 + random(4);
    const copies = 1 + random(3);
    const unit = (1 + random(3)) * PAGE_BYTES;
    const members = Array.from({ length: width * copies }, (_, index): ExtentMember => {
      const flags = index % copies === 0 ? 0 : random(4); // one copy of each column is left
      return {
        region: region++,
        offset: random(4) * PAGE_BYTES,
        ...(flags & 1 ? { missing: true } : {}),
        ...(flags & 2 ? { unsynced: true } : {}),
      };
    });
    extents.push({
      fileOffset: page * PAGE_BYTES,
      length: pages * PAGE_BYTES,
      unit: width === 1 ? pages * PAGE_BYTES : unit,
      ...(copies > 1 ? { copies } : {}),
      members,
    });
    page += pages;
  }
  return extents;
}

function flagsOf({ missing, unsynced }: ExtentMember): string {
  return `${missing === true ? 'missing ' : ''}${unsynced === true ? 'unsynced' : ''}`;
}

type PageMap = Map<number, string>;

function pageMap(record: Pick<FileRecord, 'extents'>): PageMap {
  const map: PageMap = new Map();
  for (const { fileOffset, length } of record.extents) {
    for (let at = fileOffset; at < fileOffset + length; at += PAGE_BYTES) {
      const copies = locateCopies(record, at);
      map.set(at / PAGE_BYTES, copies.map((copy) => `${copy.region}:${copy.offset} ${flagsOf(copy)}`).join(', '));
    }
  }
  return map;
}

function pageSet(some: readonly RegionPiece[]): Set<string> {
  const set = new Set<string>();
  for (const { region, offset, length } of some) {
    for (let at = offset; at < offset + length; at += PAGE_BYTES) {
      if (set.has(`${region}:${at}`)) throw new Error(`page ${at} of region ${region} is named twice`);
      set.add(`${region}:${at}`);
    }
  }
  return set;
}

describe('encoding', () => {
  test('what was encoded is decoded', () => {
    const random = randomFrom(seed);
    for (let round = 0; round < 200; round++) {
      const record = emptyRecord(randomExtents(random, 1));
      expect(decodeRecord(encodeRecord(record))).toEqual(record);
    }
  });

  test('a single member may be longer than a unit can say', () => {
    const record = emptyRecord([{ fileOffset: 0, length: 2 ** 40, unit: 0, members: [{ region: 1, offset: 0 }] }]);
    const decoded = decodeRecord(encodeRecord(record));
    expect(decoded.extents[0]?.length).toBe(2 ** 40);
    expect(allocatedBytes(decoded)).toBe(2 ** 40);
    expect(locate(decoded, 2 ** 39)).toEqual({ region: 1, offset: 2 ** 39 });
  });

  test('a changed byte is noticed', () => {
    const bytes = encodeRecord(emptyRecord(randomExtents(randomFrom(4), 1)));
    for (let at = 0; at < bytes.length; at++) {
      const broken = Buffer.from(bytes);
      broken[at] = (broken[at] as number) ^ 0x10;
      expect(() => decodeRecord(broken)).toThrow(expect.objectContaining({ code: expect.stringMatching(/EINVAL|EVERSION/) }));
    }
  });

  test('overlapping, unsorted and crooked extents are refused', () => {
    const member = { region: 1, offset: 0 };
    const wrong: Extent[][] = [
      [{ fileOffset: 0, length: 100, unit: 100, members: [member] }],
      [
        { fileOffset: 4096, length: 4096, unit: 4096, members: [member] },
        { fileOffset: 0, length: 4096, unit: 4096, members: [member] },
      ],
      [{ fileOffset: 0, length: 8192, unit: 100, members: [member, { region: 2, offset: 0 }] }],
      [{ fileOffset: 0, length: 4096, unit: 4096, members: [{ region: 0, offset: 0 }] }],
    ];
    for (const extents of wrong)
      expect(() => decodeRecord(encodeRecord(emptyRecord(extents)))).toThrow(expect.objectContaining({ code: 'EINVAL' }));
  });

  test('a layout has as many copies as it says', () => {
    for (const layout of ['concat', 'stripe', 'mirror', 'raid10'] as const)
      for (const copies of [undefined, 2, 4]) {
        const record = { ...emptyRecord(), layout, ...(copies === undefined ? {} : { copies, across: 'host' as const }) };
        expect(decodeRecord(encodeRecord(record))).toEqual(record);
      }
  });

  test('copies that do not come out even, unknown flags and a wrong kind are refused', () => {
    const members = [1, 2, 3].map((region) => ({ region, offset: 4096 }));
    const sound = encodeRecord(emptyRecord([{ fileOffset: 0, length: 8192, unit: 4096, copies: 3, members }]));
    const first = RecordHeaderBytes;
    const spoilt: [number, number][] = [
      [first + 21, 2], // copies of three members
      [first + 21, 5], // more than there may be
      [first + 20, 2], // a stripe
      [first + ExtentHeaderBytes + 8, 4], // a flag that is none
    ];
    for (const [at, value] of spoilt) {
      const broken = Buffer.from(sound);
      broken[at] = value;
      broken.writeUInt32LE(0, 56);
      broken.writeUInt32LE(crc32(broken), 56);
      expect(() => decodeRecord(broken)).toThrow(expect.objectContaining({ code: 'EINVAL' }));
    }
    expect(decodeRecord(sound).extents[0]?.copies).toBe(3);
  });

  test('a byte is read from a sound copy, from an unsynced one when there is no other, and from a missing one never', () => {
    const at = (...members: ExtentMember[]): ExtentMember | undefined =>
      locate({ extents: [{ fileOffset: 0, length: 8192, unit: 8192, copies: members.length, members }] }, 4096);
    expect(at({ region: 1, offset: 0, unsynced: true }, { region: 2, offset: 0 })).toMatchObject({ region: 2, offset: 4096 });
    expect(at({ region: 1, offset: 0, unsynced: true }, { region: 2, offset: 0, missing: true })).toMatchObject({ region: 1 });
    expect(at({ region: 1, offset: 0, missing: true }, { region: 2, offset: 0, missing: true })).toBeUndefined();
  });

  test('another header over the same extents', () => {
    const record = emptyRecord(randomExtents(randomFrom(5), 1));
    const bytes = encodeRecord(record);
    const restamped = restampRecord(bytes, { ...record, size: 99, epoch: 10 });
    expect(decodeRecord(restamped)).toEqual({ ...record, size: 99, epoch: 10 });
    expect(sameExtents(bytes, restamped)).toBe(true);
  });
});

describe('cut', () => {
  test('keeps every other byte where it was, and frees exactly the rest', () => {
    const random = randomFrom(seed);
    for (let round = 0; round < 600; round++) {
      const record = emptyRecord(randomExtents(random, 1));
      const before = pageMap(record);
      const all = pageSet(pieces(record));
      const start = random(80);
      const count = random(4) === 0 ? Infinity : random(40);
      const { record: after, freed } = cutExtents(record, start * PAGE_BYTES, count * PAGE_BYTES);
      const expected = new Map([...before].filter(([page]) => page < start || page >= start + count));
      expect(pageMap(after)).toEqual(expected);
      expect(decodeRecord(encodeRecord(after)).extents.length).toBe(after.extents.length);
      const left = pageSet(pieces(after));
      const gone = pageSet(freed);
      expect(left.size + gone.size).toBe(all.size);
      expect([...left, ...gone].every((page) => all.has(page))).toBe(true);
      if (count === Infinity && start === 0) expect(left.size).toBe(0);
    }
  });

  test('rounds inwards to whole pages', () => {
    const record = emptyRecord([{ fileOffset: 0, length: 4 * PAGE_BYTES, unit: 4 * PAGE_BYTES, members: [{ region: 1, offset: 0 }] }]);
    expect(cutExtents(record, 1, 2 * PAGE_BYTES).freed).toEqual([{ region: 1, offset: PAGE_BYTES, length: PAGE_BYTES }]);
    expect(cutExtents(record, 1, PAGE_BYTES).freed).toEqual([]);
  });
});

describe('merge', () => {
  test('first wins, holes are filled, nothing is lost', () => {
    const random = randomFrom(seed);
    for (let round = 0; round < 600; round++) {
      const current = emptyRecord(randomExtents(random, 1));
      const proposed = emptyRecord(randomExtents(random, 100));
      const { record, added, unused } = mergeExtents(current, proposed);
      const expected = new Map([...pageMap(proposed), ...pageMap(current)]);
      expect(pageMap(record)).toEqual(expected);
      decodeRecord(encodeRecord(record));
      const taken = pageSet(joinPieces(added.flatMap((extent) => pieces({ extents: [extent] }))));
      const back = pageSet(unused);
      expect(taken.size + back.size).toBe(pageSet(pieces(proposed)).size);
    }
  });

  test('what both have alike is nobody to give back', () => {
    const record = emptyRecord(randomExtents(randomFrom(11), 1));
    const { record: merged, added, unused } = mergeExtents(record, record);
    expect([merged.extents, added, unused]).toEqual([record.extents, [], []]);
  });
});

test('subtraction of pieces', () => {
  const random = randomFrom(seed);
  const some = (): RegionPiece[] =>
    Array.from({ length: random(8) }, () => ({
      region: 1 + random(2),
      offset: random(40) * PAGE_BYTES,
      length: (1 + random(10)) * PAGE_BYTES,
    }));
  for (let round = 0; round < 500; round++) {
    const [a, b] = [some(), some()];
    const right = pageSet(joinPieces(b));
    const expected = [...pageSet(joinPieces(a))].filter((page) => !right.has(page)).sort();
    expect([...pageSet(subtractPieces(a, b))].sort()).toEqual(expected);
  }
});
