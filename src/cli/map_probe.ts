/**
 * A separate process that maps a file, for the tour and for tests: what an application sees through mmap(2), told as JSON.
 *   map_probe.js hash PATH              sha256 of the whole file, read through a private mapping
 *   map_probe.js write PATH OFFSET TEXT writes through a shared mapping, and msync
 *   map_probe.js watch PATH OFFSET LENGTH   what a shared mapping shows there
 */
import { createHash } from 'node:crypto';
import { statSync } from 'node:fs';
import { native } from '../binding/index.js';

const pieceBytes = 1024 * 1024;

function hash(path: string): Record<string, unknown> {
  const { size } = statSync(path);
  const started = process.hrtime.bigint();
  const mapping = new native.Mapping(path, { writable: false, shared: false, offset: 0, length: size });
  const digest = createHash('sha256');
  for (let at = 0; at < size; at += pieceBytes) digest.update(mapping.buffer.subarray(at, Math.min(size, at + pieceBytes)));
  mapping.close();
  return { sha256: digest.digest('hex'), bytes: size, ms: Number(process.hrtime.bigint() - started) / 1e6 };
}

function write(path: string, offset: number, text: string): Record<string, unknown> {
  const mapping = new native.Mapping(path, { writable: true, shared: true, offset: 0, length: statSync(path).size });
  const bytes = mapping.buffer.write(text, offset);
  mapping.sync();
  mapping.close();
  return { bytes };
}

function watch(path: string, offset: number, length: number): Record<string, unknown> {
  const mapping = new native.Mapping(path, { writable: false, shared: true, offset: 0, length: statSync(path).size });
  const text = mapping.buffer.toString('utf8', offset, offset + length);
  mapping.close();
  return { text };
}

const [, , what, path = '', offset = '0', rest = ''] = process.argv;
const answers: Record<string, () => Record<string, unknown>> = {
  hash: () => hash(path),
  write: () => write(path, Number(offset), rest),
  watch: () => watch(path, Number(offset), Number(rest)),
};
const answer = answers[what ?? ''];
if (answer === undefined) throw new Error(`usage: map_probe.js hash|write|watch PATH [OFFSET] [TEXT|LENGTH]`);
process.stdout.write(`${JSON.stringify(answer())}\n`);
