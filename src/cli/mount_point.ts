/**
 * Mount points: is this a good place to mount on, what is mounted there now, does it still answer, and taking it away again.
 * A path on a mount whose server is gone or stuck is never touched from this process (a stat there can hang for good):
 * /proc/self/mountinfo tells what is mounted, and a child with a time limit tells whether it answers.
 */
import { execFile } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { mkdir, readdir, readFile, realpath, stat } from 'node:fs/promises';
import { dirname, join, resolve } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { codeOf, ExtmemError, messageOf } from '../base/errors.js';

export interface MountEntry {
  /** major:minor; of a FUSE mount, the minor is its connection's number. */
  device: string;
  mountPoint: string;
  type: string;
  source: string;
}

/** mountinfo writes space, tab, newline and backslash as octal escapes. */
const unescape = (field: string): string => field.replace(/\\([0-7]{3})/g, (_, octal: string) => String.fromCharCode(parseInt(octal, 8)));

export function parseMountInfo(content: string): MountEntry[] {
  return content
    .split('\n')
    .filter((line) => line.includes(' - '))
    .map((line) => {
      const [left = '', right = ''] = line.split(' - ', 2);
      const [type = '', source = ''] = right.split(' ');
      return { device: left.split(' ')[2] ?? '', mountPoint: unescape(left.split(' ')[4] ?? ''), type, source: unescape(source) };
    });
}

export const isExtmem = (entry: MountEntry): boolean =>
  entry.type === 'fuse.extmem' || (entry.type.startsWith('fuse') && entry.source === 'extmem');

/** What is mounted at exactly this path; the uppermost when there are several. */
export function mountedAt(path: string): MountEntry | undefined {
  return parseMountInfo(readFileSync('/proc/self/mountinfo', 'utf8'))
    .filter((entry) => entry.mountPoint === path)
    .at(-1);
}

export function extmemMounts(): MountEntry[] {
  return parseMountInfo(readFileSync('/proc/self/mountinfo', 'utf8')).filter(isExtmem);
}

/** The path with links resolved, its last component perhaps being a dead mount or not there at all. */
export async function resolveMountPoint(path: string): Promise<string> {
  const absolute = resolve(path);
  if (mountedAt(absolute) !== undefined) return absolute;
  try {
    return await realpath(absolute);
  } catch (error) {
    if (codeOf(error) !== 'ENOENT') return absolute;
  }
  const parent = await realpath(dirname(absolute)).catch(() => dirname(absolute));
  return join(parent, absolute.slice(dirname(absolute).length).replace(/^\/+/, ''));
}

/**
 * Does a process serve the file system mounted there, and answer within the time? An answer may be a failure. statfs is asked
 * for because the kernel never answers that by itself; attributes it does, for as long as it was allowed to, whoever died.
 */
export function answers(mountPoint: string, timeoutMs = 3000): Promise<boolean> {
  return new Promise((done) => {
    const child = execFile(
      'stat',
      ['--file-system', '--format=%t', '--', mountPoint],
      { env: { ...process.env, LC_ALL: 'C' } },
      (error, _stdout, stderr) => {
        clearTimeout(timer);
        done(error === null || !/not connected|connection abort|no such file/i.test(stderr));
      },
    );
    // Not execFile's own timeout: that waits for the child's end, and a child stuck in the kernel has none.
    const timer = setTimeout(() => {
      child.kill('SIGKILL');
      child.unref();
      done(false);
    }, timeoutMs);
  });
}

/** Makes sure that `path` can be mounted on, cleaning away what a killed predecessor left. Answers the resolved path. */
export async function prepareMountPoint(path: string, options: { create: boolean; warn(message: string): void }): Promise<string> {
  const mountPoint = await resolveMountPoint(path);
  const there = mountedAt(mountPoint);
  if (there !== undefined && isExtmem(there)) {
    if (await answers(mountPoint)) {
      throw new ExtmemError(
        'EBUSY',
        `cannot mount on ${mountPoint}: extmem is mounted there already; unmount it first with: extmem umount ${mountPoint}`,
      );
    }
    options.warn(`a mount without a server was left at ${mountPoint} by a process that was killed; cleaning it away`);
    await detachDeadMount(mountPoint);
  } else if (there !== undefined) {
    throw new ExtmemError(
      'EBUSY',
      `cannot mount on ${mountPoint}: a file system of type ${there.type} is mounted there; choose another folder`,
    );
  }
  await checkFolder(mountPoint, options.create);
  return mountPoint;
}

