/**
 * Placement: which appliances give the memory for something. A strategy orders and chooses; it asks nobody and changes nothing.
 */
import { MAX_LAYOUT_MEMBERS } from '../base/protocol.js';

export interface Candidate {
  id: string;
  freeBytes: number;
}

export interface PlacementStrategy {
  readonly name: string;
  /** Appliances that take an equal share each (`bytes` over their number, in whole units); none: it does not fit. */
  choose(bytes: number, unit: number, candidates: readonly Candidate[]): Candidate[];
  /** In which order appliances are asked for room of a client's own. */
  order(candidates: readonly Candidate[]): Candidate[];
}

export const PLACEMENTS = ['spread', 'best-fit'] as const;
export type PlacementName = (typeof PLACEMENTS)[number];

export function shareOf(bytes: number, unit: number, count: number): number {
  return Math.ceil(bytes / (unit * count)) * unit;
}

/** Over as many appliances as have room: the most bandwidth, and the least of one appliance's. */
const spread: PlacementStrategy = {
  name: 'spread',
  order: (candidates) => [...candidates].sort((a, b) => b.freeBytes - a.freeBytes || compareIds(a, b)),
  choose: (bytes, unit, candidates) => {
    const chosen = spread.order(candidates).slice(0, MAX_LAYOUT_MEMBERS);
    while (chosen.length > 0) {
      const share = shareOf(bytes, unit, chosen.length);
      if ((chosen.at(-1) as Candidate).freeBytes >= share) break;
      chosen.pop();
    }
    return chosen.sort(compareIds);
  },
};

/** On as few appliances as hold it, where the least room is left over: large allocations find room later. */
const bestFit: PlacementStrategy = {
  name: 'best-fit',
  order: (candidates) => [...candidates].sort((a, b) => a.freeBytes - b.freeBytes || compareIds(a, b)),
  choose: (bytes, unit, candidates) => {
    const ascending = bestFit.order(candidates);
    for (let count = 1; count <= Math.min(ascending.length, MAX_LAYOUT_MEMBERS); count++) {
      const share = shareOf(bytes, unit, count);
      const first = ascending.findIndex((candidate) => candidate.freeBytes >= share);
      if (first >= 0 && ascending.length - first >= count) return ascending.slice(first, first + count).sort(compareIds);
    }
    return [];
  },
};

export function placementStrategy(name: PlacementName): PlacementStrategy {
  return name === 'best-fit' ? bestFit : spread;
}

function compareIds(a: Candidate, b: Candidate): number {
  return a.id < b.id ? -1 : Number(a.id > b.id);
}
