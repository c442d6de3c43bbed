/**
 * Access parameters of an allocation (A12) as text, as rules, and as what they come to for one who asks at one moment.
 *
 * Rules are parted by `;`. Each names rights first, joined by `+` (or `all`), then conditions, all of which must hold:
 *   clients=a,10.0.0.0/24   names that mounts give themselves (--name), addresses, networks
 *   via=shm,tcp,10.0.0.2    transports, and addresses or networks of appliances, by which data may be reached
 *   key                     who asks has shown the allocation's key
 *   days=mon-fri,sun  hours=08:00-18:00  from=2026-01-31T08:00Z  until=...   when, in UTC
 * What no rule gives is not allowed. Without any rule everything is, to everybody who has the join token.
 */
import { BlockList, isIP } from 'node:net';
import { Type, type Static } from '@sinclair/typebox';
import { ExtmemError } from './errors.js';

export const ACCESS_RIGHTS = ['read', 'write', 'read-metadata', 'write-metadata', 'destroy'] as const;
export const AccessRight = Type.Union([
  Type.Literal('read'),
  Type.Literal('write'),
  Type.Literal('read-metadata'),
  Type.Literal('write-metadata'),
  Type.Literal('destroy'),
]);
export type AccessRight = Static<typeof AccessRight>;

export interface AccessRule {
  readonly rights: readonly AccessRight[];
  readonly clients?: readonly string[];
  readonly via?: readonly string[];
  readonly key?: true;
  /** 0 is Sunday. */
  readonly days?: readonly number[];
  /** Minutes of the day; to is not included, and may lie on the next day. */
  readonly hours?: { readonly from: number; readonly to: number };
  /** Milliseconds since the epoch; until is not included. */
  readonly from?: number;
  readonly until?: number;
}

/** Who asks. A name is the client's own word; who must not be impersonated is told apart by address or key. */
export interface Asker {
  readonly name: string;
  readonly address: string;
  readonly hasKey: boolean;
}

/** By which ways: any, or one of these (none when there are none). */
export type Ways = 'any' | readonly string[];

/** What somebody may do at some moment. */
export interface Outcome {
  readonly rights: ReadonlySet<AccessRight>;
  readonly readVia: Ways;
  readonly writeVia: Ways;
}

const DAYS = ['sun', 'mon', 'tue', 'wed', 'thu', 'fri', 'sat'];
const DAY_MS = 86_400_000;
const MINUTE_MS = 60_000;
const DAY_MINUTES = 1440;
const MAX_RULES = 64;
const TRANSPORTS = ['shm', 'tcp', 'verbs'];
/** Beyond so many changes ahead it is asked again. */
const MAX_STEPS = 64;

export const OPEN: Outcome = { rights: new Set(ACCESS_RIGHTS), readVia: 'any', writeVia: 'any' };

export function parseRules(text: string): AccessRule[] {
  const rules = text
    .split(';')
    .map((rule) => rule.trim())
    .filter((rule) => rule !== '')
    .map(parseRule);
  if (rules.length > MAX_RULES) throw invalid(text, `more than ${MAX_RULES} rules`);
  const isChangeable = rules.some((rule) => rule.rights.includes('write-metadata') && !isTimed(rule));
  if (rules.length > 0 && !isChangeable)
    throw invalid(text, 'nobody could ever change it again: one rule must give write-metadata (all has it) at all times');
  return rules;
}

export function formatRules(rules: readonly AccessRule[]): string {
  return rules.map(formatRule).join('; ');
}

export function needsKey(rules: readonly AccessRule[]): boolean {
  return rules.some(({ key }) => key === true);
}

export function isTimed(rule: AccessRule): boolean {
  return rule.days !== undefined || rule.hours !== undefined || rule.from !== undefined || rule.until !== undefined;
}

export function decide(rules: readonly AccessRule[], asker: Asker, atMs: number): Outcome {
  if (rules.length === 0) return OPEN;
  const holding = rules.filter((rule) => isMeant(rule, asker) && isTime(rule, atMs));
  const ways = (right: AccessRight): Ways => {
    const giving = holding.filter(({ rights }) => rights.includes(right));
    return giving.some(({ via }) => via === undefined) ? 'any' : [...new Set(giving.flatMap(({ via }) => via ?? []))];
  };
  return { rights: new Set(holding.flatMap(({ rights }) => rights)), readVia: ways('read'), writeVia: ways('write') };
}

