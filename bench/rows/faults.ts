/** Single pages: faults through a mapping, stores and msync, direct reads. */
import { cold, measureDirect, measureFaults, program } from '../measure.js';
import { MIB } from '../targets/target.js';
import type { Comparison, Row } from './row.js';

export const FAULT_BYTES = 64 * MIB;
const STORES = 8192;

const REACH: Comparison['reach'] = { shm: 0.2, tcp: 0.35 };

const latency = (figure: string, title: string, reach: Comparison['reach']): Comparison => ({
  figure,
  title: `${title}, ${figure}`,
  unit: 'µs',
  better: 'lower',
  reach,
});

/** Of a row that faults in single pages in random order. */
export const randomFaults = (bytes: number, reach: Comparison['reach']): Pick<Row, 'comparisons' | 'measure'> => ({
  comparisons: ['p50', 'p90'].map((figure) => latency(figure, '4 KiB mmap fault, MADV_RANDOM, cold', reach)),
  async measure(target) {
    await cold(target);
    return measureFaults(target.file, { bytes });
  },
});

export const faultRows: readonly Row[] = [
  { id: 'fault-random', group: 'fault', peer: 'nbdfuse', ...randomFaults(FAULT_BYTES, REACH) },
  {
    id: 'fault-around',
    group: 'fault',
    peer: 'nbdfuse',
    // Most accesses find their page read around already: the mean tells, the median does not.
    comparisons: [latency('mean', '4 KiB mmap access, kernel reads around, cold', REACH)],
    async measure(target) {
      await cold(target);
      return measureFaults(target.file, { bytes: FAULT_BYTES, random: false });
    },
  },
  {
    id: 'random-stores',
    group: 'write',
    peer: 'nbdfuse',
    comparisons: [
      {
        figure: 'rate',
        title: '4 KiB random stores by mmap, msync counted',
        unit: 'stores/s',
        better: 'higher',
        reach: { shm: 3, tcp: 2.5 },
      },
    ],
    async measure(target) {
      await cold(target);
      return program('random_stores.py', target.file, String(STORES));
    },
  },
  {
    id: 'direct-read',
    group: 'direct',
    peer: 'nbdfuse',
    comparisons: [
      { figure: 'rate', title: 'O_DIRECT 4 KiB random reads, depth 8', unit: 'reads/s', better: 'higher', reach: { shm: 3, tcp: 2 } },
    ],
    async measure(target) {
      await cold(target);
      return measureDirect(target.file, FAULT_BYTES);
    },
  },
];
