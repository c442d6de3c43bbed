/**
 * One mount from its beginning to its end: checks the mount point, opens the session with the manager, mounts natively, serves,
 * and takes everything down again in the order in which nothing is lost.
 *
 * Invariants: after `start()` this process never touches a path below the mount point (it would wait for itself); `ended` settles
 * exactly once, after everything is closed.
 */
import { openSync, readFileSync } from 'node:fs';
import { stat } from 'node:fs/promises';
import { constants, hostname } from 'node:os';
import { ExtmemError, messageOf } from '../base/errors.js';
import { createLogger, type Logger } from '../base/logger.js';
import { OPERATION_DEADLINE_MS, SLAB_REGION_BYTES } from '../base/protocol.js';
import { native as addon, type IoUring, type MountOptions, type NativeMount, type Transport, type Upcall } from '../binding/index.js';
import { connectClient, type ManagerSession } from '../client/manager_session.js';
import { MountClient } from '../client/mount_client.js';
import { readBackingDevice } from './backing_device.js';
import { errnoOf } from './errno.js';
import { FileSystem } from './file_system.js';
import { serveMountControl, type MountControl } from './mount_control.js';
import { Residency, type ResidencyLimits } from './residency.js';
import { Watching } from './watching.js';

const MIB = 1024 * 1024;
/** errno with which the kernel ends a session that was unmounted in order. */
const { ENODEV } = constants.errno;
const DEFAULT_CACHE_BYTES = 1024 * MIB;
const DEFAULT_READ_AHEAD_BYTES = 8 * MIB;
const DEFAULT_RESERVE_BYTES = 4 * SLAB_REGION_BYTES;
/** After a normal unmount the kernel ends the session at once; this is for one that does not. */
const END_WAIT_MS = 10_000;

export interface MountFileSystemOptions {
  /** Absolute, without symbolic links. */
  mountPoint: string;
  /** host:port or URL. */
  manager: string;
  token: string;
  /** PEM of the authority behind the manager's certificate. */
  ca?: string | Buffer;
  /** Of our frames and the kernel's pages of our files together; default: our frames only are limited. More than cacheBytes. */
  memoryLimitBytes?: number;
  cacheBytes?: number;
  /** Of the cache, how much may wait to be written back; default a quarter. */
  dirtyBytes?: number;
  /** Of that, for one appliance; default half. */
  applianceDirtyBytes?: number;
  readAheadBytes?: number;
  reserveBytes?: number;
  threads?: number;
  /** Whether the kernel's requests come over io_uring; default 'auto'. */
  ioUring?: IoUring;
  transport?: Transport;
  deadlineMs?: number;
  name?: string;
  /** Keys of allocations whose access parameters ask for one. */
  keys?: readonly string[];
  hostId?: string;
  /** Where the control socket goes (mount_control.ts); absent: none. */
  runtimeDir?: string;
  log?: Logger;
  faultSeed?: number;
  faultPlan?: string;
  trace?: boolean;
  /** A file to note in what is asked of the page cache (native/cache/reference_log.h). What it held is replaced. */
  referenceLog?: string;
}

export interface Mount {
  readonly mountPoint: string;
  readonly native: NativeMount;
  statistics(): Record<string, unknown>;
  /** undefined: all is well; else what is wrong. */
  unhealthy(): string | undefined;
  /** Drops what is clean in our cache, and the kernel's pages of files held here. What is pinned stays. */
  evict(): Promise<void>;
  readonly files: Residency;
  /** Writes everything back and unmounts. EBUSY while files are open there; with `lazy` they stay usable till closed. */
  unmount(options?: { lazy?: boolean }): Promise<void>;
  /** Resolves when the mount is gone in order; rejects when it ended by itself with unwritten data or by being fenced. */
  readonly ended: Promise<void>;
}

export async function mountFileSystem(options: MountFileSystemOptions): Promise<Mount> {
  const log = options.log ?? createLogger({ name: 'mount' });
  await checkMountPoint(options.mountPoint);
  checkFuse();
  const ioUring = chooseIoUring(options.ioUring ?? 'auto');
  const session = await connectClient({
    manager: options.manager,
    token: options.token,
    ...(options.ca === undefined ? {} : { ca: options.ca }),
    name: options.name ?? hostname(),
    ...(options.keys === undefined ? {} : { keys: options.keys }),
    hostId: options.hostId ?? readHostId(),
    log,
  });
  const running = new RunningMount({ ...options, ioUring }, session, log);
  try {
    await running.start();
  } catch (error) {
    await running.abandon();
    throw error;
  }
  return running;
}

