/**
 * `npm run bench`: extmem beside its peers, alternating in one run, medians of several rounds. Absolute figures drift on shared
 * machines; the ratios within one run are what counts.
 */
import { writeFile } from 'node:fs/promises';
import { cpus, release } from 'node:os';
import { Command } from 'commander';
import { median } from './measure.js';
import { FILE_BYTES, rows, type Row } from './rows.js';
import { ExtmemTarget, NbdFuseTarget, type Link, type Target } from './targets.js';

interface Result {
  row: string;
  link: Link;
  unit: string;
  ours: Record<string, number>;
  peer: Record<string, number>;
  peerName: string;
  ratio: number;
  ratios: { min: number; max: number };
  reach: number;
  reached: boolean;
}

async function measureRow(row: Row, link: Link, pair: { ours: Target; peer: Target }, rounds: number): Promise<Result> {
  const samples: { ours: Record<string, number>; peer: Record<string, number> }[] = [];
  for (let round = 0; round < rounds; ++round) {
    const ours = await row.measure(pair.ours);
    const peer = await row.measure(pair.peer);
    samples.push({ ours, peer });
  }
  const keys = Object.keys(samples[0]?.ours ?? {});
  const collect = (side: 'ours' | 'peer'): Record<string, number> =>
    Object.fromEntries(keys.map((key) => [key, median(samples.map((sample) => sample[side][key] ?? NaN))]));
  const ratios = samples.map((sample) => (sample.ours[row.figure] ?? NaN) / (sample.peer[row.figure] ?? NaN));
  const ratio = median(ratios);
  const reach = row.reach[link];
  return {
    row: row.id,
    link,
    unit: row.unit,
    ours: collect('ours'),
    peer: collect('peer'),
    peerName: pair.peer.name,
    ratio,
    ratios: { min: Math.min(...ratios), max: Math.max(...ratios) },
    reach,
    reached: row.better === 'lower' ? ratio <= reach : ratio >= reach,
  };
}

function print(result: Result, row: Row): void {
  const figures = (side: Record<string, number>): string =>
    Object.values(side)
      .map((value) => value.toFixed(row.unit === 'µs' ? 1 : 0))
      .join(' / ');
  const bound = `${row.better === 'lower' ? '≤' : '≥'} ${result.reach}`;
  process.stdout.write(
    `| ${row.title} | ${result.link} | ${figures(result.ours)} ${row.unit} | ${result.peerName}: ${figures(result.peer)} ${row.unit} | ` +
      `${result.ratio.toFixed(2)} (${result.ratios.min.toFixed(2)}-${result.ratios.max.toFixed(2)}) | ${bound} | ${result.reached ? 'yes' : 'NO'} |\n`,
  );
}

async function benchLink(link: Link, chosen: readonly Row[], rounds: number): Promise<Result[]> {
  const pair = { ours: new ExtmemTarget(link), peer: new NbdFuseTarget(link) };
  const results: Result[] = [];
  try {
    await pair.ours.start(FILE_BYTES);
    await pair.peer.start(FILE_BYTES);
    for (const row of chosen) {
      // The first tens of thousands of faults after a start are slow with every daemon: one round is not counted.
      await row.measure(pair.ours);
      await row.measure(pair.peer);
      const result = await measureRow(row, link, pair, rounds);
      print(result, row);
      results.push(result);
    }
  } finally {
    await pair.peer.stop();
    await pair.ours.stop();
  }
  return results;
}

async function main(): Promise<void> {
  const program = new Command('bench')
    .option('--only <rows>', 'groups or row ids, comma-separated', rows.map((row) => row.id).join(','))
    .option('--links <links>', 'shm, tcp', 'shm,tcp')
    .option('--rounds <n>', 'alternating rounds', '5')
    .option('--json <file>', 'write the results there')
    .option('--check', 'exit non-zero when a row falls short')
    .parse();
  const options = program.opts<{ only: string; links: string; rounds: string; json?: string; check?: boolean }>();
  const only = options.only.split(',');
  const chosen = rows.filter((row) => only.includes(row.id) || only.includes(row.group));
  if (chosen.length === 0) program.error(`no such row: ${options.only}; there are ${rows.map((row) => row.id).join(', ')}`);
  process.stdout.write(
    `Linux ${release()}, ${cpus().length} CPUs, ${options.rounds} alternating rounds, application unpinned; p50 / p90 / p99 / mean\n\n`,
  );
  process.stdout.write('| measure | link | extmem | peer | ratio (min-max) | to reach | reached |\n|---|---|---|---|---|---|---|\n');
  const results: Result[] = [];
  for (const link of options.links.split(',')) {
    if (link !== 'shm' && link !== 'tcp') program.error(`no such link: ${link}; there are shm and tcp`);
    else results.push(...(await benchLink(link, chosen, Number(options.rounds))));
  }
  if (options.json !== undefined) await writeFile(options.json, JSON.stringify(results, null, 2));
  if (options.check === true && results.some((result) => !result.reached)) process.exitCode = 1;
}

await main();
