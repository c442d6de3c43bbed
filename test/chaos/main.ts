/**
 * npm run test:chaos: programs that know what they must read use files with two copies, while one thing after the other goes wrong
 * in a real cluster. Nothing may be wrong, lost, or refused that the layout bears; no call may take longer than 5 s.
 */
import { parseArgs } from 'node:util';
import { setTimeout as sleep } from 'node:timers/promises';
import { Random } from '../model/model_file.js';
import { canMakeHosts } from '../mount/hosts.js';
import { ChaosCluster } from './cluster.js';
import { chooseFault, type Fault } from './faults.js';
import { Workload, type Report } from './workloads.js';

const HELP = `Usage: npm run test:chaos -- [--seed N] [--schedules N] [--faults N] [--layout NAME]

  --seed N        the first schedule's seed; the others' follow (default: fresh, and printed)
  --schedules N   clusters, one after the other (default 1)
  --faults N      how many things go wrong in each (default 3). Only the last may cost copies: those that
                  were lost are made anew by themselves, but not at once
  --layout NAME   what the files are kept in (default mirror)

Example: npm run test:chaos -- --seed 42 --faults 20
`;

/** The manager may learn of new files so much later: until then an fsync needs it. */
const KNOWN_MS = 2000;
/** No call may take longer; an operation of a database is several. */
const LONGEST_MS = 5000;
const LONGEST_OF_DATABASE_MS = 4 * LONGEST_MS;

const started = Date.now();
function say(text: string): void {
  console.log(`${((Date.now() - started) / 1000).toFixed(1).padStart(6)} s  ${text}`);
}

async function runSchedule(seed: number, faults: number, layout: string): Promise<string[]> {
  const random = new Random(seed);
  const cluster = new ChaosCluster(layout);
  const complaints: string[] = [];
  let workloads: Workload[] = [];
  try {
    await cluster.start();
    workloads = [
      Workload.pages(cluster.folder, seed),
      Workload.database(cluster.folder, seed),
      Workload.database(cluster.folder, seed + 1),
      Workload.fio(cluster.folder, seed),
    ];
    await Promise.all(workloads.map(({ ready }) => ready));
    await sleep(KNOWN_MS);
    for (let number = 1; number <= faults && workloads.every(({ isOver }) => !isOver); ++number) {
      const may = number === faults ? 'cost copies' : 'cost nothing';
      await strike(cluster, workloads, chooseFault(cluster, random, may), random);
    }
    for (const workload of workloads) complaints.push(...judge(workload.name, await workload.finish()));
  } catch (error) {
    complaints.push(error instanceof Error ? error.message : String(error));
  } finally {
    for (const workload of workloads) workload.kill();
    await cluster.stop();
  }
  return complaints;
}

async function strike(cluster: ChaosCluster, workloads: readonly Workload[], fault: Fault, random: Random): Promise<void> {
  const lasts = random.between(300, 6000);
  say(`${fault.what}, for ${lasts} ms`);
  if (fault.ofManager) for (const workload of workloads) workload.excuse(true);
  await fault.strike();
  await sleep(lasts);
  await fault.mend();
  await cluster.healed();
  for (const workload of workloads) workload.excuse(false);
  await sleep(random.between(200, 1500));
}

function judge(name: string, { operations, refused, longestMs, complaint }: Report): string[] {
  say(`${name}: ${operations} operations, ${refused} refused, the longest ${longestMs} ms${complaint === '' ? '' : ': WRONG'}`);
  if (complaint !== '') return [`${name}: ${complaint}`];
  const limitMs = name === 'sqlite3' ? LONGEST_OF_DATABASE_MS : LONGEST_MS;
  return longestMs > limitMs ? [`${name}: a call took ${longestMs} ms`] : [];
}

function natural(text: string | undefined, flag: string, fallback: number): number {
  if (text === undefined) return fallback;
  if (!/^\d{1,9}$/.test(text)) throw new Error(`--${flag} wants a number, not '${text}'`);
  return Number(text);
}

async function main(): Promise<number> {
  const { values } = parseArgs({
    options: {
      seed: { type: 'string' },
      schedules: { type: 'string' },
      faults: { type: 'string' },
      layout: { type: 'string', default: 'mirror' },
      help: { type: 'boolean', default: false },
    },
  });
  if (values.help) {
    process.stdout.write(HELP);
    return 0;
  }
  const first = natural(values.seed, 'seed', Math.floor(Math.random() * 1_000_000));
  const schedules = natural(values.schedules, 'schedules', 1);
  const faults = natural(values.faults, 'faults', 3);
  if (!canMakeHosts) throw new Error('this needs root, and network namespaces');
  let failed = 0;
  for (let seed = first; seed < first + schedules; ++seed) {
    say(`schedule of seed ${seed}`);
    const complaints = await runSchedule(seed, faults, values.layout);
    for (const complaint of complaints) say(complaint);
    if (complaints.length === 0) continue;
    failed += 1;
    say(`again by: npm run test:chaos -- --seed ${seed} --faults ${faults} --layout ${values.layout}`);
  }
  say(`${schedules - failed} of ${schedules} schedules went well`);
  return failed === 0 ? 0 : 1;
}

try {
  process.exitCode = await main();
} catch (error) {
  console.error(`chaos: ${error instanceof Error ? error.message : String(error)}`);
  process.exitCode = 2;
}
