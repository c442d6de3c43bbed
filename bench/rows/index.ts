/** All rows, in the order in which they are measured: the footprint last, after the mount has worked hard. */
import { faultRows } from './faults.js';
import { fileRows } from './files.js';
import { footprintRows } from './footprint.js';
import { fuseNativeRows } from './fuse_native.js';
import { nullRows } from './null.js';
import { pressureRows } from './pressure.js';
import { readAheadRows } from './read_ahead.js';
import type { Row } from './row.js';
import { storeRows } from './store.js';
import { streamRows } from './streams.js';

export const rows: readonly Row[] = [
  ...faultRows,
  ...nullRows,
  ...streamRows,
  ...readAheadRows,
  ...fileRows,
  ...fuseNativeRows,
  ...pressureRows,
  ...storeRows,
  ...footprintRows,
];
