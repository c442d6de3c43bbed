/**
 * When memory is short: a program works on four times what it may have, in a memory cgroup. With us it maps a file, and the mount's cache
 * counts as its memory; without us the kernel swaps, and the program may have as much as both.
 */
import { rm } from 'node:fs/promises';
import { MemoryCgroup } from '../../test/mount/cgroup.js';
import { programUnder } from '../measure.js';
import { CACHE_BYTES } from '../targets/extmem.js';
import { MIB, Unavailable, type Target } from '../targets/target.js';
import type { Comparison, Figures, Row } from './row.js';

const APPLICATION_BYTES = 64 * MIB;
const ALLOWED_BYTES = APPLICATION_BYTES + CACHE_BYTES;
const WORKING_SET_BYTES = 4 * ALLOWED_BYTES;
const ACCESSES = 40_000;

function createCgroup(target: Target): MemoryCgroup {
  const isSwap = target.folder === undefined;
  try {
    return MemoryCgroup.create('bench', isSwap ? ALLOWED_BYTES : APPLICATION_BYTES, { swaps: isSwap });
  } catch (error) {
    throw new Unavailable(`no memory cgroup can be made: ${error instanceof Error ? error.message : String(error)}`);
  }
}

async function measure(target: Target): Promise<Figures> {
  const path = target.folder === undefined ? target.file : `${target.file}-pressure`;
  const cgroup = createCgroup(target);
  try {
    return await programUnder(cgroup.runner(), 'pressure.py', path, String(WORKING_SET_BYTES), String(ACCESSES));
  } finally {
    cgroup.remove();
    if (target.folder !== undefined) await rm(path, { force: true });
  }
}

const comparisons: readonly Comparison[] = [
  {
    figure: 'fill',
    title: 'four times the memory there is: filled',
    unit: 'MB/s',
    better: 'higher',
    reach: { tcp: 'shown' },
  },
  {
    figure: 'rate',
    title: 'four times the memory there is: 4 KiB read or stored to at random',
    unit: 'accesses/s',
    better: 'higher',
    reach: { tcp: 'shown' },
  },
];

export const pressureRows: readonly Row[] = (['swap file', 'zram'] as const).map((peer) => ({
  id: peer === 'zram' ? 'pressure-zram' : 'pressure-swap',
  group: 'pressure',
  peer,
  comparisons,
  measure,
}));
