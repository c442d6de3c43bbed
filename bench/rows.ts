/** The rows of the comparison: what is measured, which figure counts, and what it must reach against the peer. */
import { dropKernelPages, measureDd, measureFaults } from './measure.js';
import type { Link, Target } from './targets.js';

export interface Row {
  id: string;
  group: 'fault' | 'seq';
  title: string;
  unit: 'µs' | 'MB/s';
  /** Our figure over the peer's: at most (lower is better) or at least (higher is better). */
  reach: Record<Link, number>;
  better: 'lower' | 'higher';
  measure(target: Target): Promise<Record<string, number>>;
  /** Which of the measured figures is compared. */
  figure: string;
}

const MIB = 1 << 20;
export const FILE_BYTES = 512 * MIB;
const FAULT_BYTES = 64 * MIB;

async function cold(target: Target): Promise<void> {
  await dropKernelPages(target.file);
  await target.evict();
}

function faultRow(id: string, title: string, random: boolean, figure: string, reach: Record<Link, number>): Row {
  return {
    id,
    group: 'fault',
    title,
    unit: 'µs',
    reach,
    better: 'lower',
    figure,
    async measure(target) {
      await cold(target);
      return { ...(await measureFaults(target.file, { bytes: FAULT_BYTES, random, pinned: false })) };
    },
  };
}

export const rows: readonly Row[] = [
  faultRow('fault-random', '4 KiB mmap fault, MADV_RANDOM, cold', true, 'p50', { shm: 0.4, tcp: 0.4 }),
  // Most accesses find their page read around already: the mean tells, the median does not.
  faultRow('fault-around', '4 KiB mmap access, kernel reads around, cold', false, 'mean', { shm: 0.2, tcp: 0.35 }),
  {
    id: 'seq-read',
    group: 'seq',
    title: 'dd read bs=1M, cold',
    unit: 'MB/s',
    reach: { shm: 1, tcp: 1 },
    better: 'higher',
    figure: 'rate',
    async measure(target) {
      await cold(target);
      return { rate: await measureDd([`if=${target.file}`, 'of=/dev/null', 'bs=1M']) };
    },
  },
  {
    id: 'seq-write',
    group: 'seq',
    title: 'dd write bs=1M conv=fsync',
    unit: 'MB/s',
    reach: { shm: 1, tcp: 1 },
    better: 'higher',
    figure: 'rate',
    async measure(target) {
      return { rate: await measureDd(['if=/dev/zero', `of=${target.file}`, 'bs=1M', `count=${FILE_BYTES / MIB}`, 'conv=fsync,notrunc']) };
    },
  },
];
