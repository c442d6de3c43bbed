/** The time of day as file times have it. */
import type { Time } from './messages.js';

let last = 0n;

/** Two of one process differ, and the later one is later, unless the clock was set back. */
export function now(): Time {
  const start = BigInt(Date.now()) * 1_000_000n;
  const end = start + 999_999n;
  last = last >= start && last < end ? last + 1n : start;
  return [Number(last / 1_000_000_000n), Number(last % 1_000_000_000n)];
}
