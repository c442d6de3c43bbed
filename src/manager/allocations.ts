/**
 * Allocations as administrators and programs see them: files by path, created, resized, listed, described and destroyed over
 * HTTP. What is large gets regions of its own, on all chosen appliances or on none; what is small is a sparse file whose writer
 * carves it from its provision.
 */
import { ExtmemError } from '../base/errors.js';
import { columnMembers, columnsOf, copiesOf, type Extent } from '../base/file_record.js';
import { formatLayout, hasCopies, parseAcross, parseLayout, type Layout } from '../base/layout.js';
import { lostRanges } from '../base/marks.js';
import type { AcrossName, Attr, Durability, Freed } from '../base/messages.js';
import { PAGE_BYTES, STRIPE_UNIT_BYTES } from '../base/protocol.js';
import { isProtected, type Identity } from './access.js';
import type { Contents, ContentsParts } from './contents.js';
import type { DirectoryDelegations } from './directory_delegations.js';
import { roundUpToPages, type Files } from './files.js';
import { formColumns, widthOf } from './domains.js';
import { attrOf, checkLabel, findFile, findInode, layoutOf, ROOT_INO, type Inode } from './inode.js';
import { limits } from './limits.js';
import { keys } from './metadata_store.js';
import { putInode, type Names } from './names.js';
import type { Persistence } from './persistence.js';
import type { AccessAsk, AccessInfo } from './protection.js';
import { shareOf, type PlacementStrategy } from './placement.js';
import { UNBORN_INO, type Region } from './regions.js';

const EMPTY_BATCH = 256;

export interface AllocationParts extends Omit<ContentsParts, 'fence'> {
  directories: DirectoryDelegations;
  contents: Contents;
  persistence: Persistence;
  placement: PlacementStrategy;
  dedicatedBytes: number;
}

export interface Reshape {
  how: 'punch' | 'collapse' | 'insert';
  offset: number;
  length: number;
}

export interface AllocationInfo {
  path: string;
  ino: number;
  bytes: number;
  allocatedBytes: number;
  /** As --layout says it. */
  layout: string;
  copies: number;
  /** What the copies were asked not to share; absent: they were to be as far apart as can be. */
  across?: AcrossName;
  /** What none of its copies share, as they lie; `none`: there is one copy of part of it. */
  apart: AcrossName | 'none';
  /** So many of what the copies do not share can be lost, and everything is still there. */
  bears: number;
  /** Copies that are not counted on, by appliance: they missed a write, or may differ from the others. */
  missing: string[];
  unsynced: string[];
  /** Bytes of the file of which nothing is left. */
  lostRanges: { offset: number; length: number }[];
  dedicated: boolean;
  extents: number;
  regions: { region: number; bytes: number; appliance: string; lost: boolean }[];
  appliances: string[];
  lost: boolean;
  durability: Durability;
  /** What people call it; '': nothing. */
  label: string;
  /** Who may do what, by its rules; '': whoever has the join token, everything. */
  access: string;
  /** An earlier state of it came back from a backing store: opening it says ESTALE until that is accepted. */
  behind: boolean;
  holders: { client: number; name: string; mode: string; open: string; connected: boolean }[];
  attr: Attr;
  warning: string;
}

export class Allocations {
  constructor(private readonly parts: AllocationParts) {}

