/** What of a fault is ours: beside the null daemon, which is the same session with nothing below. */
import { cold, measureFaults, measureFaultsOfTwo } from '../measure.js';
import { ExtmemTarget } from '../targets/extmem.js';
import { MIB, type Target } from '../targets/target.js';
import { FAULT_BYTES, randomFaults } from './faults.js';
import type { Figures, Row } from './row.js';

/** Well within the cache of the mount. */
const HELD_BYTES = 64 * MIB;
const TWO_BYTES = 48 * MIB;
/** Of the pages; a page may be asked for twice while it is being filled. */
const MISSES_ALLOWED = 0.01;

/** Faults that our cache answers, and proof that it did. */
async function measureHits(target: Target): Promise<Figures> {
  await target.hold?.(HELD_BYTES);
  const misses = async (): Promise<number> => {
    if (!(target instanceof ExtmemTarget)) return 0;
    const { cache = {} } = await target.statistics();
    return (cache['misses'] ?? 0) + (cache['directReads'] ?? 0);
  };
  const before = await misses();
  const figures = await measureFaults(target.file, { bytes: HELD_BYTES, within: HELD_BYTES, pinned: true });
  const missed = (await misses()) - before;
  if (missed > (MISSES_ALLOWED * HELD_BYTES) / 4096) throw new Error(`${missed} of the faults were no hits of the cache`);
  return figures;
}

export const nullRows: readonly Row[] = [
  // What is left of a fault's time here is the kernel's, and no file system of this kind does without it.
  { id: 'fault-null', group: 'null', peer: 'null', ...randomFaults(FAULT_BYTES, { shm: 'shown', tcp: 'shown' }) },
  {
    id: 'hit',
    group: 'null',
    peer: 'null',
    // Over shm nothing that is read enters our cache: the region itself is on this machine.
    comparisons: [
      {
        figure: 'p50',
        title: '4 KiB mmap fault answered from our cache, application pinned, p50',
        unit: 'µs',
        better: 'lower',
        reach: { tcp: 1.2 },
      },
    ],
    measure: measureHits,
  },
  {
    id: 'two-threads',
    group: 'null',
    peer: 'null',
    needsUring: true,
    comparisons: [
      { figure: 'rate', title: '4 KiB mmap faults of two threads, io_uring', unit: 'faults/s', better: 'higher', reach: { shm: 0.8 } },
    ],
    async measure(target) {
      await cold(target);
      return measureFaultsOfTwo(target.file, TWO_BYTES);
    },
  },
];
