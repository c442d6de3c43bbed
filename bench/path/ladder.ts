/** The ladder as a document: what a fault costs, rung by rung, as a table and a picture. Made from its JSON only. */
import { machineName, type Machine } from '../report.js';
import type { Step } from './steps.js';

export interface Rung {
  id: 'tmpfs' | 'null' | 'hit' | 'shm' | 'tcp';
  title: string;
  /** Of a fault, as the application sees it; medians of the rounds, and their extremes. */
  p50: number;
  range: { min: number; max: number };
  /** Between the request's arrival and the reply, in our process; none where there is nothing below the session. */
  steps: Step[];
}

export interface Ladder {
  machine: Machine;
  command: string;
  session: string;
  rounds: number;
  rungs: Rung[];
}

/** What happens between two trace points, and whose work it is. */
interface Layer {
  name: string;
  colour: string;
  ends: (step: Step) => boolean;
}

const OUTSIDE: Omit<Layer, 'ends'> = { name: 'kernel, FUSE session, wake-ups', colour: '#9aa5b1' };
const layers: readonly Layer[] = [
  { name: '② cache: looked up', colour: '#4c9f70', ends: ({ to }) => to === 'cache.hit' || to === 'cache.miss' },
  { name: '② ③ cache and extents: frames claimed, place found', colour: '#7fc29b', ends: ({ to }) => to === 'extent.resolve' },
  { name: '④ fabric: handed over', colour: '#f0b429', ends: ({ to }) => to === 'fabric.submit' },
  { name: '④ fabric: on its way to the appliance', colour: '#de911d', ends: ({ to }) => to === 'region.serve' },
  { name: '④ ⑤ fabric and region: served, and on its way back', colour: '#c65d21', ends: ({ to }) => to === 'fabric.complete' },
  { name: '① ② page finished, reply handed to the kernel', colour: '#3e7cb1', ends: ({ to }) => to === 'fuse.reply' },
];

interface Part {
  name: string;
  colour: string;
  micros: number;
}

const sum = (values: readonly number[]): number => values.reduce((total, value) => total + value, 0);

/** From outside in; what is not ours is what is left of the whole. */
export function partsOf(rung: Rung): Part[] {
  const own = layers.map(({ name, colour, ends }) => ({ name, colour, micros: sum(rung.steps.filter(ends).map(({ micros }) => micros)) }));
  return [{ ...OUTSIDE, micros: Math.max(0, rung.p50 - sum(own.map(({ micros }) => micros))) }, ...own];
}

const digits = (micros: number): string => (micros === 0 ? '' : micros.toFixed(1));

function table(rungs: readonly Rung[]): string {
  const parts = rungs.map(partsOf);
  const rows = (parts[0] ?? []).map(
    ({ name }, index) => `| ${name} | ${parts.map((one) => digits(one[index]?.micros ?? 0)).join(' | ')} |`,
  );
  const whole = rungs.map(({ p50, range }) => `**${p50.toFixed(1)}** (${range.min.toFixed(1)}-${range.max.toFixed(1)})`);
  return [
    `| µs | ${rungs.map(({ title }) => title).join(' | ')} |`,
    `|---|${rungs.map(() => '---').join('|')}|`,
    ...rows,
    `| a fault, p50 | ${whole.join(' | ')} |`,
  ].join('\n');
}

export function documentOf({ machine, command, session, rounds, rungs }: Ladder): string {
  return `# The ladder: what a page fault costs, layer by layer

![Time of a fault by layer](ladder.svg)

${table(rungs)}

A 4 KiB fault through a mapping with MADV_RANDOM, the application pinned to one CPU, everything on one machine. The wholes are p50 of what the application sees (fio), medians of
${rounds} alternating rounds with their extremes; the parts inside are medians between trace points (\`native/base/trace.h\`) of a run of its own with tracing on; the first line is what is left.
tmpfs is the kernel alone: what a fault costs on this machine without a file system of ours. The null daemon is \`bench/path/null_daemon_main.cc\`: the same session with nothing below. A hit is answered from our cache; over shm nothing that is read enters it, as the region is on the machine itself.

${machineName(machine)}, requests by ${session}. Made by \`${command}\`; this file and the picture are written from \`bench/results/ladder.json\`.
`;
}

const WIDTH = 860;
const LABEL = 150;
const BAR = 34;
const GAP = 18;
const LEGEND = 20;

const escape = (text: string): string => text.replaceAll('&', '&amp;').replaceAll('<', '&lt;');

export function pictureOf({ rungs }: Ladder): string {
  const longest = Math.max(...rungs.map(({ p50 }) => p50));
  const scale = (WIDTH - LABEL - 70) / longest;
  const bars = rungs.map((rung, row) => {
    const top = GAP + row * (BAR + GAP);
    let left = LABEL;
    const boxes = partsOf(rung).map(({ name, colour, micros }) => {
      const box = `<rect x="${left.toFixed(1)}" y="${top}" width="${(micros * scale).toFixed(1)}" height="${BAR}" fill="${colour}"><title>${escape(name)}: ${micros.toFixed(1)} µs</title></rect>`;
      left += micros * scale;
      return box;
    });
    const middle = top + BAR / 2 + 5;
    return [
      `<text x="${LABEL - 10}" y="${middle}" text-anchor="end">${escape(rung.title)}</text>`,
      ...boxes,
      `<text x="${(left + 8).toFixed(1)}" y="${middle}">${rung.p50.toFixed(1)} µs</text>`,
    ].join('\n');
  });
  const legendTop = GAP + rungs.length * (BAR + GAP);
  const legend = [OUTSIDE, ...layers].map(
    ({ name, colour }, row) =>
      `<rect x="${LABEL}" y="${legendTop + row * LEGEND}" width="12" height="12" fill="${colour}"/>\n` +
      `<text x="${LABEL + 20}" y="${legendTop + row * LEGEND + 11}">${escape(name)}</text>`,
  );
  const height = legendTop + (layers.length + 1) * LEGEND + GAP;
  return `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${WIDTH} ${height}" font-family="sans-serif" font-size="13">
<rect width="${WIDTH}" height="${height}" fill="#ffffff"/>
${[...bars, ...legend].join('\n')}
</svg>
`;
}
