/**
 * `extmem umount`: asks the process that serves the mount to write back and unmount, and waits until that is done. A mount
 * without a living server is cleaned away; --force aborts the kernel's connection, whatever state anything is in.
 */
import { codeOf, ExtmemError } from '../base/errors.js';
import { askSocket, socketOfMount } from './endpoint.js';
import { ExitCode, UsageError } from './exit.js';
import type { Invocation } from './invocation.js';
import { answers, isExtmem, mountedAt, resolveMountPoint, unmountByForce, unmountPlainly } from './mount_point.js';
import { printJson, printLine, Progress } from './output.js';

const unmountTimeoutMs = 120_000;

export async function runUmount(call: Invocation): Promise<ExitCode> {
  const [path] = call.args;
  if (path === undefined) throw new UsageError('say what to unmount');
  const mountPoint = await resolveMountPoint(path);
  const there = mountedAt(mountPoint);
  if (there === undefined) throw new ExtmemError('ENOENT', `nothing is mounted on ${mountPoint}; mounts are listed by: extmem status`);
  if (!isExtmem(there))
    throw new ExtmemError('EINVAL', `${mountPoint} is mounted, but not by extmem (its type is ${there.type}); use umount`);
  const how = call.has('force') ? await forceOff(mountPoint) : await takeOff(mountPoint);
  if (call.json) printJson({ mountPoint, unmounted: true, how });
  else printLine(`${mountPoint}: ${how}`);
  return ExitCode.ok;
}

async function forceOff(mountPoint: string): Promise<string> {
  await unmountByForce(mountPoint);
  return 'forced off; data that was not written back is lost';
}

async function takeOff(mountPoint: string): Promise<string> {
  const progress = new Progress();
  progress.show(`writing back what is dirty on ${mountPoint} ...`);
  try {
    await askSocket(socketOfMount(mountPoint), 'POST', '/unmount', unmountTimeoutMs);
    return 'unmounted';
  } catch (error) {
    const code = codeOf(error);
    if (code === 'EBUSY') throw error;
    if (code !== 'ENOENT' && code !== 'ECONNREFUSED')
      throw new ExtmemError(code, `the process that serves ${mountPoint} does not unmount it (${(error as Error).message}); try --force`);
  } finally {
    progress.clear();
  }
  // Nobody to ask: another user's mount, or one whose server is gone.
  if (await answers(mountPoint)) {
    await unmountPlainly(mountPoint);
    return 'unmounted';
  }
  await unmountByForce(mountPoint);
  return 'its server was gone; the dead mount is cleaned away';
}
