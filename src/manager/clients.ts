/**
 * The clients: who they are, whether they are here, and how they are told things.
 *
 * A client lives from its first hello to its goodbye or its fence, over any number of sessions. While its session is open its
 * lease holds; after that it has the rest of a lease to come back with its secret. Then it may be fenced, not before.
 * A restarted manager counts every client that it finds in the store as heard of just now: that is the grace in which they resume.
 * A client that resumes has dropped everything that it had cached (it could not be told meanwhile).
 *
 * Owner: the event loop.
 */
import { randomBytes, timingSafeEqual } from 'node:crypto';
import { ExtmemError } from '../base/errors.js';
import type { Logger } from '../base/logger.js';
import type { Answer, Ask, ClientRange, clientOperations, clientPushes, RegionPiece } from '../base/messages.js';
import { HEARTBEAT_MS } from '../base/protocol.js';
import { SessionFailure, type Session } from '../base/session.js';
import { limits, times } from './limits.js';
import { keys, takeNumber, type MetadataStore } from './metadata_store.js';

export type ClientSession = Session<typeof clientPushes, typeof clientOperations>;
export type HelloAsk = Ask<typeof clientOperations, 'hello'>;
type Pushes = typeof clientPushes;

/** As the store keeps it. */
interface ClientRow {
  client: number;
  generation: number;
  secret: string;
  name: string;
  hostId: string;
}

export class Client {
  session: ClientSession | undefined;
  /** Of its session, and digests of the keys that it has shown there. */
  address = '';
  keys: readonly Uint8Array[] = [];
  lastSeenAt = Date.now();
  /** Its last session ended because nothing was heard, not because its process closed it: it may be alive behind a cut. */
  fellSilent = true;
  /** live: may ask. fencing: its grants are being killed. gone: nothing of it is left. */
  state: 'live' | 'fencing' | 'gone' = 'live';
  /** Regions it was given rights to: never less than before, so that a reader's grant does not take a provision's right to write. */
  readonly granted = new Map<number, { rights: number; terms: string; capability: Buffer }>();
  /** Free pieces of its provision that it has not been told of yet. */
  freed: RegionPiece[] = [];
  tellingFreed = false;
  /** What its own requests under way may hold locked in its kernel: not to be waited for by others (see `tell`). */
  private readonly busy = new Map<string, number>();
  private readonly onBusy = new Map<string, Set<() => void>>();
  private presenceWaiters: (() => void)[] = [];

  constructor(readonly row: ClientRow) {}

  get id(): number {
    return this.row.client;
  }
  get generation(): number {
    return this.row.generation;
  }
  get name(): string {
    return this.row.name;
  }
  get isConnected(): boolean {
    return this.session?.isOpen === true;
  }
  get leaseLeftMs(): number {
    return this.isConnected ? times.leaseMs : Math.max(0, this.lastSeenAt + times.leaseMs - Date.now());
  }
  /** It has not come back within its lease: it may be fenced. */
  get isOverdue(): boolean {
    return this.state !== 'live' || this.leaseLeftMs === 0;
  }

  /** Marks things as locked by a request of this client while `body` runs. */
  async whileBusy<T>(things: string[], body: () => Promise<T>): Promise<T> {
    for (const thing of things) {
      this.busy.set(thing, (this.busy.get(thing) ?? 0) + 1);
      for (const stop of this.onBusy.get(thing) ?? []) stop();
    }
    try {
      return await body();
    } finally {
      for (const thing of things) {
        const count = (this.busy.get(thing) ?? 1) - 1;
        if (count === 0) this.busy.delete(thing);
        else this.busy.set(thing, count);
      }
    }
  }

  /** Resolves when a request of this client begins that locks one of these. */
  busyWith(things: readonly string[]): { promise: Promise<'busy'>; cancel(): void } {
    let stop: () => void = () => undefined;
    const promise = new Promise<'busy'>((resolve) => (stop = () => resolve('busy')));
    for (const thing of things) {
      if (this.busy.has(thing)) stop();
      this.onBusy.set(thing, (this.onBusy.get(thing) ?? new Set()).add(stop));
    }
    const cancel = (): void => {
      for (const thing of things) {
        this.onBusy.get(thing)?.delete(stop);
        if (this.onBusy.get(thing)?.size === 0) this.onBusy.delete(thing);
      }
    };
    return { promise, cancel };
  }

  /** Resolves when its session, or its end, comes; at the latest after so many milliseconds. */
  async waitForPresence(limitMs: number): Promise<void> {
    await new Promise<void>((resolve) => {
      const timer = setTimeout(resolve, limitMs).unref();
      this.presenceWaiters.push(() => {
        clearTimeout(timer);
        resolve();
      });
    });
  }

  /** In a later turn of the event loop, so that the answer to its hello is sent before anything else. */
  tellPresence(): void {
    const waiters = this.presenceWaiters;
    this.presenceWaiters = [];
    setImmediate(() => {
      for (const waiter of waiters) waiter();
    });
  }
}

export type Told<Name extends keyof Pushes> =
  | { status: 'answered'; answer: Answer<Pushes, Name> }
  | { status: 'resumed' } // it came back on a new session: whatever it had cached is dropped
  | { status: 'busy' } // it does something itself that would make it answer late
  | { status: 'failed'; error: ExtmemError } // it answered with an error
  | { status: 'silent' } // connected, no answer in time
  | { status: 'gone' }; // its lease is over, or it is fenced already

