/** File records: encoding, and cut and merge held against a map of pages. */
import { describe, expect, test } from '@jest/globals';
import {
  allocatedBytes,
  cutExtents,
  decodeRecord,
  encodeRecord,
  joinPieces,
  locate,
  mergeExtents,
  pieces,
  restampRecord,
  sameExtents,
  subtractPieces,
  type Extent,
  type FileRecord,
} from '../../../src/base/file_record.js';
import { PAGE_BYTES } from '../../../src/base/protocol.js';
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
    const unit = (1 + random(3)) * PAGE_BYTES;
    const members = Array.from({ length: width }, () => ({ region: region++, offset: random(4) * PAGE_BYTES }));
    extents.push({ fileOffset: page * PAGE_BYTES, length: pages * PAGE_BYTES, unit: width === 1 ? pages * PAGE_BYTES : unit, members });
    page += pages;
  }
  return extents;
}

type PageMap = Map<number, string>;

function pageMap(record: Pick<FileRecord, 'extents'>): PageMap {
  const map: PageMap = new Map();
  for (const { fileOffset, length } of record.extents) {
    for (let at = fileOffset; at < fileOffset + length; at += PAGE_BYTES) {
      const place = locate(record, at);
      map.set(at / PAGE_BYTES, place === undefined ? 'hole' : `${place.region}:${place.offset}`);
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
