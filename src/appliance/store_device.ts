/**
 * What the kernel says of the device that a backing store lies on: the block device itself, or the one behind the file system.
 */
import { realpathSync, statSync, statfsSync } from 'node:fs';
import { basename, dirname, join } from 'node:path';
import type { StoreHealth } from '../base/messages.js';
import { read } from './memory.js';

export type StoreDevice = Pick<StoreHealth, 'device' | 'readOnly' | 'errors' | 'freeBytes'>;

/** Of a path where something is, else of its folder. */
export function storeDevice(path: string): StoreDevice {
  for (const place of [path, dirname(path)]) {
    const found = statSync(place, { throwIfNoEntry: false });
    if (found?.isBlockDevice() === true) return describeDevice(found.rdev);
    if (found !== undefined) return { ...describeDevice(found.dev), freeBytes: freeOf(place) };
  }
  return {};
}

function freeOf(path: string): number {
  const { bavail, bsize } = statfsSync(path);
  return bavail * bsize;
}

function describeDevice(number: number): StoreDevice {
  const folder = sysfsFolder(number);
  if (folder === undefined) return {};
  // A partition has no errors of its own: they are counted at its disk.
  const errors = read(join(folder, 'device/ioerr_cnt')) ?? read(join(dirname(folder), 'device/ioerr_cnt'));
  return {
    device: basename(folder),
    readOnly: read(join(folder, 'ro')) === '1',
    ...(errors === undefined ? {} : { errors: Number(errors) }), // hexadecimal, with 0x
  };
}

function sysfsFolder(number: number): string | undefined {
  try {
    return realpathSync(`/sys/dev/block/${majorOf(number)}:${minorOf(number)}`);
  } catch {
    return undefined; // a file system without one device: tmpfs, btrfs, overlays, the network's
  }
}

// As glibc packs them into a dev_t.
const majorOf = (number: number): number => Number(((BigInt(number) >> 8n) & 0xfffn) | ((BigInt(number) >> 32n) & ~0xfffn));
const minorOf = (number: number): number => Number((BigInt(number) & 0xffn) | ((BigInt(number) >> 12n) & ~0xffn & 0xffffffffn));
