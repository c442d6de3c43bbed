/**
 * Room to carve files from: regions of this client's own that native hands out by itself. Kept above a low-water mark in the
 * background, so that a writer seldom waits for it and a while without manager is survived from the reserve.
 *
 * Invariant: one provision request at a time; what is asked for meanwhile goes into the next one.
 */
import { ExtmemError, messageOf } from '../base/errors.js';
import type { Logger } from '../base/logger.js';
import { SLAB_REGION_BYTES } from '../base/protocol.js';
import type { NativeMount } from '../binding/index.js';
import type { Manager } from './manager.js';
import type { KnownRegions } from './regions.js';

const CHECK_MS = 500;
/** After the pool was found full, the background does not ask again for that long; a writer in need still does. */
const FULL_PAUSE_MS = 5000;

interface Need {
  bytes: number;
  resolve(): void;
  reject(error: Error): void;
}

export class Reserve {
  private needs: Need[] = [];
  private asking = false;
  private spreading = false;
  private fullUntilMs = 0;
  private warned = false;
  private timer: NodeJS.Timeout | undefined;
  private provisions = 0;

  constructor(
    private readonly manager: Manager,
    private readonly native: NativeMount,
    private readonly regions: KnownRegions,
    private readonly log: Logger,
    private readonly reserveBytes: number,
  ) {}

  /** The first provision, and from then on the background. Resolves when the first is there or known not to come. */
  async start(): Promise<void> {
    this.timer = setInterval(() => this.topUp(), CHECK_MS).unref();
    await this.refill();
  }

  /** At the beginning, and when nothing is left because this mount was fenced. */
  async refill(): Promise<void> {
    await this.provide(this.reserveBytes).catch((error: unknown) => this.noteFull(error));
  }

  stop(): void {
    clearInterval(this.timer);
  }

  /** At least so many bytes more. Rejects ENOSPC when there are none, also when nobody can be asked. */
  provide(bytes: number): Promise<void> {
    return new Promise((resolve, reject) => {
      this.needs.push({ bytes, resolve, reject });
      if (!this.asking) void this.askForAll();
    });
  }

  /** After appliances have come: files are to spread over them too, not only once the room on the others is used up. */
  async spread(): Promise<void> {
    const appliances = this.regions.unprovisioned();
    if (appliances.length === 0 || this.spreading || !this.manager.alive || this.reserveBytes === 0) return;
    this.spreading = true;
    try {
      const { regions } = await this.manager.ask('provision', { bytes: appliances.length * SLAB_REGION_BYTES, appliances });
      this.regions.putProvision(regions);
      this.provisions += 1;
    } catch (error) {
      this.log.debug({ appliances, error }, 'no room on appliances that came; the others go on being used');
    } finally {
      this.spreading = false;
    }
  }

  counters(): Record<string, number> {
    return { provisions: this.provisions, reserveBytes: this.reserveBytes };
  }

  private async askForAll(): Promise<void> {
    this.asking = true;
    while (this.needs.length > 0) {
      const needs = this.needs;
      this.needs = [];
      const bytes = Math.max(
        this.reserveBytes,
        needs.reduce((sum, need) => sum + need.bytes, 0),
      );
      try {
        if (!this.manager.alive) throw new ExtmemError('ENOSPC', 'growing beyond the reserve of this mount: the manager is not reachable');
        const { regions } = await this.manager.ask('provision', { bytes });
        this.regions.putProvision(regions);
        this.provisions += 1;
        for (const need of needs) need.resolve();
      } catch (error) {
        const cause = error instanceof Error ? error : new Error(String(error));
        for (const need of needs) need.reject(cause);
      }
    }
    this.asking = false;
  }

  private topUp(): void {
    if (this.asking || !this.manager.alive || performance.now() < this.fullUntilMs) return;
    const freeBytes = freeProvisionBytes(this.native.statistics());
    if (freeBytes === undefined || freeBytes >= this.reserveBytes / 2) return;
    this.provide(this.reserveBytes - freeBytes).then(
      () => (this.warned = false),
      (error: unknown) => this.noteFull(error),
    );
  }

  private noteFull(error: unknown): void {
    this.fullUntilMs = performance.now() + FULL_PAUSE_MS;
    if (this.warned) return;
    this.warned = true;
    const why = messageOf(error);
    this.log.warn({ why }, 'no room to write to: writes that need more fail with ENOSPC until an appliance joins or files are removed');
  }
}

/** What native has left to carve from; undefined when it does not say. */
export function freeProvisionBytes(statistics: Record<string, unknown>): number | undefined {
  const extent = statistics['extent'];
  if (typeof extent !== 'object' || extent === null || !('freeBytes' in extent)) return undefined;
  return typeof extent.freeBytes === 'number' ? extent.freeBytes : undefined;
}
