/**
 * Which pieces of a file's memory are to be elsewhere, a stretch at a time; and its extents, once they are. Pure: nobody is asked,
 * nothing is changed.
 */
import { ExtmemError } from '../../base/errors.js';
import {
  columnMembers,
  columnsOf,
  copiesOf,
  joinExtents,
  memberBytes,
  splitExtent,
  type Extent,
  type ExtentMember,
} from '../../base/file_record.js';
import { PAGE_BYTES } from '../../base/protocol.js';

/** Which copies of a column are to be elsewhere, by their position in it. */
export type Choice = (copies: readonly ExtentMember[]) => readonly number[];

/** Part of a file as it lies: of one extent, whole rows of it. */
export interface Slot {
  extent: Extent;
  /** Positions in extent.members. */
  meant: readonly number[];
  /** Of each member. */
  bytes: number;
}

/** Pieces that are carved for one stretch; more would only make its transaction large. */
const MAX_PIECES = 1024;

export function meantOf(extent: Extent, choose: Choice): number[] {
  const copies = copiesOf(extent);
  const meant: number[] = [];
  for (let column = 0; column < columnsOf(extent); column++)
    for (const index of choose(columnMembers(extent, column))) meant.push(column * copies + index);
  return meant;
}

/** What comes next, about `limitBytes` of it; none: all is where it is to be. */
export function planStretch(extents: readonly Extent[], choose: Choice, limitBytes: number): Slot[] {
  const slots: Slot[] = [];
  let left = limitBytes;
  let pieces = 0;
  for (const extent of extents) {
    const meant = meantOf(extent, choose);
    if (meant.length === 0) continue;
    const grain = columnsOf(extent) === 1 ? PAGE_BYTES : extent.unit;
    const fits = Math.floor(left / meant.length / grain) * grain;
    // The first is taken however little fits: something is to come next.
    if (slots.length > 0 && (fits < grain || pieces + meant.length > MAX_PIECES)) break;
    const bytes = Math.min(memberBytes(extent), Math.max(fits, grain));
    const [head] = splitExtent(extent, bytes);
    slots.push({ extent: head, meant, bytes: memberBytes(head) });
    left -= memberBytes(head) * meant.length;
    pieces += meant.length;
    if (left <= 0) break;
  }
  return slots;
}

/** All that there is to do. */
export function bytesMeant(extents: readonly Extent[], choose: Choice): number {
  return extents.reduce((sum, extent) => sum + meantOf(extent, choose).length * memberBytes(extent), 0);
}

/** The part of the file that a slot is, as it is now. Throws EAGAIN if it lies elsewhere since. */
export function findSlot(extents: readonly Extent[], { extent: planned }: Slot): Extent {
  for (const extent of extents) {
    if (!isWithin(planned, extent)) continue;
    const part = partOf(extent, planned);
    if (part !== undefined && isAt(part, planned)) return part;
  }
  throw changed(planned);
}

export interface Moved {
  slot: Slot;
  /** By position in the slot's members. */
  members: ReadonlyMap<number, ExtentMember>;
}

/** The extents, with the new members of slots (in the order of the file). Throws EAGAIN if these lie elsewhere since. */
export function replaceSlots(extents: readonly Extent[], moved: readonly Moved[]): Extent[] {
  const out: Extent[] = [];
  let next = 0;
  for (const extent of extents) {
    let rest: Extent | undefined = extent;
    for (let one = moved[next]; one !== undefined && rest !== undefined && isWithin(one.slot.extent, rest); one = moved[++next]) {
      const { slot, members } = one;
      const before = slot.extent.fileOffset - rest.fileOffset;
      const [head, tail]: [Extent | undefined, Extent | undefined] = before === 0 ? [undefined, rest] : splitAt(rest, before);
      if (head !== undefined) out.push(head);
      const [part, after] = splitExtent(tail ?? rest, slot.bytes);
      if (tail === undefined || !isAt(part, slot.extent)) throw changed(slot.extent);
      out.push({ ...part, members: part.members.map((member, index) => members.get(index) ?? member) });
      rest = after;
    }
    if (rest !== undefined) out.push(rest);
  }
  const left = moved[next];
  if (left !== undefined) throw changed(left.slot.extent);
  return joinExtents(out);
}

function isWithin({ fileOffset }: Extent, extent: Extent): boolean {
  return fileOffset >= extent.fileOffset && fileOffset < extent.fileOffset + extent.length;
}

function changed({ fileOffset }: Extent): ExtmemError {
  return new ExtmemError('EAGAIN', `what lies at byte ${fileOffset} of the file has changed meanwhile`);
}

function partOf(extent: Extent, planned: Extent): Extent | undefined {
  const before = planned.fileOffset - extent.fileOffset;
  const tail = before === 0 ? extent : splitAt(extent, before)[1];
  return tail === undefined || tail.members.length !== planned.members.length ? undefined : splitExtent(tail, memberBytes(planned))[0];
}

/** At a byte of the file; throws EAGAIN where that is within a row. */
function splitAt(extent: Extent, fileBytes: number): [Extent, Extent | undefined] {
  const columns = columnsOf(extent);
  const ofMember = fileBytes / columns;
  if (columns > 1 && ofMember % extent.unit !== 0) throw new ExtmemError('EAGAIN', 'the rows of the file have changed meanwhile');
  return splitExtent(extent, ofMember);
}

/** Marks do not count. */
function isAt(part: Extent, planned: Extent): boolean {
  return (
    part.length === planned.length &&
    part.members.length === planned.members.length &&
    copiesOf(part) === copiesOf(planned) &&
    (columnsOf(part) === 1 || part.unit === planned.unit) &&
    part.members.every(
      ({ region, offset }, index) => region === planned.members[index]?.region && offset === planned.members[index]?.offset,
    )
  );
}
