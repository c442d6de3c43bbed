/**
 * The ends of shared files: one client at a time may make a file longer. It asks before it writes behind the end, and keeps that
 * right until another asks for it, so that a single appender asks once. What it wrote is told to all others, and only then is the
 * file longer: nobody sees the size without the bytes.
 *
 * Whoever had the end and did not live to tell what it wrote there leaves it unclean: what lies behind the end is cut off before
 * the file gets longer, or is given to one client alone. After a restart of this process nobody knows who had it: everybody who may
 * is asked, and it counts as unclean.
 *
 * Owner: the event loop.
 */
import { ExtmemError } from '../base/errors.js';
import type { Client, Clients } from './clients.js';
import type { Holder } from './delegations.js';
import { demand } from './demand.js';
import { KeyedMutex } from './keyed_mutex.js';

interface End {
  owner?: number;
  unclean?: boolean;
  /** Somebody may have had it when this process began. */
  unknown?: boolean;
  /** A growth that is being told. */
  publishing?: Promise<unknown>;
}

export interface EndsParts {
  clients: Clients;
  holders(ino: number): Holder[];
  fence(client: Client, why: string): Promise<void>;
  /** Cuts off what lies behind the end; waits for the file's turn. */
  clear(ino: number): Promise<void>;
}

export class Ends {
  private readonly ends = new Map<number, End>();
  private readonly claims = new KeyedMutex();

  constructor(private readonly parts: EndsParts) {}

  /** Resolves when nobody else makes the file longer, and what was written is told. */
  claim(client: Client, ino: number): Promise<void> {
    return this.claims.run(ino, async () => {
      await this.takeFromOthers(client, ino);
      await this.published(ino);
      if (this.isUnclean(ino)) await this.parts.clear(ino);
      if (!this.parts.holders(ino).some((holder) => holder.client === client.id))
        throw new ExtmemError('ESTALE', `client ${client.id} does not hold inode ${ino} any more`);
      this.endOf(ino).owner = client.id;
    });
  }

  /** Making the file longer failed half way. */
  giveUp(client: Client, ino: number): void {
    const end = this.endOf(ino);
    end.unclean = true;
    if (end.owner === client.id) delete end.owner;
  }

  /** `tell` tells the others of bytes behind the end, then makes the file longer. */
  async publish<T>(holder: Holder, ino: number, tell: () => Promise<T>): Promise<T> {
    const end = this.endOf(ino);
    if (!this.isItsOwn(holder, ino)) throw new ExtmemError('ESTALE', `client ${holder.client} has not claimed the end of inode ${ino}`);
    await this.published(ino);
    const told = tell();
    end.publishing = told;
    try {
      return await told;
    } finally {
      if (end.publishing === told) delete end.publishing;
    }
  }

  /** Whether a holder may make the file longer. */
  isItsOwn(holder: Holder, ino: number): boolean {
    const { owner, unknown } = this.endOf(ino);
    // Since before this process began: it is the one that had it.
    return owner === holder.client || (owner === undefined && unknown === true) || holder.row.mode === 'write';
  }

  /** Resolves when no growth of the file is being told. */
  async published(ino: number): Promise<void> {
    for (let told = this.ends.get(ino)?.publishing; told !== undefined; told = this.ends.get(ino)?.publishing)
      await told.then(
        () => undefined,
        () => undefined,
      );
  }

  isUnclean(ino: number): boolean {
    const end = this.ends.get(ino);
    return end?.unclean === true || end?.unknown === true;
  }

  cleared(ino: number): void {
    const end = this.endOf(ino);
    delete end.unclean;
    if (end.unknown === true) delete end.unknown;
  }

  /** One client alone has the file now. */
  released(ino: number): void {
    const end = this.ends.get(ino);
    if (end !== undefined) delete end.owner;
  }

  foundShared(ino: number): void {
    this.endOf(ino).unknown = true;
  }

  /** A client's grants are dead: what it wrote last may lie behind the end. */
  died(client: Client, held: readonly { ino: number; holder: Holder }[]): void {
    for (const { ino, holder } of held) {
      const end = this.endOf(ino);
      const mayHaveIt = holder.row.mode === 'write' || end.owner === client.id;
      if (mayHaveIt && holder.row.open === 'write') end.unclean = true;
    }
  }

  /** A holder is gone. */
  dropped(ino: number, client: number): void {
    const end = this.ends.get(ino);
    if (end?.owner === client) delete end.owner;
  }

  /** Nobody holds the file any more. Answers whether something must be cut off. */
  closed(ino: number): boolean {
    const unclean = this.isUnclean(ino);
    this.ends.delete(ino);
    return unclean;
  }

  private async takeFromOthers(client: Client, ino: number): Promise<void> {
    const end = this.endOf(ino);
    const mayHaveIt = ({ client: id, row }: Holder): boolean =>
      id !== client.id && row.open === 'write' && (end.unknown === true || end.owner === id);
    const meant = this.parts.holders(ino).filter(mayHaveIt);
    await Promise.all(meant.map((holder) => this.takeFrom(holder, ino)));
    if (end.owner !== client.id) delete end.owner;
    if (end.unknown === true) end.unclean = true;
    delete end.unknown;
  }

  private async takeFrom(holder: Holder, ino: number): Promise<void> {
    const client = this.parts.clients.get(holder.client);
    if (client === undefined) return;
    const answer = await demand(this.parts, client, { op: 'yieldEnd', ask: { ino }, deed: `give up the end of inode ${ino}` });
    if (answer?.unclean === true) this.endOf(ino).unclean = true;
  }

  private endOf(ino: number): End {
    let end = this.ends.get(ino);
    if (end === undefined) this.ends.set(ino, (end = {}));
    return end;
  }
}
