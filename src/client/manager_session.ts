/**
 * This process's session with the manager: opened with a token, kept alive, and resumed after the manager (or the way to it)
 * was dead. While it is dead every ask fails at once with EIO, but that calls on names wait for a while: a manager that is restarted
 * is back soon. Open files need none.
 *
 * Invariants: at most one link at a time; the lease counts from when a renewal was *sent*. A client that the manager does not
 * know any more was fenced: its id and key are void for good, and this process goes on as the new client that the manager has
 * made of it (`rejoined`).
 */
import { setTimeout as sleep } from 'node:timers/promises';
import { codeOf, ExtmemError, messageOf } from '../base/errors.js';
import type { Logger } from '../base/logger.js';
import { managerUnreachable } from '../base/manager_http.js';
import { clientOperations, clientPushes, type Answer, type Ask } from '../base/messages.js';
import { PROTOCOL_VERSION } from '../base/protocol.js';
import { connectSession, sessionUrl, type Session } from '../base/session.js';
import type { ClientOperations, ClientPushes, Manager, PushHandlers } from './manager.js';

/** Renewals are this many to a lease: one may be lost. */
const RENEWALS_PER_LEASE = 4;
const FIRST_RETRY_MS = 50;
const LAST_RETRY_MS = 1000;
const HELLO_TIMEOUT_MS = 4000;
/** So long after it died calls on names wait for it. */
const PATIENCE_MS = 1500;
/** What calls on names ask. What the data path asks goes on without the manager, or fails, at once. */
const patient: ReadonlySet<string> = new Set<keyof ClientOperations>([
  'lookup',
  'getattr',
  'setattr',
  'readlink',
  'readdir',
  'create',
  'link',
  'unlink',
  'rename',
  'getxattrs',
  'setxattr',
  'statfs',
  'acquire',
  'release',
  'getlk',
  'setlk',
]);
/** A manager that lives may have to fence somebody first (a recall's time-out, then the appliances); a dead link ends the wait sooner. */
const ASK_TIMEOUT_MS = 30_000;

export interface SessionOptions {
  /** host:port or URL; https means TLS. */
  manager: string;
  token: string;
  /** PEM of the authority that the manager's certificate is checked against. */
  ca?: string | Buffer;
  name: string;
  hostId: string;
  /** Of allocations whose access parameters ask for one. */
  keys?: readonly string[];
  log: Logger;
}

export type Hello = Answer<ClientOperations, 'hello'>;

/** What the layers above do when the session's state changes. */
export interface SessionEvents {
  /** The manager, or the way to it, is gone: nothing that it told us to cache may be believed any longer. The session is not
   *  resumed before this is done: a client that resumes has dropped what it had cached. */
  lost(): Promise<void>;
  /** It is back and holds our delegations as before. Runs before any other ask goes out. */
  resumed(hello: Hello): Promise<void>;
  /** It is back and has fenced us: our delegations are void, and we are the client of this hello from now on. Runs before any other
   *  ask goes out. */
  rejoined(hello: Hello): Promise<void>;
  /** It is back as another cluster's: none of our files is there. The session is over. */
  fenced(why: string): void;
}

type Link = Session<ClientOperations, ClientPushes>;

/** Opens a session with the manager (hello). Rejects with a code and a message that says what to do. */
export async function connectClient(options: SessionOptions): Promise<ManagerSession> {
  const session = new ManagerSession(options);
  await session.open();
  return session;
}

export class ManagerSession implements Manager {
  private link: Link | undefined;
  private first: Hello | undefined;
  private state: 'opening' | 'alive' | 'dead' | 'over' = 'opening';
  private resuming = false;
  private deadSinceMs = 0;
  /** Of those who wait for it to be alive again, or over. */
  private readonly waiting = new Set<() => void>();
  private leaseFromMs = 0;
  private renewal: NodeJS.Timeout | undefined;
  private readonly stop = new AbortController();
  private reconnects = 0;
  private rejoins = 0;
  private readonly asks: Record<string, number> = {};

  private pushes: Promise<PushHandlers>;
  private readonly setPushes: (handlers: PushHandlers) => void;
  private events: SessionEvents | undefined;

  constructor(private readonly options: SessionOptions) {
    let set: (handlers: PushHandlers) => void = () => undefined;
    this.pushes = new Promise((resolve) => (set = resolve));
    this.setPushes = set;
  }

  /** What the manager said when we became the client that we are. */
  get hello(): Hello {
    if (this.first === undefined) throw new Error('the session was not opened');
    return this.first;
  }

