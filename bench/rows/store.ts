/**
 * The backing store: persisting and restoring beside plain copies on the same disk, in the same round; the first page of a lazy restore;
 * what continuous persistence costs whoever writes. Each round has a cluster of its own, whose appliance has a store: the target that
 * other rows are measured on has none.
 */
import { randomBytes } from 'node:crypto';
import { open, rm, statfs } from 'node:fs/promises';
import { freemem, tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { askManager, PERSIST_TIMEOUT_MS } from '../../src/base/manager_http.js';
import { freePort } from '../../test/free_port.js';
import { TestCluster } from '../../test/mount/cluster.js';
import { until } from '../../test/until.js';
import { measureDd, program } from '../measure.js';
import { fill, MIB, run, Unavailable } from '../targets/target.js';
import type { Figures, Row } from './row.js';

const WANTED_BYTES = 4096 * MIB;
const LEAST_BYTES = 256 * MIB;
const PIECE_BYTES = 64 * MIB;
const LATENCY_BYTES = 64 * MIB;
const LATENCY_WRITES = 3000;

/** 4 GiB, or what disk (two copies) and memory (one, and the kernel's pages) have room for. */
async function chooseBytes(): Promise<number> {
  const { bavail, bsize, type } = await statfs(tmpdir());
  const TMPFS = 0x01021994;
  if (type === TMPFS) throw new Unavailable(`${tmpdir()} is no disk: set TMPDIR to a folder on one`);
  const room = Math.min(WANTED_BYTES, (bavail * bsize) / 4, freemem() / 2);
  const bytes = Math.floor(room / LEAST_BYTES) * LEAST_BYTES;
  if (bytes === 0) throw new Unavailable('there is no room for 256 MiB on the disk and in memory');
  return bytes;
}

async function withCluster(bytes: number, measure: (cluster: TestCluster, store: string) => Promise<Figures>): Promise<Figures> {
  const memory = `${bytes / MIB + 512}M`;
  const cluster = new TestCluster({ appliances: 0, memory, transport: 'tcp', cache: '256M' });
  try {
    await cluster.start(0);
    return await measure(cluster, join(cluster.folder, 'store'));
  } finally {
    await rm(join(cluster.folder, 'plain'), { force: true });
    await cluster.stop();
  }
}

/** MB/s. */
async function rateOf(bytes: number, work: () => Promise<unknown>): Promise<number> {
  const begun = performance.now();
  await work();
  return bytes / 1e3 / (performance.now() - begun);
}

async function writePlain(path: string, bytes: number): Promise<void> {
  const piece = randomBytes(PIECE_BYTES);
  const file = await open(path, 'w');
  for (let written = 0; written < bytes; written += piece.length) await file.write(piece);
  await file.sync();
  await file.close();
}

/** The kernel's page cache forgets them. */
async function drop(...paths: string[]): Promise<void> {
  for (const path of paths) await run('dd', [`of=${path}`, 'oflag=nocache', 'conv=notrunc,fdatasync', 'count=0', 'status=none']);
}

async function absentBytes(port: number): Promise<number> {
  const text = await (await fetch(`http://127.0.0.1:${port}/metrics`)).text();
  return Number(/^extmem_appliance_store_absent_bytes\S* (\d+)$/m.exec(text)?.[1] ?? NaN);
}

/** MB/s, from when it can be asked until everything is there. */
async function measureRestore(cluster: TestCluster, store: string): Promise<number> {
  const port = await freePort();
  await cluster.startAppliance('a1', '--store', store, '--http', `127.0.0.1:${port}`);
  const missing = await absentBytes(port);
  if (!(missing > 0)) throw new Error('everything was restored before it could be measured: a larger disk or more memory is needed');
  return rateOf(missing, async () => {
    while ((await absentBytes(port)) > 0) await sleep(20);
  });
}

/** ms that a read of 4 KiB waits which nobody has asked for since the restore began. */
async function measureFirstPage(cluster: TestCluster, store: string, bytes: number): Promise<number> {
  await cluster.startAppliance('a1', '--store', store, '--restore', 'lazily');
  await cluster.evict();
  const page = Buffer.alloc(4096);
  const read = async (name: string, offset: number): Promise<void> => {
    const file = await open(cluster.mount().path(name), 'r');
    await file.read(page, 0, page.length, offset).finally(() => file.close());
  };
  // Until the mount has found the appliance again, which is no part of it.
  await until('the mount is back', () =>
    read('small', 0).then(
      () => true,
      () => false,
    ),
  );
  const begun = performance.now();
  await read('bench', bytes / 2);
  return performance.now() - begun;
}

const measureStore = async (): Promise<Figures> => {
  const bytes = await chooseBytes();
  return withCluster(bytes, async (cluster, store) => {
    const plain = join(cluster.folder, 'plain');
    await cluster.startAppliance('a1', '--store', store);
    await cluster.startMount('m1');
    await fill(cluster.mount().path('small'), MIB);
    await fill(cluster.mount().path('bench'), bytes);
    const write = await rateOf(bytes, () => writePlain(plain, bytes));
    const access = { manager: cluster.manager, token: cluster.token };
    const persist = await rateOf(bytes, () => askManager(access, 'POST', '/v1/persist', {}, PERSIST_TIMEOUT_MS));
    await cluster.signal('a1', 'SIGTERM');
    await drop(store, plain);
    const read = await measureDd([`if=${plain}`, 'of=/dev/null', 'bs=1M']);
    const restore = await measureRestore(cluster, store);
    await cluster.signal('a1', 'SIGTERM');
    await drop(store);
    const first = await measureFirstPage(cluster, store, bytes);
    return {
      size: bytes / 1024 / MIB,
      persist,
      restore,
      persistShare: (100 * persist) / write,
      restoreShare: (100 * restore) / read,
      first,
    };
  });
};

/** µs of a write and its fsync, of durability `memory`. */
const measureLatency = async (): Promise<Figures> => {
  const meanWith = (...flags: string[]): Promise<Figures> =>
    withCluster(LATENCY_BYTES, async (cluster, store) => {
      await cluster.startAppliance('a1', '--store', store, ...flags);
      const { mountPoint } = await cluster.startMount('m1');
      return program('write_latency.py', join(mountPoint, 'bench'), String(LATENCY_BYTES), String(LATENCY_WRITES));
    });
  const off = (await meanWith())['mean'] ?? NaN;
  const { mean: on = NaN, p50 = NaN, p90 = NaN, p99 = NaN } = await meanWith('--persist', 'continuously');
  return { on, ratio: (100 * on) / off, p50, p90, p99 };
};

export const storeRows: readonly Row[] = [
  {
    id: 'store',
    group: 'store',
    peer: undefined,
    comparisons: [
      {
        figure: 'size',
        title: 'backing store: how much is persisted and restored',
        unit: 'GiB',
        better: 'higher',
        reach: { tcp: 'shown' },
      },
      { figure: 'persist', title: 'persisted', unit: 'MB/s', better: 'higher', reach: { tcp: 'shown' } },
      { figure: 'persistShare', title: 'persisted, beside a plain copy', unit: '% of its speed', better: 'higher', reach: { tcp: 80 } },
      { figure: 'restore', title: 'restored', unit: 'MB/s', better: 'higher', reach: { tcp: 'shown' } },
      { figure: 'restoreShare', title: 'restored, beside a plain copy', unit: '% of its speed', better: 'higher', reach: { tcp: 80 } },
      { figure: 'first', title: 'restored lazily: the first page', unit: 'ms', better: 'lower', reach: { tcp: 50 } },
    ],
    measure: measureStore,
  },
  {
    id: 'store-latency',
    group: 'store',
    peer: undefined,
    comparisons: [
      { figure: 'on', title: '4 KiB write and fsync, persisted continuously', unit: 'µs', better: 'lower', reach: { tcp: 'shown' } },
      {
        figure: 'ratio',
        title: '4 KiB write and fsync, persisted continuously',
        unit: '% of that without',
        better: 'lower',
        reach: { tcp: 115 },
      },
    ],
    measure: measureLatency,
  },
];
