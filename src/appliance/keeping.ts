/**
 * The backing store as the appliance uses it: what was freed is freed there before anybody is told; changed pages are persisted in
 * the background where that is asked for, and everything at the end. The work itself is native's (native/region/keeper.h).
 *
 * Owner: the event loop.
 */
import { messageOf } from '../base/errors.js';
import type { Logger } from '../base/logger.js';
import type { Freed, RegionPiece, StoreHealth, StoreInfo } from '../base/messages.js';
import { formatSize } from '../base/size.js';
import type { RegionServer, RegionStoreOptions } from '../binding/index.js';
import { storeDevice } from './store_device.js';

export interface StoreSettings {
  path: string;
  limitBytes: number;
  compress: boolean;
  key?: Uint8Array | undefined;
  lazily: boolean;
  /** Changed pages are persisted in the background, so often. */
  continuouslyMs?: number | undefined;
  /** And no faster than this. */
  bytesPerSecond?: number | undefined;
  /** How long the battery lasts that persisting at a power failure runs on. */
  batterySeconds?: number | undefined;
}

/** Until persisting was measured here: what a plain disk does. */
const ASSUMED_NS_PER_MEBIBYTE = 10_000_000;
const WARN_EVERY_MS = 600_000;
const TELL_EVERY_MS = 1000;

export class Keeping {
  private server: RegionServer | undefined;
  private timer: NodeJS.Timeout | undefined;
  private working: Promise<void> = Promise.resolve();
  private persistedAt = 0;
  private warnedAt = -Infinity;
  private toldAt = 0;
  private failure = '';
  private ending = false;
  private readonly persisting = new Set<readonly RegionPiece[]>();
  /** Regions that gave memory back: what of them is in the store stays there until it is asked for. */
  private readonly freed = new Set<number>();

  constructor(
    private readonly settings: StoreSettings,
    private readonly log: Logger,
  ) {}

  options(): RegionStoreOptions {
    const { path, limitBytes, compress, key, lazily, bytesPerSecond = 0 } = this.settings;
    return {
      path,
      limitBytes,
      compress,
      lazily,
      bytesPerSecond,
      ...(key === undefined ? {} : { key }),
      onProgress: (done, total) => this.tell(done, total),
    };
  }

  begin(server: RegionServer): void {
    this.server = server;
    this.persistedAt = performance.now();
    const restored = server.restored();
    if (restored.length > 0) {
      const bytes = restored.reduce((sum, region) => sum + region.bytes, 0);
      const behind = restored.filter(({ exact }) => !exact).length;
      this.log.info({ regions: restored.length, bytes, behind }, `${formatSize(bytes)} came back from the backing store`);
    }
    const { continuouslyMs } = this.settings;
    if (continuouslyMs !== undefined) this.timer = setTimeout(() => this.persistAgain(continuouslyMs), continuouslyMs);
  }

  /** [] means all. */
  async persist(pieces: RegionPiece[], free: boolean): Promise<Freed> {
    this.persisting.add(pieces);
    try {
      const freed = (await this.server?.persist(pieces, free)) ?? { freedBytes: 0, heldBytes: 0 };
      this.failure = '';
      if (free) for (const { region } of pieces.length === 0 ? (this.server?.listRegions() ?? []) : pieces) this.freed.add(region);
      return freed;
    } catch (error) {
      this.failure = messageOf(error);
      throw error;
    } finally {
      this.persisting.delete(pieces);
    }
  }

  isPersisting(region: number): boolean {
    return [...this.persisting].some((pieces) => pieces.length === 0 || pieces.some((piece) => piece.region === region));
  }

  isFreed(region: number): boolean {
    return this.freed.has(region);
  }

  async punched(pieces: readonly RegionPiece[]): Promise<void> {
    await this.server?.settleFreed([...pieces]);
  }

