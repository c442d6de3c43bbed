/** What the documents point at is there: every path of ours that they name in code type. */
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { describe, expect, test } from '@jest/globals';

const root = fileURLToPath(new URL('../../../', import.meta.url));
const documents = [
  'README.md',
  'ARCHITECTURE.md',
  ...readdirSync(join(root, 'docs'))
    .filter((name) => name.endsWith('.md'))
    .map((name) => `docs/${name}`),
];
const named = /`((?:src|native|test|bench|docs|protocol|scripts)\/[\w./*-]+)`/g;

function missingPaths(text: string): string[] {
  const paths = [...text.matchAll(named)].map((match) => match[1] ?? '').filter((path) => !path.includes('*'));
  return [...new Set(paths)].filter((path) => !existsSync(join(root, path)));
}

describe('documents', () => {
  test.each(documents)('%s names only what exists', (document) => {
    expect(missingPaths(readFileSync(join(root, document), 'utf8'))).toEqual([]);
  });

  test('a path that does not exist would be found', () => {
    expect(missingPaths('see `src/fs/no_such_file.ts` and `src/fs`')).toEqual(['src/fs/no_such_file.ts']);
  });
});