  get alive(): boolean {
    return this.state === 'alive';
  }

  leaseLeftMs(): number {
    return this.state === 'alive' ? this.leaseFromMs + this.hello.leaseMs - performance.now() : 0;
  }

  /** From now on pushes are handled (those that came earlier have waited), and changes of state are told. */
  serve(pushes: PushHandlers, events: SessionEvents): void {
    this.events = events;
    this.setPushes(pushes);
    if (this.state === 'dead') void this.tellLost();
  }

  async ask<Name extends keyof ClientOperations>(name: Name, ask: Ask<ClientOperations, Name>): Promise<Answer<ClientOperations, Name>> {
    if (!this.isReachable() && patient.has(name)) await this.untilReachable();
    const link = this.link;
    if (link === undefined || !this.isReachable()) throw this.unreachable(name);
    this.asks[name] = (this.asks[name] ?? 0) + 1;
    // Only a wait for a lock may last as long as it likes.
    const waits = name === 'setlk' && 'wait' in ask && ask.wait;
    return link.call(name, ask, { timeoutMs: waits ? 0 : ASK_TIMEOUT_MS });
  }

  async open(): Promise<void> {
    try {
      this.first = await this.dial();
    } catch (error) {
      throw this.explain(error);
    }
    this.becomeAlive();
  }

  /** Says goodbye (delegations and provisions go back at once) and ends the session. Idempotent. */
  async close(options: { goodbye: boolean }): Promise<void> {
    if (this.state === 'over') return;
    if (options.goodbye && this.alive) await this.ask('goodbye', {}).catch(() => undefined);
    this.end();
    this.link?.close();
    this.link = undefined;
  }

  counters(): Record<string, unknown> {
    return {
      state: this.state,
      reconnects: this.reconnects,
      rejoins: this.rejoins,
      asks: this.asks,
      leaseLeftMs: Math.max(0, Math.round(this.leaseLeftMs())),
    };
  }

  private async dial(): Promise<Hello> {
    const { manager, token, ca, log } = this.options;
    const tables = { out: clientOperations, in: clientPushes };
    const link = await connectSession(sessionUrl(manager, 'clients'), token, tables, this.handlers(), {
      ...(ca === undefined ? {} : { ca }),
      timeoutMs: HELLO_TIMEOUT_MS,
      onError: (error) => log.error({ error }, 'handling what the manager sent failed'),
    });
    const sentAtMs = performance.now();
    try {
      const { name, hostId, keys = [] } = this.options;
      const before = this.first;
      const resume = before === undefined ? undefined : { client: before.client, generation: before.generation, secret: before.secret };
      const hello = await link.call(
        'hello',
        {
          version: PROTOCOL_VERSION,
          name,
          hostId,
          ...(keys.length === 0 ? {} : { keys: [...keys] }),
          ...(resume === undefined ? {} : { resume }),
        },
        { timeoutMs: HELLO_TIMEOUT_MS },
      );
      this.link = link;
      this.leaseFromMs = sentAtMs;
      void link.closed.then((reason) => this.linkEnded(link, reason));
      return hello;
    } catch (error) {
      link.close();
      throw error;
    }
  }

  private handlers(): PushHandlers {
    // One method per push, so that a push added to the table and not handled does not compile.
    return {
      recall: async (ask) => (await this.pushes).recall(ask),
      recallDirectory: async (ask) => (await this.pushes).recallDirectory(ask),
      grant: async (ask) => (await this.pushes).grant(ask),
      attributes: async (ask) => (await this.pushes).attributes(ask),
      invalidateEntries: async (ask) => (await this.pushes).invalidateEntries(ask),
      invalidate: async (ask) => (await this.pushes).invalidate(ask),
      pauseWriters: async (ask) => (await this.pushes).pauseWriters(ask),
      yieldEnd: async (ask) => (await this.pushes).yieldEnd(ask),
      access: async (ask) => (await this.pushes).access(ask),
      retire: async (ask) => (await this.pushes).retire(ask),
      freed: async (ask) => (await this.pushes).freed(ask),
      appliances: async (ask) => (await this.pushes).appliances(ask),
    };
  }

  private isReachable(): boolean {
    return this.state === 'alive' || this.resuming;
  }

