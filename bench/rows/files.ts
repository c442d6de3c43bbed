/** Many small files. */
import { join } from 'node:path';
import { program } from '../measure.js';
import type { Row } from './row.js';

const COUNT = 10_000;
const BYTES = 4096;

export const fileRows: readonly Row[] = [
  {
    id: 'small-files',
    group: 'files',
    peer: 'sshfs',
    comparisons: (['write', 'stat', 'read', 'unlink'] as const).map((figure) => ({
      figure,
      title: `${COUNT} files of 4 KiB: ${figure === 'write' ? 'create and write' : figure}`,
      unit: 'files/s',
      better: 'higher',
      reach: { tcp: figure === 'unlink' ? 1 : 1.5 },
    })),
    async measure(target) {
      if (target.folder === undefined) throw new Error(`${target.name} holds no files`);
      return program('small_files.py', join(target.folder, 'small'), String(COUNT), String(BYTES));
    },
  },
];
