import { expect, test } from '@jest/globals';
import { SUM_BYTES } from '../../../src/base/protocol.js';
import { compare } from '../../../src/manager/moves/comparison.js';

/** One letter a block. */
const sums = (blocks: string): Uint8Array => Buffer.concat(Array.from(blocks, (letter) => Buffer.alloc(8, letter)));

test('copies that are the same do not differ', () => {
  expect(compare([sums('abc'), sums('abc')], 3 * SUM_BYTES)).toEqual([]);
});

test('of three the one that is not as the others is wrong, of two nobody knows', () => {
  expect(compare([sums('abc'), sums('axc'), sums('abc')], 3 * SUM_BYTES)).toEqual([{ offset: SUM_BYTES, length: SUM_BYTES, wrong: [1] }]);
  expect(compare([sums('ab'), sums('xb')], 2 * SUM_BYTES)).toEqual([{ offset: 0, length: SUM_BYTES, wrong: undefined }]);
  expect(compare([sums('a'), sums('a'), sums('b'), sums('b')], SUM_BYTES)[0]?.wrong).toBeUndefined();
});

test('blocks beside each other are one difference while the same copies are wrong; the last block is as long as it is', () => {
  const bytes = 3 * SUM_BYTES + 4096;
  expect(compare([sums('abcd'), sums('abcd'), sums('axyd')], bytes)).toEqual([{ offset: SUM_BYTES, length: 2 * SUM_BYTES, wrong: [2] }]);
  expect(compare([sums('abcd'), sums('xbcd'), sums('axcd')], bytes).map(({ wrong }) => wrong)).toEqual([[1], [2]]);
  expect(compare([sums('abcd'), sums('abcx')], bytes)).toEqual([{ offset: 3 * SUM_BYTES, length: 4096, wrong: undefined }]);
});

test('a copy that tells fewer hashes is not the same', () => {
  expect(compare([sums('ab'), sums('a')], 2 * SUM_BYTES)).toEqual([{ offset: SUM_BYTES, length: SUM_BYTES, wrong: undefined }]);
});