class RunningMount implements Mount {
  readonly mountPoint: string;
  readonly native: NativeMount;
  readonly ended: Promise<void>;
  private readonly settleEnded: { resolve(): void; reject(error: Error): void };
  private readonly client: MountClient;
  private readonly fileSystem: FileSystem;
  readonly files: Residency;
  readonly watching: Watching;
  private control: MountControl | undefined;
  private failure: ExtmemError | undefined;
  private kernelEnded: (() => void) | undefined;
  private readonly kernelEnd: Promise<void>;
  private finishing: Promise<void> | undefined;
  private readonly startedAtMs = Date.now();

  constructor(
    private readonly options: MountFileSystemOptions,
    private readonly session: ManagerSession,
    private readonly log: Logger,
  ) {
    this.mountPoint = options.mountPoint;
    let settle: { resolve(): void; reject(error: Error): void } = { resolve: () => undefined, reject: () => undefined };
    this.ended = new Promise<void>((resolve, reject) => (settle = { resolve, reject }));
    this.ended.catch(() => undefined); // whoever does not look at it is told by the log
    this.settleEnded = settle;
    this.kernelEnd = new Promise((resolve) => (this.kernelEnded = resolve));
    // Upcalls come only after start(), when the file system is there.
    this.native = new addon.Mount(nativeOptions(options, session), (call) => this.take(call));
    this.client = new MountClient({
      session,
      native: this.native,
      log,
      reserveBytes: options.reserveBytes ?? DEFAULT_RESERVE_BYTES,
      errnoOf,
      onFenced: (why) => this.fenced(why),
    });
    this.files = new Residency(this.client, limitsOf(options));
    this.watching = new Watching(this.native);
    this.fileSystem = new FileSystem({ client: this.client, log, onEnded: (errno) => this.kernelGone(errno) });
  }

  async start(): Promise<void> {
    await this.client.start();
    const { mountPoint } = this;
    const { session, ioUringRefused, mapsDirect } = this.startNative();
    this.fileSystem.files.mapsDirect = mapsDirect;
    if (ioUringRefused !== '')
      this.log.warn({ mountPoint }, `FUSE over io_uring is switched on, and could not be used (${ioUringRefused}): /dev/fuse is used`);
    const { runtimeDir } = this.options;
    if (runtimeDir !== undefined) this.control = await serveMountControl(this, runtimeDir);
    this.log.info({ mountPoint, manager: this.options.manager, client: this.session.hello.client, session }, 'mounted');
  }

  private startNative(): ReturnType<NativeMount['start']> {
    try {
      return this.native.start();
    } catch (error) {
      throw explainMountFailure(error, this.mountPoint);
    }
  }

  /** After a start that failed half way. */
  async abandon(): Promise<void> {
    await this.control?.close();
    this.native.close();
    await this.client.close({ goodbye: true });
  }

  statistics(): Record<string, unknown> {
    return {
      mountPoint: this.mountPoint,
      pid: process.pid,
      manager: this.options.manager,
      upSeconds: Math.round((Date.now() - this.startedAtMs) / 1000),
      ...this.native.statistics(),
      files: this.files.statistics(),
      backingDevice: readBackingDevice(this.mountPoint),
      fs: this.fileSystem.counters(),
      client: this.client.counters(),
    };
  }

  unhealthy(): string | undefined {
    if (this.failure !== undefined) return this.failure.message;
    return this.session.alive ? undefined : `the manager at ${this.options.manager} is not reachable`;
  }

  async evict(): Promise<void> {
    await this.files.evictAll();
  }

  async unmount(options: { lazy?: boolean } = {}): Promise<void> {
    if (this.finishing !== undefined) return this.finishing;
    await this.client.writeBackAll(); // most of the work, while the mount still serves; what fails here is tried once more below
    if (this.finishing !== undefined) return this.finishing; // meanwhile unmounted by somebody else
    try {
      this.native.unmount(options.lazy === true);
    } catch (error) {
      if (!isCode(error, 'EBUSY')) throw error;
      throw new ExtmemError(
        'EBUSY',
        `unmounting ${this.mountPoint}: files there are still in use; close them (\`fuser -vm ${this.mountPoint}\` lists who has them)`,
        { cause: error },
      );
    }
    let timer: NodeJS.Timeout | undefined;
    const late = new Promise<void>((resolve) => (timer = setTimeout(resolve, options.lazy === true ? 0 : END_WAIT_MS)));
    await Promise.race([this.kernelEnd, late]);
    clearTimeout(timer);
    if (options.lazy === true && this.finishing === undefined) return; // ends when the last file there is closed
    await this.finish();
  }

