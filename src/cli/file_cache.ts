/** `extmem evict`, `warm`, `pin` and `unpin`: what of the files on a mount is in local memory. Asked of the mount itself, by inode. */
import { realpath, stat } from 'node:fs/promises';
import { resolve } from 'node:path';
import { codeOf, ExtmemError, messageOf } from '../base/errors.js';
import { formatSize, parseSize } from '../base/size.js';
import type { FileResidency } from '../fs/residency.js';
import { askSocket, mountSockets, socketOfMount } from './endpoint.js';
import { ExitCode, exitCodeOf, UsageError } from './exit.js';
import type { Invocation } from './invocation.js';
import { answers, extmemMounts, resolveMountPoint } from './mount_point.js';
import { printError, printJson, printLine, printWarning, Progress } from './output.js';

/** Dirty pages of mappings go out one by one. */
const evictTimeoutMs = 120_000;
const askTimeoutMs = 30_000;
/** How long the mount may wait with an answer about something that is under way. */
const progressMs = 300;

export interface FileOnMount {
  path: string;
  mountPoint: string;
  absolute: string;
  socket: string;
  ino: number;
}

type Asked = FileResidency & { droppedBytes?: number };

export async function runEvict(call: Invocation): Promise<ExitCode> {
  if (call.args.length === 0) return evictMounts(call, await mountSockets(), undefined);
  const [only] = call.args;
  if (call.args.length === 1 && only !== undefined && isMountPoint(await resolveMountPoint(only)))
    return evictMounts(call, [socketOfMount(await resolveMountPoint(only))], only);
  return forEachFile(call, async (file) => {
    const told = await ask(file, 'POST', '/evict', evictTimeoutMs);
    const left = [
      ...(told.pinned ? [`it is pinned: ${formatSize(told.pinnedBytes)} stay`] : []),
      ...(told.dirtyBytes > 0 ? [`${formatSize(told.dirtyBytes)} are dirty and stay`] : []),
    ];
    return { told, line: [`${formatSize(told.droppedBytes ?? 0)} dropped`, ...left].join('; ') };
  });
}

export function runWarm(call: Invocation): Promise<ExitCode> {
  const offset = sizeOf(call, 'offset') ?? 0;
  const length = sizeOf(call, 'length');
  const query = `?offset=${offset}${length === undefined ? '' : `&length=${length}`}`;
  return forEachFile(call, async (file) => {
    const begun = await ask(file, 'POST', `/warm${query}`);
    if (call.has('background')) return { told: begun, line: `${formatSize(begun.warming?.totalBytes ?? 0)} are being read` };
    return describeWarmed(file, await untilWarm(file, begun));
  });
}

export function runPin(call: Invocation): Promise<ExitCode> {
  return forEachFile(call, async (file) => {
    const told = await untilWarm(file, await ask(file, 'POST', `/pin?path=${encodeURIComponent(file.absolute)}`));
    return { told, line: `pinned, ${formatSize(told.pinnedBytes)} of it here` };
  });
}

export function runUnpin(call: Invocation): Promise<ExitCode> {
  return forEachFile(call, async (file) => {
    const { unpinned } = await askSocket(file.socket, 'POST', `/files/${file.ino}/unpin`, askTimeoutMs);
    return { told: { unpinned }, line: unpinned === true ? 'unpinned' : 'it was not pinned' };
  });
}

/** One file after the other; a failure is told and does not keep the others. */
async function forEachFile(call: Invocation, act: (file: FileOnMount) => Promise<{ told: object; line: string }>): Promise<ExitCode> {
  if (call.args.length === 0) throw new UsageError('say which files');
  const files: object[] = [];
  let worst: ExitCode = ExitCode.ok;
  for (const path of call.args) {
    try {
      const file = await findFile(path);
      const { told, line } = await act(file);
      files.push({ path, ...told });
      if (!call.json) printLine(`${path}: ${line}`);
    } catch (error) {
      if (call.args.length === 1) throw error;
      printError(new ExtmemError(codeOf(error), `${path}: ${messageOf(error)}`));
      worst = exitCodeOf(error);
    }
  }
  if (call.json) printJson({ files });
  return worst;
}

