/** A manager and an appliance as they are, in this process, with mounts whose native part is without kernel and memory. */
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { pino } from 'pino';
import { startAppliance, type Appliance } from '../../../src/appliance/appliance.js';
import type { NativeRegionInfo, RegionServer } from '../../../src/binding/index.js';
import { connectClient, type ManagerSession } from '../../../src/client/manager_session.js';
import { MountClient } from '../../../src/client/mount_client.js';
import { createManager, type Manager } from '../../../src/manager/index.js';
import { errnoOf } from '../../../src/fs/errno.js';
import { MemoryNative } from '../client/memory_native.js';
import { Kernel } from './kernel.js';
import { emptyRegion, StorelessServer } from '../storeless_server.js';

export const TOKEN = 'a token for tests';
const MIB = 1024 * 1024;

/** Regions without bytes. */
class PaperServer extends StorelessServer implements RegionServer {
  readonly servesVerbs = false;
  readonly ports = [4711];
  private readonly regions = new Map<number, number>();

  createRegion(region: number, bytes: number): void {
    this.regions.set(region, bytes);
  }
  resizeRegion(region: number, bytes: number): void {
    this.regions.set(region, bytes);
  }
  destroyRegion(region: number): void {
    this.regions.delete(region);
  }
  punchRegion(): void {}
  fenceClients(): Promise<void> {
    return Promise.resolve();
  }
  offerMemory(): void {}
  listRegions(): NativeRegionInfo[] {
    return [...this.regions].map(([region, bytes]) => emptyRegion(region, bytes));
  }
  listRecords(): [] {
    return [];
  }
  removeRecord(): void {}
  memory(): { donatedBytes: number; reservedBytes: number; residentBytes: number } {
    const reservedBytes = [...this.regions.values()].reduce((sum, bytes) => sum + bytes, 0);
    return { donatedBytes: this.options.donatedBytes, reservedBytes, residentBytes: 0 };
  }
  takeTrace(): [] {
    return [];
  }
  counters(): Record<string, number> {
    return {};
  }
  close(): void {}
}

export interface TestMount {
  client: MountClient;
  session: ManagerSession;
  native: MemoryNative;
  kernel: Kernel;
  fenced: string[];
}

export class Cluster {
  private readonly mounts: TestMount[] = [];
  private readonly log = pino({ level: process.env['EXTMEM_LOG'] ?? 'silent' });

  private constructor(
    private readonly stateDir: string,
    public manager: Manager,
    private readonly appliance: Appliance,
  ) {}

  static async start(): Promise<Cluster> {
    const logger = pino({ level: process.env['EXTMEM_LOG'] ?? 'silent' });
    const stateDir = await mkdtemp(join(tmpdir(), 'extmem-test-'));
    const manager = await createManager({ host: '127.0.0.1', port: 0, stateDir, token: TOKEN, logger });
    const appliance = await startAppliance({
      manager: manager.url,
      token: TOKEN,
      id: 'paper',
      memoryBytes: 512 * MIB,
      force: true,
      logger,
      startServer: (options) => new PaperServer(options),
    });
    return new Cluster(stateDir, manager, appliance);
  }

  async mount(name: string, options: { maxIdleFiles?: number } = {}): Promise<TestMount> {
    const session = await connectClient({ manager: this.manager.url, token: TOKEN, name, hostId: 'host', log: this.log });
    const native = new MemoryNative();
    const fenced: string[] = [];
    const client = new MountClient({
      session,
      native,
      log: this.log,
      reserveBytes: 64 * MIB,
      errnoOf,
      onFenced: (why) => fenced.push(why),
      ...options,
    });
    await client.start();
    const mount = { client, session, native, kernel: new Kernel(client, native), fenced };
    this.mounts.push(mount);
    return mount;
  }

  async killManager(): Promise<void> {
    await this.manager.close();
  }

  async restartManager(): Promise<void> {
    const { port } = this.manager;
    this.manager = await createManager({ host: '127.0.0.1', port, stateDir: this.stateDir, token: TOKEN, logger: this.log });
  }

  async stop(): Promise<void> {
    for (const { client } of this.mounts) await client.close({ goodbye: true });
    await this.appliance.close();
    await this.manager.close();
    await rm(this.stateDir, { recursive: true, force: true });
  }
}
