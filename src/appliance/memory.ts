/**
 * How much memory this machine can spare now: what is available to all, or what the memory cgroup that we run in still allows,
 * whichever is less. Paths are below `root`, so that tests read machines of their own.
 */
import { readdirSync, readFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { cgroupMount, legacyMemoryCgroup, UNLIMITED_BYTES } from '../base/memory_cgroup.js';

export interface Spare {
  /** That can be had without swapping, without being killed. */
  bytes: number;
  /** Of the machine, or of the cgroup that bounds us. */
  totalBytes: number;
  boundBy: 'machine' | 'cgroup';
}

export function spareMemory(root = '/'): Spare {
  const meminfo = read(join(root, 'proc/meminfo')) ?? '';
  const field = (name: string): number => Number(new RegExp(`^${name}:\\s+(\\d+) kB$`, 'm').exec(meminfo)?.[1] ?? 0) * 1024;
  let spare: Spare = { bytes: field('MemAvailable'), totalBytes: field('MemTotal'), boundBy: 'machine' };
  for (const { limitBytes, usedBytes } of cgroupLimits(root)) {
    const bytes = Math.max(0, limitBytes - usedBytes);
    if (bytes < spare.bytes) spare = { bytes, totalBytes: limitBytes, boundBy: 'cgroup' };
  }
  return spare;
}

interface Limit {
  limitBytes: number;
  /** Less what the kernel gives back when the limit is met: file pages that nobody used of late. */
  usedBytes: number;
}

/** Of our memory cgroup and those above it (version 2), or of what the kernel says binds us (version 1). */
function cgroupLimits(root: string): Limit[] {
  const membership = read(join(root, 'proc/self/cgroup')) ?? '';
  const mounts = read(join(root, 'proc/self/mountinfo')) ?? '';
  const legacy = legacyMemoryCgroup(membership);
  const unified = /^0::(.*)$/m.exec(membership)?.[1];
  if (legacy !== undefined) return legacyLimit(join(root, cgroupMount(mounts, 'cgroup', 'memory') ?? '', legacy));
  const hierarchy = cgroupMount(mounts, 'cgroup2');
  return unified === undefined || hierarchy === undefined ? [] : unifiedLimits(join(root, hierarchy), unified);
}

function legacyLimit(folder: string): Limit[] {
  const stat = read(join(folder, 'memory.stat')) ?? '';
  const limitBytes = counter(stat, 'hierarchical_memory_limit') ?? Infinity;
  const used = Number(read(join(folder, 'memory.usage_in_bytes')) ?? NaN);
  if (limitBytes >= UNLIMITED_BYTES || Number.isNaN(used)) return [];
  return [{ limitBytes, usedBytes: used - (counter(stat, 'total_inactive_file') ?? 0) }];
}

function unifiedLimits(hierarchy: string, path: string): Limit[] {
  const limits: Limit[] = [];
  for (let at = path; at !== '/' && at !== '.'; at = dirname(at)) {
    const folder = join(hierarchy, at);
    const limitBytes = Number(read(join(folder, 'memory.max')) ?? NaN); // `max` is not a number either
    const used = Number(read(join(folder, 'memory.current')) ?? NaN);
    if (Number.isNaN(limitBytes) || Number.isNaN(used)) continue;
    limits.push({ limitBytes, usedBytes: used - (counter(read(join(folder, 'memory.stat')) ?? '', 'inactive_file') ?? 0) });
  }
  return limits;
}

function counter(text: string, name: string): number | undefined {
  const found = new RegExp(`^${name} (\\d+)$`, 'm').exec(text)?.[1];
  return found === undefined ? undefined : Number(found);
}

/** A file's text without its last newline; undefined where it cannot be read. */
export function read(path: string): string | undefined {
  try {
    return readFileSync(path, 'utf8').trimEnd();
  } catch {
    return undefined;
  }
}

/** The names in a folder, in order; none where there is none. */
export function list(path: string): string[] {
  try {
    return readdirSync(path).sort();
  } catch {
    return [];
  }
}
