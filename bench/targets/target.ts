/** What is measured: a file system of ours or of a peer, each at its best, started and stopped by the benchmark itself. */
import { execFile, spawn, type ChildProcess, type StdioOptions } from 'node:child_process';
import { once } from 'node:events';
import { readFile } from 'node:fs/promises';
import { promisify } from 'node:util';

export const run = promisify(execFile);

/** How the bytes travel: shared memory (for a peer: a unix socket), or TCP. */
export type Link = 'shm' | 'tcp';

/** How the kernel's requests come to a mount. */
export type SessionKind = 'io_uring' | '/dev/fuse';

export const MIB = 1 << 20;

/** For what is started to be ready. */
export const START_MS = 30_000;

/** What a row needs cannot be had here: it is skipped, and the reason told. */
export class Unavailable extends Error {}

export interface Target {
  readonly name: string;
  /** A large file of random bytes. */
  readonly file: string;
  /** Where files can be made; undefined where there is only the one file. */
  readonly folder: string | undefined;
  /** Starts it and fills `file` with so many bytes. */
  start(bytes: number): Promise<void>;
  /** Its own cache too, not only the kernel's, forgets the file. */
  evict(): Promise<void>;
  /** Its own cache, not the kernel's, holds so many bytes from the file's beginning. Absent where there is none. */
  hold?(bytes: number): Promise<void>;
  stop(): Promise<void>;
}

/** Starts a program that a peer is made of.
 * @throws Unavailable if this machine lacks it */
export async function launch(program: string, parameters: readonly string[], stdio: StdioOptions): Promise<ChildProcess> {
  const child = spawn(program, parameters, { stdio });
  await once(child, 'spawn').catch((error: unknown) => {
    throw new Unavailable(`cannot start ${program} (${String(error)}): npm run bench installs it`);
  });
  return child;
}

export async function stopProcess(child: ChildProcess | undefined): Promise<void> {
  if (child === undefined || child.exitCode !== null || child.signalCode !== null) return;
  const gone = new Promise((resolve) => child.once('exit', resolve));
  child.kill('SIGTERM');
  await gone;
}

/** What a signal to all of the run's processes has unmounted already is no error. */
export async function unmount(place: string): Promise<void> {
  const mounts = (await readFile('/proc/self/mountinfo', 'utf8')).split('\n');
  const isMounted = mounts.some((line) => line.split(' ')[4] === place);
  if (!isMounted) return;
  await run('umount', [place]).catch(() => run('umount', ['-l', place]));
}

/** Fills a file with random bytes and waits until they are where they belong. */
export async function fill(file: string, bytes: number): Promise<void> {
  await run('dd', ['if=/dev/urandom', `of=${file}`, 'bs=1M', `count=${bytes / MIB}`, 'conv=fsync,notrunc', 'status=none']);
}
