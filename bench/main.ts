/**
 * `npm run bench`: extmem beside its peers, alternating in one run, medians of several rounds. Absolute figures drift on shared
 * machines; the ratios within one run are what counts.
 */
import { writeFile } from 'node:fs/promises';
import { Command, InvalidArgumentError, Option } from 'commander';
import { currentLoad, describeMachine, machineName, tableHead, type Report } from './report.js';
import { rows } from './rows/index.js';
import type { Row } from './rows/row.js';
import { benchLink } from './run.js';
import type { Link } from './targets/target.js';
import { switchUringOn } from './uring_switch.js';

interface Options {
  only?: Row[];
  links: Link[];
  rounds: number;
  ioUring: 'auto' | 'off';
  json?: string;
  check?: boolean;
}

function parseRounds(text: string): number {
  const rounds = Number(text);
  if (!Number.isInteger(rounds) || rounds < 1) throw new InvalidArgumentError('a whole number, at least 1');
  return rounds;
}

function parseRows(text: string): Row[] {
  const names = text.split(',');
  const unknown = names.filter((name) => !rows.some((row) => row.id === name || row.group === name));
  if (unknown.length > 0) throw new InvalidArgumentError(`there is no row ${unknown.join(', ')}; --help lists them`);
  return rows.filter((row) => names.includes(row.id) || names.includes(row.group));
}

function parseLinks(text: string): Link[] {
  return text.split(',').map((link) => {
    if (link !== 'shm' && link !== 'tcp') throw new InvalidArgumentError(`there is no link ${link}; there are shm and tcp`);
    return link;
  });
}

function parse(): Options {
  const groups = [...new Set(rows.map((row) => row.group))];
  return new Command('bench')
    .description('extmem beside its peers, in one run')
    .option('--only <rows>', 'groups or row ids, comma-separated; default: all', parseRows)
    .option('--links <links>', 'shm, tcp', parseLinks, ['shm', 'tcp'])
    .option('--rounds <n>', 'alternating rounds; figures are their medians', parseRounds, 5)
    .addOption(
      new Option('--io-uring <use>', 'FUSE over io_uring: auto (switched on for the run, as root) or off')
        .choices(['auto', 'off'])
        .default('auto'),
    )
    .option('--json <file>', 'write the results there')
    .option('--check', 'exit non-zero when a row falls short')
    .addHelpText('after', `\nRows: ${rows.map((row) => row.id).join(', ')}\nGroups: ${groups.join(', ')}`)
    .parse()
    .opts<Options>();
}

/** The first SIGINT or SIGTERM ends the run cleanly, the second at once. */
function abortedBySignals(): AbortSignal {
  const controller = new AbortController();
  for (const name of ['SIGINT', 'SIGTERM'] as const)
    process.once(name, () => {
      process.stderr.write(`\n${name}: stopping what was started, after the measurement under way\n`);
      controller.abort();
    });
  return controller.signal;
}

async function main(): Promise<void> {
  const options = parse();
  process.env['EXTMEM_IO_URING'] = options.ioUring; // for the mounts that are started
  const signal = abortedBySignals();
  const restore = options.ioUring === 'auto' ? switchUringOn() : (): undefined => undefined;
  const report: Report = {
    machine: await describeMachine(),
    command: ['npm run bench --', ...process.argv.slice(2)].join(' '),
    rounds: options.rounds,
    load: currentLoad(),
    results: [],
    skipped: [],
  };
  process.stdout.write(
    `${machineName(report.machine)}, load ${report.load}; ` +
      `${options.rounds} alternating rounds, application unpinned unless said, medians; latencies with p50 / p90 / p99\n\n${tableHead}`,
  );
  try {
    for (const link of options.links) {
      const { results, skipped } = await benchLink(link, { rows: options.only ?? rows, rounds: options.rounds, signal });
      report.results.push(...results);
      report.skipped.push(...skipped);
    }
  } catch (error) {
    if (!signal.aborted) throw error;
    process.exitCode = 130;
    return;
  } finally {
    restore();
  }
  if (options.json !== undefined) await writeFile(options.json, `${JSON.stringify(report, null, 2)}\n`);
  const short = report.results.filter((result) => !result.reached);
  process.stdout.write(
    `\n${report.results.length} measured, ${short.length} short of what is to be reached, ${report.skipped.length} skipped\n`,
  );
  if (options.check === true && short.length > 0) process.exitCode = 1;
}

await main();