  async create(ask: {
    path: string;
    bytes: number;
    layout?: string;
    across?: string;
    dedicated?: boolean;
    durability?: Durability;
    label?: string;
    access?: string;
    accessKey?: string;
  }): Promise<AllocationInfo> {
    const { store, names, interest, protection } = this.parts;
    checkSize(ask.bytes);
    const { parent, name } = await this.parentOf(ask.path);
    if (names.lookup(store, parent.ino, name) !== undefined) throw new ExtmemError('EEXIST', `${ask.path} exists`);
    const inherited = layoutOf(parent);
    const across = ask.across === undefined ? inherited.across : parseAcross(ask.across);
    const layout: Layout = {
      ...(ask.layout === undefined ? inherited : parseLayout(ask.layout)),
      ...(across === undefined ? {} : { across }),
    };
    this.checkApart(layout);
    const asked = { rules: ask.access ?? '', key: ask.accessKey };
    const access = ask.access === undefined && ask.accessKey === undefined ? undefined : await protection.begin(asked);
    const isClosed = access !== undefined && access.rules.length > 0;
    const isDedicated = isClosed || (ask.dedicated ?? ask.bytes >= this.parts.dedicatedBytes);
    const regions = isDedicated && ask.bytes > 0 ? await this.takeRegions(ask.bytes, layout) : [];
    try {
      const { inode, changes } = await store.transact((tx) => {
        const made = names.create(tx, {
          parent: parent.ino,
          name,
          kind: 'file',
          mode: 0o644,
          uid: parent.uid,
          gid: parent.gid,
          rdev: 0,
          open: false,
          exclusive: true,
        });
        const durability = ask.durability === 'persisted' ? { durability: ask.durability } : {};
        const { layout: _layout, copies: _copies, across: _across, ...plain } = made.inode;
        const label = ask.label === undefined || ask.label === '' ? {} : { label: checkLabel(ask.label) };
        const sized: Inode = { ...plain, size: ask.bytes, ...layout, ...durability, ...label };
        if (access === undefined) putInode(tx, sized);
        const begun = access === undefined ? sized : protection.put(tx, sized, access);
        return { inode: this.giveRegions(tx, begun, regions, { from: 0, size: ask.bytes }), changes: made.changes };
      });
      await interest.tell(undefined, changes);
      return this.describe(ask.path, inode);
    } catch (error) {
      await this.parts.regions.destroy(regions.filter((region) => region.used.bytes === 0));
      throw error;
    }
  }

  async resize(path: string, bytes: number, who?: Identity): Promise<AllocationInfo> {
    checkSize(bytes);
    const { store, contents, regions, access } = this.parts;
    const inode = await this.findPath(path);
    access.check(findFile(store, inode.ino), who, 'write');
    const isDedicated = isProtected(inode) || regions.ofFile(inode.ino).length > 0;
    const end = this.allocatedEnd(inode.ino);
    const isGrowing = isDedicated && bytes > Math.max(inode.size, end);
    const made = isGrowing ? await this.takeRegions(bytes - end, layoutOf(inode)) : [];
    try {
      // Also to make it longer: whoever writes to it gives it back first, and all are told.
      await contents.truncate(
        undefined,
        inode.ino,
        { size: bytes },
        { also: (tx, present) => this.giveRegions(tx, present, made, { from: end, size: bytes }) },
      );
    } catch (error) {
      await regions.destroy(made.filter((region) => region.used.bytes === 0));
      throw error;
    }
    return this.describe(path, findFile(store, inode.ino));
  }

  /** A2, of a file's bytes: a range becomes a hole, or is taken out, or a hole is put in; what follows keeps its bytes. */
  async reshape(path: string, { how, offset, length }: Reshape, who?: Identity): Promise<AllocationInfo> {
    const { store, contents, access } = this.parts;
    const { ino } = findFile(store, (await this.findPath(path)).ino);
    access.check(findFile(store, ino), who, 'write');
    const range = { offset, length };
    if (how === 'punch') await contents.free(ino, range);
    else await contents.shift(ino, how, range);
    return this.describe(path, findFile(store, ino));
  }

  async destroy(path: string, recursive = false, who?: Identity): Promise<void> {
    const { parent, name } = await this.parentOf(path);
    const inode = await this.findPath(path);
    if (inode.kind !== 'directory' || !recursive) return this.unlink(parent.ino, name, false, who);
    await this.empty(inode.ino, who);
    await this.unlink(parent.ino, name, true, who);
  }

  /** Which files these are; whoever asks may change how they lie. */
  async filesAt(paths: readonly string[], who?: Identity): Promise<{ ino: number; path: string }[]> {
    const { access, store } = this.parts;
    return Promise.all(
      paths.map(async (path) => {
        const inode = findFile(store, (await this.findPath(path)).ino);
        access.check(inode, who, 'write-metadata');
        return { ino: inode.ino, path: `/${splitPath(path).join('/')}` };
      }),
    );
  }

  /** Whether somebody may do this with a file; who is gone hides nothing. */
  allows(ino: number, who: Identity, right: 'read-metadata' | 'write-metadata'): boolean {
    const inode = this.parts.store.get<Inode>(keys.inode(ino));
    return inode === undefined || this.parts.access.allows(inode, who, right);
  }

  /** Says who holds it; what is open is renewed by its client. An allocation without a time limit needs no more. */
  renew(path: string, who?: Identity): Promise<AllocationInfo> {
    return this.info(path, who);
  }

  async info(path: string, who?: Identity): Promise<AllocationInfo> {
    const inode = await this.findPath(path);
    this.parts.access.check(inode, who, 'read-metadata');
    return this.describe(path, inode);
  }

