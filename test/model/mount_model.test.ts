/**
 * Files in mounts against files in memory: random operations through real mounts, with caches so small that eviction works hard.
 * What native/cache/page_cache_model_test.cc does with the page cache alone, this does with everything from the system call to the
 * appliance's memory. EXTMEM_SEED repeats a run, EXTMEM_STEPS (for each lane) makes it longer.
 */
import { randomBytes } from 'node:crypto';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, test } from '@jest/globals';
import { Actor } from '../mount/actor.js';
import { TestCluster } from '../mount/cluster.js';
import { Lane, prelude } from './lane.js';
import { Random } from './model_file.js';
import { evict, pickOperation } from './operations.js';

const seed = Number(process.env['EXTMEM_SEED'] ?? Date.now() % 2 ** 31);
const steps = Number(process.env['EXTMEM_STEPS'] ?? 800);
/** Lanes have files of their own and run at the same time: they share caches, slabs and appliances. */
const LANES = 3;
const POOL_BYTES = 4 * 1024 * 1024;
console.log(`mount_model: EXTMEM_SEED=${seed} EXTMEM_STEPS=${steps}`);

/** Many together, or one alone. */
class Gate {
  private inside = 0;
  private closed: Promise<void> | undefined;
  private onEmpty: () => void = () => undefined;

  async together(body: () => Promise<void>): Promise<void> {
    while (this.closed !== undefined) await this.closed;
    this.inside += 1;
    try {
      await body();
    } finally {
      this.inside -= 1;
      if (this.inside === 0) this.onEmpty();
    }
  }

  async alone(body: () => Promise<void>): Promise<void> {
    while (this.closed !== undefined) await this.closed;
    let open: () => void = () => undefined;
    this.closed = new Promise((resolve) => (open = resolve));
    if (this.inside > 0) await new Promise<void>((resolve) => (this.onEmpty = resolve));
    try {
      await body();
    } finally {
      this.closed = undefined;
      open();
    }
  }
}

const messageOf = (error: unknown): string => (error instanceof Error ? error.message : String(error));

/** What the processes complained of. */
function logTails(cluster: TestCluster): string {
  const complaints = cluster.running().map((role) => {
    const lines = role
      .log()
      .split('\n')
      .filter((line) => line !== '' && !line.startsWith('{"level":30'));
    return lines.slice(-3).map((line) => `  ${role.name}: ${line.slice(0, 600)}`);
  });
  return complaints.flat().join('\n');
}

describe.each([
  ['one mount', 'shm', 1, 'stripe'],
  ['one mount', 'tcp', 1, 'mirror'],
  ['two mounts', 'shm', 2, 'mirror'],
  ['two mounts', 'tcp', 2, 'stripe'],
] as const)('%s over %s, %i, layout %s', (_, transport, mountCount, layout) => {
  const cluster = new TestCluster({ transport, cache: '8M', memory: '512M' });
  const mounts = Array.from({ length: mountCount }, (_item, index) => `m${index + 1}`);
  const actors: Actor[] = [];
  const gate = new Gate();
  let pool: Buffer;

  beforeAll(async () => {
    await cluster.start(mountCount);
    pool = randomBytes(POOL_BYTES);
    writeFileSync(join(cluster.folder, 'pool'), pool);
  }, 120_000);
  afterAll(async () => {
    await Promise.all(actors.map((actor) => actor.end()));
    await cluster.stop();
  }, 120_000);

  async function startActor(mount: string): Promise<Actor> {
    const actor = new Actor(cluster.mount(mount).mountPoint);
    actors.push(actor);
    await actor.do(prelude(join(cluster.folder, 'pool')));
    return actor;
  }

  async function runLane(lane: Lane, stop: AbortController): Promise<void> {
    try {
      for (lane.step = 1; lane.step <= steps && !stop.signal.aborted; ++lane.step) {
        const operation = pickOperation(lane);
        // The kernel ignores attributes that it asks for while it is told to drop pages: a read would end where the file ended
        // before another mount made it longer. Only eviction drops pages of files that others work with.
        const isAlone = operation === evict && mountCount > 1;
        await (isAlone ? gate.alone(() => operation(lane)) : gate.together(() => operation(lane)));
      }
      if (!stop.signal.aborted) await lane.finish();
    } catch (error) {
      stop.abort(); // the others need not go on
      throw error;
    }
  }

  test('reads give what was written, also after unmounting', async () => {
    const lanes: Lane[] = [];
    for (let index = 0; index < LANES; ++index) {
      const name = `lane${index}`;
      const ours = await Promise.all(mounts.map(startActor));
      await ours[0]!.do(`os.mkdir('${name}'); os.setxattr('${name}', 'user.extmem.layout', b'${layout}')`);
      const random = new Random(seed + index);
      lanes.push(new Lane({ name, random, actors: ours, pool, evict: (mount) => cluster.evict(mounts[mount]) }));
    }
    const stop = new AbortController();
    const ended = await Promise.allSettled(lanes.map((lane) => runLane(lane, stop)));
    for (const one of ended) if (one.status === 'rejected') throw new Error(`${messageOf(one.reason)}\n${logTails(cluster)}`);
    await Promise.all(actors.splice(0).map((actor) => actor.end()));
    for (const mount of mounts) await cluster.signal(mount, 'SIGTERM');
    await cluster.startMount('m1');
    const reader = await startActor('m1');
    for (const lane of lanes) await lane.readAgain(reader);
  }, 600_000);
});
