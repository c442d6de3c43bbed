/** The part of a region server, for tests, that has no backing store. */
import type { RegionServerOptions } from '../../src/binding/index.js';

export class StorelessServer {
  constructor(readonly options: RegionServerOptions) {}

  get incarnation(): number {
    return this.options.incarnation;
  }
  restored(): [] {
    return [];
  }
  storeStatus(): undefined {
    return undefined;
  }
  persist(): Promise<void> {
    return Promise.resolve();
  }
  persistLast(): Promise<void> {
    return Promise.resolve();
  }
  settleFreed(): Promise<void> {
    return Promise.resolve();
  }
  settleDestroyed(): Promise<void> {
    return Promise.resolve();
  }
}
