/** The way of a page fault, as its trace points tell it: every layer once, in order, and no JavaScript on the way. */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterAll, expect, test } from '@jest/globals';
import type { TracePoint } from '../../src/binding/index.js';
import { run } from './cluster.js';

const folder = mkdtempSync(join(tmpdir(), 'extmem-trace-'));
const program = fileURLToPath(new URL('traced_cluster.js', import.meta.url));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

const path = ['fuse.request', 'cache.miss', 'extent.resolve', 'fabric.submit', 'region.serve', 'fabric.complete', 'fuse.reply'];

test('a cold fault crosses every layer once, in order, with no JavaScript between', async () => {
  const { code, stdout, stderr } = await run(process.execPath, [program, folder], { ...process.env, NODE_OPTIONS: '' });
  expect({ code, stderr }).toEqual({ code: 0, stderr: '' });
  const points = (JSON.parse(stdout) as TracePoint[]).sort((left, right) => left.ns - right.ns);
  const miss = points.findIndex(({ point }) => point === 'cache.miss');
  const begin = points.map(({ point }) => point).lastIndexOf('fuse.request', miss);
  const reply = points.findIndex(({ point }, index) => index > miss && point === 'fuse.reply');
  const fault = points.slice(begin, reply + 1).map(({ point }) => point);
  expect(points.filter(({ point }) => point === 'cache.miss')).toHaveLength(1);
  expect(fault.filter((point) => path.includes(point))).toEqual(path);
  expect(fault).not.toContain('control.upcall');
});