  /** Who may do what with it. */
  async showAccess(path: string, who?: Identity): Promise<AccessInfo> {
    const inode = findFile(this.parts.store, (await this.findPath(path)).ino);
    this.parts.access.check(inode, who, 'read-metadata');
    return this.parts.protection.describe(inode);
  }

  async changeAccess(path: string, ask: AccessAsk, who?: Identity): Promise<AccessInfo> {
    const inode = findFile(this.parts.store, (await this.findPath(path)).ino);
    return (await this.parts.protection.change(inode.ino, ask, who)).info;
  }

  /** What is in a directory, in the order of its making; `after`: the cookie (`next`) that the last answer ended with. */
  async list(
    path: string,
    page: { after: number; limit: number },
    who?: Identity,
  ): Promise<{ allocations: AllocationInfo[]; next?: number }> {
    const { access } = this.parts;
    const directory = await this.findPath(path);
    if (directory.kind !== 'directory') return { allocations: [await this.info(path, who)] };
    const { entries, end } = await this.read({ ino: directory.ino, cookie: page.after, limit: page.limit });
    const next = entries.at(-1)?.cookie;
    return {
      allocations: entries
        .filter(({ inode }) => access.allows(inode, who, 'read-metadata'))
        .map(({ name, inode }) => this.describe(`${path}/${name}`, inode)),
      ...(end || next === undefined ? {} : { next }),
    };
  }

  /** As its mounts have written it back; everything, without a path. `free`: its memory is given back, where no client holds it. */
  async persist(
    { path, free = false }: { path?: string; free?: boolean },
    who?: Identity,
  ): Promise<{ appliances: string[] } & Partial<Freed>> {
    const { persistence } = this.parts;
    if (path === undefined) {
      const { on, ...freed } = await persistence.persistAll(free);
      return { appliances: on, ...(free ? freed : {}) };
    }
    const inode = await this.findPath(path);
    this.parts.access.check(inode, who, 'write-metadata');
    const freed = await persistence.persistFiles([findFile(this.parts.store, inode.ino).ino], free);
    return { appliances: [...new Set(this.placementOf(inode.ino).map(({ appliance }) => appliance))], ...(free ? freed : {}) };
  }

  /** An earlier state of it is accepted. */
  async accept(path: string, who?: Identity): Promise<AllocationInfo> {
    const inode = await this.findPath(path);
    this.parts.access.check(inode, who, 'write-metadata');
    await this.parts.persistence.accept(findFile(this.parts.store, inode.ino).ino);
    return this.describe(path, inode);
  }

  /** What user.extmem.placement says of a file. */
  placementOf(ino: number): { region: number; appliance: string; bytes: number; lost: boolean }[] {
    const { files, regions, store } = this.parts;
    const ids = new Set(files.extents(store, ino).flatMap(({ members }) => members.map(({ region }) => region)));
    return [...ids].map((id) => {
      const row = regions.get(id)?.row;
      return { region: id, appliance: row?.appliance ?? '', bytes: row?.bytes ?? 0, lost: row?.lost ?? true };
    });
  }

  /** Throws EDOMAIN if no appliances that are up could hold the copies. */
  checkApart({ layout, copies = 1, across }: Layout): void {
    const up = this.parts.appliances.up().flatMap(({ id, info }) => (this.parts.appliances.mayPlace(id) ? [info] : []));
    if (copies === 1 || formColumns(up, { copies, across }).length > 0) return;
    const asked = across === undefined ? 'on different appliances' : `on different ${across}s`;
    throw new ExtmemError(
      'EDOMAIN',
      `${formatLayout({ layout, copies })} keeps ${copies} copies ${asked}: the ${up.length} appliances that are up do not allow that`,
    );
  }

  private async findPath(path: string): Promise<Inode> {
    const { store, names, directories } = this.parts;
    let inode = findInode(store, ROOT_INO);
    for (const name of splitPath(path)) {
      const parent = inode.ino;
      const find = (): Inode | undefined => names.lookup(store, parent, name);
      const next = await directories.seeing(undefined, () => [parent, find()], find);
      if (next === undefined) throw new ExtmemError('ENOENT', `${path} does not exist`);
      inode = next;
    }
    return inode;
  }

