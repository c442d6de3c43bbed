/**
 * The library: `import { connect } from 'extmem'`. Allocations by path over the manager, files of a mount mapped into memory, and
 * what is read and written on a mount.
 */
import type { ManagerAddress } from '../base/manager_http.js';
import { Allocations } from './allocations.js';
import { mapFile, type MapFileOptions, type Mapping } from './map_file.js';

export { ExtmemError } from '../base/errors.js';
export type { LayoutName } from '../base/messages.js';
export type { ManagerAddress } from '../base/manager_http.js';
export type { AllocationInfo } from './allocations.js';
export { mapFile, type MapFileOptions, type Mapping } from './map_file.js';
export { onOperations, type FileOperations, type OperationsReport, type OperationsWatch, type WatchOptions } from './operations.js';

export interface Connection {
  readonly allocations: Allocations;
  /** A file below a mount of this machine. */
  mapFile(path: string, options?: MapFileOptions): Mapping;
}

/** Rejects with EUNREACHABLE (no manager there) or EACCES (wrong token). There is nothing to close: each call is a request of its own. */
export async function connect(address: ManagerAddress): Promise<Connection> {
  const allocations = new Allocations(address);
  await allocations.check();
  return { allocations, mapFile };
}
