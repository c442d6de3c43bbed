/**
 * `npm run bench:path`: the ladder. What a fault costs on the null daemon, on a hit of our cache, and on a miss over shm and tcp, and where
 * within our process the time goes. Writes bench/results/ladder.json; `npm run bench:documents` makes the document and the picture of it.
 */
import { execFile } from 'node:child_process';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { Command } from 'commander';
import { cold, measureFaults } from '../measure.js';
import { describeMachine, median } from '../report.js';
import { ExtmemTarget } from '../targets/extmem.js';
import { NullDaemonTarget } from '../targets/null_daemon.js';
import { MIB, type Link, type Target } from '../targets/target.js';
import { TmpfsTarget } from '../targets/tmpfs.js';
import { switchUringOn } from '../uring_switch.js';
import type { Ladder, Rung } from './ladder.js';
import type { Step } from './steps.js';

const FILE_BYTES = 64 * MIB;
const FAULT_BYTES = 32 * MIB;
const program = fileURLToPath(new URL('traced_mount.js', import.meta.url));

async function tracedSteps(link: Link, kind: 'hit' | 'miss'): Promise<Step[]> {
  const folder = await mkdtemp(join(tmpdir(), 'extmem-ladder-'));
  try {
    const { stdout } = await promisify(execFile)(process.execPath, [program, link, kind, folder]);
    return JSON.parse(stdout) as Step[];
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}

async function wholes(rounds: number): Promise<{ session: string; times: Map<Rung['id'], number[]> }> {
  const [shm, tcp] = [new ExtmemTarget('shm'), new ExtmemTarget('tcp')];
  const memory = new TmpfsTarget();
  const times = new Map<Rung['id'], number[]>();
  let nothing: NullDaemonTarget | undefined;
  try {
    await shm.start(FILE_BYTES);
    await tcp.start(FILE_BYTES);
    await memory.start(FILE_BYTES);
    const session = await tcp.session();
    nothing = new NullDaemonTarget(session);
    await nothing.start(FILE_BYTES);
    const rungs: { id: Rung['id']; target: Target; prepare: (target: Target) => Promise<void> }[] = [
      { id: 'tmpfs', target: memory, prepare: cold },
      { id: 'null', target: nothing, prepare: cold },
      { id: 'hit', target: tcp, prepare: async () => tcp.hold(FILE_BYTES) },
      { id: 'shm', target: shm, prepare: cold },
      { id: 'tcp', target: tcp, prepare: cold },
    ];
    for (let round = 0; round <= rounds; ++round) {
      for (const { id, target, prepare } of rungs) {
        await prepare(target);
        const { p50 = NaN } = await measureFaults(target.file, { bytes: FAULT_BYTES, pinned: true });
        if (round > 0) times.set(id, [...(times.get(id) ?? []), p50]); // the first after a start is not counted
      }
    }
    return { session, times };
  } finally {
    await nothing?.stop();
    await memory.stop();
    await tcp.stop();
    await shm.stop();
  }
}

async function main(): Promise<void> {
  const { rounds, json, ioUring } = new Command('bench:path')
    .description('the ladder: what a fault costs, layer by layer')
    .option('--rounds <n>', 'alternating rounds', Number, 5)
    .option('--io-uring <use>', 'auto (switched on for the run, as root) or off', 'auto')
    .option('--json <file>', 'write it there', 'bench/results/ladder.json')
    .parse()
    .opts<{ rounds: number; json: string; ioUring: string }>();
  process.env['EXTMEM_IO_URING'] = ioUring; // for the mounts that are started
  const restore = ioUring === 'auto' ? switchUringOn() : (): undefined => undefined;
  const command = ['npm run bench:path', ...(process.argv.length > 2 ? ['--', ...process.argv.slice(2)] : [])].join(' ');
  try {
    const { session, times } = await wholes(rounds);
    const rung = (id: Rung['id'], title: string, steps: Step[]): Rung => {
      const all = times.get(id) ?? [];
      return { id, title, p50: median(all), range: { min: Math.min(...all), max: Math.max(...all) }, steps };
    };
    const rungs = [
      rung('tmpfs', 'tmpfs', []),
      rung('null', 'null daemon', []),
      rung('hit', 'hit', await tracedSteps('tcp', 'hit')),
      rung('shm', 'miss, shm', await tracedSteps('shm', 'miss')),
      rung('tcp', 'miss, tcp', await tracedSteps('tcp', 'miss')),
    ];
    const ladder: Ladder = { machine: await describeMachine(), command, session, rounds, rungs };
    await writeFile(json, `${JSON.stringify(ladder, null, 2)}\n`);
    for (const { title, p50 } of rungs) process.stdout.write(`${title}: ${p50.toFixed(1)} µs\n`);
  } finally {
    restore();
  }
}

await main();
