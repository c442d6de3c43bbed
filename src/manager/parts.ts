/**
 * The manager's parts, and how they are put together. Imports go one way: handlers and HTTP know the parts, no part knows them.
 */
import { randomBytes } from 'node:crypto';
import { CLUSTER_KEY_BYTES } from '../base/keys.js';
import type { Logger } from '../base/logger.js';
import type { ApplianceInfo } from '../base/messages.js';
import { Access } from './access.js';
import { Allocations } from './allocations.js';
import { Appliances } from './appliances.js';
import { Clients } from './clients.js';
import { Contents } from './contents.js';
import { Copies } from './copies.js';
import { Delegations } from './delegations.js';
import { DirectoryDelegations } from './directory_delegations.js';
import { Ends } from './ends.js';
import { Fencing } from './fencing.js';
import { Files } from './files.js';
import { Interest } from './interest.js';
import { times } from './limits.js';
import { Locks } from './locks.js';
import { keys, type MetadataStore } from './metadata_store.js';
import { Checker, type CheckerParts } from './moves/checker.js';
import { Draining, type DrainParts } from './moves/drain.js';
import { Jobs, type CheckOptions, type JobsParts, type RebuildOptions } from './moves/jobs.js';
import { Mover, type MoverParts } from './moves/mover.js';
import { Room, type RoomParts } from './moves/room.js';
import { NameBatches } from './name_batches.js';
import { Names } from './names.js';
import { OwnRoom } from './own_room.js';
import { Persistence } from './persistence.js';
import { placementStrategy, type PlacementName } from './placement.js';
import { Protection } from './protection.js';
import { Provisions } from './provisions.js';
import { Reclaimer } from './reclaim.js';
import { Regions, UNBORN_INO } from './regions.js';
import { Xattrs } from './xattrs.js';

export interface Parts {
  store: MetadataStore;
  clusterKey: Uint8Array;
  clusterName: string;
  names: Names;
  files: Files;
  xattrs: Xattrs;
  access: Access;
  protection: Protection;
  clients: Clients;
  appliances: Appliances;
  regions: Regions;
  reclaimer: Reclaimer;
  interest: Interest;
  locks: Locks;
  delegations: Delegations;
  directories: DirectoryDelegations;
  nameBatches: NameBatches;
  contents: Contents;
  copies: Copies;
  persistence: Persistence;
  fencing: Fencing;
  provisions: Provisions;
  allocations: Allocations;
  jobs: Jobs;
  log: Logger;
  applianceInfos(): ApplianceInfo[];
  fileCount(): number;
}

export interface PartsOptions {
  store: MetadataStore;
  log: Logger;
  placement: PlacementName;
  dedicatedBytes: number;
  rebuild: RebuildOptions;
  check: CheckOptions;
}

interface ClusterRow {
  key: Uint8Array;
  name: string;
}

export async function assembleParts(options: PartsOptions): Promise<Parts> {
  const { store, log } = options;
  const cluster = await findCluster(store);
  const access = new Access(cluster.key);
  const placement = placementStrategy(options.placement);
  const appliances = new Appliances(store, log);
  const regions = new Regions(store, appliances, cluster.key, log);
  const clients = new Clients(store, log);
  const reclaimer = new Reclaimer(store, regions, appliances, clients, log);
  const interest = new Interest(clients, log);
  const locks = new Locks(store);
  const files = new Files(regions, reclaimer);
  // The fence needs the delegations, whose recalls need the fence; as do the ends of shared files the holders, and what cuts behind them.
  const fence: Fencing['fence'] = (client, why) => fencing.fence(client, why);
  const clearBeyondEnd: Contents['clearBeyondEnd'] = (ino) => contents.clearBeyondEnd(ino);
  const ends: Ends = new Ends({
    clients,
    fence,
    holders: (ino) => delegations.holders(ino),
    clear: (ino) => delegations.turns.run(ino, () => clearBeyondEnd(ino)),
  });
  const held = { store, clients, files, regions, reclaimer, interest, locks, ends, access, log };
  const delegations: Delegations = new Delegations({ ...held, fence, clearBeyondEnd });
  const directories = new DirectoryDelegations({ store, clients, turns: delegations.turns, fence });
  const copies = new Copies({ store, files, regions, reclaimer, clients, delegations, log, fence });
  const fenced = { store, appliances, clients, delegations, directories, locks, interest, regions, reclaimer, log };
  const fencing = new Fencing({ ...fenced, writerDied: (client) => copies.writerDied(client) });
  const names = new Names((tx, inode) => {
    directories.drop(tx, inode.ino);
    if (delegations.isHeld(inode.ino)) tx.put(keys.orphan(inode.ino), 1);
    else files.destroy(tx, inode);
  }, access);
  const nameBatches = new NameBatches({ store, names, delegations, directories, interest, reclaimer });
  const persistence = new Persistence({ store, files, regions, appliances, log });
  const ownRoom = new OwnRoom({ store, files, regions, appliances, placement });
  const protection = new Protection({ store, access, files, regions, appliances, clients, delegations, interest, log });
  const kept = { store, files, regions, reclaimer, persistence, access, protection, ownRoom, copies };
  const fileParts = { ...kept, names, appliances, clients, interest, delegations, ends };
  const contents = new Contents({ ...fileParts, fence });
  const provisions = new Provisions({ store, regions, appliances, clients, fencing, reclaimer, placement, log });
  const allocations = new Allocations({ ...fileParts, directories, contents, placement, dedicatedBytes: options.dedicatedBytes });
  const jobs = assembleJobs({ ...fileParts, clusterKey: cluster.key, directories, contents, placement, log, fence }, options);
  await store.transact((tx) => names.ensureRoot(tx));
  await copies.sweep();
  await directories.clean();
  await delegations.clean();
  const parts: Parts = {
    ...kept,
    clusterKey: cluster.key,
    clusterName: cluster.name,
    names,
    xattrs: new Xattrs({ store, files, delegations, allocations, protection }),
    clients,
    appliances,
    interest,
    locks,
    delegations,
    directories,
    nameBatches,
    contents,
    fencing,
    provisions,
    allocations,
    jobs,
    log,
    applianceInfos: () => appliances.all().map((appliance) => appliance.describe(regions.reservedBytes(appliance.id))),
    fileCount: fileCounter(store),
  };
  await listenToAppliances(parts);
  return parts;
}

