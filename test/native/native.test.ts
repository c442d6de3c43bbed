/**
 * The tests of the native layers (doctest binaries), built and run through native/Makefile: one test here for each binary, so
 * that the summary counts and names them. The contract suite over shm, tcp and fault is among them.
 */
import { spawn, spawnSync } from 'node:child_process';
import { existsSync, readdirSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { expect, test } from '@jest/globals';

const root = fileURLToPath(new URL('../../../', import.meta.url));
const bin = join(root, 'build/native/plain/bin');
const limitMs = 300_000;

// Built while this file is loaded: which binaries there are is known only then. One at a time (scripts/simulation builds there too).
const build = spawnSync(
  'flock',
  [join(root, 'native/Makefile'), 'make', '-C', join(root, 'native'), `-j${availableParallelism()}`, 'tests'],
  {
    encoding: 'utf8',
    maxBuffer: 1 << 26,
  },
);

/** `cache.page_cache_test` was made of native/cache/page_cache_test.cc; one whose source is gone is left over. */
function hasSource(binary: string): boolean {
  const path = `${binary.replaceAll('.', '/')}.cc`;
  return existsSync(join(root, 'native', path)) || existsSync(join(root, 'test', path));
}

function run(path: string): Promise<{ status: string; output: string }> {
  return new Promise((done, failed) => {
    const child = spawn(path, [], {
      env: { ...process.env, NODE_OPTIONS: '', EXTMEM_BIN: bin, EXTMEM_ROOT: root },
      stdio: ['ignore', 'pipe', 'pipe'],
      timeout: limitMs - 5000,
      killSignal: 'SIGKILL',
    });
    let output = '';
    child.stdout.on('data', (piece: Buffer) => (output += piece.toString()));
    child.stderr.on('data', (piece: Buffer) => (output += piece.toString()));
    child.once('error', failed);
    child.once('close', (code, signal) => done({ status: signal ?? `exit ${code ?? 0}`, output }));
  });
}

test('the native tests build', () => {
  expect({ status: build.status, output: build.status === 0 ? '' : `${build.stdout}${build.stderr}`.slice(-4000) }).toEqual({
    status: 0,
    output: '',
  });
});

const binaries = existsSync(bin) ? readdirSync(bin).filter((name) => name.endsWith('_test') && hasSource(name)) : [];

test('there are native tests', () => {
  expect(binaries.length).toBeGreaterThan(0);
});

for (const name of build.status === 0 ? binaries : []) {
  test(
    name,
    async () => {
      const { status, output } = await run(join(bin, name));
      expect({ status, output: status === 'exit 0' ? '' : output.slice(-6000) }).toEqual({ status: 'exit 0', output: '' });
    },
    limitMs,
  );
}
