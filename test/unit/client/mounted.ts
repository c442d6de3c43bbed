/** A client over a scripted manager and a native without memory, as the tests here need it. */
import { pino } from 'pino';
import { MountClient } from '../../../src/client/mount_client.js';
import { CapabilityBytes } from '../../../src/base/protocol.js';
import { errnoOf } from '../../../src/fs/errno.js';
import { MemoryNative } from './memory_native.js';
import { ScriptedManager } from './scripted_manager.js';

export interface TestClient {
  client: MountClient;
  manager: ScriptedManager;
  native: MemoryNative;
  fenced: string[];
}

const REGION_BYTES = 64 * 1024 * 1024;

export async function startClient(options: { maxIdleFiles?: number } = {}): Promise<TestClient> {
  const manager = new ScriptedManager();
  const native = new MemoryNative();
  const fenced: string[] = [];
  manager.script.provision = () => ({
    regions: [{ region: 1000, bytes: REGION_BYTES, appliance: 'a', incarnation: 1, capability: new Uint8Array(CapabilityBytes), used: [] }],
  });
  const client = new MountClient({
    session: manager,
    native,
    log: pino({ level: 'silent' }),
    reserveBytes: REGION_BYTES,
    ...options,
    errnoOf,
    onFenced: (why) => fenced.push(why),
  });
  await client.start();
  manager.takeAsked();
  native.log.length = 0;
  return { client, manager, native, fenced };
}

/** Lets everything that is due now happen. */
export function settle(): Promise<void> {
  return new Promise((resolve) => setImmediate(() => setImmediate(resolve)));
}