  /** Or until it has been dead for long enough. */
  private async untilReachable(): Promise<void> {
    const leftMs = this.deadSinceMs + PATIENCE_MS - performance.now();
    if (this.state !== 'dead' || leftMs <= 0) return;
    await new Promise<void>((done) => {
      const end = (): void => {
        clearTimeout(timer);
        this.waiting.delete(end);
        done();
      };
      const timer = setTimeout(end, leftMs);
      this.waiting.add(end);
    });
  }

  private wakeWaiting(): void {
    for (const end of [...this.waiting]) end();
  }

  private becomeAlive(): void {
    this.state = 'alive';
    this.wakeWaiting();
    const periodMs = this.hello.leaseMs / RENEWALS_PER_LEASE;
    this.renewal ??= setInterval(() => this.renew(), periodMs).unref();
  }

  private renew(): void {
    const link = this.link;
    if (link === undefined || this.state !== 'alive') return;
    const sentAtMs = performance.now();
    link.call('renew', {}, { timeoutMs: this.hello.leaseMs }).then(
      () => {
        if (this.link === link) this.leaseFromMs = Math.max(this.leaseFromMs, sentAtMs);
      },
      (error: unknown) => {
        // A manager that keeps the connection but answers no renewal for a lease is as good as dead.
        if (this.link === link) link.terminate(`renewing the lease failed: ${messageOf(error)}`);
      },
    );
  }

  private linkEnded(link: Link, reason: ExtmemError): void {
    if (this.link !== link || this.state === 'over') return;
    this.link = undefined;
    const wasAlive = this.state === 'alive';
    this.state = 'dead';
    if (!wasAlive) return; // the reconnect under way notices
    this.deadSinceMs = performance.now();
    this.options.log.warn(
      { reason: reason.message },
      'the manager is not reachable; open files go on, everything else fails until it is back',
    );
    void this.reconnect();
  }

  /** Whatever fails in the layers above, the session must come back. */
  private async tellLost(): Promise<void> {
    try {
      await this.events?.lost();
    } catch (error) {
      this.options.log.error({ error }, 'dropping what the manager had told us to cache failed');
    }
  }

  private async reconnect(): Promise<void> {
    await this.tellLost();
    let waitMs = FIRST_RETRY_MS;
    while (this.state === 'dead') {
      // Jitter: the clients of a restarted manager do not come in step.
      await sleep(waitMs * (0.5 + Math.random() / 2), undefined, { signal: this.stop.signal }).catch(() => undefined);
      waitMs = Math.min(waitMs * 2, LAST_RETRY_MS);
      if (this.state !== 'dead') return;
      try {
        await this.resume(await this.dial());
      } catch (error) {
        this.link?.close();
        this.link = undefined;
        this.options.log.debug({ error }, 'the manager is still not reachable');
      }
    }
  }

  private async resume(hello: Hello): Promise<void> {
    if (hello.cluster !== this.hello.cluster) {
      await this.link?.call('goodbye', {}).catch(() => undefined);
      return this.fence('the manager is that of another cluster');
    }
    const isSame = hello.resumed && hello.client === this.hello.client && hello.generation === this.hello.generation;
    if (!isSame) {
      this.first = hello;
      this.rejoins += 1;
    }
    this.resuming = true;
    try {
      await (isSame ? this.events?.resumed(hello) : this.events?.rejoined(hello));
    } finally {
      this.resuming = false;
    }
    if (this.link === undefined || this.state !== 'dead') return; // lost again meanwhile: the loop goes on
    this.reconnects += 1;
    this.options.log.info('the manager is back; the session goes on');
    this.becomeAlive();
  }

  private fence(why: string): void {
    this.end();
    this.link?.close();
    this.link = undefined;
    this.events?.fenced(why);
  }

  private end(): void {
    this.state = 'over';
    this.wakeWaiting();
    this.stop.abort();
    clearInterval(this.renewal);
  }

  private unreachable(asked: string): ExtmemError {
    return new ExtmemError(
      'EIO',
      `asking the manager at ${this.options.manager} for ${asked}: it is not reachable; this works again when it is back`,
    );
  }

  private explain(error: unknown): ExtmemError {
    const code = codeOf(error);
    const where = this.options.manager;
    if (code === 'EACCES')
      return new ExtmemError('EACCES', `the manager at ${where} refused the join token; pass the token it was started with`, {
        cause: error,
      });
    if (code === 'EVERSION' || code === 'EPROTO')
      return new ExtmemError(code, `the manager at ${where} speaks another protocol: ${messageOf(error)}`, { cause: error });
    return managerUnreachable(where, error);
  }
}
