/**
 * The manager's limits, in one place: what a request may ask for, how large tables may grow, how long anything is waited for.
 * Those that both ends must agree on are in protocol.json.
 */
import { PERSIST_TIMEOUT_MS } from '../base/manager_http.js';
import { LEASE_MS } from '../base/protocol.js';

export const limits = {
  nameBytes: 255,
  pathBytes: 4096,
  pathDepth: 256,
  symlinkBytes: 4095,
  labelBytes: 256,
  linksPerInode: 65000,
  xattrValueBytes: 64 * 1024,
  xattrsPerInode: 256,
  xattrBytesPerInode: 256 * 1024,
  clients: 4096,
  appliances: 1024,
  /** Names, and attributes, that one client may have cached; the oldest are taken back beyond it. */
  interestPerClient: 200_000,
  recordsPerCommit: 4096,
  operationsPerBatch: 4096,
  /** Operations in delegated directories, per client, that were refused: told again when the answer was lost. */
  refusalsRemembered: 256,
  refusedPeersRemembered: 1024,
  /** Regions of at most this many appliances in one answer to `provision`. */
  provisionSpread: 16,
  largestProvisionRegionBytes: 1024 * 1024 * 1024,
  /** What of a file is moved at once. */
  stretchBytes: 8 * 1024 * 1024,
  /** Jobs that have ended, and are still told of. */
  jobsKept: 100,
  /** Files that a job tells of as not done. */
  problemsPerJob: 100,
  pathsPerJob: 4096,
  /** Largest file size: what a signed 53-bit offset of this protocol can name, in whole pages. */
  fileBytes: Number.MAX_SAFE_INTEGER - 4095,
} as const;

export const times = {
  leaseMs: LEASE_MS,
  /** A client that is connected and answers pings is not waited for longer than this when it is told of a write (shared mode). */
  wroteTellMs: 1000,
  /** Copying a stretch that moves, while nobody writes to its file: whoever waits for that does not wait for 5 s. */
  copyMs: 3000,
  /** What was asked of a client that is not fenced for its silence is taken until then. */
  lateRecallMs: 30_000,
  /** After a copy is lost, until it is made anew: others may be lost with it, or come back. */
  rebuildRestMs: 3000,
  /** What could not be rebuilt is tried again after that. */
  rebuildAgainMs: 60_000,
  /** Creating, destroying, punching on an appliance that answers. */
  applianceCallMs: 10_000,
  /** Persisting as much as an appliance may have. */
  persistMs: PERSIST_TIMEOUT_MS,
  /** An appliance acknowledges a fence by then, or it is put down. */
  fenceAckMs: 2000,
  /** How often it is looked whether somebody waits for what a client holds that does not come back. */
  wantedMs: 250,
  /** How often it is looked whether a window of access parameters has begun or ended. */
  windowsMs: 500,
  /** A client that was not heard of for so long is fenced even if nobody wants what it holds. */
  abandonedMs: 60_000,
} as const;
