/**
 * What is kept in the appliances' backing stores: persisting allocations, and those that came back as they were some time ago.
 *
 * A file is `behind` when an appliance came back without what it had acknowledged for it in memory: opening it says ESTALE until
 * somebody accepts it as it is. A file of durability `persisted` never is: what an fsync of it promised is there.
 *
 * Owner: the event loop.
 */
import { ExtmemError } from '../base/errors.js';
import { decodeRecord, pieces } from '../base/file_record.js';
import type { Logger } from '../base/logger.js';
import type { Freed, RegionPiece } from '../base/messages.js';
import type { Appliances } from './appliances.js';
import type { Files } from './files.js';
import type { Inode } from './inode.js';
import { times } from './limits.js';
import { keys, type MetadataStore, type ReadView } from './metadata_store.js';
import type { Regions } from './regions.js';

export interface PersistenceParts {
  store: MetadataStore;
  files: Files;
  regions: Regions;
  appliances: Appliances;
  log: Logger;
}

export class Persistence {
  constructor(private readonly parts: PersistenceParts) {}

  /** What the appliances have of these files is durable when this resolves; `free`: its memory is given back. */
  async persistFiles(inos: readonly number[], free = false): Promise<Freed> {
    const { store, files } = this.parts;
    return this.persistPieces(pieces({ extents: inos.flatMap((ino) => files.extents(store, ino)) }), { free });
  }

  /** Everything on every appliance that has a backing store. Answers which those are. */
  async persistAll(free: boolean): Promise<Freed & { on: string[] }> {
    const meant = this.parts.appliances.up().filter(({ info }) => info.store !== undefined);
    if (meant.length === 0) throw new ExtmemError('ENOTSUP', 'no appliance that is up has a backing store; start one with --store');
    const freed = await Promise.all(
      meant.map((appliance) => this.parts.appliances.call(appliance, 'persist', { pieces: [], free }, times.persistMs)),
    );
    return { ...sumOf(freed), on: meant.map(({ id }) => id) };
  }

  /** An fsync of these files is about to be answered: those that are to be persisted are. Answers the inodes that could not be. */
  async fulfil(inos: readonly number[]): Promise<number[]> {
    const { store, log } = this.parts;
    const meant = inos.filter((ino) => store.get<Inode>(keys.inode(ino))?.durability === 'persisted');
    if (meant.length === 0) return [];
    try {
      await this.persistFiles(meant);
      return [];
    } catch (error) {
      log.error({ inodes: meant.slice(0, 10), error }, 'files whose durability is `persisted` could not be persisted');
      return meant;
    }
  }

  /** These regions came back as they were some time ago. */
  async markBehind(regions: readonly number[]): Promise<void> {
    const { store, log } = this.parts;
    const behind = new Set(regions);
    const inos = [...store.scan<Uint8Array>(keys.records)].flatMap(([key, record]) => {
      const ino = keys.lastNumber(key);
      const isMeant = [...this.parts.files.regionIds(decodeRecord(record).extents)].some((region) => behind.has(region));
      return isMeant && store.get<Inode>(keys.inode(ino))?.durability !== 'persisted' ? [ino] : [];
    });
    await store.transact((tx) => inos.forEach((ino) => tx.put(keys.behind(ino), 1)));
    if (inos.length > 0)
      log.error(
        { files: inos.length },
        'files came back without what was last written to them: opening them says ESTALE until `extmem restore`',
      );
  }

  isBehind(view: ReadView, ino: number): boolean {
    return view.get<number>(keys.behind(ino)) !== undefined;
  }

  checkOpen(ino: number): void {
    if (!this.isBehind(this.parts.store, ino)) return;
    throw new ExtmemError(
      'ESTALE',
      `inode ${ino} came back from a backing store without what was last written to it; \`extmem restore\` accepts it as it is`,
    );
  }

  async accept(ino: number): Promise<void> {
    await this.parts.store.transact((tx) => tx.remove(keys.behind(ino)));
  }

  async persistPieces(
    meant: readonly RegionPiece[],
    { free = false, timeoutMs = times.persistMs }: { free?: boolean; timeoutMs?: number } = {},
  ): Promise<Freed> {
    const { regions, appliances } = this.parts;
    const byAppliance = new Map<string, RegionPiece[]>();
    for (const piece of meant) {
      const row = regions.get(piece.region)?.row;
      if (row === undefined || row.lost) throw new ExtmemError('EIO', `region ${piece.region} is lost: it cannot be persisted`);
      const some = byAppliance.get(row.appliance);
      if (some === undefined) byAppliance.set(row.appliance, [piece]);
      else some.push(piece);
    }
    const freed = await Promise.all(
      [...byAppliance].map(async ([id, some]) => {
        const appliance = appliances.get(id);
        if (appliance === undefined) throw new ExtmemError('EIO', `appliance ${id} is gone`);
        return appliances.call(appliance, 'persist', { pieces: some, free }, timeoutMs);
      }),
    );
    return sumOf(freed);
  }
}

function sumOf(parts: readonly Freed[]): Freed {
  const sum = (of: keyof Freed): number => parts.reduce((total, part) => total + part[of], 0);
  return { freedBytes: sum('freedBytes'), heldBytes: sum('heldBytes') };
}
