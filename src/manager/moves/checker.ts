/**
 * Whether the copies of files are the same (C14): their appliances tell hashes, which are compared, a stretch at a time.
 *
 * While a file is written its copies differ for moments: what seems to differ is looked at again in the file's turn, while nobody
 * writes to it. A copy that then is not as most of them are counts no more, and is made anew (rebuild). Where there is no majority
 * nothing is changed: only who is told which appliance to trust can tell.
 */
import { ExtmemError, messageOf } from '../../base/errors.js';
import { columnMembers, columnsOf, copiesOf, memberBytes, splitExtent, type Extent, type ExtentMember } from '../../base/file_record.js';
import type { Place } from '../../base/marks.js';
import type { RegionPiece } from '../../base/messages.js';
import { PAGE_BYTES } from '../../base/protocol.js';
import type { Appliances } from '../appliances.js';
import type { Contents } from '../contents.js';
import type { Copies } from '../copies.js';
import type { Delegations } from '../delegations.js';
import type { Files } from '../files.js';
import type { Inode } from '../inode.js';
import { limits, times } from '../limits.js';
import { keys, type MetadataStore } from '../metadata_store.js';
import type { Regions } from '../regions.js';
import { canRead, isBad } from './choices.js';
import { compare } from './comparison.js';

export interface CheckerParts {
  store: MetadataStore;
  files: Files;
  regions: Regions;
  appliances: Appliances;
  delegations: Delegations;
  contents: Contents;
  copies: Copies;
}

export interface Checked {
  /** Where the next stretch begins; undefined: nothing is left. */
  next: number | undefined;
  /** Of the file, that were compared. */
  bytes: number;
  findings: string[];
}

interface How {
  /** An appliance whose copies are right. */
  trust?: string;
  automatic: boolean;
}

interface Column {
  part: Extent;
  index: number;
  bytes: number;
  /** Those that can be read, and count. */
  copies: ExtentMember[];
}
interface Finding {
  /** Of the file. */
  offset: number;
  length: number;
  on: string[];
  /** Which of these count no more. */
  dropped: string[];
  places: Place[];
}

export class Checker {
  constructor(private readonly parts: CheckerParts) {}

  /** From byte `from` of a file. Throws EIO, ETIMEDOUT, EBUSY: it cannot be told. */
  async checkStretch(ino: number, from: number, how: How): Promise<Checked> {
    const { store, files, delegations } = this.parts;
    if (store.get<Inode>(keys.inode(ino))?.kind !== 'file') return { next: undefined, bytes: 0, findings: [] };
    const part = partAt(files.extents(store, ino), from);
    if (part === undefined) return { next: undefined, bytes: 0, findings: [] };
    const next = part.fileOffset + part.length;
    const columns = this.columnsIn(part);
    const isSame = await this.differences(columns, how).then(
      (found) => found.length === 0,
      (error: unknown) => {
        if (error instanceof ExtmemError) return false; // moved meanwhile, perhaps
        throw error;
      },
    );
    const findings = isSame ? [] : await delegations.turns.run(ino, () => this.checkStill(ino, part, how));
    return { next, bytes: columns.length === 0 ? 0 : part.length, findings: [...this.unreadable(part), ...findings.map(describe)] };
  }

  /** In the file's turn. */
  private async checkStill(ino: number, planned: Extent, how: How): Promise<Finding[]> {
    const { store, files, contents, copies, delegations } = this.parts;
    if (store.get<Inode>(keys.inode(ino))?.kind !== 'file') return [];
    try {
      return await contents.whileStill(
        ino,
        async () => {
          const findings: Finding[] = [];
          for (let from = planned.fileOffset; ;) {
            const part = partAt(files.extents(store, ino), from);
            if (part === undefined || part.fileOffset >= planned.fileOffset + planned.length) break;
            findings.push(...(await this.differences(this.columnsIn(part), how)));
            from = part.fileOffset + part.length;
          }
          const places = findings.flatMap((finding) => finding.places);
          if (places.length > 0) await copies.dropPlaces(ino, places);
          const dropped = { offset: planned.fileOffset, length: places.length > 0 ? planned.length : 0 };
          await contents.tellSame(ino, dropped);
          return findings;
        },
        { gently: how.automatic },
      );
    } finally {
      delegations.rebalance(ino);
    }
  }