  /** A page of a directory, and nobody else has it or what is in it to himself. */
  private async read(ask: { ino: number; cookie: number; limit: number }): Promise<ReturnType<Names['readdir']>> {
    const { store, names, directories } = this.parts;
    const page = (): ReturnType<Names['readdir']> => names.readdir(store, ask);
    return directories.seeing(undefined, () => [ask.ino, ...page().entries.map(({ inode }) => inode)], page);
  }

  private async empty(directory: number, who: Identity | undefined): Promise<void> {
    for (let end = false; !end;) {
      const page = await this.read({ ino: directory, cookie: 0, limit: EMPTY_BATCH });
      end = page.end;
      for (const { inode } of page.entries) if (inode.kind === 'directory') await this.empty(inode.ino, who);
      await Promise.all(page.entries.map(({ name, inode }) => this.unlink(directory, name, inode.kind === 'directory', who)));
    }
  }

  private async unlink(parent: number, name: string, directory: boolean, who: Identity | undefined): Promise<void> {
    const { store, names, interest, reclaimer } = this.parts;
    const { changes, tickets } = await store.transact((tx) => {
      const { changes } = names.unlink(tx, { parent, name, directory }, who);
      return { changes, tickets: reclaimer.ticketsOf(tx) };
    });
    await interest.tell(undefined, changes);
    reclaimer.start(tickets);
  }

  private async parentOf(path: string): Promise<{ parent: Inode; name: string }> {
    const parts = splitPath(path);
    const name = parts.pop();
    if (name === undefined) throw new ExtmemError('EINVAL', 'the root directory is no allocation');
    const parent = await this.findPath(parts.join('/'));
    if (parent.kind !== 'directory') throw new ExtmemError('ENOTDIR', `/${parts.join('/')} is no directory`);
    return { parent, name };
  }

  /** As many for each column as there are copies, in order. */
  private async takeRegions(bytes: number, { layout, copies = 1, across }: Layout): Promise<Region[]> {
    const { regions, appliances, placement } = this.parts;
    const unit = isStriped(layout) ? STRIPE_UNIT_BYTES : PAGE_BYTES;
    const usable = appliances.up().filter((one) => appliances.mayPlace(one.id));
    const candidates = placement.order(usable.map((one) => ({ id: one.id, freeBytes: regions.freeBytes(one) })));
    const placed = candidates.flatMap((candidate) => {
      const info = appliances.get(candidate.id)?.info;
      return info === undefined ? [] : [{ ...info, ...candidate }];
    });
    // A column has the room of its fullest appliance.
    const columns = formColumns(placed, { copies, across }).map((column, index) => ({
      id: String(index).padStart(3, '0'),
      freeBytes: Math.min(...column.map(({ freeBytes }) => freeBytes)),
      column,
    }));
    const chosen = placement.choose(bytes, unit, columns);
    if (chosen.length === 0) {
      const free = candidates.reduce((sum, candidate) => sum + candidate.freeBytes, 0);
      throw new ExtmemError(
        'ENOSPC',
        `${bytes} bytes in equal shares${copies > 1 ? `, ${copies} copies of each,` : ''} do not fit: ${free} bytes are free on ${candidates.length} appliances that are up`,
      );
    }
    const share = shareOf(bytes, unit, chosen.length);
    const asks = chosen.flatMap(({ id }) => columns.find((one) => one.id === id)?.column ?? []);
    return regions.create(
      asks.map(({ id }) => ({ appliance: id, bytes: share })),
      { ino: UNBORN_INO },
    );
  }

  private giveRegions(
    tx: Parameters<Files['append']>[0],
    inode: Inode,
    made: readonly Region[],
    range: { from: number; size: number },
  ): Inode {
    if (made.length === 0) return inode;
    const access = inode.access === undefined ? {} : { access: inode.access.version };
    for (const region of made) this.parts.regions.setRow(tx, region, { ino: inode.ino, ...access });
    return this.parts.files.append(tx, inode, extentsOver(made, layoutOf(inode), range.from), range.size);
  }

  private allocatedEnd(ino: number): number {
    const last = this.parts.files.extents(this.parts.store, ino).at(-1);
    return last === undefined ? 0 : last.fileOffset + last.length;
  }

