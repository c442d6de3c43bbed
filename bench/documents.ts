/**
 * `npm run bench:documents`: writes what the documents say of measurements from bench/results: the comparison table of README, the ladder,
 * and the hit ratios of ADR 0015.
 * test/gates/figures.test.ts checks that they say just that.
 */
import { existsSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { documentOf, pictureOf, type Ladder } from './path/ladder.js';
import { evictionTable, type EvictionReport } from './eviction/table.js';
import { machineName, tableHead, tableLine, type Report } from './report.js';
import { rows } from './rows/index.js';

const BEGIN = '<!-- figures: npm run bench:documents -->\n';
const END = '<!-- end of figures -->\n';

const evictionRecord = 'docs/adr/0015-eviction.md';

const root = fileURLToPath(new URL('../../', import.meta.url));
const results = join(root, 'bench/results');

/** A comparison may have been made in several runs. */
export function comparisonTable(reports: readonly Report[]): string {
  const order = rows.map((row) => row.id);
  const all = reports
    .flatMap((report) => report.results)
    .sort((left, right) => left.link.localeCompare(right.link) || order.indexOf(left.row) - order.indexOf(right.row));
  const machines = [...new Set(reports.map(({ machine }) => machineName(machine)))];
  const sessions = [...new Set(all.map(({ session }) => session))];
  const commands = reports.map(({ command, rounds, load }) => `- \`${command}\` (${rounds} rounds; load at the beginning ${load})`);
  return (
    `${machines.join('; ')}; requests by ${sessions.join(', ')}. Medians of alternating rounds, application unpinned unless said; latencies with p50 / p90 / p99 behind them:\n\n` +
    `${tableHead}${all.map(tableLine).join('')}\n${commands.join('\n')}\n`
  );
}

/** The document with its part between the marks made anew. */
export function withFigures(document: string, figures: string): string {
  const [begin, end] = [document.indexOf(BEGIN), document.indexOf(END)];
  if (begin < 0 || end < begin) throw new Error('the marks between which the figures stand are missing');
  return `${document.slice(0, begin)}${BEGIN}\n${figures}\n${document.slice(end)}`;
}

export function committedReports(): Report[] {
  const names = existsSync(results) ? readdirSync(results).filter((name) => /^comparison.*\.json$/.test(name)) : [];
  return names.sort().map((name) => JSON.parse(readFileSync(join(results, name), 'utf8')) as Report);
}

/** What each file must hold, by its path from the root. */
export function figureDocuments(): Map<string, string> {
  const ladder = JSON.parse(readFileSync(join(results, 'ladder.json'), 'utf8')) as Ladder;
  const eviction = JSON.parse(readFileSync(join(results, 'eviction.json'), 'utf8')) as EvictionReport;
  return new Map([
    ['README.md', withFigures(readFileSync(join(root, 'README.md'), 'utf8'), comparisonTable(committedReports()))],
    [evictionRecord, withFigures(readFileSync(join(root, evictionRecord), 'utf8'), evictionTable(eviction))],
    ['docs/ladder.md', documentOf(ladder)],
    ['docs/ladder.svg', pictureOf(ladder)],
  ]);
}

if (process.argv[1] === fileURLToPath(import.meta.url))
  for (const [path, content] of figureDocuments()) writeFileSync(join(root, path), content);