async function checkFolder(mountPoint: string, create: boolean): Promise<void> {
  try {
    const { isDirectory } = await stat(mountPoint).then((found) => ({ isDirectory: found.isDirectory() }));
    if (!isDirectory) throw new ExtmemError('ENOTDIR', `cannot mount on ${mountPoint}: it is not a directory; choose an empty folder`);
  } catch (error) {
    if (codeOf(error) !== 'ENOENT') throw error;
    if (!create) throw new ExtmemError('ENOENT', `cannot mount on ${mountPoint}: there is no such folder; create it, or add --mkdir`);
    await mkdir(mountPoint, { recursive: true }).catch((cause: unknown) => {
      throw new ExtmemError(codeOf(cause), `cannot create the mount point ${mountPoint}: ${messageOf(cause)}`);
    });
  }
  const entries = (await readdir(mountPoint)).filter((name) => !name.startsWith('.'));
  if (entries.length > 0) {
    throw new ExtmemError(
      'EBUSY',
      `cannot mount on ${mountPoint}: the folder is not empty (${entries.slice(0, 3).join(', ')}, ...); its files would be hidden; choose an empty folder`,
    );
  }
}

function run(command: string, args: string[]): Promise<void> {
  return new Promise((done, failed) => {
    execFile(command, args, { timeout: 30_000 }, (error, _stdout, stderr) => {
      if (error === null) done();
      else failed(new ExtmemError(/busy/i.test(stderr) ? 'EBUSY' : 'EIO', stderr.trim() || error.message));
    });
  });
}

/** umount(2) as root, fusermount3 for everybody else. Fails with EBUSY while somebody has files open there. */
export async function unmountPlainly(mountPoint: string): Promise<void> {
  const command = process.getuid?.() === 0 ? run('umount', ['--', mountPoint]) : run('fusermount3', ['-u', '--', mountPoint]);
  await command.catch((error: unknown) => {
    const busy = codeOf(error) === 'EBUSY';
    const advice = busy
      ? `files there are still in use (see: fuser -vm ${mountPoint}); close them, or use --force, which loses what was not yet written back`
      : messageOf(error);
    throw new ExtmemError(codeOf(error), `cannot unmount ${mountPoint}: ${advice}`);
  });
}

/** Aborts the connection and detaches the mount: for servers that are gone or stuck. Dirty data that they held is lost. */
export async function unmountByForce(mountPoint: string): Promise<void> {
  const connection = mountedAt(mountPoint)?.device.split(':')[1];
  await abortAndDetach(mountPoint);
  if (connection !== undefined) await wakeStoppedServers(connection);
}

/**
 * Over io_uring the kernel hands a request over in the context of the thread that serves: of a process that is stopped (SIGSTOP) it
 * cannot take back one that is on its way, and who made it would go on waiting. So a stopped server is continued; its session is over,
 * and it ends by itself.
 */
async function wakeStoppedServers(connection: string): Promise<void> {
  const isServer = async (pid: string): Promise<boolean> => {
    const stopped = /^State:\s+T/m.test(await readFile(`/proc/${pid}/status`, 'utf8'));
    const files = stopped ? await readdir(`/proc/${pid}/fdinfo`) : [];
    const infos = await Promise.all(files.map((fd) => readFile(`/proc/${pid}/fdinfo/${fd}`, 'utf8')));
    return infos.some((info) => new RegExp(`^fuse_connection:\\s+${connection}$`, 'm').test(info));
  };
  for (const pid of (await readdir('/proc')).filter((name) => /^\d+$/.test(name))) {
    // Processes come and go, and those of others are closed to us.
    if (await isServer(pid).catch(() => false)) process.kill(Number(pid), 'SIGCONT');
  }
}

async function abortAndDetach(mountPoint: string): Promise<void> {
  try {
    const { native } = await import('../binding/index.js');
    native.forceUnmount(mountPoint);
  } catch (error) {
    // Without root the connection's abort file is out of reach; a lazy unmount is what is left.
    if (mountedAt(mountPoint) === undefined) return;
    const lazily =
      process.getuid?.() === 0 ? run('umount', ['-f', '-l', '--', mountPoint]) : run('fusermount3', ['-u', '-z', '--', mountPoint]);
    await lazily.catch(() => {
      throw new ExtmemError(codeOf(error), `cannot force ${mountPoint} off: ${messageOf(error)}`);
    });
  }
}

/** Cleans away an extmem mount whose server is known to be gone. */
export async function detachIfDead(mountPoint: string): Promise<void> {
  const there = mountedAt(mountPoint);
  if (there !== undefined && isExtmem(there) && !(await answers(mountPoint))) await detachDeadMount(mountPoint);
}

async function detachDeadMount(mountPoint: string): Promise<void> {
  await unmountByForce(mountPoint);
  for (let attempt = 0; mountedAt(mountPoint) !== undefined; attempt += 1) {
    if (attempt === 20)
      throw new ExtmemError('EBUSY', `the dead mount at ${mountPoint} cannot be detached; try as root: umount -f -l ${mountPoint}`);
    await sleep(50);
  }
}
