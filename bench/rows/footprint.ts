/** What it costs to have it: processor time when nothing happens, memory beyond the limit that was set. */
import { readFile } from 'node:fs/promises';
import { setTimeout as sleep } from 'node:timers/promises';
import { CACHE_BYTES, ExtmemTarget } from '../targets/extmem.js';
import { MIB, type Target } from '../targets/target.js';
import type { Row } from './row.js';

const IDLE_MS = 10_000;
/** Polling and background work of what was measured before ends within this. */
const SETTLE_MS = 3000;
const TICKS_PER_SECOND = 100; // USER_HZ, fixed on Linux

async function cpuSeconds(target: ExtmemTarget): Promise<number> {
  let ticks = 0;
  for (const pid of await target.pidsOf('mount', 'appliance')) {
    const stat = await readFile(`/proc/${pid}/stat`, 'utf8');
    const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
    ticks += Number(fields[11]) + Number(fields[12]);
  }
  return ticks / TICKS_PER_SECOND;
}

/** VmRSS less what is shared memory, bytes. */
async function privateBytes(pid: number): Promise<number> {
  const status = await readFile(`/proc/${pid}/status`, 'utf8');
  const kib = (name: string): number => Number(new RegExp(`^${name}:\\s+(\\d+) kB`, 'm').exec(status)?.[1] ?? NaN);
  return (kib('VmRSS') - kib('RssShmem')) * 1024;
}

function extmem(target: Target): ExtmemTarget {
  if (!(target instanceof ExtmemTarget)) throw new Error(`${target.name} has no roles`);
  return target;
}

export const footprintRows: readonly Row[] = [
  {
    id: 'idle',
    group: 'footprint',
    peer: undefined,
    comparisons: [
      { figure: 'cpu', title: 'idle mount and its appliances', unit: '% of a CPU', better: 'lower', reach: { shm: 1, tcp: 1 } },
    ],
    async measure(target) {
      const ours = extmem(target);
      await sleep(SETTLE_MS);
      const before = await cpuSeconds(ours);
      await sleep(IDLE_MS);
      return { cpu: ((await cpuSeconds(ours)) - before) / (IDLE_MS / 100_000) };
    },
  },
  {
    id: 'memory',
    group: 'footprint',
    peer: undefined,
    comparisons: [
      {
        figure: 'beyond',
        title: "memory of a mount beyond its cache's limit",
        unit: 'MiB',
        better: 'lower',
        reach: { shm: 150, tcp: 150 },
      },
    ],
    async measure(target) {
      const [mount] = await extmem(target).pidsOf('mount');
      return { beyond: ((await privateBytes(mount ?? -1)) - CACHE_BYTES) / MIB };
    },
  },
];
