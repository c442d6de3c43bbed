/** Figures in the documents are those of bench/results, and nobody's memory. */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { describe, expect, test } from '@jest/globals';
import { committedReports, comparisonTable, figureDocuments, withFigures } from '../../bench/documents.js';

const root = fileURLToPath(new URL('../../../', import.meta.url));
const read = (path: string): string => readFileSync(join(root, path), 'utf8');

describe('figures', () => {
  test.each([...figureDocuments().keys()])('%s says what was measured (npm run bench:documents writes it)', (path) => {
    expect(read(path)).toBe(figureDocuments().get(path));
  });

  test('a result that says otherwise would be found', () => {
    const reports = committedReports();
    const first = reports[0]?.results[0];
    if (first === undefined) throw new Error('there are no results in bench/results');
    first.ratio += 1;
    expect(withFigures(read('README.md'), comparisonTable(reports))).not.toBe(read('README.md'));
  });

  test('every result says with which machine, kernel and command it was measured', () => {
    for (const { machine, command, rounds } of committedReports()) {
      expect(machine.kernel).toMatch(/^\d+\.\d+/);
      expect(machine.cpus).toBeGreaterThan(0);
      expect(command).toMatch(/^npm run bench/);
      expect(rounds).toBeGreaterThanOrEqual(5);
    }
  });
});
