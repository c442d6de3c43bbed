/** Long runs of bytes: dd in and out, a second pass through a mapping, cp of a whole file. */
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { rm } from 'node:fs/promises';
import { cold, dropKernelPages, measureCopy, measureDd, measureScan } from '../measure.js';
import { fill, MIB, run } from '../targets/target.js';
import type { Row } from './row.js';

export const FILE_BYTES = 1024 * MIB;

export const streamRows: readonly Row[] = [
  {
    id: 'seq-read',
    group: 'seq',
    peer: 'nbdfuse',
    comparisons: [{ figure: 'rate', title: 'dd read bs=1M, cold', unit: 'MB/s', better: 'higher', reach: { shm: 1.7, tcp: 1.4 } }],
    async measure(target) {
      await cold(target);
      return { rate: await measureDd([`if=${target.file}`, 'of=/dev/null', 'bs=1M']) };
    },
  },
  {
    id: 'seq-write',
    group: 'seq',
    peer: 'nbdfuse',
    comparisons: [{ figure: 'rate', title: 'dd write bs=1M conv=fsync', unit: 'MB/s', better: 'higher', reach: { shm: 1.6, tcp: 1.3 } }],
    async measure(target) {
      return { rate: await measureDd(['if=/dev/zero', `of=${target.file}`, 'bs=1M', `count=${FILE_BYTES / MIB}`, 'conv=fsync,notrunc']) };
    },
  },
  {
    id: 'warm-scan',
    group: 'warm',
    peer: 'tmpfs',
    comparisons: [{ figure: 'rate', title: 'second pass through mmap', unit: 'MB/s', better: 'higher', reach: { shm: 0.8 } }],
    async measure(target) {
      await measureScan(target.file);
      return { rate: await measureScan(target.file) };
    },
  },
  {
    id: 'copy',
    group: 'copy',
    peer: 'sshfs',
    comparisons: (['in', 'out'] as const).map((way) => ({
      figure: way,
      title: `cp of 1 GiB ${way}`,
      unit: 'MB/s',
      better: 'higher',
      reach: { tcp: 2.5 },
    })),
    async measure(target) {
      const outside = join(tmpdir(), `extmem-bench-copy-${process.pid}`);
      const inside = `${target.file}-copy`;
      try {
        await fill(outside, FILE_BYTES);
        await run('dd', [`if=${outside}`, 'of=/dev/null', 'bs=1M', 'status=none']); // from here on it comes from memory
        const into = await measureCopy(outside, inside);
        await dropKernelPages(inside);
        await target.evict();
        const out = await measureCopy(inside, outside);
        return { in: into, out };
      } finally {
        await Promise.all([rm(outside, { force: true }), rm(inside, { force: true })]);
      }
    },
  },
];
