/**
 * The whole boundary to the native addon: declared here, implemented in native/binding/ under the same names in the same order.
 * Nothing else loads the addon. TypeScript validates what it passes; C++ asserts. Every method throws, and every promise rejects,
 * with an Error whose `code` is an errno name (or 'ECLOSED' after close(), which is idempotent). Numbers are safe integers.
 */
import { createRequire } from 'node:module';
import { dirname, join } from 'node:path';
import { existsSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import type { FileOperations } from '../base/operations.js';

/** ⑤ The appliance's side (native/region). */
export interface RegionServerOptions {
  listenAddress: string;
  port: number; // 0: chosen by the kernel
  morePoints: { address: string; port: number }[]; // of other networks; 0: the first's port, if it is free there
  linkName: string; // abstract unix socket for shm; '' for none
  clusterKey: Uint8Array; // 32 bytes
  incarnation: number;
  donatedBytes: number;
  threads: number;
  trace?: boolean;
  store?: RegionStoreOptions;
  /** Capabilities of older versions are void, of regions that the backing store brings back. */
  access: { region: number; version: number }[];
  /** Something was handed out that is to be taken back then: endOverdue(). */
  onWindow(notAfterMs: number): void;
  onRefused(peer: string, why: string): void;
}
export interface TracePoint {
  point: string;
  unique: number; // what it is about: request id, or offset
  ns: number; // monotonic
  thread: number;
}
export interface NativeRegionInfo {
  region: number;
  bytes: number;
  residentBytes: number;
  thin: boolean;
  absentBytes: number; // restored, and in the backing store only
  damagedPages: number;
  accessVersion: number; // capabilities of older ones are void
  usage: {
    operations: number;
    bytesRead: number;
    bytesWritten: number;
    toldChunks: number; // that clients have written themselves, each time that it was found out
    lastAccessMs: number; // since the epoch; 0: never
    given: boolean; // clients were given the memory itself: the rest of what they do there is not seen
    hot: { offset: number; heat: number }[]; // chunks of CHUNK_BYTES, hottest first
  };
}
/** The backing store of an appliance. */
export interface RegionStoreOptions {
  path: string; // file, directory or block device
  limitBytes: number; // 0: none
  compress: boolean;
  key?: Uint8Array; // 32 bytes: what is stored is encrypted
  lazily: boolean; // what was restored comes from the store only when somebody asks for it
  bytesPerSecond: number; // what is put there in the background at most; 0: no limit
  onProgress(doneBytes: number, totalBytes: number): void; // of persisting
}
export interface StoreStatus {
  usedBytes: number;
  limitBytes: number;
  commits: number;
  writtenBytes: number;
  persistedBytes: number;
  damagedBlocks: number; // found not to be what was stored
  nsPerMebibyte: number; // what persisting took lately; 0: not known yet
  absentBytes: number; // restored, and still in the store only
  damagedPages: number; // reads of them fail
  broken: string; // why nothing is persisted any more; else ''
}
/** What is copied, by whom, and within which time. */
export interface CopyPieces {
  client: number;
  clientGeneration: number;
  clientKey: Uint8Array; // 32 bytes
  limitMs: number;
  origins: { id: string; incarnation: number; endpoints: { address: string; port: number }[] }[];
  pieces: {
    region: number;
    offset: number;
    length: number;
    /** All with the same bytes: the next where one cannot be read. `bytes`: of that region. */
    sources: { origin: string; region: number; bytes: number; offset: number; capability: Uint8Array }[];
  }[];
}
export interface RegionServer {
  readonly ports: number[]; // of listenAddress, and of morePoints
  /** As in the options, or, where the backing store has all that an earlier one acknowledged, that one. */
  readonly incarnation: number;
  readonly servesVerbs: boolean; // RDMA connections are taken on the same addresses and ports
  createRegion(region: number, bytes: number, thin: boolean): void;
  resizeRegion(region: number, bytes: number): void;
  destroyRegion(region: number): void;
  punchRegion(region: number, offset: number, length: number): void;
  fenceClients(clients: { first: number; last: number }[]): Promise<void>;
  /** From now on capabilities of an older version are void; settles when what was handed out by them is taken back, but for that of
   *  these clients. */
  setAccess(region: number, version: number, keep: number[]): Promise<void>;
  /** Settles when what was handed out for a time that is over is taken back. */
  endOverdue(): Promise<void>;
  setLinkAddresses(addresses: string[]): void; // by which clients are told to come
  offerMemory(bytes: number): void; // regions are made and grow within so much from now on
  listRegions(): NativeRegionInfo[];
  listRecords(): { region: number; ino: number; record: Uint8Array }[];
  removeRecord(region: number, ino: number): void;
  memory(): { donatedBytes: number; reservedBytes: number; residentBytes: number }; // donated: what is offered now
  counters(): Record<string, number>;
  takeTrace(): TracePoint[];
  /** Regions that came out of the backing store; exact: with all that was ever acknowledged. */
  restored(): { region: number; bytes: number; exact: boolean }[];
  storeStatus(): StoreStatus | undefined;
  /** These pieces, or everything when none are named: resolves when they are durable, and, with `free`, their memory is given back
   *  but for what clients hold themselves. Rejects with ESTORE. */
  persist(pieces: { region: number; offset: number; length: number }[], free: boolean): Promise<{ freedBytes: number; heldBytes: number }>;
  /** Everything that has changed, while whatever somebody waits for goes first. */
  persistInBackground(): Promise<void>;
  /** Nobody is served from now on; all regions as they were last acknowledged. What is under way in the background ends early. */
  persistLast(): Promise<void>;
  /** What was punched, or destroyed, is so in the backing store too when this resolves. */
  settleFreed(pieces: { region: number; offset: number; length: number }[]): Promise<void>;
  settleDestroyed(regions: number[]): Promise<void>;
  /** Of each piece the XXH3 hashes (8 bytes) of its parts of SUM_BYTES. Rejects with ENOENT, EIO, ETIMEDOUT. */
  sumPieces(pieces: { region: number; offset: number; length: number }[]): Promise<Uint8Array[]>;
  /** Reads pieces of other appliances into regions of ours, whose bytes were zero. Rejects with ECANCELED (stopCopying), ETIMEDOUT,
   *  EIO; nothing of it is under way any more when it has settled. */
  copyPieces(ask: CopyPieces): Promise<void>;
  /** Settles when nothing is being copied that was asked for before. */
  stopCopying(): Promise<void>;
  close(): void;
}

export type Transport = 'auto' | 'shm' | 'tcp' | 'verbs';
/** A port of an RDMA device. */
export interface RdmaPort {
  device: string;
  port: number;
  state: string;
  mtu: number; // bytes of a packet's payload
  onDemandPaging: boolean;
}
export type NativeMode = 'read' | 'write' | 'shared';
/** Whether a mount's session goes over io_uring: never; where the kernel has it switched on; or not at all without it. */
export type IoUring = 'off' | 'auto' | 'on';
export type SessionKind = '/dev/fuse' | 'io_uring';

/** ①-④ The client's side: one FUSE mount with its reactors, page cache and fabric. */
export interface MountOptions {
  mountPoint: string;
  threads: number; // 0: one per CPU, at most 8
  ioUring: IoUring;
  memoryLimitBytes: number; // page frames and the kernel's pages of our files together (C10); 0: none
  cacheBytes: number; // page frames (C10)
  pinLimitBytes: number; // of them pinned at most
  dirtyBytes: number; // of them dirty at most
  applianceDirtyBytes: number; // of them dirty for one appliance at most
  client: number;
  clientGeneration: number;
  clientKey: Uint8Array; // 32 bytes
  hostId: string;
  transport: Transport;
  deadlineMs: number;
  readAheadBytes: number; // largest window of one stream; 0: none
  entryTimeoutMs: number;
  faultSeed: number; // not 0: the fault transport, for tests
  faultPlan: string;
  trace: boolean; // record trace points (takeTrace)
  referenceLogFd: number; // a file to note requests in, closed with the mount; 0: none
}

/** Handed to TypeScript by a reactor; those with an id must be answered once. */
export type Upcall =
  /** A control-path FUSE request; `body` is what follows fuse_in_header. Answer with reply(). */
  | { kind: 'request'; id: number; unique: number; opcode: number; node: number; uid: number; gid: number; pid: number; body: Buffer }
  /** The kernel gave up waiting for the control request with this `unique` (a signal). */
  | { kind: 'interrupt'; unique: number }
  | { kind: 'forget'; nodes: { node: number; count: number }[] }
  /** fsync or close: data is at the appliances, so is the record; the manager must have the record too. owner: lock owner whose POSIX locks go (close only, else ''). */
  | { kind: 'commit'; id: number; node: number; record: Buffer; owner: string }
  /** The mount needs at least `bytes` more room to carve from. Call addProvision(), then answer. */
  | { kind: 'provision'; id: number; bytes: number }
  /** Shared mode: extents in `record` are proposed; answer with the manager's record. length > 0: of a file in regions of its own, in
   *  any mode, the holes in this range are to be filled. */
  | { kind: 'extend'; id: number; node: number; record: Buffer; offset: number; length: number }
  /** Shared mode: the range was written through. */
  | {
      kind: 'wrote';
      id: number;
      node: number;
      offset: number;
      length: number;
      mtimeSec: number;
      mtimeNsec: number;
      holdsPages: boolean; // the kernel may hold pages of it locked until the write is answered
    }
  /** Shared mode: a writer wants to make the file longer; answered when nobody else does, and setSize has told where the end is. */
  | { kind: 'claimEnd'; id: number; node: number; holdsPages: boolean }
  /** Shared mode: something was written behind the end, and making the file longer failed. */
  | { kind: 'giveUpEnd'; id: number; node: number }
  /** Somebody without CAP_FSETID is about to write to a file that setPrivileged was told of; answered when it is that no more. */
  | { kind: 'dropPrivileges'; id: number; node: number }
  /** Copies at these places did not take a write that others took; answer with the manager's record, once all others have it. */
  | { kind: 'dropCopies'; id: number; node: number; record: Buffer; places: { region: number; offset: number }[] }
  /** The kernel ended the session (unmounted or aborted). */
  | { kind: 'ended'; errno: number };

export interface FileState {
  mode: NativeMode;
  size: number;
  blocks: number;
  mtime: [number, number];
  ctime: [number, number];
  change: number;
  dirtyBytes: number;
  handles: number;
  recordChanged: boolean; // since the manager last had it
}

export interface NativeMount {
  /** Mounts (mount(2) as root, else fusermount3) and starts the reactors. Node 1 is the root. */
  start(): {
    session: SessionKind;
    ioUringRefused: string; // why it is /dev/fuse although 'auto' was asked for; else ''
    mapsDirect: boolean; // files opened with FOPEN_DIRECT_IO can be mapped shared
  };
  /** Answers a 'request'. errno 0 with the reply's bytes, or a positive errno. */
  reply(id: number, errno: number, body?: Uint8Array): void;
  /** Answers commit, provision, extend (record), wrote, claimEnd, giveUpEnd, dropPrivileges, dropCopies (record). */
  answer(id: number, errno: number, record?: Uint8Array): void;

  /** The mount was fenced and is another client from now on: regions, provisions and files are void at once, and questions under
   *  way are answered EIO. Resolves when nothing goes out in the former client's name any more; what is put before that is lost. */
  rejoin(identity: Pick<MountOptions, 'client' | 'clientGeneration' | 'clientKey'>): Promise<void>;
  putAppliance(info: {
    id: string;
    hostId: string;
    rack: string; // '': unknown
    address: string;
    port: number;
    moreEndpoints: readonly { address: string; port: number }[]; // of other networks: a link each
    linkName: string;
    incarnation: number;
    verbs: boolean;
  }): void;
  putRegion(grant: { region: number; bytes: number; appliance: string; capability: Uint8Array }): void;
  loseRegions(regions: number[]): void;
  /** A region (known by putRegion) of this client's own; `used` are [offset, length] pairs that are taken. */
  addProvision(region: number, used: [number, number][]): void;
  /** Nothing is carved from it any more. What was carved stays. */
  removeProvision(region: number): void;
  /** Pieces of provisioned regions that are free (and zero) again. */
  freeSlabs(pieces: { region: number; offset: number; length: number }[]): void;

  /** Makes a file known, or gives it a new mode and record. Without a record it keeps the one it has, whatever is being written. */
  putFile(node: number, mode: NativeMode, record?: Uint8Array): void;
  fileState(node: number): FileState | undefined;
  /** The current record. With `committed`, marks it as being with the manager. */
  record(node: number, committed: boolean): Uint8Array;
  /** Sets times of a file held for writing. */
  setTimes(node: number, mtime: [number, number] | undefined, ctime: [number, number] | undefined): void;
  /** Shared mode: how long the file is at least, by the manager. It becomes shorter by a record of another epoch only. */
  setSize(node: number, size: number): void;
  /** Whether POSIX locks are held for it: FLUSH then makes the commit upcall although nothing changed. */
  setLocked(node: number, locked: boolean): void;
  /** Whether it is set-user-ID or set-group-ID: then what is written past the kernel's cache makes the dropPrivileges upcall first. */
  setPrivileged(node: number, privileged: boolean): void;
  /** Whether the file lies in regions of its own only: it grows by `extend` upcalls. */
  setOwnRegions(node: number, own: boolean): void;
  /** Whether the manager does not know the file yet: fsync then makes the commit upcall although nothing changed. */
  setUnannounced(node: number, unannounced: boolean): void;
  /** How the open is answered. keepsPages: with keep_cache; direct: the kernel is told to keep nothing of what goes through it. */
  openHandle(node: number, flags: number, kernel: { keepsPages: boolean; direct: boolean }): number;
  closeHandle(handle: number): void;
  /** What calls by this handle are answered with since breakHandles(); 0: it is good. */
  handleErrno(handle: number): number;
  /** Writes dirty pages back; data only. Rejects EIO (pages are kept). */
  flushFile(node: number): Promise<void>;
  /** Before the manager frees [offset, offset+length) of a file: its pages are dropped, write-back there stops until endCut. length -1: to the end. */
  beginCut(node: number, offset: number, length: number): Promise<void>;
  /** record: the manager's new one; absent: the cut did not happen. Partial pages at the edges are zeroed, unless the manager did that. */
  endCut(node: number, record?: Uint8Array, edgesZeroed?: boolean): Promise<void>;
  /** Shared mode: settles when nobody writes; nobody begins before resumeWriters. Reads go on. */
  pauseWriters(node: number): Promise<void>;
  resumeWriters(node: number): void;
  /** The manager went while they were paused: until resumeWriters they fail. */
  refuseWriters(node: number): void;
  /** Settles when all reads from regions have ended that began before. */
  readsSettled(node: number): Promise<void>;
  /** Shared mode: from here on whoever makes the file longer claims its end anew. */
  yieldEnd(node: number): Promise<void>;
  /** Drops clean pages of our cache; answers how many bytes. */
  dropPages(node: number, offset: number, length: number): number;
  /** Forgets the file; dirty pages are lost (unlinked, or fenced). It must have no handles. */
  dropFile(node: number): void;
  /** Reads a range into our cache, as far as it lies within the file. Rejects EBUSY while the file is shared. */
  warmFile(node: number, offset: number, length: number): Promise<void>;
  /** Whether clean pages of the file are kept from eviction, as far as pinLimitBytes goes. */
  setPinned(node: number, pinned: boolean): void;
  residency(node: number): { cachedBytes: number; pinnedBytes: number };
  /** The kernel has forgotten the inode, and with it its pages. */
  forgetKernelPages(node: number): void;
  /** A void file (rejoin): the operations within end, what is cached goes. What was not written back is lost, and told once per open file. */
  settleVoid(node: number): Promise<void>;
  /** What a void file is now. */
  renewFile(node: number, mode: NativeMode, record: Uint8Array): void;
  /** Handles opened until now answer with this errno. */
  breakHandles(node: number, errno: number): void;
  /** The kernel's pages from before the fence are gone: those that mappings dirty are taken again. */
  admitMapped(node: number): void;

  /** The kernel's caches; sent from a thread that serves no requests. offset < 0: attributes only. ENOENT is no error. */
  invalidateInode(node: number, offset: number, length: number): Promise<void>;
  invalidateEntry(parent: number, name: string): Promise<void>;

  /** From now on operations are counted by file, or no more. */
  watchOperations(on: boolean): void;
  /** What was counted since this was last asked; of files without room, how many operations. */
  takeOperations(): { files: FileOperations[]; otherOperations: number };
  /** Counters of every layer, nested by layer name (fuse, cache, extent, fabric). */
  statistics(): Record<string, unknown>;
  takeTrace(): TracePoint[];
  /** Unmounts; the 'ended' upcall follows. lazy: MNT_DETACH. */
  unmount(lazy: boolean): void;
  /** Stops the reactors and frees everything. */
  close(): void;
}

/** A mapping of a file in this process (mmap(2)), for programs in Node that want what mmap-io offered. */
export interface Mapping {
  readonly buffer: Buffer;
  sync(): void; // msync(MS_SYNC)
  advise(advice: 'normal' | 'random' | 'sequential' | 'willneed' | 'dontneed'): void;
  close(): void; // the buffer is detached
}

interface Addon {
  RegionServer: new (options: RegionServerOptions) => RegionServer;
  Mount: new (options: MountOptions, upcall: (call: Upcall) => void) => NativeMount;
  Mapping: new (path: string, options: { writable: boolean; shared: boolean; offset: number; length: number }) => Mapping;
  /** Aborts the FUSE connection mounted there (/sys/fs/fuse/connections) and detaches the mount. */
  forceUnmount: (mountPoint: string) => void;
  /** What this machine can do (doctor). */
  probe: () => {
    fuseDevice: boolean;
    fuseMinor: number;
    ioUring: boolean;
    ioUringFuse: 'on' | 'off' | 'absent';
    memfdSeals: boolean;
    rdmaLibraries: boolean; // libibverbs and librdmacm can be loaded
    rdma: RdmaPort[];
  };
}

function load(): Addon {
  let folder = dirname(fileURLToPath(import.meta.url));
  while (!existsSync(join(folder, 'binding.gyp'))) {
    const parent = dirname(folder);
    if (parent === folder) throw new Error('extmem: binding.gyp not found above the compiled files; the installation is incomplete');
    folder = parent;
  }
  const path = join(folder, 'build/Release/extmem.node');
  if (!existsSync(path)) throw new Error(`extmem: the native addon is not built; run scripts/setup in ${folder}`);
  return createRequire(import.meta.url)(path) as Addon;
}

export const native: Addon = load();
