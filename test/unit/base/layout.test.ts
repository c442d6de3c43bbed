/** Layouts in words, and which copies count. */
import { describe, expect, test } from '@jest/globals';
import type { Extent, ExtentMember } from '../../../src/base/file_record.js';
import { formatLayout, parseAcross, parseLayout } from '../../../src/base/layout.js';
import { carryMarks, dropPlaces, dropRegions, lostRanges, unsync } from '../../../src/base/marks.js';
import { PAGE_BYTES } from '../../../src/base/protocol.js';

describe('words', () => {
  test('a layout is what it says, and says what it is', () => {
    expect(parseLayout('mirror')).toEqual({ layout: 'mirror', copies: 2 });
    for (const word of ['concat', 'stripe', 'mirror', 'raid10', 'mirror:3', 'raid10:4']) expect(formatLayout(parseLayout(word))).toBe(word);
  });

  test('what makes no sense is refused', () => {
    for (const word of ['', 'raid6', 'mirror:1', 'mirror:5', 'mirror:2:2', 'mirror:x', 'stripe:2', 'mirror:'])
      expect(() => parseLayout(word)).toThrow(expect.objectContaining({ code: 'EINVAL' }));
    expect(() => parseAcross('planet')).toThrow(expect.objectContaining({ code: 'EINVAL' }));
  });
});

const member = (region: number, marks: Partial<ExtentMember> = {}): ExtentMember => ({ region, offset: 0, ...marks });
const MISSING = { missing: true } as const;
const UNSYNCED = { unsynced: true } as const;
/** Two columns of two copies: regions 1 and 2, 3 and 4. */
const pair = (...members: ExtentMember[]): Extent[] => [{ fileOffset: 0, length: 8 * PAGE_BYTES, unit: PAGE_BYTES, copies: 2, members }];

describe('which copies count', () => {
  const whole = pair(member(1), member(2), member(3), member(4));

  test('one that missed a write does not, by any byte of it', () => {
    const dropped = dropPlaces(whole, [{ region: 3, offset: 3 * PAGE_BYTES + 5 }]);
    expect(dropped).toEqual(pair(member(1), member(2), member(3, MISSING), member(4)));
    expect(dropPlaces(whole, [{ region: 3, offset: 4 * PAGE_BYTES }])).toBe(whole); // behind it
    expect(dropPlaces(dropped, [{ region: 3, offset: 0 }])).toBe(dropped);
  });

  test('the last good one of a column does', () => {
    const degraded = pair(member(1, MISSING), member(2), member(3), member(4, UNSYNCED));
    expect(dropPlaces(degraded, [{ region: 2, offset: 0 }])).toBe(degraded);
    expect(dropPlaces(degraded, [{ region: 3, offset: 0 }])).toBe(degraded);
    expect(
      dropPlaces(
        whole,
        [1, 2].map((region) => ({ region, offset: 0 })),
      ),
    ).toBe(whole);
  });

  test('what is lost does not, and what is left is then what the column holds', () => {
    const unsynced = pair(member(1), member(2, UNSYNCED), member(3), member(4));
    expect(dropRegions(unsynced, (region) => region === 1)).toEqual(pair(member(1, MISSING), member(2), member(3), member(4)));
    expect(dropRegions(whole, (region) => region <= 2)).toBe(whole); // nothing to say: it is lost
  });

  test('of a dead writer, one of each column is taken as it is', () => {
    const after = unsync(pair(member(1), member(2), member(3, MISSING), member(4)));
    expect(after).toEqual(pair(member(1), member(2, UNSYNCED), member(3, MISSING), member(4)));
    expect(unsync(after)).toBe(after);
    const plain: Extent[] = [{ fileOffset: 0, length: PAGE_BYTES, unit: PAGE_BYTES, members: [member(1)] }];
    expect(unsync(plain)).toBe(plain);
  });

  test('a writer does not say otherwise; what it has lost since it may say', () => {
    const known = pair(member(1, MISSING), member(2), member(3), member(4, UNSYNCED));
    expect(carryMarks(whole, known, true)).toEqual(known);
    const lost = pair(member(1), member(2), member(3), member(4, MISSING));
    expect(carryMarks(lost, known, true)).toEqual(pair(member(1, MISSING), member(2), member(3), member(4, { ...MISSING, ...UNSYNCED })));
    expect(carryMarks(lost, known, false)).toEqual(known);
    // It would have nothing left of the first column.
    expect(carryMarks(pair(member(1), member(2, MISSING), member(3), member(4)), known, true)).toEqual(known);
  });

  test('a piece that was cut off a marked one is marked', () => {
    const known = pair(member(1, MISSING), member(2), member(3), member(4));
    const cut: Extent[] = [
      {
        fileOffset: 2 * PAGE_BYTES,
        length: PAGE_BYTES,
        unit: PAGE_BYTES,
        copies: 2,
        members: [1, 2].map((region) => ({ region, offset: PAGE_BYTES })),
      },
    ];
    expect(carryMarks(cut, known, true)[0]?.members[0]).toEqual({ region: 1, offset: PAGE_BYTES, missing: true });
  });

  test('where nothing is left, the file is lost, there and nowhere else', () => {
    const extents = pair(member(1, MISSING), member(2), member(3), member(4));
    expect(lostRanges(extents, () => false)).toEqual([]);
    expect(lostRanges(extents, (region) => region === 2)).toEqual(
      [0, 2, 4, 6].map((page) => ({ offset: page * PAGE_BYTES, length: PAGE_BYTES })),
    );
  });
});
