/**
 * Which blocks of the copies of a column differ, and which of them can be believed. Pure.
 */
import { SUM_BYTES } from '../../base/protocol.js';

export interface Difference {
  /** Of every member of the column, from its beginning, in bytes. */
  offset: number;
  length: number;
  /** Positions of the copies that are not as most are; undefined: there is no majority. */
  wrong: readonly number[] | undefined;
}

/** sums: of each copy, 8 bytes for each SUM_BYTES. What lies beside each other, and is as wrong, is one difference. */
export function compare(sums: readonly Uint8Array[], bytes: number): Difference[] {
  const found: Difference[] = [];
  for (let block = 0; block * SUM_BYTES < bytes; block++) {
    const of = sums.map((all) => Buffer.from(all.subarray(block * 8, block * 8 + 8)).toString('hex'));
    if (of.every((sum) => sum === of[0])) continue;
    const offset = block * SUM_BYTES;
    const length = Math.min(SUM_BYTES, bytes - offset);
    const wrong = minority(of);
    const last = found.at(-1);
    if (last !== undefined && last.offset + last.length === offset && String(last.wrong) === String(wrong)) last.length += length;
    else found.push({ offset, length, wrong });
  }
  return found;
}

function minority(sums: readonly string[]): number[] | undefined {
  const most = sums.find((sum) => sums.filter((other) => other === sum).length * 2 > sums.length);
  return most === undefined ? undefined : sums.flatMap((sum, index) => (sum === most ? [] : [index]));
}
