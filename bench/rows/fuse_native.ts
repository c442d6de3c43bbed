/** Beside fuse-native serving the same bytes from memory: what ADR 0001 weighed, measured again. */
import { cold, measureDd, measureFaults } from '../measure.js';
import { MIB, type Link } from '../targets/target.js';
import type { Comparison, Row } from './row.js';

const FAULT_BYTES = 16 * MIB;
const WRITTEN_MIB = 256;
const shown: Partial<Record<Link, 'shown'>> = { shm: 'shown' };

export const fuseNativeRows: readonly Row[] = [
  {
    id: 'fuse-native-fault',
    group: 'fuse-native',
    peer: 'fuse-native',
    comparisons: ['p50', 'p90'].map((figure): Comparison => ({
      figure,
      title: `4 KiB mmap fault, MADV_RANDOM, cold, ${figure}`,
      unit: 'µs',
      better: 'lower',
      reach: shown,
    })),
    async measure(target) {
      await cold(target);
      return measureFaults(target.file, { bytes: FAULT_BYTES });
    },
  },
  {
    id: 'fuse-native-write',
    group: 'fuse-native',
    peer: 'fuse-native',
    comparisons: [{ figure: 'rate', title: 'dd write bs=1M conv=fsync', unit: 'MB/s', better: 'higher', reach: shown }],
    async measure(target) {
      return { rate: await measureDd(['if=/dev/zero', `of=${target.file}`, 'bs=1M', `count=${WRITTEN_MIB}`, 'conv=fsync,notrunc']) };
    },
  },
];
