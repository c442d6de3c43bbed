/** docs/errors.md lists every error code that the sources name, and no other. */
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { expect, test } from '@jest/globals';
import { ExitCode, exitCodeOf } from '../../../src/cli/exit.js';

const root = fileURLToPath(new URL('../../../../', import.meta.url));

function codesInSources(): string[] {
  const files = readdirSync(join(root, 'src'), { recursive: true, encoding: 'utf8' }).filter((path) => path.endsWith('.ts'));
  const codes = files.flatMap((path) =>
    [...readFileSync(join(root, 'src', path), 'utf8').matchAll(/'(E[A-Z0-9]{2,})'/g)].map((match) => match[1] ?? ''),
  );
  return [...new Set(codes)].sort();
}

/** Rows of the table: | `CODE` | meaning | what to do | exit code | */
function documented(): { code: string; exit: string }[] {
  const rows = readFileSync(join(root, 'docs/errors.md'), 'utf8').matchAll(/^\| `(E[A-Z0-9]+)` \|.*\| (\d+) \|$/gm);
  return [...rows].map((row) => ({ code: row[1] ?? '', exit: row[2] ?? '' }));
}

test('every code in the sources is in docs/errors.md, and every code there is in the sources', () => {
  expect(
    documented()
      .map(({ code }) => code)
      .sort(),
  ).toEqual(codesInSources());
});

test('the exit codes in docs/errors.md are those of the CLI', () => {
  const wrong = documented().filter(({ code, exit }) => exitCodeOf({ code }) !== Number(exit));
  expect(wrong).toEqual([]);
});

test('an error without a code is a failure', () => {
  expect(exitCodeOf(new Error('why'))).toBe(ExitCode.failed);
});
