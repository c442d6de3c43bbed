/** How much memory this machine can spare now. */
import { readFileSync } from 'node:fs';

/** MemAvailable of /proc/meminfo: what can be had without swapping. */
export function availableBytes(meminfo = readFileSync('/proc/meminfo', 'utf8')): number {
  return Number(/^MemAvailable:\s+(\d+) kB$/m.exec(meminfo)?.[1] ?? 0) * 1024;
}
