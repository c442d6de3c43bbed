/** Sizes: what is accepted, what is printed, and that printing exactly and parsing are inverse. */
import { describe, expect, test } from '@jest/globals';
import { formatExactSize, formatSize, parseSize } from '../../../src/base/size.js';

describe('parseSize', () => {
  test.each([
    ['0', 0],
    ['4096', 4096],
    ['1k', 1024],
    ['512MiB', 512 * 1024 ** 2],
    ['512mb', 512 * 1024 ** 2],
    ['8G', 8 * 1024 ** 3],
    ['1.5 G', 1.5 * 1024 ** 3],
    ['1T', 1024 ** 4],
    ['100 B', 100],
  ])('%s is %d bytes', (text, bytes) => {
    expect(parseSize(text)).toBe(bytes);
  });

  test.each(['', 'G', '-1', '1X', '1 2', '8GG', '1e3', '0x10', 'iB', '10iB', '9P'])('%p is refused with advice', (text) => {
    expect(() => parseSize(text)).toThrow(/size|too large/);
  });
});

describe('formatSize', () => {
  test.each([
    [0, '0 B'],
    [100, '100 B'],
    [1023, '1023 B'],
    [1024, '1 KiB'],
    [1536, '1.5 KiB'],
    [10 * 1024 ** 2, '10 MiB'],
    [100 * 1024 ** 3, '100 GiB'],
    [1024 ** 3 - 1, '1 GiB'],
    [1025, '1 KiB'],
    [-2048, '-2 KiB'],
  ])('%d prints as %s', (bytes, text) => {
    expect(formatSize(bytes)).toBe(text);
  });
});

test('an exact size parses back to itself', () => {
  for (const bytes of [0, 1, 4096, 4097, 1536 * 1024, 8 * 1024 ** 3, 3 * 1024 ** 4 + 4096]) {
    expect(parseSize(formatExactSize(bytes))).toBe(bytes);
  }
});