/** A file by its path: the mount that it is on, and its inode. A mount that does not answer is not touched. */
export async function findFile(path: string): Promise<FileOnMount> {
  let absolute = resolve(path);
  let mountPoint = mountPointOf(absolute);
  if (mountPoint === undefined) {
    absolute = await realpath(absolute).catch((error: unknown) => {
      throw new ExtmemError(codeOf(error), `${path}: ${codeOf(error) === 'ENOENT' ? 'there is no such file' : messageOf(error)}`);
    });
    mountPoint = mountPointOf(absolute);
  }
  if (mountPoint === undefined) throw new ExtmemError('EINVAL', `${path} is on no extmem mount; mounts are listed by: extmem status`);
  if (!(await answers(mountPoint)))
    throw new ExtmemError('ENOTCONN', `the mount at ${mountPoint} does not answer; if its process is dead: extmem umount ${mountPoint}`);
  const found = await stat(absolute).catch((error: unknown) => {
    throw new ExtmemError(codeOf(error), `${path}: ${codeOf(error) === 'ENOENT' ? 'there is no such file' : messageOf(error)}`);
  });
  if (found.isDirectory()) throw new ExtmemError('EISDIR', `${path} is a folder; name the files in it, as in ${path.replace(/\/$/, '')}/*`);
  if (!found.isFile()) throw new ExtmemError('EINVAL', `${path} is no file with contents`);
  const real = await realpath(absolute); // a link on the mount may lead to another
  const served = mountPointOf(real) ?? mountPoint;
  return { path, absolute: real, mountPoint: served, socket: socketOfMount(served), ino: found.ino };
}

const isMountPoint = (path: string): boolean => extmemMounts().some(({ mountPoint }) => mountPoint === path);

/** The innermost mount that a path is below. */
function mountPointOf(path: string): string | undefined {
  const around = extmemMounts().filter(({ mountPoint }) => path === mountPoint || path.startsWith(`${mountPoint}/`));
  return around.sort((left, right) => right.mountPoint.length - left.mountPoint.length)[0]?.mountPoint;
}

async function ask({ socket, ino, path }: FileOnMount, method: 'GET' | 'POST', what: string, timeoutMs = askTimeoutMs): Promise<Asked> {
  try {
    return (await askSocket(socket, method, `/files/${ino}${what}`, timeoutMs)) as unknown as Asked;
  } catch (error) {
    if (!['ENOENT', 'ECONNREFUSED'].includes(codeOf(error)) || !(error instanceof Error) || !('syscall' in error)) throw error;
    throw new ExtmemError('ENOTCONN', `no mount of this user serves ${path}; ask as the user who mounted it`, { cause: error });
  }
}

/** Waits for a warming, and tells on a terminal how far it is. */
async function untilWarm(file: FileOnMount, begun: Asked): Promise<Asked> {
  const progress = new Progress();
  let told = begun;
  while (told.warming?.state === 'running') {
    const { doneBytes, totalBytes } = told.warming;
    progress.show(`${file.path}: ${formatSize(doneBytes)} of ${formatSize(totalBytes)} ...`);
    told = await ask(file, 'GET', `?waitMs=${progressMs}`);
  }
  progress.clear();
  const { warming } = told;
  if (warming?.error !== undefined) throw new ExtmemError(warming.error.code, `${file.path}: ${warming.error.message}`);
  return told;
}

function describeWarmed({ path }: FileOnMount, told: Asked): { told: Asked; line: string } {
  const { warming } = told;
  if (warming !== undefined && warming.leftOutBytes > 0)
    printWarning(
      `${path}: the last ${formatSize(warming.leftOutBytes)} do not fit into the cache and were left out; mount with a larger --cache`,
    );
  return { told, line: `${formatSize(warming?.doneBytes ?? 0)} read, ${formatSize(told.cachedBytes)} of the file here` };
}

async function evictMounts(call: Invocation, sockets: readonly string[], path: string | undefined): Promise<ExitCode> {
  let evicted = 0;
  for (const socket of sockets) {
    try {
      await askSocket(socket, 'POST', '/evict', evictTimeoutMs);
      evicted += 1;
    } catch (error) {
      // A socket without a listener is what a killed mount leaves behind; only one that was asked for by name matters.
      const gone = ['ENOENT', 'ECONNREFUSED'].includes(codeOf(error));
      if (gone && path !== undefined)
        throw new ExtmemError('ENOENT', `no extmem mount of this user serves ${path}; mounts are listed by: extmem status`);
      if (!gone) throw error;
    }
  }
  if (call.json) printJson({ evicted });
  else
    printLine(
      evicted === 0
        ? 'there is no mount of this user here'
        : `${evicted} ${evicted === 1 ? 'mount has' : 'mounts have'} dropped what was clean`,
    );
  return ExitCode.ok;
}

function sizeOf(call: Invocation, flag: string): number | undefined {
  const text = call.text(flag);
  if (text === undefined) return undefined;
  try {
    return parseSize(text);
  } catch (error) {
    throw new UsageError(`--${flag}: ${messageOf(error)}`);
  }
}
