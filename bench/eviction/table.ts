/** What bench/results/eviction.json holds, and its table for the ADR. */
import type { Machine } from '../report.js';

/** Of the footprint, as in native/cache/eviction_bench.cc. */
const SIZES = [1, 5, 10, 25, 50];
const SHOWN = [1, 10, 25, 50];

export interface EvictionReport {
  machine: Machine;
  command: string;
  traces: { trace: string; requests: number; readPages: number; footprintPages: number; hitRatios: Record<string, number[]> }[];
}

/** Of some programs, the kernel's cache leaves nothing to find. */
const LEAST_READ_PAGES = 1000;
const LEAST_BOUND = 2;

const thousands = (count: number): string => `${Math.round(count / 1000)}k`;

export function evictionTable({ traces }: EvictionReport): string {
  const policies = Object.keys(traces[0]?.hitRatios ?? {});
  const cell = (ratios: number[] = []): string => SHOWN.map((size) => (ratios[SIZES.indexOf(size)] ?? NaN).toFixed(0)).join(' / ');
  const told = traces.filter(
    ({ readPages, hitRatios }) => readPages >= LEAST_READ_PAGES && Math.max(...(hitRatios['bound'] ?? [0])) >= LEAST_BOUND,
  );
  const lines = told.map(({ trace, readPages, footprintPages, hitRatios }) => {
    const cells = policies.map((policy) => cell(hitRatios[policy]));
    return `| ${trace} | ${thousands(readPages)} of ${thousands(footprintPages)} | ${cells.join(' | ')} |\n`;
  });
  return `| trace | pages read, of how many | ${policies.join(' | ')} |\n|---|---|${policies.map(() => '---|').join('')}\n${lines.join('')}`;
}