  private take(call: Upcall): void {
    this.fileSystem.handle(call);
  }

  private kernelGone(errno: number): void {
    this.kernelEnded?.();
    this.log[errno === ENODEV ? 'info' : 'warn']({ errno, mountPoint: this.mountPoint }, 'the kernel ended the mount');
    void this.finish();
  }

  private fenced(why: string): void {
    this.failure = new ExtmemError(
      'ESTALE',
      `the mount at ${this.mountPoint} was fenced: ${why}; what was not written back is lost; mount again to go on`,
    );
    try {
      this.native.unmount(true);
    } catch (error) {
      this.log.warn({ error }, 'unmounting after the fence failed');
    }
    void this.finish();
  }

  private finish(): Promise<void> {
    this.finishing ??= this.close();
    return this.finishing;
  }

  /** The kernel's last writes (of mappings) came with the unmount: now they go out, then everything goes. */
  private async close(): Promise<void> {
    const fenced = this.failure !== undefined;
    const failed = fenced ? [] : await this.client.writeBackAll();
    if (failed.length > 0) {
      this.failure = new ExtmemError(
        'EIO',
        `unmounting ${this.mountPoint}: ${failed.length} files could not be written back (inodes ${failed.slice(0, 10).join(', ')})`,
      );
      this.log.error({ inodes: failed }, 'data of these files could not be written back and is lost');
    }
    await this.control?.close();
    this.native.close();
    await this.client.close({ goodbye: !fenced });
    this.log.info({ mountPoint: this.mountPoint }, 'unmounted');
    if (this.failure === undefined) this.settleEnded.resolve();
    else this.settleEnded.reject(this.failure);
  }
}

/** What may be dirty, and as much again, is never pinned: every request finds frames to go on with. */
function limitsOf(options: MountFileSystemOptions): ResidencyLimits {
  const cacheBytes = options.cacheBytes ?? DEFAULT_CACHE_BYTES;
  const dirtyBytes = options.dirtyBytes ?? Math.floor(cacheBytes / 4);
  return { cacheBytes, dirtyBytes, pinLimitBytes: Math.max(0, cacheBytes - 2 * dirtyBytes) };
}

function nativeOptions(options: MountFileSystemOptions, session: ManagerSession): MountOptions {
  const { client, generation, key, leaseMs } = session.hello;
  const { cacheBytes, dirtyBytes, pinLimitBytes } = limitsOf(options);
  return {
    mountPoint: options.mountPoint,
    threads: options.threads ?? 0,
    ioUring: options.ioUring ?? 'off',
    memoryLimitBytes: options.memoryLimitBytes ?? 0,
    cacheBytes,
    pinLimitBytes,
    dirtyBytes,
    applianceDirtyBytes: options.applianceDirtyBytes ?? Math.floor(dirtyBytes / 2),
    client,
    clientGeneration: generation,
    clientKey: key,
    hostId: options.hostId ?? readHostId(),
    transport: options.transport ?? 'auto',
    deadlineMs: options.deadlineMs ?? OPERATION_DEADLINE_MS,
    readAheadBytes: options.readAheadBytes ?? DEFAULT_READ_AHEAD_BYTES,
    entryTimeoutMs: leaseMs,
    faultSeed: options.faultSeed ?? 0,
    faultPlan: options.faultPlan ?? '',
    trace: options.trace ?? false,
    referenceLogFd: options.referenceLog === undefined ? 0 : openReferenceLog(options.referenceLog),
  };
}

/** It tells which parts of files are used: for nobody else's eyes. */
function openReferenceLog(path: string): number {
  try {
    return openSync(path, 'w', 0o600);
  } catch (error) {
    throw new ExtmemError('EIO', `opening the reference log ${path}: ${messageOf(error)}; name a file that can be written`, {
      cause: error,
    });
  }
}

/** The same for all processes of one boot of a machine: shared memory reaches from one to the other. */
function readHostId(): string {
  return readFileSync('/proc/sys/kernel/random/boot_id', 'utf8').trim();
}