function assembleJobs(
  parts: Omit<MoverParts & RoomParts & CheckerParts & DrainParts & JobsParts, 'room' | 'mover' | 'checker' | 'draining'>,
  { rebuild, check }: PartsOptions,
): Jobs {
  const room = new Room(parts);
  const mover = new Mover({ ...parts, room });
  const jobs = new Jobs({ ...parts, mover, checker: new Checker(parts), draining: new Draining(parts), room }, rebuild, check);
  parts.copies.onChanged = () => jobs.nudge();
  parts.files.onMissing = () => jobs.nudge(times.rebuildAgainMs);
  return jobs;
}

/** The cluster's name and key are made once, and kept. */
async function findCluster(store: MetadataStore): Promise<ClusterRow> {
  const known = store.get<ClusterRow>(keys.cluster);
  if (known !== undefined) return known;
  const fresh: ClusterRow = { key: randomBytes(CLUSTER_KEY_BYTES), name: randomBytes(6).toString('hex') };
  await store.transact((tx) => tx.put(keys.cluster, fresh));
  return fresh;
}

async function listenToAppliances(parts: Parts): Promise<void> {
  const { appliances, regions, reclaimer, clients, store, log } = parts;
  const tellClients = (lostRegions: number[]): void => {
    const news = { appliances: parts.applianceInfos(), lostRegions };
    for (const client of clients.all()) if (client.isConnected) void clients.tell(client, 'appliances', news, { limitMs: times.leaseMs });
  };
  /** Regions whose client is gone are zeroed where they are free; regions of nobody that are empty go. */
  const tidy = (appliance: string): void => {
    for (const region of [...regions.all()]) {
      if (region.row.appliance !== appliance) continue;
      if (region.row.client !== 0 && clients.get(region.row.client) === undefined) void reclaimer.sweep(region);
      else void reclaimer.destroyIfEmpty(region);
    }
  };
  appliances.listen({
    up: (appliance) => {
      reclaimer.resume(appliance);
      tidy(appliance.id);
      tellClients([]);
      parts.jobs.nudge(); // there is room now, or what can be read again
    },
    down: () => tellClients([]),
    changed: () => tellClients([]),
    restored: async (appliance, before, restored) => {
      const { lost, behind } = await regions.restore(appliance, before, restored);
      if (lost.length > 0)
        log.error({ appliance: appliance.id, regions: lost.length }, 'an appliance came back without some of what it held');
      if (behind.length > 0)
        log.error({ appliance: appliance.id, regions: behind.length }, 'an appliance came back with an earlier state of what it held');
      await parts.copies.sweep(); // before anybody may use what came back
      await parts.persistence.markBehind(behind);
      reclaimer.dropLost(appliance.id);
      if (lost.length > 0) tellClients(lost);
    },
    lost: async (appliance, incarnation, why) => {
      const lost = await regions.lose(appliance.id, incarnation);
      await parts.copies.sweep();
      const level = why === 'left' ? 'info' : 'error'; // who stops an appliance knows what goes with it
      if (lost.length > 0) log[level]({ appliance: appliance.id, regions: lost.length }, `an appliance ${why}: what it held is lost`);
      reclaimer.dropLost(appliance.id);
      tidy(appliance.id);
      if (lost.length > 0) tellClients(lost);
    },
  });
  const unborn = [...regions.all()].filter(
    ({ row }) => row.ino === UNBORN_INO || (row.ino !== 0 && store.get(keys.inode(row.ino)) === undefined),
  );
  await store.transact((tx) => unborn.forEach((region) => regions.setRow(tx, region, { ino: 0 })));
}

/** Counting keys is slow where there are many: asked at most once a second. */
function fileCounter(store: MetadataStore): () => number {
  let count = 0;
  let countedAt = 0;
  return () => {
    if (Date.now() - countedAt < 1000) return count;
    count = store.count(keys.inodes);
    countedAt = Date.now();
    return count;
  };
}
