/**
 * Which copies count: members of extents become missing (they missed a write, or were lost) or unsynced (they may differ where a
 * writer was writing when it died).
 *
 * Invariant: of a column that has a copy left which is not missing, one is neither missing nor unsynced. Where only unsynced ones
 * are left, one of them is from then on what the column holds: every write that was ever acknowledged is in each.
 * Functions here change nothing that they are given; they answer the same extents where nothing changes.
 */
import { copiesOf, memberBytes, type Extent, type ExtentMember } from './file_record.js';

/** A byte of a region. */
export interface Place {
  region: number;
  offset: number;
}

/** These missed a write. Not where the last good copy of a column would go. */
export function dropPlaces(extents: readonly Extent[], places: readonly Place[]): Extent[] {
  const byRegion = new Map<number, number[]>();
  for (const { region, offset } of places) byRegion.set(region, [...(byRegion.get(region) ?? []), offset]);
  return mapColumns(extents, (copies, bytes) => {
    const isMeant = ({ region, offset }: ExtentMember): boolean =>
      byRegion.get(region)?.some((at) => at >= offset && at < offset + bytes) === true;
    return copies.some((copy) => isGood(copy) && !isMeant(copy)) ? markMissing(copies, isMeant) : copies;
  });
}

/** What these regions held is gone, or not as it was. Where nothing else is left, nothing is marked. */
export function dropRegions(extents: readonly Extent[], isGone: (region: number) => boolean): Extent[] {
  const isMeant = ({ region }: ExtentMember): boolean => isGone(region);
  return mapColumns(extents, (copies) =>
    copies.some((copy) => copy.missing === undefined && !isMeant(copy)) ? settleOne(markMissing(copies, isMeant)) : copies,
  );
}

/** Their writer died: all but one of each column may differ from that. */
export function unsync(extents: readonly Extent[]): Extent[] {
  return mapColumns(extents, (copies) => {
    const kept = copies.find(isGood);
    return copies.map((copy) =>
      kept === undefined || copy === kept || copy.missing === true || copy.unsynced === true ? copy : { ...copy, unsynced: true },
    );
  });
}

/** Extents as their writer has them, with what is known here of their members. `current`: the writer knows that too, and says
 *  which it has found missing since. */
export function carryMarks(theirs: readonly Extent[], known: readonly Extent[], current: boolean): Extent[] {
  const there = new Map<number, { from: number; to: number; member: ExtentMember }[]>();
  for (const extent of known) {
    const bytes = memberBytes(extent);
    for (const member of extent.members) {
      const some = there.get(member.region) ?? [];
      some.push({ from: member.offset, to: member.offset + bytes, member });
      there.set(member.region, some);
    }
  }
  return mapColumns(theirs, (copies, bytes) => {
    const found = copies.map(
      (copy) => there.get(copy.region)?.find(({ from, to }) => copy.offset < to && from < copy.offset + bytes)?.member,
    );
    const known = copies.map((copy, index) => withMarks(copy, found[index]?.missing === true, found[index]?.unsynced === true));
    const isNews = (copy: ExtentMember, index: number): boolean =>
      copy.missing === true && (current || found[index] === undefined) && known[index]?.missing === undefined;
    const marked = known.map((copy, index) => (isNews(copies[index] as ExtentMember, index) ? { ...copy, missing: true as const } : copy));
    return marked.some((copy) => copy.missing === undefined) ? settleOne(marked) : known;
  });
}

/** Whether a column of these has nothing left; `isGone`: a region that holds nothing any more. */
export function lostRanges(extents: readonly Extent[], isGone: (region: number) => boolean): { offset: number; length: number }[] {
  const lost: { offset: number; length: number }[] = [];
  for (const extent of extents) {
    const copies = copiesOf(extent);
    const columns = extent.members.length / copies;
    const isLost = (column: number): boolean =>
      extent.members.slice(column * copies, (column + 1) * copies).every(({ region, missing }) => missing === true || isGone(region));
    const lostColumns = Array.from({ length: columns }, (_, column) => isLost(column));
    if (!lostColumns.includes(true)) continue;
    if (columns === 1) lost.push({ offset: extent.fileOffset, length: extent.length });
    else
      for (let at = 0, unit = 0; at < extent.length; at += extent.unit, unit++)
        if (lostColumns[unit % columns] === true)
          lost.push({ offset: extent.fileOffset + at, length: Math.min(extent.unit, extent.length - at) });
  }
  return lost;
}

function isGood({ missing, unsynced }: ExtentMember): boolean {
  return missing === undefined && unsynced === undefined;
}

function withMarks({ region, offset }: ExtentMember, missing: boolean, unsynced: boolean): ExtentMember {
  return { region, offset, ...(missing ? { missing: true } : {}), ...(unsynced ? { unsynced: true } : {}) };
}

function markMissing(copies: readonly ExtentMember[], isMeant: (copy: ExtentMember) => boolean): ExtentMember[] {
  return copies.map((copy) => (isMeant(copy) && copy.missing === undefined ? { ...copy, missing: true } : copy));
}

/** The first that is left holds what the column holds, if none is good. */
function settleOne(copies: ExtentMember[]): ExtentMember[] {
  if (copies.some(isGood)) return copies;
  const first = copies.findIndex((copy) => copy.missing === undefined);
  return copies.map((copy, index) => (index === first ? withMarks(copy, false, false) : copy));
}

/** The same array, where no member changes. */
function mapColumns(extents: readonly Extent[], change: (copies: ExtentMember[], bytes: number) => ExtentMember[]): Extent[] {
  let isChanged = false;
  const mapped = extents.map((extent) => {
    const copies = copiesOf(extent);
    if (copies === 1) return extent;
    const bytes = memberBytes(extent);
    const members: ExtentMember[] = [];
    for (let at = 0; at < extent.members.length; at += copies) members.push(...change(extent.members.slice(at, at + copies), bytes));
    const isSame = members.every((member, index) => hasSameMarks(member, extent.members[index]));
    isChanged ||= !isSame;
    return isSame ? extent : { ...extent, members };
  });
  return isChanged ? mapped : (extents as Extent[]);
}

function hasSameMarks(one: ExtentMember, other: ExtentMember | undefined): boolean {
  return one.missing === other?.missing && one.unsynced === other?.unsynced;
}