/** Whether nothing is lost from one to the other. */
export function covers(wide: Outcome, narrow: Outcome): boolean {
  const isWithin = (inner: Ways, outer: Ways): boolean => outer === 'any' || (inner !== 'any' && inner.every((way) => outer.includes(way)));
  return (
    [...narrow.rights].every((right) => wide.rights.has(right)) &&
    isWithin(narrow.readVia, wide.readVia) &&
    isWithin(narrow.writeVia, wide.writeVia)
  );
}

/** When something of what holds now is lost; undefined: never. */
export function lossAfter(rules: readonly AccessRule[], asker: Asker, atMs: number): number | undefined {
  const present = decide(rules, asker, atMs);
  const meant = rules.filter((rule) => isMeant(rule, asker));
  const lasting = meant.filter((rule) => !isTimed(rule));
  if (lasting.length === meant.length || (lasting.length > 0 && covers(decide(lasting, asker, atMs), present))) return undefined;
  let at: number | undefined = atMs;
  for (let step = 0; step < MAX_STEPS; step++) {
    at = nextChange(meant, at);
    if (at === undefined || !covers(decide(rules, asker, at), present)) return at;
  }
  return at;
}

/** When the next window of any rule begins or ends. */
export function nextChange(rules: readonly AccessRule[], atMs: number): number | undefined {
  const times = rules.filter(isTimed).flatMap((rule) => {
    const dayStart = Math.floor(atMs / DAY_MS) * DAY_MS;
    const minutes = rule.hours === undefined ? [] : [rule.hours.from, rule.hours.to];
    const daily = rule.days === undefined ? minutes : [0, ...minutes];
    const edges = [0, 1].flatMap((day) => daily.map((minute) => dayStart + day * DAY_MS + minute * MINUTE_MS));
    return [...edges, rule.from ?? 0, rule.until ?? 0];
  });
  const later = times.filter((time) => time > atMs);
  return later.length === 0 ? undefined : Math.min(...later);
}

/** Whether an address is one of these addresses and networks. */
export function isInNetworks(address: string, networks: readonly string[]): boolean {
  const plain = address.replace(/^::ffff:(?=\d+\.)/i, '');
  const family = familyOf(plain);
  if (family === undefined) return false;
  const list = new BlockList();
  for (const network of networks) {
    const [base = '', bits] = network.split('/');
    const kind = familyOf(base);
    if (kind === undefined) continue;
    if (bits === undefined) list.addAddress(base, kind);
    else list.addSubnet(base, Number(bits), kind);
  }
  return list.check(plain, family);
}

function isMeant({ clients, key }: AccessRule, asker: Asker): boolean {
  if (key === true && !asker.hasKey) return false;
  return clients === undefined || clients.includes(asker.name) || isInNetworks(asker.address, clients);
}

function isTime({ days, hours, from, until }: AccessRule, atMs: number): boolean {
  if (from !== undefined && atMs < from) return false;
  if (until !== undefined && atMs >= until) return false;
  const minute = Math.floor((atMs % DAY_MS) / MINUTE_MS);
  // What goes over midnight belongs to the day on which it began.
  const overnight = hours !== undefined && hours.to <= hours.from;
  const isAfterMidnight = overnight && minute < hours.to;
  if (hours !== undefined && !isAfterMidnight && (minute < hours.from || (!overnight && minute >= hours.to))) return false;
  const day = new Date(atMs - (isAfterMidnight ? DAY_MS : 0)).getUTCDay();
  return days === undefined || days.includes(day);
}

function parseRule(text: string): AccessRule {
  const [rights = '', ...conditions] = text.split(/\s+/);
  const rule: { -readonly [Name in keyof AccessRule]: AccessRule[Name] } = { rights: parseRights(text, rights) };
  for (const condition of conditions) {
    const equals = condition.indexOf('=');
    const name = equals < 0 ? condition : condition.slice(0, equals);
    const value = equals < 0 ? '' : condition.slice(equals + 1);
    if (name !== 'key' && value === '') throw invalid(text, `'${condition}' says nothing`);
    switch (name) {
      case 'clients':
        rule.clients = listOf(value);
        break;
      case 'via':
        rule.via = parseWays(text, value);
        break;
      case 'key':
        if (equals >= 0) throw invalid(text, 'the key itself is given by a file, never here');
        rule.key = true;
        break;
      case 'days':
        rule.days = parseDays(text, value);
        break;
      case 'hours':
        rule.hours = parseHours(text, value);
        break;
      case 'from':
      case 'until':
        rule[name] = parseTime(text, value);
        break;
      default:
        throw invalid(text, `'${condition}' is no condition; there are clients, via, key, days, hours, from, until`);
    }
  }
  return rule;
}

