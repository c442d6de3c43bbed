/**
 * How the kernel treats what it keeps of a mount: the settings of its backing device (/sys/class/bdi). Native sets them at mount
 * time as root (native/fuse/mount_point.cc); here they are read, for `extmem status`.
 */
import { readFileSync } from 'node:fs';

export interface BackingDevice {
  /** major:minor. */
  device: string;
  readAheadKb: number;
  /** How much may be dirty in the kernel before writers through mappings wait. */
  maxRatio: number;
  maxBytes: number | undefined; // Linux 6.2
  strictLimit: boolean | undefined; // Linux 6.2
}

export function readBackingDevice(mountPoint: string, mountInfo = readFileSync('/proc/self/mountinfo', 'utf8')): BackingDevice | undefined {
  const escaped = mountPoint.replace(/[\\ \t\n]/g, (character) => `\\${character.charCodeAt(0).toString(8).padStart(3, '0')}`);
  const line = mountInfo
    .split('\n')
    .filter((one) => one.split(' ')[4] === escaped)
    .at(-1);
  const device = line?.split(' ')[2];
  if (device === undefined) return undefined;
  const read = (name: string): number | undefined => {
    try {
      return Number(readFileSync(`/sys/class/bdi/${device}/${name}`, 'utf8'));
    } catch {
      return undefined; // a kernel without it
    }
  };
  const strict = read('strict_limit');
  return {
    device,
    readAheadKb: read('read_ahead_kb') ?? 0,
    maxRatio: read('max_ratio') ?? 0,
    maxBytes: read('max_bytes'),
    strictLimit: strict === undefined ? undefined : strict === 1,
  };
}
