/**
 * The manager: who holds which memory. One process, never on the data path. createManager() opens its state, listens, and answers
 * when clients and appliances may come; close() ends it in order (its state needs no order: it survives kill -9).
 */
import { randomBytes } from 'node:crypto';
import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { ExtmemError, messageOf } from '../base/errors.js';
import type { Logger } from '../base/logger.js';
import { createHttp } from './http.js';
import { times } from './limits.js';
import { openLmdbStore } from './lmdb_store.js';
import { assembleParts, type Parts } from './parts.js';
import { PLACEMENTS, type PlacementName } from './placement.js';

export type { AllocationInfo } from './allocations.js';
export { PLACEMENTS, type PlacementName } from './placement.js';
export type { Job } from './moves/jobs.js';
export type { OneRegionAnswer, RegionAnswer, RegionsAnswer } from './region_list.js';
export type { HealthAnswer, SpaceAnswer, StatusAnswer } from './status.js';

export interface ManagerOptions {
  host: string;
  port: number; // 0: chosen by the kernel
  stateDir: string;
  /** Clients, appliances and administrators show it. Absent: the one in stateDir/token, which is made if there is none. */
  token?: string;
  tls?: { cert: string | Buffer; key: string | Buffer };
  logger: Logger;
  strategy?: PlacementName;
  /** Allocations created with at least so many bytes get regions of their own. */
  dedicatedBytes?: number;
  /** Copies that are lost are made anew by themselves (default), so fast: bytes per second, 0: as fast as it goes. */
  rebuild?: { automatic?: boolean; rate?: number };
  /** The copies of all files are compared by themselves once in so many days (default: 7); 0: never. */
  checkDays?: number;
}

export interface Manager {
  /** http(s)://host:port */
  readonly url: string;
  readonly host: string;
  readonly port: number;
  close(): Promise<void>;
}

const DEDICATED_BYTES = 256 * 1024 * 1024;
/** Half of what a network of 1 Gbit/s carries: mounts are to notice little of it. */
export const REBUILD_RATE = 64 * 1024 * 1024;
const CHECK_DAYS = 7;
/** Of files. Nobody waits for it. */
const CHECK_RATE = 64 * 1024 * 1024;
const MIN_TOKEN_LENGTH = 8;

export async function createManager(options: ManagerOptions): Promise<Manager> {
  const { logger: log } = options;
  const placement = options.strategy ?? 'spread';
  if (!PLACEMENTS.includes(placement))
    throw new ExtmemError('EINVAL', `no placement '${placement as string}'; there are ${PLACEMENTS.join(', ')}`);
  mkdirSync(options.stateDir, { recursive: true, mode: 0o700 });
  claimState(options.stateDir);
  const token = keepToken(options.stateDir, options.token);
  const store = openLmdbStore(join(options.stateDir, 'metadata'));
  try {
    const rebuild = { automatic: options.rebuild?.automatic ?? true, rate: options.rebuild?.rate ?? REBUILD_RATE };
    const check = { everyDays: options.checkDays ?? CHECK_DAYS, rate: CHECK_RATE };
    const parts = await assembleParts({ store, log, placement, dedicatedBytes: options.dedicatedBytes ?? DEDICATED_BYTES, rebuild, check });
    const app = await createHttp(parts, { token, log, ...(options.tls === undefined ? {} : { tls: options.tls }) });
    try {
      await app.listen({ host: options.host, port: options.port });
    } catch (error) {
      const why = messageOf(error);
      throw new ExtmemError(
        error instanceof Error && 'code' in error ? String(error.code) : 'EIO',
        `the manager cannot listen on ${options.host}:${options.port}: ${why}; choose another --listen address`,
        { cause: error },
      );
    }
    const address = app.server.address();
    const port = typeof address === 'object' && address !== null ? address.port : options.port;
    const chores = startChores(parts);
    const host = options.host.includes(':') ? `[${options.host}]` : options.host;
    const url = `${options.tls === undefined ? 'http' : 'https'}://${host}:${port}`;
    log.info({ url, cluster: parts.clusterName }, 'manager listens');
    let closing: Promise<void> | undefined;
    const close = async (): Promise<void> => {
      chores.stop();
      await app.close();
      await store.close();
    };
    return { url, host: options.host, port, close: () => (closing ??= close()) };
  } catch (error) {
    await store.close();
    throw error;
  }
}

/** The token in force lies in the state folder, readable to its owner only: that is where whoever starts others copies it from. */
function keepToken(stateDir: string, given: string | undefined): string {
  const path = join(stateDir, 'token');
  const kept = existsSync(path) ? readFileSync(path, 'utf8').trim() : undefined;
  const token = given ?? kept ?? randomBytes(24).toString('base64url');
  if (token.length < MIN_TOKEN_LENGTH) throw new ExtmemError('EINVAL', `the join token must have at least ${MIN_TOKEN_LENGTH} characters`);
  if (token !== kept) writeFileSync(path, `${token}\n`, { mode: 0o600 });
  return token;
}

/** Two managers on one state would undo each other. */
function claimState(stateDir: string): void {
  const path = join(stateDir, 'manager.pid');
  const owner = existsSync(path) ? readFileSync(path, 'utf8').trim() : '';
  const pid = Number.parseInt(owner, 10);
  if (pid !== process.pid && owner !== '' && owner === describeProcess(pid)) {
    throw new ExtmemError(
      'EBUSY',
      `${stateDir} is the state of a manager that runs (process ${pid}); stop it, or choose another --state-dir`,
    );
  }
  writeFileSync(path, `${describeProcess(process.pid)}\n`, { mode: 0o600 });
}

/** A process id and when that process started: ids are used again. */
function describeProcess(pid: number): string {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, 'utf8');
    return `${pid} ${stat.slice(stat.lastIndexOf(')') + 2).split(' ')[19] ?? ''}`;
  } catch {
    return '';
  }
}

/** What is done without being asked. */
function startChores(parts: Parts): { stop(): void } {
  const { reclaimer, fencing, contents, protection, log } = parts;
  // What an earlier life freed may still be read through old records by clients that resume: they have a lease to do so.
  const startRestored = (): void => {
    contents.retellCuts(reclaimer.restoredCuts()).then(
      () => reclaimer.startRestored(),
      (error: unknown) =>
        log.error({ error }, 'what was freed before the restart is not used again: some who may read there could not be told'),
    );
  };
  const restored = setTimeout(startRestored, times.leaseMs).unref();
  const abandoned = setInterval(() => {
    fencing.fenceAbandoned().catch((error: unknown) => log.error({ error }, 'fencing clients that were not heard of for long failed'));
  }, times.abandonedMs / 4).unref();
  const windows = setInterval(() => {
    protection.noteTime().catch((error: unknown) => log.error({ error }, 'telling of windows that began or ended failed'));
  }, times.windowsMs).unref();
  const wanted = setInterval(() => fencing.fenceWanted(), times.wantedMs).unref();
  // Appliances and clients of an earlier life come back first.
  const isFirst = [...parts.clients.all()].length === 0;
  const jobs = setTimeout(() => parts.jobs.start(), isFirst ? 0 : times.leaseMs + times.rebuildRestMs).unref();
  return {
    stop: () => {
      clearTimeout(jobs);
      parts.jobs.stop();
      clearTimeout(restored);
      clearInterval(abandoned);
      clearInterval(wanted);
      clearInterval(windows);
    },
  };
}
