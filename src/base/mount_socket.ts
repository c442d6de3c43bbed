/** Where the mounts of a user have their control sockets: derived from the mount point, so that they are found without touching it. */
import { createHash } from 'node:crypto';
import { join } from 'node:path';

/** Where the mounts of this user have their sockets. */
export function runtimeFolder(): string {
  if (process.env['EXTMEM_RUNTIME_DIR']) return process.env['EXTMEM_RUNTIME_DIR'];
  if (process.env['XDG_RUNTIME_DIR'] && process.getuid?.() !== 0) return join(process.env['XDG_RUNTIME_DIR'], 'extmem');
  return process.getuid?.() === 0 ? '/run/extmem' : `/tmp/extmem-${process.getuid?.() ?? 0}`;
}

/** Where the control socket of a mount is, whether or not it runs. `mountPoint` as it was given to mountFileSystem. */
export function mountControlPath(runtimeDir: string, mountPoint: string): string {
  return join(runtimeDir, 'mounts', `${createHash('sha256').update(mountPoint).digest('hex').slice(0, 16)}.sock`);
}
