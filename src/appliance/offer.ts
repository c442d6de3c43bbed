/**
 * How much an appliance offers: what it was told to donate, unless its own host runs short of memory. Then it offers less, before
 * the kernel has to kill somebody: what is in regions stays, but no new ones are made of memory that the host needs.
 */
import type { Spare } from './memory.js';

export interface Offer {
  bytes: number;
  /** whole: all that was donated. lowered: less. short: less than what is in regions already, so that filling them may end in a kill. */
  state: 'whole' | 'lowered' | 'short';
}

/** Of the machine's memory (or the cgroup's) this much stays free for others. */
const KEPT_SHARE = 50;
const LEAST_KEPT_BYTES = 64 * 1024 * 1024;
const MOST_KEPT_BYTES = 1024 * 1024 * 1024;
/** An offer changes in steps, and rises only when there is half a step more than it takes: so it does not with every breath of the host. */
const STEP_BYTES = 64 * 1024 * 1024;
const RISE_BYTES = STEP_BYTES / 2;

export function keptBytes(totalBytes: number): number {
  return Math.min(Math.max(totalBytes / KEPT_SHARE, LEAST_KEPT_BYTES), MOST_KEPT_BYTES);
}

/** All figures in bytes; `residentBytes` of `reservedBytes` (what is in regions) are taken from the host already. `before`: what was offered. */
export function offerOf(
  donatedBytes: number,
  spare: Spare,
  memory: { reservedBytes: number; residentBytes: number },
  before: Offer,
): Offer {
  const possible = memory.residentBytes + spare.bytes - keptBytes(spare.totalBytes);
  const lasting = possible - RISE_BYTES;
  if ((before.state === 'short' ? lasting : possible) < memory.reservedBytes) return { bytes: memory.reservedBytes, state: 'short' };
  const inSteps = (bytes: number): number => (bytes >= donatedBytes ? donatedBytes : Math.floor(bytes / STEP_BYTES) * STEP_BYTES);
  const bytes = Math.max(inSteps(lasting), Math.min(inSteps(possible), before.bytes));
  return bytes >= donatedBytes ? { bytes, state: 'whole' } : { bytes: Math.max(memory.reservedBytes, bytes), state: 'lowered' };
}