  private describe(path: string, inode: Inode): AllocationInfo {
    const { store, files, delegations, clients, regions } = this.parts;
    const placed = this.placementOf(inode.ino);
    const extents = files.extents(store, inode.ino);
    const appliances = [...new Set(placed.map(({ appliance }) => appliance))].sort();
    const { copies = 1, across, layout } = layoutOf(inode);
    const lost = lostRanges(extents, (region) => regions.get(region)?.row.lost !== false);
    return {
      path: `/${splitPath(path).join('/')}`,
      ino: inode.ino,
      bytes: inode.size,
      allocatedBytes: inode.blocks * 512,
      layout: formatLayout({ layout, copies }),
      copies,
      ...(across === undefined ? {} : { across }),
      ...this.redundancyOf(extents),
      lostRanges: lost,
      dedicated: placed.some(({ region }) => regions.get(region)?.row.ino === inode.ino),
      extents: extents.length,
      regions: placed.map(({ region, bytes, appliance, lost }) => ({ region, bytes, appliance, lost })),
      appliances,
      lost: lost.length > 0,
      durability: inode.durability ?? 'memory',
      label: inode.label ?? '',
      access: this.parts.protection.describe(inode).rules,
      behind: this.parts.persistence.isBehind(store, inode.ino),
      holders: delegations.holders(inode.ino).map(({ client, row }) => ({
        client,
        name: clients.get(client)?.row.name ?? '',
        mode: row.mode,
        open: row.open,
        connected: clients.get(client)?.isConnected ?? false,
      })),
      attr: attrOf(inode),
      warning: hasCopies(layout) ? '' : `${layout} keeps one copy: the loss of an appliance that holds part of it loses that part`,
    };
  }

  /** What the copies of a file bear as they lie now. */
  private redundancyOf(extents: readonly Extent[]): Pick<AllocationInfo, 'apart' | 'bears' | 'missing' | 'unsynced'> {
    const { regions, appliances } = this.parts;
    const applianceOf = (region: number): string => regions.get(region)?.row.appliance ?? '';
    const missing = new Set<string>();
    const unsynced = new Set<string>();
    let apart: AllocationInfo['apart'] = extents.length === 0 ? 'none' : 'rack';
    let bears = extents.length === 0 ? 0 : Infinity;
    const narrow = ['none', 'appliance', 'host', 'rack'] as const;
    for (const extent of extents) {
      for (let column = 0; column < columnsOf(extent); column++) {
        const copies = columnMembers(extent, column);
        for (const copy of copies) if (copy.missing === true) missing.add(applianceOf(copy.region));
        for (const copy of copies) if (copy.unsynced === true) unsynced.add(applianceOf(copy.region));
        const left = copies.filter((copy) => copy.missing === undefined && regions.get(copy.region)?.row.lost === false);
        bears = Math.min(bears, Math.max(0, left.length - 1));
        const placed = left.flatMap(({ region }) => appliances.get(applianceOf(region))?.info ?? []);
        const width = copiesOf(extent) === 1 || placed.length < 2 ? 'none' : widthOf(placed);
        if (narrow.indexOf(width) < narrow.indexOf(apart)) apart = width;
      }
    }
    return { apart, bears, missing: [...missing].sort(), unsynced: [...unsynced].sort() };
  }
}

function isStriped(layout: Layout['layout']): boolean {
  return layout === 'stripe' || layout === 'raid10';
}

/** One extent of several columns over all regions, or one extent per column. Regions are whole: their ends may lie beyond the file's. */
function extentsOver(made: readonly Region[], { layout, copies = 1 }: Layout, from: number): Extent[] {
  const members = made.map((region) => ({ region: region.id, offset: 0 }));
  const share = made[0]?.row.bytes ?? 0;
  const columns = members.length / copies;
  const several = copies > 1 ? { copies } : {};
  if (isStriped(layout) && columns > 1)
    return [{ fileOffset: from, length: share * columns, unit: STRIPE_UNIT_BYTES, ...several, members }];
  return Array.from({ length: columns }, (_, column) => ({
    ...{ fileOffset: from + column * share, length: share, unit: share, ...several },
    members: members.slice(column * copies, (column + 1) * copies),
  }));
}

function checkSize(bytes: number): void {
  if (roundUpToPages(bytes) > limits.fileBytes) throw new ExtmemError('EFBIG', `${bytes} bytes are more than a file can have`);
}

function splitPath(path: string): string[] {
  const parts = path.split('/').filter((part) => part !== '');
  if (Buffer.byteLength(path) > limits.pathBytes || parts.length > limits.pathDepth)
    throw new ExtmemError('ENAMETOOLONG', 'the path is too long');
  if (parts.some((part) => part === '.' || part === '..')) throw new ExtmemError('EINVAL', `${path}: '.' and '..' mean nothing here`);
  return parts;
}
