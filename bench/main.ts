/**
 * `npm run bench`: extmem beside its peers, alternating in one run, medians of several rounds. Absolute figures drift on shared
 * machines; the ratios within one run are what counts.
 */
import { writeFile } from 'node:fs/promises';
import { cpus, release } from 'node:os';
import { Command, InvalidArgumentError } from 'commander';
import { median } from './measure.js';
import { rows } from './rows/index.js';
import { linksOf, type Comparison, type Figures, type Peer, type Row } from './rows/row.js';
import { FILE_BYTES } from './rows/streams.js';
import { ExtmemTarget } from './targets/extmem.js';
import { NbdFuseTarget } from './targets/nbdfuse.js';
import { SshfsTarget } from './targets/sshfs.js';
import type { Link, Target } from './targets/target.js';
import { TmpfsTarget } from './targets/tmpfs.js';

interface Result {
  row: string;
  figure: string;
  title: string;
  link: Link;
  unit: string;
  ours: number;
  peer: { name: string; value: number } | undefined;
  /** Ours over the peer's (or ours, where there is no peer): median, and the rounds' extremes. */
  ratio: number;
  ratios: { min: number; max: number };
  better: 'lower' | 'higher';
  reach: number;
  reached: boolean;
  /** Everything that was measured beside it, medians. */
  all: { ours: Figures; peer: Figures };
}

const peers: Record<Peer, (link: Link) => Target> = {
  nbdfuse: (link) => new NbdFuseTarget(link),
  sshfs: () => new SshfsTarget(),
  tmpfs: () => new TmpfsTarget(),
};

interface Round {
  ours: Figures;
  peer: Figures;
}

async function measureRow(row: Row, ours: Target, peer: Target | undefined, rounds: number): Promise<Round[]> {
  const samples: Round[] = [];
  // The first tens of thousands of faults after a start are slow with every daemon: one round is not counted.
  for (let round = peer === undefined ? 1 : 0; round <= rounds; ++round) {
    const sample = { ours: await row.measure(ours), peer: peer === undefined ? {} : await row.measure(peer) };
    if (round > 0) samples.push(sample);
  }
  return samples;
}

function medians(samples: readonly Figures[]): Figures {
  const keys = Object.keys(samples[0] ?? {});
  return Object.fromEntries(keys.map((key) => [key, median(samples.map((sample) => sample[key] ?? NaN))]));
}

function compare(row: Row, comparison: Comparison, link: Link, rounds: readonly Round[], peer: Target | undefined): Result {
  const { figure, title, unit, better } = comparison;
  const reach = comparison.reach[link] ?? NaN;
  const ratios = rounds.map(({ ours, peer: theirs }) => (ours[figure] ?? NaN) / (peer === undefined ? 1 : (theirs[figure] ?? NaN)));
  const ratio = median(ratios);
  const all = { ours: medians(rounds.map((round) => round.ours)), peer: medians(rounds.map((round) => round.peer)) };
  return {
    row: row.id,
    figure,
    title,
    link,
    unit,
    ours: all.ours[figure] ?? NaN,
    peer: peer === undefined ? undefined : { name: peer.name, value: all.peer[figure] ?? NaN },
    ratio,
    ratios: { min: Math.min(...ratios), max: Math.max(...ratios) },
    better,
    reach,
    reached: better === 'lower' ? ratio <= reach : ratio >= reach,
    all,
  };
}

function print({ title, link, unit, ours, peer, ratio, ratios, better, reach, reached }: Result): void {
  const digits = (value: number): string => value.toFixed(value < 100 ? 1 : 0);
  const theirs = peer === undefined ? '-' : `${peer.name}: ${digits(peer.value)} ${unit}`;
  const range = peer === undefined ? '-' : `${ratio.toFixed(2)} (${ratios.min.toFixed(2)}-${ratios.max.toFixed(2)})`;
  const bound = `${better === 'lower' ? '≤' : '≥'} ${reach}`;
  process.stdout.write(`| ${title} | ${link} | ${digits(ours)} ${unit} | ${theirs} | ${range} | ${bound} | ${reached ? 'yes' : 'NO'} |\n`);
}

async function benchLink(link: Link, chosen: readonly Row[], rounds: number): Promise<Result[]> {
  const ours = new ExtmemTarget(link);
  let peer: Target | undefined;
  let peerKind: Peer | undefined;
  const results: Result[] = [];
  try {
    await ours.start(FILE_BYTES);
    for (const row of chosen.filter((one) => linksOf(one).includes(link))) {
      if (row.peer !== peerKind) {
        await peer?.stop();
        peer = row.peer === undefined ? undefined : peers[row.peer](link);
        peerKind = row.peer;
        await peer?.start(FILE_BYTES);
      }
      const samples = await measureRow(row, ours, peer, rounds);
      for (const comparison of row.comparisons) {
        const result = compare(row, comparison, link, samples, peer);
        print(result);
        results.push(result);
      }
    }
  } finally {
    await peer?.stop();
    await ours.stop();
  }
  return results;
}

function parseRounds(text: string): number {
  const rounds = Number(text);
  if (!Number.isInteger(rounds) || rounds < 1) throw new InvalidArgumentError('a whole number, at least 1');
  return rounds;
}

async function main(): Promise<void> {
  const program = new Command('bench')
    .description('extmem beside its peers, in one run')
    .option('--only <rows>', 'groups or row ids, comma-separated')
    .option('--links <links>', 'shm, tcp', 'shm,tcp')
    .option('--rounds <n>', 'alternating rounds', parseRounds, 5)
    .option('--json <file>', 'write the results there')
    .option('--check', 'exit non-zero when a row falls short')
    .addHelpText(
      'after',
      `\nRows: ${rows.map((row) => row.id).join(', ')}\nGroups: ${[...new Set(rows.map((row) => row.group))].join(', ')}`,
    )
    .parse();
  const options = program.opts<{ only?: string; links: string; rounds: number; json?: string; check?: boolean }>();
  const only = options.only?.split(',');
  const unknown = only?.filter((name) => !rows.some((row) => row.id === name || row.group === name)) ?? [];
  if (unknown.length > 0) program.error(`no such row: ${unknown.join(', ')}; there are ${rows.map((row) => row.id).join(', ')}`);
  const chosen = rows.filter((row) => only === undefined || only.includes(row.id) || only.includes(row.group));
  process.stdout.write(
    `Linux ${release()}, ${cpus().length} CPUs, ${options.rounds} alternating rounds, application unpinned, medians\n\n`,
  );
  process.stdout.write('| measure | link | extmem | peer | ratio (min-max) | to reach | reached |\n|---|---|---|---|---|---|---|\n');
  const results: Result[] = [];
  for (const link of options.links.split(',')) {
    if (link !== 'shm' && link !== 'tcp') program.error(`no such link: ${link}; there are shm and tcp`);
    else results.push(...(await benchLink(link, chosen, options.rounds)));
  }
  if (options.json !== undefined) await writeFile(options.json, JSON.stringify(results, null, 2));
  if (options.check === true && results.some((result) => !result.reached)) process.exitCode = 1;
}

await main();