export interface TellOptions {
  limitMs: number;
  /** Ask again on a new session instead of answering `resumed`. */
  again?: boolean;
  /** Do not wait once the client itself locks one of these (its kernel could not do what it is asked before that ends). */
  unlessBusyWith?: readonly string[];
}

export class Clients {
  private readonly clients = new Map<number, Client>();
  /** Ids that are taken for clients which are not in the map yet. */
  private readonly joining = new Set<number>();

  constructor(
    private readonly store: MetadataStore,
    private readonly log: Logger,
  ) {
    for (const [, row] of store.scan<ClientRow>(keys.clients)) this.clients.set(row.client, new Client(row));
  }

  get(id: number): Client | undefined {
    return this.clients.get(id);
  }

  all(): Iterable<Client> {
    return this.clients.values();
  }

  get count(): number {
    return this.clients.size;
  }

  /**
   * Every id that was given to a client and is no live one's: what appliances refuse. Ids are never given again, so these are no more
   * ranges than there are live clients, and one, however many have come and gone; nobody needs to keep a list of the dead.
   */
  dead(): ClientRange[] {
    const last = (this.store.get<number>(keys.counter('client')) ?? 1) - 1;
    const live = [...this.joining];
    for (const client of this.clients.values()) if (client.state === 'live') live.push(client.id);
    live.sort((one, other) => one - other);
    const ranges: ClientRange[] = [];
    let first = 1;
    for (const id of [...live, last + 1]) {
      if (id > first) ranges.push({ first, last: id - 1 });
      first = id + 1;
    }
    return ranges;
  }

  /** The client that this hello resumes, or a new one. */
  async welcome(ask: HelloAsk, session: ClientSession): Promise<{ client: Client; resumed: boolean }> {
    const known = ask.resume === undefined ? undefined : this.clients.get(ask.resume.client);
    if (known !== undefined && ask.resume !== undefined && known.state === 'live' && isSame(known.row, ask.resume)) {
      this.attach(known, session);
      this.log.info({ client: known.id, name: known.row.name }, 'client resumed its session');
      return { client: known, resumed: true };
    }
    if (this.clients.size >= limits.clients) throw new ExtmemError('EBUSY', `${limits.clients} clients are connected already`);
    const secret = randomBytes(16).toString('hex');
    let id = 0; // known when transact() returns: its body runs at once
    const joined = this.store.transact((tx) => {
      id = takeNumber(tx, 'client');
      this.joining.add(id);
      const fresh: ClientRow = { client: id, generation: 1, secret, name: ask.name, hostId: ask.hostId };
      tx.put(keys.client(id), fresh);
      return fresh;
    });
    let client: Client;
    try {
      client = new Client(await joined);
      this.clients.set(client.id, client);
    } finally {
      this.joining.delete(id);
    }
    this.attach(client, session);
    this.log.info({ client: client.id, name: ask.name }, 'client joined');
    return { client, resumed: false };
  }

  /** Its grants are dead or given back: it is forgotten. */
  async remove(client: Client): Promise<void> {
    client.state = 'gone';
    await this.store.transact((tx) => tx.remove(keys.client(client.id)));
    this.clients.delete(client.id);
    client.tellPresence();
  }

  /** Asks something of a client and waits for no longer than it can be alive. */
  async tell<Name extends keyof Pushes>(client: Client, op: Name, ask: Ask<Pushes, Name>, options: TellOptions): Promise<Told<Name>> {
    const things = options.unlessBusyWith;
    if (things === undefined) return this.tellAnswered(client, op, ask, options);
    const busy = client.busyWith(things);
    try {
      return await Promise.race([this.tellAnswered(client, op, ask, options), busy.promise.then((): Told<Name> => ({ status: 'busy' }))]);
    } finally {
      busy.cancel();
    }
  }

  private async tellAnswered<Name extends keyof Pushes>(
    client: Client,
    op: Name,
    ask: Ask<Pushes, Name>,
    options: TellOptions,
  ): Promise<Told<Name>> {
    const until = Date.now() + options.limitMs;
    while (client.state === 'live') {
      const { session } = client;
      if (session?.isOpen === true) {
        try {
          return { status: 'answered', answer: await session.call(op, ask, { timeoutMs: Math.max(1, until - Date.now()) }) };
        } catch (error) {
          if (!(error instanceof ExtmemError)) throw error;
          if (!(error instanceof SessionFailure)) return { status: 'failed', error };
          if (error.reason === 'timeout') return { status: 'silent' };
          continue; // the session ended: it has the rest of its lease to come back
        }
      }
      const leftMs = Math.min(client.leaseLeftMs, Math.max(0, until - Date.now()));
      if (leftMs === 0) return { status: client.isOverdue ? 'gone' : 'silent' };
      await client.waitForPresence(leftMs);
      if (client.isConnected && options.again !== true) return { status: 'resumed' };
    }
    return { status: 'gone' };
  }

  private attach(client: Client, session: ClientSession): void {
    const before = client.session;
    client.session = session;
    client.lastSeenAt = Date.now();
    before?.close('another session of this client has taken over');
    void session.closed.then(() => {
      if (client.session !== session) return;
      client.session = undefined;
      client.fellSilent = session.silentMs > HEARTBEAT_MS;
      client.lastSeenAt = Date.now() - Math.min(times.leaseMs, session.silentMs);
    });
    client.tellPresence();
  }
}

function isSame(row: ClientRow, resume: { generation: number; secret: string }): boolean {
  const given = Buffer.from(resume.secret);
  const kept = Buffer.from(row.secret);
  return row.generation === resume.generation && given.length === kept.length && timingSafeEqual(given, kept);
}
