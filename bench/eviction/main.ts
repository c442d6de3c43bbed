/**
 * `npm run bench:eviction`: records what programs ask of a mount's page cache (--reference-log), and plays it to eviction policies
 * (native/cache/eviction_bench.cc). Writes bench/results/eviction.json.
 */
import { existsSync, mkdirSync, mkdtempSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { Command, InvalidArgumentError } from 'commander';
import { MemoryCgroup } from '../../test/mount/cgroup.js';
import { describeMachine } from '../report.js';
import { ExtmemTarget } from '../targets/extmem.js';
import { run } from '../targets/target.js';
import { evictionTable, type EvictionReport } from './table.js';
import { workloads, type Caching, type Workload } from './workloads.js';

const root = fileURLToPath(new URL('../../../', import.meta.url));
const words: Record<Caching, string> = { kernel: 'as it is', short: 'kernel short of memory', direct: 'O_DIRECT' };

interface Options {
  only: Workload[];
  logs?: string;
  json: string;
}

function parseWorkloads(text: string): Workload[] {
  return text.split(',').map((id) => {
    const found = workloads.find((workload) => workload.id === id);
    if (found === undefined) throw new InvalidArgumentError(`there are ${workloads.map((workload) => workload.id).join(', ')}`);
    return found;
  });
}

/** Through a real mount, over tcp: on shared memory of the same host, reads pass our cache by. */
async function record(workload: Workload, caching: Caching, log: string): Promise<void> {
  process.stderr.write(`${workload.id}, ${words[caching]}\n`);
  process.env['EXTMEM_REFERENCE_LOG'] = log;
  const target = new ExtmemTarget('tcp');
  const cgroup = caching === 'short' ? MemoryCgroup.create('eviction', workload.shortBytes) : undefined;
  try {
    await target.start(0);
    await workload.record({
      folder: target.folder,
      caching,
      run: async (command, ...parameters) => {
        const [first = command, ...rest] = [...(cgroup?.runner() ?? []), command, ...parameters];
        return (await run(first, rest, { maxBuffer: 1 << 28 })).stdout;
      },
      cool: () => target.evict(),
    });
    const { lostReferences } = (await target.statistics())['cache'] ?? {};
    if (lostReferences !== 0) throw new Error(`${workload.id}: ${String(lostReferences)} references are not in the log`);
  } finally {
    await target.stop();
    cgroup?.remove();
  }
}

async function main(): Promise<void> {
  const options = new Command('bench:eviction')
    .description('hit ratios of eviction policies on recorded references')
    .option('--only <workloads>', `record these: ${workloads.map((workload) => workload.id).join(', ')}`, parseWorkloads, [...workloads])
    .option('--logs <folder>', 'keep the records there, and use those that are there already')
    .option('--json <file>', 'write the results there', 'bench/results/eviction.json')
    .parse()
    .opts<Options>();
  const folder = options.logs === undefined ? mkdtempSync(join(tmpdir(), 'extmem-eviction-')) : resolve(options.logs);
  mkdirSync(folder, { recursive: true });
  try {
    const logs: string[] = [];
    for (const workload of options.only) {
      for (const caching of workload.caching) {
        const name = `${workload.id}-${caching}`;
        if (!existsSync(join(folder, name))) {
          await record(workload, caching, join(folder, `${name}.part`));
          renameSync(join(folder, `${name}.part`), join(folder, name));
        }
        logs.push(`${workload.title}, ${words[caching]}=${join(folder, name)}`);
      }
    }
    const program = join(root, 'build/native/plain/bin/cache.eviction_bench');
    const { stdout } = await run(program, logs, { maxBuffer: 1 << 24 });
    const report: EvictionReport = {
      machine: await describeMachine(),
      command: 'npm run bench:eviction',
      traces: JSON.parse(stdout) as EvictionReport['traces'],
    };
    writeFileSync(options.json, `${JSON.stringify(report, null, 2)}\n`);
    process.stdout.write(evictionTable(report));
  } finally {
    if (options.logs === undefined) rmSync(folder, { recursive: true, force: true });
  }
}

await main();
