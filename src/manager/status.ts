/**
 * What the manager says of itself: the pool, the appliances, the clients.
 */
import { messageOf } from '../base/errors.js';
import type { ApplianceHealth, ApplianceInfo } from '../base/messages.js';
import { PROTOCOL_VERSION } from '../base/protocol.js';
import type { Appliance } from './appliances.js';
import type { Parts } from './parts.js';

export interface Space {
  totalBytes: number;
  reservedBytes: number;
  usedBytes: number;
  freeBytes: number;
}

export interface SpaceAnswer extends Space {
  appliances: ({ id: string; state: 'up' | 'down'; residentBytes: number } & Space)[];
}

export interface StatusAnswer {
  cluster: string;
  version: number;
  pool: Space;
  files: number;
  openFiles: number;
  fences: number;
  appliances: ApplianceInfo[];
  clients: { client: number; name: string; hostId: string; alive: boolean; provisionBytes: number; usedBytes: number; heldFiles: number }[];
  lostRegions: number;
}

/** B2: reserved is what is in regions, used is what files are in; free is room for new regions on appliances that are up. */
export function describeSpace(parts: Parts): SpaceAnswer {
  const used = new Map<string, number>();
  for (const region of parts.regions.all()) {
    if (!region.row.lost) used.set(region.row.appliance, (used.get(region.row.appliance) ?? 0) + region.used.bytes);
  }
  const appliances = parts.appliances.all().map((appliance) => ({
    id: appliance.id,
    state: appliance.isUp ? ('up' as const) : ('down' as const),
    residentBytes: appliance.info.residentBytes,
    totalBytes: appliance.info.donatedBytes,
    reservedBytes: parts.regions.reservedBytes(appliance.id),
    usedBytes: used.get(appliance.id) ?? 0,
    freeBytes: parts.regions.freeBytes(appliance),
  }));
  const up = appliances.filter(({ state }) => state === 'up');
  const sum = (of: (one: Space) => number): number => up.reduce((total, one) => total + of(one), 0);
  return {
    totalBytes: sum((one) => one.totalBytes),
    reservedBytes: sum((one) => one.reservedBytes),
    usedBytes: sum((one) => one.usedBytes),
    freeBytes: sum((one) => one.freeBytes),
    appliances,
  };
}

export interface HealthAnswer {
  /** Without `health` it could not be asked, and `worries` says why. */
  appliances: { id: string; health?: ApplianceHealth; worries: string[] }[];
}

/** A5: asked now, of all appliances at once. */
export async function describeHealth({ appliances }: Parts): Promise<HealthAnswer> {
  const ask = async (appliance: Appliance): Promise<HealthAnswer['appliances'][number]> => {
    const { id } = appliance;
    const said = await appliances.call(appliance, 'health', {}).catch((error: unknown) => ({ worries: [messageOf(error)] }));
    const { offer } = appliance.info;
    const isShort = appliance.isUp && (offer === 'lowered' || offer === 'short'); // down, it offers nothing: that was some time ago
    const offered = isShort ? ['it is short of memory and offers less than was donated'] : [];
    return { id, ...said, worries: [...said.worries, ...offered] };
  };
  return { appliances: await Promise.all(appliances.all().map(ask)) };
}

export function describeStatus(parts: Parts): StatusAnswer {
  const { appliances: _, ...pool } = describeSpace(parts);
  const provisions = new Map<number, { bytes: number; used: number }>();
  let lostRegions = 0;
  for (const { row, used } of parts.regions.all()) {
    if (row.lost) lostRegions++;
    if (row.client === 0) continue;
    const sum = provisions.get(row.client) ?? { bytes: 0, used: 0 };
    provisions.set(row.client, { bytes: sum.bytes + row.bytes, used: sum.used + used.bytes });
  }
  return {
    cluster: parts.clusterName,
    version: PROTOCOL_VERSION,
    pool,
    files: parts.fileCount(),
    openFiles: parts.delegations.heldFiles,
    fences: parts.fencing.fences,
    appliances: parts.applianceInfos(),
    clients: [...parts.clients.all()].map((client) => ({
      client: client.id,
      name: client.row.name,
      hostId: client.row.hostId,
      alive: client.isConnected,
      provisionBytes: provisions.get(client.id)?.bytes ?? 0,
      usedBytes: provisions.get(client.id)?.used ?? 0,
      heldFiles: parts.delegations.heldBy(client.id).length,
    })),
    lostRegions,
  };
}
