/**
 * Which copies of files are to be elsewhere, for each kind of job; and why one that was to be moved is still where it was.
 */
import { columnMembers, columnsOf, type Extent, type ExtentMember } from '../../base/file_record.js';
import type { Appliances } from '../appliances.js';
import type { RegionRow, Regions } from '../regions.js';
import type { Choice } from './plan.js';

export interface ChoiceParts {
  regions: Regions;
  appliances: Appliances;
}

/** Copies that count no more, or may differ: where there is a good one to make them whole from. */
export function rebuilding(parts: ChoiceParts): Choice {
  return (copies) =>
    copies.some((copy) => canRead(parts, copy)) ? copies.flatMap((copy, index) => (isBad(parts, copy) ? [index] : [])) : [];
}

/** One copy of each column to this appliance: that on `from`, or the first that there is, unless it has one. */
export function migrating(parts: ChoiceParts, { to, from }: { to: string; from?: string | undefined }): Choice {
  return (copies) => {
    const places = copies.map((copy) => (copy.missing === true ? undefined : rowOf(parts, copy)?.appliance));
    if (places.includes(to) || !copies.some((copy) => canRead(parts, copy))) return [];
    const index = places.findIndex((place) => place !== undefined && (from === undefined || place === from));
    return index < 0 ? [] : [index];
  };
}

/** Whatever is on this appliance. */
export function draining(parts: ChoiceParts, appliance: string): Choice {
  return (copies) =>
    copies.some((copy) => canRead(parts, copy)) ? copies.flatMap((copy, index) => (isOn(parts, copy, appliance) ? [index] : [])) : [];
}

export function isOn(parts: ChoiceParts, copy: ExtentMember, appliance: string): boolean {
  return rowOf(parts, copy)?.appliance === appliance;
}

export function hasBad(parts: ChoiceParts, extents: readonly Extent[]): boolean {
  return eachColumn(extents).some((copies) => copies.length > 1 && copies.some((copy) => isBad(parts, copy)));
}

/** Why something of a file could not be made whole, or moved; undefined: nothing is left to be done. */
export function whyLeft(
  parts: ChoiceParts,
  extents: readonly Extent[],
  isLeft: (copies: readonly ExtentMember[]) => boolean,
): string | undefined {
  for (const copies of eachColumn(extents)) {
    if (!isLeft(copies) || copies.some((copy) => canRead(parts, copy))) continue;
    const away = copies.flatMap((copy) => (isBad(parts, copy) ? [] : [rowOf(parts, copy)?.appliance ?? '']));
    return away.length === 0 ? 'no copy of part of it is left' : `the only good copy of part of it is on ${away.join(', ')}, which is down`;
  }
  return undefined;
}

/** Something is to be done about it, and nothing can be read that it would be done with. */
export function isLeftBad(parts: ChoiceParts): (copies: readonly ExtentMember[]) => boolean {
  return (copies) => copies.length > 1 && copies.some((copy) => isBad(parts, copy));
}

function eachColumn(extents: readonly Extent[]): ExtentMember[][] {
  return extents.flatMap((extent) => Array.from({ length: columnsOf(extent) }, (_, column) => columnMembers(extent, column)));
}

function rowOf({ regions }: ChoiceParts, { region }: ExtentMember): RegionRow | undefined {
  const row = regions.get(region)?.row;
  return row === undefined || row.lost ? undefined : row;
}

export function isBad(parts: ChoiceParts, copy: ExtentMember): boolean {
  return copy.missing === true || copy.unsynced === true || rowOf(parts, copy) === undefined;
}

export function canRead(parts: ChoiceParts, copy: ExtentMember): boolean {
  const row = rowOf(parts, copy);
  return row !== undefined && row.stale !== true && !isBad(parts, copy) && parts.appliances.get(row.appliance)?.isUp === true;
}
