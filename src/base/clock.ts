/** The time of day as file times have it. */
import type { Time } from './messages.js';

export function now(): Time {
  const ms = Date.now();
  const nanoseconds = Number(process.hrtime.bigint() % 1_000_000n); // two changes within a millisecond differ
  return [Math.floor(ms / 1000), (ms % 1000) * 1_000_000 + nanoseconds];
}
