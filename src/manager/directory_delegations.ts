/**
 * Directory delegations: the one client that may make and remove files in a directory by itself and tell of it later
 * (name_batches.ts). Whoever else wants to see the directory, or a file that was made in it so, takes it back first.
 *
 * Invariants: a directory has one holder or none; nobody else has names in it, its attributes, or files of it cached or open while
 * it has one. What is held is written down before it is told, and survives this process. A holder that does not answer is fenced.
 */
import type { Client, Clients } from './clients.js';
import { demand } from './demand.js';
import type { Inode } from './inode.js';
import type { KeyedMutex } from './keyed_mutex.js';
import { keys, type MetadataStore, type Transaction } from './metadata_store.js';

export interface DirectoryDelegationParts {
  store: MetadataStore;
  clients: Clients;
  /** Of inodes: a directory is not recalled before its maker knows that it has it. */
  turns: KeyedMutex;
  fence(client: Client, why: string): Promise<void>;
}

export class DirectoryDelegations {
  private readonly holders = new Map<number, number>();

  constructor(private readonly parts: DirectoryDelegationParts) {
    for (const [key, client] of parts.store.scan<number>(keys.directoryHolders)) this.holders.set(keys.firstNumber(key), client);
  }

  isHeldBy(directory: number, client: Client): boolean {
    return this.holders.get(directory) === client.id;
  }

  put(tx: Transaction, directory: number, client: Client): void {
    tx.put(keys.directoryHolder(directory), client.id);
    this.holders.set(directory, client.id);
  }

  /** It was given back, or is no more. */
  drop(tx: Transaction, directory: number): void {
    if (!this.holders.delete(directory)) return;
    tx.remove(keys.directoryHolder(directory));
  }

  /** Does what looks at these things when nobody else holds a directory of theirs: at once, if so. */
  seeing<T>(client: Client | undefined, things: () => readonly (Inode | number | undefined)[], look: () => T): T | Promise<Awaited<T>> {
    const inTheWay = this.holders.size === 0 ? [] : this.inTheWay(client, things());
    if (inTheWay.length === 0) return look();
    return this.recall(client, inTheWay).then(() => this.seeing(client, things, look)) as Promise<Awaited<T>>;
  }

  /** When it resolves nobody else holds these. */
  async recall(client: Client | undefined, directories: readonly number[]): Promise<void> {
    await Promise.all(
      [...new Set(directories)].map((directory) =>
        this.parts.turns.run(directory, async () => {
          if (this.isOthers(directory, client)) await this.recallOne(directory);
        }),
      ),
    );
  }

  /** When it resolves this client holds none that it held, and nothing done in them is not known here. */
  async recallFrom(client: Client): Promise<void> {
    await this.recall(undefined, this.heldBy(client));
  }

  async giveBack(client: Client, directories: readonly number[]): Promise<void> {
    const given = directories.filter((directory) => this.isHeldBy(directory, client));
    await this.parts.store.transact((tx) => {
      for (const directory of given) this.drop(tx, directory);
    });
  }

  /** Its grants are dead, or it left: what it did not tell of in time has not happened. */
  async dropClient(client: Client): Promise<void> {
    const held = this.heldBy(client);
    await this.parts.store.transact((tx) => {
      for (const directory of held) this.drop(tx, directory);
      tx.remove(keys.nameBatch(client.id));
    });
  }

  /** At start: directories of clients that no longer exist. */
  async clean(): Promise<void> {
    const { store, clients } = this.parts;
    await store.transact((tx) => {
      for (const [directory, client] of [...this.holders]) if (clients.get(client) === undefined) this.drop(tx, directory);
    });
  }

  /** Of these directories, and of what these inodes are at home in, those that others than `client` hold. */
  private inTheWay(client: Client | undefined, things: readonly (Inode | number | undefined)[]): number[] {
    return things.flatMap((thing) => {
      const directory = typeof thing === 'object' ? directoryOf(thing) : thing;
      return directory !== undefined && this.isOthers(directory, client) ? [directory] : [];
    });
  }

  private isOthers(directory: number, client: Client | undefined): boolean {
    const holder = this.holders.get(directory);
    return holder !== undefined && holder !== client?.id;
  }

  private heldBy(client: Client): number[] {
    return [...this.holders].filter(([, holder]) => holder === client.id).map(([directory]) => directory);
  }

  private async recallOne(directory: number): Promise<void> {
    const { clients, store } = this.parts;
    const holder = this.holders.get(directory);
    const client = holder === undefined ? undefined : clients.get(holder);
    if (client === undefined) return;
    const answer = await demand(this.parts, client, {
      op: 'recallDirectory',
      ask: { directory },
      deed: `give up directory ${directory}`,
      stands: () => this.isHeldBy(directory, client), // neither given back nor fenced meanwhile
    });
    if (answer !== undefined) await store.transact((tx) => this.drop(tx, directory));
  }
}

function directoryOf(inode: Inode): number | undefined {
  return inode.kind === 'directory' ? inode.ino : inode.home;
}
