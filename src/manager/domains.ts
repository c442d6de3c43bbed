/**
 * Which appliances hold the copies of a column: none twice, and none that share what copies must not share. As
 * native/extent/domains.h does it for what mounts carve.
 */
import type { AcrossName } from '../base/messages.js';
import { MAX_LAYOUT_MEMBERS } from '../base/protocol.js';

export interface Placed {
  id: string;
  hostId: string;
  rack?: string | undefined;
}

export interface Apart {
  copies: number;
  /** Absent: as far as can be, racks before hosts before appliances. */
  across?: AcrossName | undefined;
}

/** As many columns as these give; none: there are not enough of them. */
export function formColumns<One extends Placed>(appliances: readonly One[], { copies, across }: Apart): One[][] {
  if (copies === 1) return appliances.slice(0, MAX_LAYOUT_MEMBERS).map((one) => [one]);
  if (across !== undefined) return formAt(appliances, copies, (one) => domainOf(one, across));
  // Where nobody asked for racks, a host without a label is one.
  const byRack = formAt(appliances, copies, (one) => domainOf(one, 'rack') ?? `host ${one.hostId}`);
  if (byRack.length > 0) return byRack;
  const byHost = formAt(appliances, copies, (one) => domainOf(one, 'host'));
  return byHost.length > 0 ? byHost : formAt(appliances, copies, (one) => one.id);
}

/** What copies on these share, at most: nothing (their appliances at least differ), a host, or a rack. */
export function widthOf(appliances: readonly Placed[]): AcrossName | 'none' {
  const differs = (across: AcrossName): boolean => {
    const domains = appliances.map((one) => domainOf(one, across));
    return !domains.includes(undefined) && new Set(domains).size === appliances.length;
  };
  return (['rack', 'host', 'appliance'] as const).find(differs) ?? 'none';
}

/** undefined: unknown, so that nothing can be said to be apart from it. */
function domainOf({ id, hostId, rack }: Placed, across: AcrossName): string | undefined {
  const domain = { appliance: id, host: hostId, rack }[across];
  return domain === '' ? undefined : domain;
}

/** Whether a copy may lie on `one` beside those on `others`. */
export function isApart(one: Placed, others: readonly Placed[], across: AcrossName = 'appliance'): boolean {
  const domain = domainOf(one, across);
  return domain !== undefined && others.every((other) => other.id !== one.id && domainOf(other, across) !== domain);
}

function formAt<One extends Placed>(appliances: readonly One[], copies: number, domainOfOne: (one: One) => string | undefined): One[][] {
  const groups = new Map<string, One[]>();
  for (const one of appliances) {
    const domain = domainOfOne(one);
    if (domain !== undefined) groups.set(domain, [...(groups.get(domain) ?? []), one]);
  }
  const largestFirst = [...groups.values()].sort((a, b) => b.length - a.length);
  const usable = Math.min(largestFirst.flat().length, MAX_LAYOUT_MEMBERS);
  for (let count = Math.floor(usable / copies); count > 0; count--) {
    // A group gives no column two members: dealt out in turn, its neighbours land in different ones.
    const dealt = largestFirst.flatMap((group) => group.slice(0, count)).slice(0, count * copies);
    if (dealt.length < count * copies) continue;
    return Array.from({ length: count }, (_, column) => dealt.filter((_one, index) => index % count === column));
  }
  return [];
}
