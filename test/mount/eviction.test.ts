/** Which pages stay in a mount's cache, and the log of what was asked of it. */
import { readFileSync } from 'node:fs';
import { stat } from 'node:fs/promises';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from '@jest/globals';
import { makeRandomFile, succeed, TestCluster } from './cluster.js';

const MIB = 1 << 20;
const RECORD_BYTES = 24;
const DIRECT_READ = 1; // native/cache/reference_log.h

interface Reference {
  node: number;
  page: number;
  count: number;
  kind: number;
}

function referencesOf(log: Buffer): Reference[] {
  expect(log.subarray(0, 19).toString()).toBe('extmem references 1');
  return Array.from({ length: log.length / RECORD_BYTES - 1 }, (_, index) => {
    const at = (index + 1) * RECORD_BYTES;
    const counted = log.readUInt32LE(at + 20);
    return { node: Number(log.readBigUInt64LE(at)), page: log.readUInt32LE(at + 16), count: counted & 0xff_ff_ff, kind: counted >>> 24 };
  });
}

describe('eviction', () => {
  const cluster = new TestCluster({ transport: 'tcp', cache: `${16 * MIB}`, memory: '256M' });
  const log = join(cluster.folder, 'references');

  beforeAll(async () => {
    await cluster.start(0);
    await cluster.startMount('m1', '--reference-log', log, '--read-ahead', '2M');
    for (const [name, size] of Object.entries({ used: 4 * MIB, scanned: 64 * MIB })) {
      const outside = join(cluster.folder, name);
      makeRandomFile(outside, size);
      await succeed('cp', [outside, cluster.mount().path(name)]);
      await succeed('sync', [cluster.mount().path(name)]);
    }
  });
  afterAll(() => cluster.stop());

  const read = (name: string, ...more: string[]): Promise<string> =>
    succeed('dd', [`if=${cluster.mount().path(name)}`, 'of=/dev/null', 'bs=256K', ...more]);
  const misses = async (): Promise<number> => (await cluster.statistics())['cache']?.['misses'] ?? NaN;

  test('a scan that the kernel keeps, read ahead, does not push out what only we have', async () => {
    await cluster.evict();
    await read('used', 'iflag=direct');
    await read('scanned');
    const before = await misses();
    await read('used', 'iflag=direct');
    expect((await misses()) - before).toBe(0);
  });

  test('the log has every request, in order, and nothing was lost', async () => {
    const { ino } = await stat(cluster.mount().path('used'));
    expect((await cluster.statistics())['cache']?.['lostReferences']).toBe(0);
    await cluster.signal('m1', 'SIGTERM');
    const direct = referencesOf(readFileSync(log)).filter(({ node, kind }) => node === ino && kind === DIRECT_READ);
    const whole = Array.from({ length: 16 }, (_, index) => ({ node: ino, page: 64 * index, count: 64, kind: DIRECT_READ }));
    expect(direct).toEqual([...whole, ...whole]);
  });

  test('a log that cannot be written keeps the mount from starting, and says why', async () => {
    await expect(cluster.startMount('m2', '--reference-log', join(cluster.folder, 'no/such/folder'))).rejects.toThrow(
      /opening the reference log .*no\/such\/folder: ENOENT/,
    );
  });
});