  async destroyed(regions: readonly number[]): Promise<void> {
    for (const region of regions) this.freed.delete(region);
    if (regions.length > 0) await this.server?.settleDestroyed([...regions]);
  }

  /** Nobody is served from here on; everything is persisted. What fails is told, and what was persisted before stays. */
  async finish(): Promise<void> {
    this.ending = true;
    clearTimeout(this.timer);
    const { server } = this;
    if (server === undefined) return;
    const began = performance.now();
    this.log.info({ bytes: server.memory().residentBytes }, 'persisting everything before the end');
    try {
      await server.persistLast();
      await this.working;
      this.log.info({ seconds: Math.round(performance.now() - began) / 1000 }, 'everything is persisted');
    } catch (error) {
      this.log.error(
        { error: messageOf(error) },
        'not everything could be persisted: what is missing is behind when this appliance starts again',
      );
    }
  }

  describe(): StoreInfo {
    const status = this.server?.storeStatus();
    const { batterySeconds, continuouslyMs, bytesPerSecond } = this.settings;
    const nsPerMebibyte = (status?.nsPerMebibyte ?? 0) || ASSUMED_NS_PER_MEBIBYTE;
    const persistSeconds = Math.round(((this.server?.memory().residentBytes ?? 0) / 2 ** 20) * nsPerMebibyte * 1e-7) / 100;
    this.warnOfBattery(persistSeconds);
    return {
      usedBytes: status?.usedBytes ?? 0,
      limitBytes: Math.min(status?.limitBytes ?? 0, Number.MAX_SAFE_INTEGER),
      absentBytes: status?.absentBytes ?? 0,
      damagedPages: status?.damagedPages ?? 0,
      persistSeconds,
      ...(continuouslyMs === undefined ? {} : { lagSeconds: Math.round(performance.now() - this.persistedAt) / 1000 }),
      ...(continuouslyMs === undefined || bytesPerSecond === undefined ? {} : { bytesPerSecond }),
      ...(batterySeconds === undefined ? {} : { batterySeconds }),
      broken: (status?.broken ?? '') || this.failure,
    };
  }

  health(): StoreHealth {
    const { usedBytes, persistSeconds, batterySeconds } = this.describe();
    return {
      path: this.settings.path,
      ...storeDevice(this.settings.path),
      usedBytes,
      persistSeconds,
      ...(batterySeconds === undefined ? {} : { batterySeconds }),
      failure: this.failure,
      broken: this.server?.storeStatus()?.broken ?? '',
    };
  }

  private persistAgain(intervalMs: number): void {
    const began = performance.now();
    const all: RegionPiece[] = [];
    this.persisting.add(all);
    this.working = Promise.resolve(this.server?.persistInBackground()).then(
      () => {
        this.persistedAt = began;
        this.failure = '';
      },
      (error: unknown) => {
        const why = messageOf(error);
        if (why !== this.failure) this.log.error({ error: why }, 'persisting in the background failed; it is tried again');
        this.failure = why;
      },
    );
    void this.working.then(() => {
      this.persisting.delete(all);
      if (!this.ending) this.timer = setTimeout(() => this.persistAgain(intervalMs), intervalMs);
    });
  }

  private warnOfBattery(persistSeconds: number): void {
    const { batterySeconds } = this.settings;
    if (batterySeconds === undefined || persistSeconds <= batterySeconds || performance.now() < this.warnedAt + WARN_EVERY_MS) return;
    this.warnedAt = performance.now();
    this.log.warn(
      { persistSeconds, batterySeconds },
      'persisting everything takes longer than the battery lasts: at a power failure part of it would be lost',
    );
  }

  private tell(doneBytes: number, totalBytes: number): void {
    if (performance.now() < this.toldAt + TELL_EVERY_MS) return;
    this.toldAt = performance.now();
    this.log.info({ doneBytes, totalBytes }, `persisted ${formatSize(doneBytes)} of about ${formatSize(totalBytes)}`);
  }
}
