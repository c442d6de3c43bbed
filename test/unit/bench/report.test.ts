import { describe, expect, test } from '@jest/globals';
import { stepsOf } from '../../../bench/path/steps.js';
import { partsOf } from '../../../bench/path/ladder.js';
import { compare, tableLine, type Round } from '../../../bench/report.js';
import type { Comparison, Row } from '../../../bench/rows/row.js';

const comparison = (better: 'lower' | 'higher', reach: number | 'shown'): Comparison => ({
  figure: 'rate',
  title: 'something',
  unit: 'MB/s',
  better,
  reach: { tcp: reach },
});
const row = (one: Comparison): Row => ({
  id: 'some',
  group: 'seq',
  peer: 'nbdfuse',
  comparisons: [one],
  measure: () => Promise.resolve({}),
});
const rounds = (...pairs: [number, number][]): Round[] => pairs.map(([ours, peer]) => ({ ours: { rate: ours }, peer: { rate: peer } }));
const found = (one: Comparison, ...pairs: [number, number][]): ReturnType<typeof compare> =>
  compare(row(one), one, rounds(...pairs), { link: 'tcp', session: '/dev/fuse', peer: 'nbdfuse tcp' });

describe('a comparison', () => {
  test('is the median of the ratios of its rounds, not the ratio of medians', () => {
    const result = found(comparison('higher', 1.4), [100, 100], [300, 150], [400, 500]);
    expect(result.ratio).toBe(1);
    expect(result.ratios).toEqual({ min: 0.8, max: 2 });
  });

  test.each([
    ['higher', 1.4, 141, true],
    ['higher', 1.4, 139, false],
    ['lower', 0.35, 34, true],
    ['lower', 0.35, 36, false],
  ] as const)('%s than %d of the peer: %d of 100 is %s', (better, reach, ours, reached) => {
    expect(found(comparison(better, reach), [ours, 100]).reached).toBe(reached);
  });

  test('that nothing is to be reached by is shown without a verdict', () => {
    const result = found(comparison('higher', 'shown'), [1, 100]);
    expect(result.reached).toBe(true);
    expect(tableLine(result)).toBe('| something | tcp | 1.0 MB/s | nbdfuse tcp: 100 MB/s | 0.01 (0.01-0.01) | - | - |\n');
  });
});

describe('the ladder', () => {
  const point = (name: string, ns: number): { point: string; unique: number; ns: number; thread: number } => ({
    point: name,
    unique: 0,
    ns,
    thread: 1,
  });
  const hit = (from: number, took: number): ReturnType<typeof point>[] => [
    point('fuse.request', from),
    point('cache.state', from + 100),
    point('cache.hit', from + took),
    point('fuse.reply', from + took + 1000),
  ];

  test('takes the steps of the way that most requests took, in the middle of how long they took', () => {
    const odd = [point('fuse.request', 50_000), point('control.upcall', 60_000), point('fuse.reply', 90_000)];
    const steps = stepsOf([...odd, ...hit(0, 1000), ...hit(10_000, 2000), ...hit(20_000, 9000)]);
    expect(steps).toEqual([
      { from: 'fuse.request', to: 'cache.hit', micros: 2 },
      { from: 'cache.hit', to: 'fuse.reply', micros: 1 },
    ]);
  });

  test('has parts that are the whole together', () => {
    const parts = partsOf({ id: 'hit', title: 'hit', p50: 10, range: { min: 9, max: 11 }, steps: stepsOf(hit(0, 2000)) });
    expect(parts.reduce((sum, { micros }) => sum + micros, 0)).toBeCloseTo(10);
    expect(parts[0]?.micros).toBeCloseTo(7);
  });
});
