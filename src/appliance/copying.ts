/**
 * Memory that is moving to this appliance, as the manager asks for it. Nothing of a copy goes on once the session that it was asked on
 * has ended, nor in what is punched or destroyed: whoever has that next writes there.
 *
 * Owner: the event loop. The work itself is native's (native/move).
 */
import type { Ask, appliancePushes, RegionPiece } from '../base/messages.js';
import type { RegionServer } from '../binding/index.js';

export class Copying {
  private readonly underWay = new Set<readonly RegionPiece[]>();

  constructor(private readonly server: RegionServer) {}

  async copy({ client, generation, key, limitMs, origins, pieces }: Ask<typeof appliancePushes, 'copy'>): Promise<void> {
    const targets = pieces.map(({ to }) => to);
    this.underWay.add(targets);
    try {
      await this.server.copyPieces({
        ...{ client, clientGeneration: generation, clientKey: key, limitMs, origins },
        pieces: pieces.map(({ to, from }) => ({ ...to, sources: from })),
      });
    } finally {
      this.underWay.delete(targets);
    }
  }

  /** Settles when nothing is copied there. */
  async stopIn(some: readonly RegionPiece[]): Promise<void> {
    const isMeant = (target: RegionPiece): boolean => some.some((piece) => overlap(piece, target));
    if ([...this.underWay].some((targets) => targets.some(isMeant))) await this.stop();
  }

  async stop(): Promise<void> {
    if (this.underWay.size > 0) await this.server.stopCopying();
  }
}

function overlap(one: RegionPiece, other: RegionPiece): boolean {
  return one.region === other.region && one.offset < other.offset + other.length && other.offset < one.offset + one.length;
}
