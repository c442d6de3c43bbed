/** What a run of the benchmark found, as JSON and as a table. */
import { readFile } from 'node:fs/promises';
import { cpus, loadavg, release, totalmem } from 'node:os';
import type { Comparison, Figures, Row } from './rows/row.js';
import type { Link, SessionKind } from './targets/target.js';

export interface Machine {
  kernel: string;
  cpus: number;
  processor: string;
  memoryGiB: number;
  /** Of a virtual machine wake-ups, faults and system calls cost more. */
  virtual: boolean;
}

export interface Result {
  row: string;
  figure: string;
  title: string;
  link: Link;
  session: SessionKind;
  unit: string;
  ours: number;
  peer: { name: string; value: number } | undefined;
  /** Ours over the peer's (or ours, where there is no peer): median, and the rounds' extremes. */
  ratio: number;
  ratios: { min: number; max: number };
  better: 'lower' | 'higher';
  reach: number | 'shown';
  reached: boolean;
  /** Everything that was measured beside it, medians. */
  all: { ours: Figures; peer: Figures };
}

export interface Skipped {
  row: string;
  link: Link;
  reason: string;
}

export interface Report {
  machine: Machine;
  command: string;
  rounds: number;
  /** One-minute load at the beginning: what else ran. */
  load: number;
  results: Result[];
  skipped: Skipped[];
}

export async function describeMachine(): Promise<Machine> {
  const flags = await readFile('/proc/cpuinfo', 'utf8');
  return {
    kernel: release().replace(/-.*/, ''),
    cpus: cpus().length,
    processor: (cpus()[0]?.model ?? 'unknown').trim(),
    memoryGiB: Math.round(totalmem() / 2 ** 30),
    virtual: /^flags.*\bhypervisor\b/m.test(flags),
  };
}

export const machineName = ({ kernel, cpus: count, virtual }: Machine): string =>
  `Linux ${kernel}, ${count} CPUs${virtual ? ' of a virtual machine' : ''}`;

export const currentLoad = (): number => Number((loadavg()[0] ?? 0).toFixed(2));

export interface Round {
  ours: Figures;
  peer: Figures;
}

export function median(values: readonly number[]): number {
  const sorted = [...values].sort((left, right) => left - right);
  const middle = Math.floor(sorted.length / 2);
  return sorted.length % 2 === 1 ? (sorted[middle] ?? NaN) : ((sorted[middle - 1] ?? NaN) + (sorted[middle] ?? NaN)) / 2;
}

function medians(samples: readonly Figures[]): Figures {
  const keys = Object.keys(samples[0] ?? {});
  return Object.fromEntries(keys.map((key) => [key, median(samples.map((sample) => sample[key] ?? NaN))]));
}

export function compare(
  row: Row,
  { figure, title, unit, better, reach, alone }: Comparison,
  rounds: readonly Round[],
  { link, session, peer: beside }: { link: Link; session: SessionKind; peer: string | undefined },
): Result {
  const peer = alone === true ? undefined : beside;
  const ratios = rounds.map(({ ours, peer: theirs }) => (ours[figure] ?? NaN) / (peer === undefined ? 1 : (theirs[figure] ?? NaN)));
  const ratio = median(ratios);
  const all = { ours: medians(rounds.map((round) => round.ours)), peer: medians(rounds.map((round) => round.peer)) };
  const bound = reach[link] ?? 'shown';
  return {
    row: row.id,
    figure,
    title,
    link,
    session,
    unit,
    ours: all.ours[figure] ?? NaN,
    peer: peer === undefined ? undefined : { name: peer, value: all.peer[figure] ?? NaN },
    ratio,
    ratios: { min: Math.min(...ratios), max: Math.max(...ratios) },
    better,
    reach: bound,
    reached: bound === 'shown' || (better === 'lower' ? ratio <= bound : ratio >= bound),
    all,
  };
}

export const tableHead = '| measure | link | extmem | beside it | ratio (min-max) | to reach | reached |\n|---|---|---|---|---|---|---|\n';

const digits = (value: number): string => value.toFixed(value < 100 ? 1 : 0);

/** A latency with its other percentiles, where they were measured. */
function shownValue(figures: Figures, figure: string, unit: string): string {
  const value = `${digits(figures[figure] ?? NaN)} ${unit}`;
  const { p50, p90, p99 } = figures;
  if (unit !== 'µs' || p50 === undefined || p90 === undefined || p99 === undefined) return value;
  return `${value} (${[p50, p90, p99].map(digits).join(' / ')})`;
}

export function tableLine({ title, link, unit, figure, peer, ratio, ratios, better, reach, reached, all }: Result): string {
  const theirs = peer === undefined ? '-' : `${peer.name}: ${shownValue(all.peer, figure, unit)}`;
  const range = peer === undefined ? '-' : `${ratio.toFixed(2)} (${ratios.min.toFixed(2)}-${ratios.max.toFixed(2)})`;
  const bound = reach === 'shown' ? '-' : `${better === 'lower' ? '≤' : '≥'} ${reach}`;
  const verdict = reach === 'shown' ? '-' : reached ? 'yes' : '**no**';
  return `| ${title} | ${link} | ${shownValue(all.ours, figure, unit)} | ${theirs} | ${range} | ${bound} | ${verdict} |\n`;
}

export const skippedLine = ({ row, link, reason }: Skipped): string => `| ${row} | ${link} | skipped: ${reason} | | | | |\n`;
