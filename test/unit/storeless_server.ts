/** The part of a region server, for tests, that has no backing store and protects nothing. */
import type { NativeRegionInfo, RegionServerOptions } from '../../src/binding/index.js';

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
  persist(): Promise<{ freedBytes: number; heldBytes: number }> {
    return Promise.resolve({ freedBytes: 0, heldBytes: 0 });
  }
  persistInBackground(): Promise<void> {
    return Promise.resolve();
  }
  persistLast(): Promise<void> {
    return Promise.resolve();
  }
  setAccess(): Promise<void> {
    return Promise.resolve();
  }
  endOverdue(): Promise<void> {
    return Promise.resolve();
  }
  setLinkAddresses(): void {}
  settleFreed(): Promise<void> {
    return Promise.resolve();
  }
  settleDestroyed(): Promise<void> {
    return Promise.resolve();
  }
  sumPieces(): Promise<Uint8Array[]> {
    return Promise.resolve([]);
  }
  copyPieces(): Promise<void> {
    return Promise.resolve();
  }
  stopCopying(): Promise<void> {
    return Promise.resolve();
  }
}

/** Of a region without bytes. */
export function emptyRegion(region: number, bytes: number): NativeRegionInfo {
  const usage = { operations: 0, bytesRead: 0, bytesWritten: 0, toldChunks: 0, lastAccessMs: 0, given: false, hot: [] };
  return { region, bytes, residentBytes: 0, thin: false, absentBytes: 0, damagedPages: 0, accessVersion: 0, usage };
}
