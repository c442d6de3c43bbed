/** Beside fuse-native serving the same bytes from memory: what ADR 0001 weighed, measured again. */
import { measureDd } from '../measure.js';
import { MIB } from '../targets/target.js';
import { randomFaults } from './faults.js';
import type { Comparison, Row } from './row.js';

const FAULT_BYTES = 16 * MIB;
const WRITTEN_MIB = 256;
const shown: Comparison['reach'] = { shm: 'shown' };

export const fuseNativeRows: readonly Row[] = [
  { id: 'fuse-native-fault', group: 'fuse-native', peer: 'fuse-native', ...randomFaults(FAULT_BYTES, shown) },
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
