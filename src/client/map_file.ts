/**
 * A file of a mount (or any other) as a Buffer over mmap(2): what programs in Node used mmap-io for.
 *
 * The Buffer's bytes are the file's. A page that cannot be had (its appliance is dead, the file was truncated) raises SIGBUS in the
 * process, as it does for every program that maps files: read a file that may fail so with read(2) instead.
 * A process that serves a mount must not map files of that same mount.
 */
import { ExtmemError } from '../base/errors.js';
import { native, type Mapping } from '../binding/index.js';
import { statSync } from 'node:fs';

export type { Mapping } from '../binding/index.js';

export interface MapFileOptions {
  /** Default false: the buffer must not be written to. */
  write?: boolean;
  /** Default true: writes go to the file, and are seen by others. False: they stay in this process. */
  shared?: boolean;
  /** A multiple of the page size. */
  offset?: number;
  /** Default: to the end of the file. */
  length?: number;
}

/** Page size of every machine that the addon is built for. */
const MAP_UNIT_BYTES = 4096;

export function mapFile(path: string, options: MapFileOptions = {}): Mapping {
  const offset = options.offset ?? 0;
  if (!Number.isSafeInteger(offset) || offset < 0 || offset % MAP_UNIT_BYTES !== 0)
    throw new ExtmemError('EINVAL', `mapping ${path}: offset ${offset} is not a multiple of ${MAP_UNIT_BYTES}`);
  const length = options.length ?? statSync(path).size - offset;
  if (!Number.isSafeInteger(length) || length <= 0)
    throw new ExtmemError(
      'EINVAL',
      `mapping ${path}: there are ${length} bytes to map from offset ${offset} on; a mapping has at least one`,
    );
  return new native.Mapping(path, { writable: options.write ?? false, shared: options.shared ?? true, offset, length });
}
