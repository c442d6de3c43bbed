/** Access parameters as text, and what they come to. */
import { describe, expect, test } from '@jest/globals';
import {
  covers,
  decide,
  formatRules,
  isInNetworks,
  lossAfter,
  nextChange,
  OPEN,
  parseRules,
  type Asker,
} from '../../../src/base/access_rules.js';

const at = (text: string): number => Date.parse(text);
const asker = (facts: Partial<Asker> = {}): Asker => ({ name: 'm1', address: '10.0.0.7', hasKey: false, ...facts });
const rights = (rules: string, who: Asker, when = at('2026-03-02T12:00Z')): string[] => [
  ...decide(parseRules(`all clients=admin; ${rules}`), who, when).rights,
];

test('what is written is read, and written the same', () => {
  const text =
    'all clients=admin; read+read-metadata clients=m1,10.0.0.0/24 via=shm,10.0.0.2 key days=mon,tue,wed hours=08:00-18:30 from=2026-01-01T00:00:00.000Z until=2026-12-31T00:00:00.000Z';
  expect(formatRules(parseRules(text))).toBe(text);
  expect(parseRules('')).toEqual([]);
});

test.each([
  ['reed', "'reed' is no right"],
  ['read color=red', "'color=red' is no condition"],
  ['read clients=', "'clients=' says nothing"],
  ['read via=carrier-pigeon', 'neither a transport'],
  ['read via=10.0.0.0/33', 'neither a transport'],
  ['read hours=8-18', 'no hours'],
  ['read hours=08:00-25:00', 'no hours'],
  ['read days=someday', 'no day'],
  ['read from=tomorrow', 'no time'],
  ['read key=secret', 'never here'],
  ['read', 'nobody could ever change it again'],
  ['all hours=08:00-18:00', 'nobody could ever change it again'],
])('%s is refused', (text, why) => {
  expect(() => parseRules(text)).toThrow(why);
});

describe('who', () => {
  test.each([
    ['read clients=m1', asker(), ['read']],
    ['read clients=m2', asker(), []],
    ['read clients=10.0.0.7', asker(), ['read']],
    ['read clients=10.0.0.0/24', asker(), ['read']],
    ['read clients=10.0.1.0/24', asker(), []],
    ['read clients=10.0.0.0/24', asker({ address: '::ffff:10.0.0.9' }), ['read']],
    ['read clients=fd00::/8', asker({ address: 'fd00::1' }), ['read']],
    ['read key', asker(), []],
    ['read key', asker({ hasKey: true }), ['read']],
    ['read; write', asker(), ['read', 'write']],
  ])('%s', (rules, who, expected) => {
    expect(rights(rules, who)).toEqual(expected);
  });
  test('without a rule everybody may do everything', () => {
    expect(decide([], asker(), 0)).toBe(OPEN);
  });
  test('an address that is none is in no network', () => {
    expect(isInNetworks('unknown', ['0.0.0.0/0'])).toBe(false);
  });
});

describe('when (UTC)', () => {
  test.each([
    ['read hours=08:00-18:00', '2026-03-02T08:00Z', true],
    ['read hours=08:00-18:00', '2026-03-02T17:59Z', true],
    ['read hours=08:00-18:00', '2026-03-02T18:00Z', false],
    ['read hours=22:00-06:00', '2026-03-02T23:00Z', true],
    ['read hours=22:00-06:00', '2026-03-02T05:59Z', true],
    ['read hours=22:00-06:00', '2026-03-02T06:00Z', false],
    ['read days=mon', '2026-03-02T12:00Z', true],
    ['read days=fri-mon', '2026-03-03T12:00Z', false],
    ['read days=mon hours=22:00-06:00', '2026-03-03T05:00Z', true],
    ['read days=mon hours=22:00-06:00', '2026-03-02T05:00Z', false],
    ['read from=2026-03-02T12:00Z', '2026-03-02T11:59Z', false],
    ['read until=2026-03-02', '2026-03-02T00:00Z', false],
  ])('%s at %s', (rules, when, allowed) => {
    expect(rights(rules, asker(), at(when))).toEqual(allowed ? ['read'] : []);
  });

  test('the next change is the next edge of a window, the next loss skips edges at which nothing is lost', () => {
    const noon = at('2026-03-02T12:00Z');
    const rules = parseRules('all clients=admin; read hours=08:00-18:00; read hours=18:00-20:00');
    expect(nextChange(rules, noon)).toBe(at('2026-03-02T18:00Z'));
    expect(lossAfter(rules, asker(), noon)).toBe(at('2026-03-02T20:00Z'));
    expect(lossAfter(rules, asker({ name: 'admin' }), noon)).toBeUndefined();
    expect(lossAfter(parseRules('all'), asker(), noon)).toBeUndefined();
  });
});

describe('by which way', () => {
  test('is told for reading and writing apart, and one rule without it allows any', () => {
    const outcome = decide(parseRules('all clients=admin; read via=shm; read via=tcp; write via=10.0.0.2; write'), asker(), 0);
    expect(outcome).toMatchObject({ readVia: ['shm', 'tcp'], writeVia: 'any' });
  });
  test('fewer ways are a loss', () => {
    const [any, both, one] = ['read', 'read via=shm,tcp', 'read via=tcp'].map((rule) =>
      decide(parseRules(`all clients=admin; ${rule}`), asker(), 0),
    );
    expect([covers(any!, both!), covers(both!, one!), covers(one!, both!), covers(both!, any!)]).toEqual([true, true, false, false]);
  });
});
