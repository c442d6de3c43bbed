/**
 * The memory cgroup of a process that serves a mount, where cgroups are of version 1.
 *
 * There, a process that meets its cgroup's limit waits for pages under write-back, those of our own files among them, whose
 * write-back waits for us (Linux, mm/vmscan.c, shrink_folio_list(): legacy memcg has no throttling of its own). Applications in the
 * same cgroup are enough for that. So who serves a mount leaves a cgroup that is limited; what it uses is bounded by --cache. Version
 * 2 never waits so.
 */
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { messageOf } from '../base/errors.js';
import { cgroupMount, legacyMemoryCgroup, UNLIMITED_BYTES } from '../base/memory_cgroup.js';

export interface LeftCgroup {
  path: string;
  limitBytes: number;
}

/** Answers what was left; undefined where there was no need to, or where it is not permitted (`warn` is told). */
export function leaveLimitedMemoryCgroup(warn: (message: string) => void): LeftCgroup | undefined {
  const hierarchy = cgroupMount(readFileSync('/proc/self/mountinfo', 'utf8'), 'cgroup', 'memory');
  const path = legacyMemoryCgroup(readFileSync('/proc/self/cgroup', 'utf8'));
  if (hierarchy === undefined || path === undefined || path === '/') return undefined;
  try {
    const stat = readFileSync(join(hierarchy, path, 'memory.stat'), 'utf8');
    const limitBytes = Number(/^hierarchical_memory_limit (\d+)$/m.exec(stat)?.[1] ?? Infinity);
    if (limitBytes >= UNLIMITED_BYTES) return undefined;
    writeFileSync(join(hierarchy, 'cgroup.procs'), String(process.pid));
    return { path, limitBytes };
  } catch (error) {
    warn(
      `the memory cgroup ${path} is limited and cannot be left (${messageOf(error)}): ` +
        'do not run applications that write to the mount in it, they could wait for each other for ever',
    );
    return undefined;
  }
}
