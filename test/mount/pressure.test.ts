/**
 * Memory is short: the application, and the mount that serves it, run in memory cgroups a fraction of what is worked on, apart or
 * together. Everything finishes, right to the byte, nobody is killed for memory, and nothing stalls (C10). EXTMEM_LONG=1 also runs
 * the other two pairs of transport and arrangement.
 */
import { afterAll, afterEach, beforeAll, describe, expect, test } from '@jest/globals';
import { python } from '../python.js';
import { LIMIT_MS } from './bad_days.js';
import { MemoryCgroup } from './cgroup.js';
import { succeed, TestCluster } from './cluster.js';
import { SHARED_WRITER, verifiedWriters } from './pressure_programs.js';

const MIB = 1 << 20;
const CACHE = 16 * MIB;
/** Of the application; and beside its cache, what a mount may need (node, code, connections). */
const APPLICATION = 24 * MIB;
const MOUNT = CACHE + 150 * MIB;
const WORKING_SET = 4 * (APPLICATION + CACHE);

const pairs = [
  ['tcp', 'together'],
  ['shm', 'apart'],
  ['tcp', 'apart'],
  ['shm', 'together'],
] as const;
const chosen = process.env['EXTMEM_LONG'] === undefined ? pairs.slice(0, 2) : pairs;

describe.each(chosen)('over %s, application and mount %s', (transport, how) => {
  const cluster = new TestCluster({ transport, cache: `${CACHE}`, memory: '512M' });
  let application: MemoryCgroup;
  let mount: MemoryCgroup;

  beforeAll(async () => {
    mount = MemoryCgroup.create('mount', how === 'apart' ? MOUNT : MOUNT + APPLICATION);
    application = how === 'apart' ? MemoryCgroup.create('application', APPLICATION) : mount;
    await cluster.start(0);
    await cluster.startMountWith(mount.runner(), 'm1', '--memory-cgroup', how === 'apart' ? 'stay' : 'leave');
  });
  afterEach(() => expect([application.oomKills, mount.oomKills]).toEqual([0, 0]));
  afterAll(async () => {
    await cluster.stop();
    for (const cgroup of new Set([mount, application])) cgroup.remove();
  });

  const inside = (...command: string[]): Promise<string> => {
    const [program, ...parameters] = [...application.runner(), ...command];
    return succeed(program ?? '', parameters);
  };

  test('stores through a shared mapping of four times the memory', async () => {
    const longest = await inside(python, '-c', SHARED_WRITER, cluster.mount().path('mapped'), String(WORKING_SET), '7');
    expect(Number(longest)).toBeLessThan(LIMIT_MS);
  }, 180_000);

  test('buffered writers, verified by fio', async () => {
    await inside(...verifiedWriters(cluster.mount().mountPoint, WORKING_SET), '--group_reporting', '--max_latency=5s');
  }, 180_000);

  test('a database that is larger than memory', async () => {
    const database = cluster.mount().path('database');
    const rows = WORKING_SET / 2 / 1024;
    const made = `PRAGMA cache_size=-2000; CREATE TABLE t(k INTEGER PRIMARY KEY, v BLOB); WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ${rows}) INSERT INTO t SELECT i, zeroblob(1000) || i FROM n;`;
    await inside('sqlite3', '-bail', database, made);
    await inside('sqlite3', '-bail', database, `UPDATE t SET v = k || v WHERE k % 7 = 0;`);
    const checked = await inside('sqlite3', '-bail', database, `PRAGMA integrity_check; SELECT count(*), sum(length(v)) FROM t;`);
    expect(checked.trim().split('\n')[0]).toBe('ok');
    expect(checked).toMatch(new RegExp(`^${rows}\\|`, 'm'));
  }, 180_000);
});