  private columnsIn(part: Extent): Column[] {
    const columns: Column[] = [];
    for (let index = 0; index < columnsOf(part); index++) {
      const copies = columnMembers(part, index).filter((copy) => canRead(this.parts, copy));
      if (copies.length > 1) columns.push({ part, index, bytes: memberBytes(part), copies });
    }
    return columns;
  }

  /** What counts, and is away. */
  private unreadable({ members }: Extent): string[] {
    const away = members.filter((copy) => !isBad(this.parts, copy) && !canRead(this.parts, copy)).map((copy) => this.applianceOf(copy));
    return [...new Set(away)].map((id) => `the copy on ${id} cannot be read: it is down`);
  }

  private async differences(columns: readonly Column[], { trust }: How): Promise<Finding[]> {
    const sums = await this.sumsOf(columns);
    return columns.flatMap((column, at) =>
      compare(sums[at] ?? [], column.bytes).map(({ offset, length, wrong: fewer }) => {
        const on = column.copies.map((copy) => this.applianceOf(copy));
        const trusted = trust === undefined ? -1 : on.indexOf(trust);
        const wrong = trusted < 0 ? (fewer ?? []) : on.flatMap((_, index) => (index === trusted ? [] : [index]));
        const places = wrong.flatMap((index) => {
          const copy = column.copies[index];
          return copy === undefined ? [] : [{ region: copy.region, offset: copy.offset + offset }];
        });
        return { offset: fileOffsetOf(column, offset), length, on, dropped: wrong.map((index) => on[index] ?? ''), places };
      }),
    );
  }

  /** Of each column, of each of its copies. */
  private async sumsOf(columns: readonly Column[]): Promise<Uint8Array[][]> {
    const { appliances } = this.parts;
    const byAppliance = new Map<string, { piece: RegionPiece; take: (sum: Uint8Array) => void }[]>();
    const sums = columns.map(({ copies, bytes }) => {
      const all = copies.map((): Uint8Array => new Uint8Array());
      copies.forEach((copy, index) => {
        const id = this.applianceOf(copy);
        const piece = { region: copy.region, offset: copy.offset, length: bytes };
        byAppliance.set(id, [...(byAppliance.get(id) ?? []), { piece, take: (sum) => (all[index] = sum) }]);
      });
      return all;
    });
    await Promise.all(
      [...byAppliance].map(async ([id, asked]) => {
        const appliance = appliances.get(id);
        if (appliance === undefined) throw new ExtmemError('EIO', `appliance ${id} is gone`);
        const answer = await appliances
          .call(appliance, 'sum', { pieces: asked.map(({ piece }) => piece) }, times.copyMs)
          .catch((error: unknown) => {
            throw new ExtmemError('EIO', `appliance ${id}: ${messageOf(error)}`, { cause: error });
          });
        asked.forEach(({ take }, index) => take(answer.sums[index] ?? new Uint8Array()));
      }),
    );
    return sums;
  }

  private applianceOf({ region }: ExtentMember): string {
    return this.parts.regions.get(region)?.row.appliance ?? '';
  }
}

/** What of an extent with copies begins at byte `from` of the file, or behind it: whole rows, about as much as is compared at once. */
function partAt(extents: readonly Extent[], from: number): Extent | undefined {
  for (const extent of extents) {
    if (copiesOf(extent) === 1 || extent.fileOffset + extent.length <= from) continue;
    const grain = columnsOf(extent) === 1 ? PAGE_BYTES : extent.unit * columnsOf(extent);
    const before = Math.max(0, Math.floor((from - extent.fileOffset) / grain) * grain) / columnsOf(extent);
    const rest = before === 0 ? extent : splitExtent(extent, before)[1];
    if (rest === undefined) continue;
    const ofMember = grain / columnsOf(extent);
    return splitExtent(rest, Math.max(ofMember, Math.floor(limits.stretchBytes / ofMember) * ofMember))[0];
  }
  return undefined;
}

function fileOffsetOf({ part, index }: Column, offset: number): number {
  const columns = columnsOf(part);
  if (columns === 1) return part.fileOffset + offset;
  return part.fileOffset + (Math.floor(offset / part.unit) * columns + index) * part.unit + (offset % part.unit);
}

function describe({ offset, length, on, dropped }: Finding): string {
  const where = `about byte ${offset}, ${length} bytes: the copies on ${on.join(', ')} differ`;
  if (dropped.length > 0) return `${where}; that on ${dropped.join(', ')} counts no more, and is made anew`;
  return `${where}, and which is right is not known; extmem check --trust says so`;
}
