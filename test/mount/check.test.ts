/** Copies that are not the same any more are found (C14): a byte is flipped in an appliance's memory, behind everybody's back. */
import { afterAll, beforeAll, describe, expect, test } from '@jest/globals';
import { closeSync, openSync, readdirSync, readlinkSync, readSync, writeSync } from 'node:fs';
import type { Job } from '../../src/manager/index.js';
import { until } from '../until.js';
import { Actor } from './actor.js';
import { clusterStatus, quote } from './bad_days.js';
import { TestCluster } from './cluster.js';

const MIB = 1024 * 1024;
const AT = 3 * MIB + 12_345;

describe('copies of files', () => {
  const cluster = new TestCluster({ appliances: 3, transport: 'tcp', cache: '32M', memory: '256M' });
  let actor: Actor;
  let mark = Buffer.alloc(0);

  const at = (name: string): string => quote(cluster.mount().path(name));
  /** Where the mark is in the memory of an appliance, its first byte becomes another. */
  const flip = (appliance: string): void => {
    const folder = `/proc/${cluster.role(appliance).pid}/fd`;
    let flipped = 0;
    for (const name of readdirSync(folder)) {
      if (!readlinkSync(`${folder}/${name}`).startsWith('/memfd:extmem-region-')) continue;
      const fd = openSync(`${folder}/${name}`, 'r+');
      const piece = Buffer.alloc(2 * MIB);
      for (let offset = 0, got = 0; (got = readSync(fd, piece, 0, piece.length, offset)) > 0; offset += MIB) {
        const found = piece.subarray(0, got).indexOf(mark);
        if (found < 0 || found >= MIB) continue;
        writeSync(fd, Buffer.from([(mark[0] ?? 0) ^ 1]), 0, 1, offset + found);
        flipped += 1;
      }
      closeSync(fd);
    }
    expect(flipped).toBe(1);
  };
  const check = async (...parameters: string[]): Promise<{ code: number | null; job: Job }> => {
    const { code, stdout, stderr } = await cluster.extmem('check', ...parameters, '--json');
    if (stdout === '') throw new Error(stderr);
    return { code, job: JSON.parse(stdout) as Job };
  };
  /** A file of 8 MiB with a mark in it. */
  const make = async (name: string): Promise<void> => {
    mark = Buffer.from(await actor.do<string>(`mark = random.randbytes(16); mark.hex()`), 'hex');
    await actor.do(`data = bytearray(random.randbytes(${8 * MIB})); data[${AT}:${AT + 16}] = mark; put(${at(name)}, data); os.sync()`);
  };
  const missing = async (path: string): Promise<string[]> =>
    (JSON.parse((await cluster.extmem('info', path, '--json')).stdout) as { missing: string[] }).missing;

  beforeAll(async () => {
    await cluster.start();
    actor = new Actor();
    for (const [folder, layout] of [
      ['two', 'mirror'],
      ['three', 'mirror:3'],
    ])
      await actor.do(`os.mkdir(${at(folder ?? '')}); os.setxattr(${at(folder ?? '')}, 'user.extmem.layout', b'${layout ?? ''}')`);
  });
  afterAll(async () => {
    await actor.end();
    await cluster.stop();
  });

  test('are the same, also while they are written', async () => {
    await make('two/written');
    await actor.do(`
import threading
going = True
def write():
    f = os.open(${at('two/written')}, os.O_RDWR)
    while going:
        os.pwrite(f, random.randbytes(65536), random.randrange(${8 * MIB} - 65536)); os.fsync(f)
    os.close(f)
writer = threading.Thread(target=write); writer.start()`);
    const { code, job } = await check();
    await actor.do(`going = False; writer.join()`);
    expect({ code, problems: job.problems }).toEqual({ code: 0, problems: [] });
    expect(job).toMatchObject({ kind: 'check', state: 'done', totalBytes: 8 * MIB });
    expect(job.doneBytes).toBeGreaterThanOrEqual(8 * MIB);
  });

  test('of three the one that differs is found, made anew, and nobody reads it', async () => {
    await make('three/flipped');
    flip('a2');
    const { code, job } = await check('/three/flipped');
    expect(code).toBe(1);
    expect(job.problems).toHaveLength(1);
    expect(job.problems[0]?.why).toMatch(/^about byte 3145728, 65536 bytes: the copies on a1, a2, a3 differ; that on a2 counts no more/);
    await cluster.evict();
    expect(await actor.do(`get(${at('three/flipped')}) == data`)).toBe(true);
    await until('it is whole again', async () => (await missing('/three/flipped')).length === 0);
    expect((await check('/three/flipped')).code).toBe(0);
    expect(await actor.do(`get(${at('three/flipped')}) == data`)).toBe(true);
  });

  test('of two nobody knows which is right, until who knows says so', async () => {
    await make('two/flipped');
    const { appliances } = JSON.parse((await cluster.extmem('info', '/two/flipped', '--json')).stdout) as { appliances: string[] };
    const [good = '', bad = ''] = appliances;
    flip(bad);
    const first = await check('/two/flipped');
    expect(first.code).toBe(1);
    expect(first.job.problems[0]?.why).toMatch(/which is right is not known; extmem check --trust says so$/);
    expect(await missing('/two/flipped')).toEqual([]);
    expect((await check('/two/flipped', '--trust', good)).code).toBe(1);
    await until('it is whole again', async () => (await check('/two/flipped')).code === 0 && (await missing('/two/flipped')).length === 0);
    await cluster.evict();
    expect(await actor.do(`get(${at('two/flipped')}) == data`)).toBe(true);
  });

  test('that cannot be reached are not said to be the same', async () => {
    await make('three/away');
    await cluster.signal('a1', 'SIGSTOP');
    try {
      const isDown = async (): Promise<boolean> =>
        (await clusterStatus(cluster)).appliances.some(({ id, state }) => id === 'a1' && state !== 'up');
      await until('the manager notices', isDown);
      const { code, job } = await check();
      expect(code).toBe(1);
      expect(job.problems.map(({ why }) => why)).toContain('the copy on a1 cannot be read: it is down');
    } finally {
      await cluster.signal('a1', 'SIGCONT');
    }
  });
});