function parseRights(text: string, rights: string): AccessRight[] {
  if (rights === 'all') return [...ACCESS_RIGHTS];
  return rights.split('+').map((name) => {
    const right = ACCESS_RIGHTS.find((known) => known === name);
    if (right === undefined) throw invalid(text, `'${name}' is no right; there are ${ACCESS_RIGHTS.join(', ')}, and all`);
    return right;
  });
}

function parseWays(text: string, value: string): string[] {
  const ways = listOf(value);
  const wrong = ways.find((way) => !TRANSPORTS.includes(way) && !isNetwork(way));
  if (wrong !== undefined) throw invalid(text, `'${wrong}' is neither a transport (${TRANSPORTS.join(', ')}) nor an address or network`);
  return ways;
}

function parseDays(text: string, value: string): number[] {
  const numberOf = (name: string): number => {
    const day = DAYS.indexOf(name.toLowerCase());
    if (day < 0) throw invalid(text, `'${name}' is no day; there are ${DAYS.join(', ')}`);
    return day;
  };
  const days = listOf(value).flatMap((part) => {
    const [first = '', last] = part.split('-');
    const from = numberOf(first);
    const count = last === undefined ? 1 : ((numberOf(last) - from + 7) % 7) + 1;
    return Array.from({ length: count }, (_, index) => (from + index) % 7);
  });
  return [...new Set(days)].sort();
}

function parseHours(text: string, value: string): { from: number; to: number } {
  const match = /^(\d\d):(\d\d)-(\d\d):(\d\d)$/.exec(value);
  const [from, to] = match === null ? [NaN, NaN] : [Number(match[1]) * 60 + Number(match[2]), Number(match[3]) * 60 + Number(match[4])];
  if (!(from < DAY_MINUTES && to <= DAY_MINUTES)) throw invalid(text, `'${value}' are no hours; write 08:00-18:00, in UTC`);
  return { from, to };
}

function parseTime(text: string, value: string): number {
  const isDay = /^\d{4}-\d\d-\d\d$/.test(value);
  const time = isDay || /^\d{4}-\d\d-\d\dT\d\d:\d\d(:\d\d(\.\d{1,3})?)?Z$/.test(value) ? Date.parse(value) : NaN;
  if (Number.isNaN(time)) throw invalid(text, `'${value}' is no time; write 2026-01-31T08:00Z, or a day`);
  return time;
}

function formatRule(rule: AccessRule): string {
  const isAll = ACCESS_RIGHTS.every((right) => rule.rights.includes(right));
  const clock = (minutes: number): string =>
    `${String(Math.floor(minutes / 60)).padStart(2, '0')}:${String(minutes % 60).padStart(2, '0')}`;
  return [
    isAll ? 'all' : rule.rights.join('+'),
    ...(rule.clients === undefined ? [] : [`clients=${rule.clients.join(',')}`]),
    ...(rule.via === undefined ? [] : [`via=${rule.via.join(',')}`]),
    ...(rule.key === undefined ? [] : ['key']),
    ...(rule.days === undefined ? [] : [`days=${rule.days.map((day) => DAYS[day]).join(',')}`]),
    ...(rule.hours === undefined ? [] : [`hours=${clock(rule.hours.from)}-${clock(rule.hours.to)}`]),
    ...(rule.from === undefined ? [] : [`from=${new Date(rule.from).toISOString()}`]),
    ...(rule.until === undefined ? [] : [`until=${new Date(rule.until).toISOString()}`]),
  ].join(' ');
}

function listOf(value: string): string[] {
  return value.split(',').filter((part) => part !== '');
}

function isNetwork(text: string): boolean {
  const [base = '', bits, more] = text.split('/');
  const family = familyOf(base);
  if (family === undefined || more !== undefined) return false;
  return bits === undefined || (/^\d{1,3}$/.test(bits) && Number(bits) <= (family === 'ipv4' ? 32 : 128));
}

function familyOf(address: string): 'ipv4' | 'ipv6' | undefined {
  const version = isIP(address);
  return version === 0 ? undefined : version === 4 ? 'ipv4' : 'ipv6';
}

function invalid(text: string, why: string): ExtmemError {
  return new ExtmemError('EINVAL', `access parameters '${text}': ${why}`);
}
