/**
 * Takes what the holders of directories did in them, batch by batch: one transaction each, so that what survives is what was
 * done up to some moment. A batch that comes again after a lost session changes nothing.
 */
import { ExtmemError } from '../base/errors.js';
import type { Answer, Ask, clientOperations, NameOperation } from '../base/messages.js';
import type { Client } from './clients.js';
import type { Delegations } from './delegations.js';
import type { DirectoryDelegations } from './directory_delegations.js';
import type { Entry, Inode } from './inode.js';
import type { Interest } from './interest.js';
import { limits } from './limits.js';
import { isTaken, keys, type MetadataStore, type Transaction } from './metadata_store.js';
import type { Changes, Names } from './names.js';
import type { Reclaimer } from './reclaim.js';

type Operations = typeof clientOperations;
type Create = Extract<NameOperation, { kind: 'create' }>;
type Unlink = Extract<NameOperation, { kind: 'unlink' }>;

/** As the store keeps it. `refused`: for a batch whose answer was lost. */
interface TakenBatches {
  readonly last: number;
  readonly refused: readonly { sequence: number; index: number; code: string }[];
}

export interface NameBatchParts {
  store: MetadataStore;
  names: Names;
  delegations: Delegations;
  directories: DirectoryDelegations;
  interest: Interest;
  reclaimer: Reclaimer;
}

export class NameBatches {
  constructor(private readonly parts: NameBatchParts) {}

  async take(client: Client, { sequence, operations }: Ask<Operations, 'names'>): Promise<Answer<Operations, 'names'>> {
    const { store, interest, reclaimer } = this.parts;
    if (operations.length > limits.operationsPerBatch)
      throw new ExtmemError('EINVAL', `${operations.length} operations at once are more than ${limits.operationsPerBatch}`);
    const before = store.get<TakenBatches>(keys.nameBatch(client.id)) ?? { last: 0, refused: [] };
    if (sequence <= before.last) {
      await store.settled();
      return { failed: before.refused.filter((one) => one.sequence === sequence).map(({ index, code }) => ({ index, code })) };
    }
    const { failed, changes, tickets } = await store.transact((tx) => {
      const failed: { index: number; code: string }[] = [];
      const changes: Changes = { entries: [], attributes: [], parents: [] };
      operations.forEach((operation, index) => {
        const code = this.apply(tx, client, operation, changes);
        if (code !== undefined) failed.push({ index, code });
      });
      const refused = [...before.refused, ...failed.map((one) => ({ sequence, ...one }))].slice(-limits.refusalsRemembered);
      tx.put(keys.nameBatch(client.id), { last: sequence, refused } satisfies TakenBatches);
      return { failed, changes, tickets: reclaimer.ticketsOf(tx) };
    });
    await interest.tell(client, changes);
    reclaimer.start(tickets);
    return { failed };
  }

  /** Answers the code of what was not possible. */
  private apply(tx: Transaction, client: Client, operation: NameOperation, changes: Changes): string | undefined {
    try {
      const { parent } = operation;
      if (!this.parts.directories.isHeldBy(parent, client))
        throw new ExtmemError('ESTALE', `client ${client.id} does not hold directory ${parent}`);
      const changed = operation.kind === 'create' ? this.create(tx, client, operation) : this.unlink(tx, client, operation);
      changes.entries.push(...changed.entries);
      return undefined;
    } catch (error) {
      if (error instanceof ExtmemError) return error.code;
      throw error;
    }
  }

  private create(tx: Transaction, client: Client, { parent, name, ino, mode, uid, gid, at }: Create): Changes {
    const { names, delegations, interest } = this.parts;
    if (!isTaken(tx, 'ino', ino) || tx.get<Inode>(keys.inode(ino)) !== undefined)
      throw new ExtmemError('EINVAL', `inode number ${ino} is not the client's to give`);
    const ask = { parent, name, kind: 'file', mode, uid, gid, rdev: 0, open: true, exclusive: true } as const;
    const { inode, changes } = names.create(tx, ask, { ino, at });
    delegations.putNew(tx, client, inode);
    // From now on it is told of changes, as of anything that it cached.
    interest.noteEntry(client, parent, name);
    interest.noteAttributes(client, ino);
    return changes;
  }

  private unlink(tx: Transaction, client: Client, { parent, name, ino, released, record, at }: Unlink): Changes {
    const { names, delegations } = this.parts;
    const there = tx.get<Entry>(keys.entry(parent, name))?.ino;
    if (there !== ino) throw new ExtmemError('ESTALE', `'${name}' in directory ${parent} is inode ${String(there)}, not ${ino}`);
    const { changes } = names.unlink(tx, { parent, name, directory: false, at }, client);
    if (released) delegations.releaseIn(tx, client, ino, record);
    return changes;
  }
}
