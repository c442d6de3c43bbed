/** README and docs/operations.md tell the truth: the tour by hand works as it is printed, and every command and flag in them exists. */
import { chmodSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { delimiter, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterAll, beforeAll, describe, expect, test } from '@jest/globals';
import { freePort } from '../free_port.js';
import { cli, makeRandomFile, run, within } from '../mount/cluster.js';

const root = fileURLToPath(new URL('../../../', import.meta.url));
const read = (document: string): string => readFileSync(join(root, document), 'utf8');

/** The code blocks of a document, in order. */
function blocks(document: string): string[] {
  return [...read(document).matchAll(/^```\w*\n([^]*?)^```$/gm)].map((match) => match[1] ?? '');
}

describe('the tour by hand', () => {
  const folder = mkdtempSync(join(tmpdir(), 'extmem-readme-'));
  let environment: NodeJS.ProcessEnv;

  beforeAll(async () => {
    mkdirSync(join(folder, 'bin'));
    writeFileSync(join(folder, 'bin', 'extmem'), `#!/bin/sh\nexec '${process.execPath}' '${cli}' "$@"\n`);
    chmodSync(join(folder, 'bin', 'extmem'), 0o755);
    environment = {
      ...process.env,
      NODE_OPTIONS: '',
      PATH: `${join(folder, 'bin')}${delimiter}${process.env['PATH'] ?? ''}`,
      EXTMEM_DIR: join(folder, 'up'),
      EXTMEM_MEMORY: '256M',
      EXTMEM_CACHE: '64M',
      EXTMEM_MANAGER_LISTEN: `127.0.0.1:${await freePort()}`,
      EXTMEM_RUNTIME_DIR: join(folder, 'run'),
      XDG_STATE_HOME: folder,
    };
  });
  afterAll(async () => {
    await run('extmem', ['umount', '--force', join(folder, 'mnt')], environment).catch(() => undefined);
    rmSync(folder, { recursive: true, force: true });
  });

  test('works as it is printed', async () => {
    const tour = blocks('README.md').find((block) => block.includes('extmem up --detach')) ?? '';
    expect(tour.split('\n').length).toBeGreaterThan(6);
    const mountPoint = join(folder, 'mnt');
    mkdirSync(mountPoint);
    makeRandomFile(join(folder, 'big.bin'), 5_000_000);
    const script = tour.replaceAll('/mnt/extmem', mountPoint);
    const { code, stdout, stderr } = await within(run('bash', ['-e', '-c', script], environment, folder), 100_000, 'the tour did not end');
    expect({ code, stderr: code === 0 ? '' : stderr }).toEqual({ code: 0, stderr: '' });
    expect(stdout).toMatch(/^hello/m);
    const [saved, original] = [readFileSync(join(folder, 'saved')), readFileSync(join(folder, 'big.bin'))];
    expect(saved.subarray(0, 5).toString()).toBe('hello');
    expect(saved.subarray(5).equals(original.subarray(5))).toBe(true);
  }, 120_000);
});

describe.each(['README.md', 'docs/operations.md'])('commands in %s', (document) => {
  const commands = new Map<string, Set<string>>();
  for (const [, command = '', rest = ''] of read(document).matchAll(/\bextmem ([a-z]+)\b([^`\n#;&|]*)/g)) {
    const flags = commands.get(command) ?? new Set();
    for (const [flag] of rest.matchAll(/--[a-z-]+/g)) flags.add(flag);
    commands.set(command, flags);
  }
  const known = /^ {2}([a-z]+)/gm;

  test('exist, with the flags that are shown', async () => {
    const { stdout: help } = await run(process.execPath, [cli, '--help']);
    const all = new Set([...help.matchAll(known)].map((match) => match[1]));
    const written = [...commands].filter(([, flags]) => flags.size > 0);
    expect(written.length).toBeGreaterThan(2);
    for (const [command, flags] of written) {
      expect(all).toContain(command);
      const { stdout } = await run(process.execPath, [cli, command, '--help']);
      expect({ command, missing: [...flags].filter((flag) => !stdout.includes(flag)) }).toEqual({ command, missing: [] });
    }
  });
});
