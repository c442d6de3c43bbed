/**
 * A manager, an appliance and a traced mount in one process, so that all trace points share one clock and one ring. Whatever touches the
 * mount must be another process: this one serves it, and would wait for itself.
 */
import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { pino } from 'pino';
import { createAppliance } from '../src/appliance/index.js';
import { mountFileSystem, type Mount, type MountFileSystemOptions } from '../src/fs/mount.js';
import { createManager } from '../src/manager/index.js';

const MEMORY_BYTES = 512 * 1024 * 1024;
const token = 'a token for this process only';

export interface TracedProcess {
  mount: Mount;
  mountPoint: string;
  stop: () => Promise<void>;
}

/** In an empty folder, which is the caller's to remove. */
export async function startTraced(folder: string, how: Pick<MountFileSystemOptions, 'transport' | 'ioUring'>): Promise<TracedProcess> {
  const log = pino({ level: 'silent' });
  const mountPoint = join(folder, 'mnt');
  mkdirSync(mountPoint);
  const manager = await createManager({ host: '127.0.0.1', port: 0, stateDir: join(folder, 'manager'), token, logger: log });
  const appliance = await createAppliance({
    manager: manager.url,
    token,
    id: 'a1',
    memoryBytes: MEMORY_BYTES,
    listen: [{ address: '127.0.0.1' }],
    logger: log,
  });
  const mount = await mountFileSystem({ mountPoint, manager: manager.url, token, ...how, readAheadBytes: 0, trace: true, log });
  const stop = async (): Promise<void> => {
    await mount.unmount();
    await appliance.close();
    await manager.close();
  };
  return { mount, mountPoint, stop };
}
