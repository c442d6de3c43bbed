/**
 * Memory that is moving to this appliance, as the manager asks for it. Nothing of a copy goes on once the session that it was asked on
 * has ended, nor in regions that are punched or destroyed: whoever has those next writes there.
 *
 * Owner: the event loop. The work itself is native's (native/move).
 */
import type { Ask, appliancePushes, RegionPiece } from '../base/messages.js';
import type { RegionServer } from '../binding/index.js';

export class Copying {
  private readonly underWay = new Set<ReadonlySet<number>>();

  constructor(private readonly server: RegionServer) {}

  async copy({ client, generation, key, limitMs, origins, pieces }: Ask<typeof appliancePushes, 'copy'>): Promise<void> {
    const regions = new Set(pieces.map(({ to }) => to.region));
    this.underWay.add(regions);
    try {
      await this.server.copyPieces({
        ...{ client, clientGeneration: generation, clientKey: key, limitMs, origins },
        pieces: pieces.map(({ to, from }) => ({ ...to, sources: from })),
      });
    } finally {
      this.underWay.delete(regions);
    }
  }

  /** Settles when nothing is copied there. */
  async stopIn(some: readonly Pick<RegionPiece, 'region'>[]): Promise<void> {
    if ([...this.underWay].some((regions) => some.some(({ region }) => regions.has(region)))) await this.stop();
  }

  async stop(): Promise<void> {
    if (this.underWay.size > 0) await this.server.stopCopying();
  }
}