/** Looks at /proc first: a stat of a dead mount may never return. */
async function checkMountPoint(mountPoint: string): Promise<void> {
  const type = mountedType(mountPoint);
  if (type?.startsWith('fuse') === true)
    throw new ExtmemError(
      'EBUSY',
      `mounting on ${mountPoint}: a file system (${type}) is mounted there already; unmount it first: extmem umount ${mountPoint}`,
    );
  if (type !== undefined)
    throw new ExtmemError('EBUSY', `mounting on ${mountPoint}: a file system of type ${type} is mounted there; choose another directory`);
  let isDirectory: boolean;
  try {
    isDirectory = (await stat(mountPoint)).isDirectory();
  } catch (error) {
    if (!isCode(error, 'ENOENT')) throw new ExtmemError('EACCES', `mounting on ${mountPoint}: ${messageOf(error)}`, { cause: error });
    throw new ExtmemError('ENOENT', `mounting on ${mountPoint}: there is no such directory; create it first: mkdir -p ${mountPoint}`, {
      cause: error,
    });
  }
  if (!isDirectory) throw new ExtmemError('ENOTDIR', `mounting on ${mountPoint}: it is not a directory; choose an empty one`);
}

/** File-system type of what is mounted exactly there. */
export function mountedType(mountPoint: string, mountInfo = readFileSync('/proc/self/mountinfo', 'utf8')): string | undefined {
  const escaped = mountPoint.replace(/[\\ \t\n]/g, (character) => `\\${character.charCodeAt(0).toString(8).padStart(3, '0')}`);
  const lines = mountInfo.split('\n').filter((line) => line.split(' ')[4] === escaped);
  return lines.at(-1)?.split(' - ')[1]?.split(' ')[0];
}

function checkFuse(): void {
  if (addon.probe().fuseDevice) return;
  throw new ExtmemError(
    'ENODEV',
    'mounting needs FUSE, and /dev/fuse is not usable here: load it with `modprobe fuse`; in a container pass --device /dev/fuse --cap-add SYS_ADMIN',
  );
}

/** What to ask of the session: 'auto' only where the kernel has it switched on. */
function chooseIoUring(wanted: IoUring): IoUring {
  const { ioUringFuse } = addon.probe();
  if (wanted === 'off' || (wanted === 'auto' && ioUringFuse !== 'on')) return 'off';
  if (ioUringFuse === 'absent')
    throw new ExtmemError(
      'EOPNOTSUPP',
      'mounting with --io-uring=on: this kernel has no FUSE over io_uring (Linux 6.14 and newer have it, built with CONFIG_FUSE_IO_URING); mount with --io-uring=auto',
    );
  if (ioUringFuse === 'off')
    throw new ExtmemError(
      'EOPNOTSUPP',
      'mounting with --io-uring=on: the kernel has FUSE over io_uring switched off; switch it on (as root: echo Y > /sys/module/fuse/parameters/enable_uring), or mount with --io-uring=auto',
    );
  return wanted;
}

function explainMountFailure(error: unknown, mountPoint: string): ExtmemError {
  const why = messageOf(error);
  if (isCode(error, 'EPERM') || isCode(error, 'EACCES'))
    return new ExtmemError(
      'EPERM',
      `mounting on ${mountPoint} is not permitted (${why}): run as root, or install fusermount3 (package fuse3) and own the directory`,
      { cause: error },
    );
  if (isCode(error, 'EBUSY'))
    return new ExtmemError('EBUSY', `mounting on ${mountPoint}: it is in use (${why}); choose another directory`, { cause: error });
  if (isCode(error, 'ENODEV') || isCode(error, 'ENOENT'))
    return new ExtmemError('ENODEV', `mounting on ${mountPoint}: the kernel offers no FUSE (${why}); load it with \`modprobe fuse\``, {
      cause: error,
    });
  if (isCode(error, 'EOPNOTSUPP'))
    return new ExtmemError('EOPNOTSUPP', `mounting on ${mountPoint} with --io-uring=on: ${why}; mount with --io-uring=auto`, {
      cause: error,
    });
  return new ExtmemError('EIO', `mounting on ${mountPoint} failed: ${why}`, { cause: error });
}

function isCode(error: unknown, code: string): boolean {
  return error instanceof Error && 'code' in error && error.code === code;
}
