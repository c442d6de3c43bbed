/**
 * What is said of regions (A8, A9): where each is, what of it is in memory, whose it is; of one, also what lies in it. Whoever may not
 * see a file's metadata does not see its regions, nor that it lies in one.
 */
import { ExtmemError, messageOf } from '../base/errors.js';
import { decodeRecord, pieces } from '../base/file_record.js';
import type { RegionInfo } from '../base/messages.js';
import type { Identity } from './access.js';
import type { Appliance } from './appliances.js';
import type { Inode } from './inode.js';
import { keys } from './metadata_store.js';
import type { Parts } from './parts.js';
import type { Region } from './regions.js';

export interface RegionAnswer {
  region: number;
  appliance: string;
  bytes: number;
  /** Of it, what files lie in. */
  usedBytes: number;
  /** lost: gone with an appliance; unknown: its appliance does not answer. */
  state: 'memory' | 'part' | 'store' | 'lost' | 'unknown';
  /** These are absent where the appliance does not answer. */
  residentBytes?: number;
  absentBytes?: number;
  damagedPages?: number;
  activity?: RegionInfo['activity'];
  thin?: boolean;
  accessVersion?: number;
  usage?: RegionInfo['usage'];
  /** The file whose own it is, or the client that carves files from it; neither: nobody's. */
  ino?: number;
  /** That of the file. */
  label?: string;
  client?: number;
  clientName?: string;
}

export interface RegionsAnswer {
  regions: RegionAnswer[];
  /** Appliances that could not be asked, and why. */
  silent: { appliance: string; why: string }[];
}

export interface OneRegionAnswer extends RegionAnswer {
  files: { ino: number; bytes: number }[];
  /** In files that the asker may not see. */
  otherBytes: number;
}

export async function listRegions(parts: Parts, who: Identity | undefined, appliance?: string): Promise<RegionsAnswer> {
  if (appliance !== undefined && parts.appliances.get(appliance) === undefined)
    throw new ExtmemError('ENOENT', `there is no appliance ${appliance}; extmem status shows those there are`);
  const rows = [...parts.regions.all()].filter(({ row }) => appliance === undefined || row.appliance === appliance);
  const { found, silent } = await askAppliances(parts, new Set(rows.map(({ row }) => row.appliance)));
  const seen = rows.filter((region) => maySee(parts, region, who)).sort((one, other) => one.id - other.id);
  return { regions: seen.map((region) => describe(parts, region, found.get(region.id))), silent };
}

export async function describeRegion(parts: Parts, id: number, who: Identity | undefined): Promise<OneRegionAnswer> {
  const region = parts.regions.get(id);
  if (region === undefined || !maySee(parts, region, who)) throw new ExtmemError('ENOENT', `there is no region ${id} that you may see`);
  const { found } = await askAppliances(parts, new Set([region.row.appliance]));
  const { store, access } = parts;
  const files: OneRegionAnswer['files'] = [];
  let otherBytes = 0;
  for (const [key, record] of store.scan<Uint8Array>(keys.records)) {
    const bytes = pieces(decodeRecord(record)).reduce((sum, piece) => sum + (piece.region === id ? piece.length : 0), 0);
    if (bytes === 0) continue;
    const ino = keys.lastNumber(key);
    const inode = store.get<Inode>(keys.inode(ino));
    if (inode !== undefined && access.allows(inode, who, 'read-metadata')) files.push({ ino, bytes });
    else otherBytes += bytes;
  }
  return { ...describe(parts, region, found.get(id)), files, otherBytes };
}

async function askAppliances(
  { appliances }: Parts,
  meant: ReadonlySet<string>,
): Promise<{ found: Map<number, RegionInfo>; silent: RegionsAnswer['silent'] }> {
  const found = new Map<number, RegionInfo>();
  const silent: RegionsAnswer['silent'] = [];
  const ask = async (appliance: Appliance): Promise<void> => {
    try {
      for (const info of (await appliances.call(appliance, 'listRegions', {})).regions) found.set(info.region, info);
    } catch (error) {
      silent.push({ appliance: appliance.id, why: messageOf(error) });
    }
  };
  const asked = appliances.all().filter(({ id }) => meant.has(id));
  await Promise.all(asked.map(ask));
  return { found, silent };
}

function maySee({ store, access }: Parts, { row }: Region, who: Identity | undefined): boolean {
  const inode = row.ino === 0 ? undefined : store.get<Inode>(keys.inode(row.ino));
  return inode === undefined || access.allows(inode, who, 'read-metadata');
}

function describe({ clients, store }: Parts, { row, used }: Region, info: RegionInfo | undefined): RegionAnswer {
  const { region, appliance, bytes, ino, client, lost } = row;
  const carver = client === 0 ? {} : { client, clientName: clients.get(client)?.name ?? '' };
  const label = ino === 0 ? undefined : store.get<Inode>(keys.inode(ino))?.label;
  const owner = ino === 0 ? carver : { ino, ...(label === undefined ? {} : { label }) };
  return { region, appliance, bytes, usedBytes: used.bytes, state: stateOf(lost, info), ...toldOf(info), ...owner };
}

function stateOf(lost: boolean, info: RegionInfo | undefined): RegionAnswer['state'] {
  if (lost) return 'lost';
  if (info === undefined) return 'unknown';
  if (info.absentBytes === 0) return 'memory';
  return info.residentBytes === 0 ? 'store' : 'part';
}

function toldOf(info: RegionInfo | undefined): Partial<RegionAnswer> {
  if (info === undefined) return {};
  const { residentBytes, absentBytes, damagedPages, activity, thin, accessVersion, usage } = info;
  return { residentBytes, absentBytes, damagedPages, activity, thin, accessVersion, usage };
}
