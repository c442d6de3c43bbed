/**
 * An appliance: donates memory to the cluster. The native region server serves the data to clients by itself; this side tells the
 * manager that we are here and does what it asks (make, resize, destroy, punch regions; fence clients).
 *
 * Invariants: one incarnation for the life of this object, whatever happens to the manager: while it is away, data goes on being
 * served, and we return to it with the same regions. Nothing of a client that the manager declared dead is served after a hello.
 * A manager with another cluster key is another cluster: it is refused, never obeyed.
 */
import { randomBytes, timingSafeEqual } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import { setTimeout as sleep } from 'node:timers/promises';
import { ExtmemError, messageOf } from '../base/errors.js';
import type { Logger } from '../base/logger.js';
import {
  applianceOperations,
  appliancePushes,
  type ApplianceHealth,
  type ApplianceInfo,
  type Ask,
  type Endpoint,
  type RegionInfo,
} from '../base/messages.js';
import { MAX_LINKS, PROTOCOL_VERSION } from '../base/protocol.js';
import { connectSession, sessionUrl, type Handlers, type Session } from '../base/session.js';
import { formatSize } from '../base/size.js';
import type { NativeRegionInfo, RegionServer, RegionServerOptions } from '../binding/index.js';
import { Copying } from './copying.js';
import { readHealth, worries } from './health.js';
import { Keeping, type StoreSettings } from './keeping.js';
import { findLocalAddress } from './local_address.js';
import { Windows } from './windows.js';
import { spareMemory, type Spare } from './memory.js';
import { offerOf, type Offer } from './offer.js';

export interface ListenPoint {
  address?: string | undefined;
  port?: number | undefined;
}

export interface ApplianceOptions {
  manager: string; // host:port or URL
  token: string;
  ca?: string | undefined;
  id: string;
  /** Whatever fails together with others of the same label: a rack, a room. */
  rack?: string | undefined;
  memoryBytes: number;
  /** Where memory is served: at most MAX_LINKS addresses, of as many networks. Without any: where the manager is reached from. */
  listen?: readonly ListenPoint[] | undefined;
  /** What clients are told instead, address by address. */
  advertise?: readonly string[] | undefined;
  threads?: number | undefined;
  /** More than is available may be donated, and the offer is not lowered when the host is short of memory. */
  force?: boolean | undefined;
  /** What is kept beyond the life of this process. */
  store?: StoreSettings | undefined;
  logger: Logger;
  startServer(options: RegionServerOptions): RegionServer;
  /** What the host can spare; tests pass a host of their own. */
  spare?: (() => Spare) | undefined;
}

export interface Appliance {
  readonly id: string;
  readonly incarnation: number;
  /** Where clients are told to connect to. */
  readonly endpoints: readonly Endpoint[];
  status(): Record<string, unknown>;
  /** undefined: registered with the manager. */
  unhealthy(): string | undefined;
  /** Leaves the cluster with a goodbye; idempotent. */
  close(): Promise<void>;
}

type ManagerSession = Session<typeof applianceOperations, typeof appliancePushes>;

const goodbyeTimeoutMs = 2000;
const firstBackoffMs = 100;
const longestBackoffMs = 3000;

/** Connects, registers, and serves until close(). Rejects when the first registration fails; later failures are retried. */
export async function startAppliance(options: ApplianceOptions): Promise<Appliance> {
  checkMemory(options.memoryBytes, options.force ?? false);
  const localAddress = await findLocalAddress(options.manager);
  const member = new Member(options, localAddress);
  await member.begin();
  return member;
}

function checkMemory(memoryBytes: number, force: boolean): void {
  if (memoryBytes < 1) throw new ExtmemError('EINVAL', 'an appliance must donate some memory; say how much with --memory, as in 8G');
  const spare = spareMemory();
  if (memoryBytes > spare.bytes && !force) {
    const where = spare.boundBy === 'cgroup' ? "within this memory cgroup's limit" : 'here now';
    throw new ExtmemError(
      'ENOMEM',
      `cannot donate ${formatSize(memoryBytes)}: only ${formatSize(spare.bytes)} are available ${where}; donate less, or add --force`,
    );
  }
}

class Member implements Appliance {
  readonly id: string;
  private readonly life = randomBytes(6).readUIntBE(0, 6) || 1;
  private readonly points: readonly { address: string; port: number }[];
  private server: RegionServer | undefined;
  private copying: Copying | undefined;
  private clusterKey: Uint8Array | undefined;
  private session: ManagerSession | undefined;
  private readonly closing = new AbortController();
  private closed: Promise<void> | undefined;
  private following: Promise<void> | undefined;
  private problem: string | undefined = 'not registered yet';
  private offer: Offer;
  private readonly log: Logger;
  private readonly keeping: Keeping | undefined;
  private toldRestored = false;
  private readonly windows = new Windows(() => this.running().endOverdue());

  constructor(
    private readonly options: ApplianceOptions,
    private readonly localAddress: string,
  ) {
    this.id = options.id;
    const listen = options.listen === undefined || options.listen.length === 0 ? [{}] : options.listen;
    if (Math.max(listen.length, options.advertise?.length ?? 0) > MAX_LINKS)
      throw new ExtmemError('EINVAL', `an appliance can have ${MAX_LINKS} addresses at most; name fewer with --listen and --advertise`);
    this.points = listen.map(({ address = localAddress, port = 0 }) => ({ address, port }));
    this.offer = { bytes: options.memoryBytes, state: 'whole' };
    this.log = options.logger.child({ appliance: options.id });
    if (options.store !== undefined) this.keeping = new Keeping(options.store, this.log);
  }

  /** Of the memory's contents: goes on where a backing store brought all of them back. */
  get incarnation(): number {
    return this.server?.incarnation ?? this.life;
  }

  get endpoints(): readonly Endpoint[] {
    const ports = this.server?.ports ?? [];
    const addresses = this.options.advertise ?? this.points.map(({ address }) => (isAnywhere(address) ? this.localAddress : address));
    return addresses.map((address, index) => ({ address, port: ports[Math.min(index, ports.length - 1)] ?? 0 }));
  }

  async begin(): Promise<void> {
    try {
      await this.register();
    } catch (error) {
      this.session?.close('could not register');
      this.server?.close();
      throw error;
    }
    this.following = this.follow();
  }

  status(): Record<string, unknown> {
    const { server } = this;
    return {
      id: this.id,
      incarnation: this.incarnation,
      endpoints: this.endpoints,
      registered: this.problem === undefined,
      memory: server?.memory() ?? {},
      offer: this.offer.state,
      health: this.health(),
      store: this.keeping?.describe() ?? {},
      counters: server?.counters() ?? {},
    };
  }

  unhealthy(): string | undefined {
    return this.problem;
  }

  private health(): ApplianceHealth {
    return { ...readHealth(), ...(this.keeping === undefined ? {} : { store: this.keeping.health() }) };
  }

  close(): Promise<void> {
    this.closed ??= this.leave();
    return this.closed;
  }

  private async leave(): Promise<void> {
    this.closing.abort();
    this.problem = 'closing';
    await this.copying?.stop();
    await this.keeping?.finish();
    const { session } = this;
    if (session?.isOpen === true) {
      await session
        .call('goodbye', { kept: this.keeping !== undefined }, { timeoutMs: goodbyeTimeoutMs })
        .catch((error: unknown) => this.log.warn({ err: error }, 'the manager did not answer our goodbye'));
      session.close('appliance closed');
    }
    await this.following;
    this.windows.close();
    this.server?.close();
  }

  /** One registration: connect, join, serve (the first time), hello. */
  private async register(): Promise<void> {
    const { options } = this;
    const session: ManagerSession = await connectSession(
      sessionUrl(options.manager, 'appliances'),
      options.token,
      { out: applianceOperations, in: appliancePushes },
      this.handlers(),
      {
        ...(options.ca === undefined ? {} : { ca: options.ca }),
        onError: (error) => this.log.error({ err: error }, 'session with the manager'),
      },
    );
    this.session = session;
    void session.closed.then(() => this.copying?.stop());
    try {
      const { clusterKey, access } = await session.call('join', { version: PROTOCOL_VERSION, id: this.id });
      this.acceptCluster(clusterKey);
      this.server ??= this.serve(clusterKey, access);
      this.copying ??= new Copying(this.server);
      await this.copying.stop(); // of an earlier session
      this.server.setLinkAddresses(this.endpoints.map(({ address }) => address));
      const restored = this.keeping === undefined || this.toldRestored ? {} : { restored: this.server.restored() };
      const welcome = await session.call('hello', { version: PROTOCOL_VERSION, appliance: this.describe(), ...restored });
      this.toldRestored = true;
      // Before anything is awaited: a region that the manager asks for after this answer must not be taken for unknown.
      const unknown = this.destroyUnknown(new Set(welcome.regions));
      await this.keeping?.destroyed(unknown);
      await this.running().fenceClients(welcome.dead);
      for (const { region, version } of welcome.access) await this.running().setAccess(region, version, []);
      this.beat(session, welcome.heartbeatMs);
      this.problem = undefined;
    } catch (error) {
      session.close('registration failed');
      throw error;
    }
  }

  private acceptCluster(key: Uint8Array): void {
    if (this.clusterKey !== undefined && !(key.length === this.clusterKey.length && timingSafeEqual(key, this.clusterKey))) {
      throw new ExtmemError(
        'ECLUSTER',
        `the manager at ${this.options.manager} now belongs to another cluster (its state was lost or replaced); the regions here go on being served to their clients; restart this appliance to join the new cluster`,
      );
    }
    this.clusterKey = Uint8Array.from(key);
  }

  private serve(clusterKey: Uint8Array, access: RegionServerOptions['access']): RegionServer {
    const { options } = this;
    const [first, ...morePoints] = this.points;
    const { address: listenAddress, port } = first ?? { address: this.localAddress, port: 0 };
    try {
      const server = options.startServer({
        listenAddress,
        port,
        morePoints,
        linkName: this.linkName,
        clusterKey,
        incarnation: this.life,
        ...(this.keeping === undefined ? {} : { store: this.keeping.options() }),
        donatedBytes: options.memoryBytes,
        threads: options.threads ?? Math.max(1, Math.min(4, Math.floor(availableParallelism() / 2))),
        access,
        onWindow: (notAfterMs) => this.windows.add(notAfterMs),
        onRefused: (peer, why) => this.log.warn({ peer, why }, 'connection refused'),
      });
      this.keeping?.begin(server);
      return server;
    } catch (error) {
      const { code, message } = toExtmemError(error);
      if (code === 'ESTORE') throw new ExtmemError(code, `cannot use the backing store: ${message}`, { cause: error });
      const where = this.points.map((point) => `${point.address}:${point.port}`).join(', ');
      throw new ExtmemError(code, `cannot serve memory on ${where}: ${message}; choose another --listen address`, {
        cause: error,
      });
    }
  }

  private describe(): ApplianceInfo {
    const server = this.running();
    const [first = { address: this.localAddress, port: 0 }, ...moreEndpoints] = this.endpoints;
    return {
      id: this.id,
      hostId: readHostId(),
      ...(this.options.rack !== undefined && { rack: this.options.rack }),
      ...first,
      ...(moreEndpoints.length > 0 && { moreEndpoints }),
      linkName: this.linkName,
      incarnation: this.incarnation,
      ...(server.servesVerbs && { verbs: true }),
      ...this.load(),
      state: 'up',
    };
  }

  /** Of this process: what is left of an earlier one's socket is not in the way. */
  private get linkName(): string {
    return `extmem/${this.id}/${this.life}`;
  }

  private load(): Ask<typeof applianceOperations, 'heartbeat'> {
    return {
      ...this.running().memory(),
      offer: this.offer.state,
      ...(this.keeping === undefined ? {} : { store: this.keeping.describe() }),
    };
  }

  private destroyUnknown(known: ReadonlySet<number>): number[] {
    const server = this.running();
    const unknown: number[] = [];
    for (const { region } of server.listRegions()) {
      if (known.has(region)) continue;
      this.log.info({ region }, 'destroying a region that the manager does not know');
      server.destroyRegion(region);
      unknown.push(region);
    }
    return unknown;
  }

  private beat(session: ManagerSession, heartbeatMs: number): void {
    const timer = setInterval(() => {
      // A lost heartbeat needs no answer here: the session ends by itself when the manager is silent.
      this.adjustOffer();
      session.call('heartbeat', this.load()).catch(() => undefined);
    }, heartbeatMs);
    void session.closed.then(() => clearInterval(timer));
  }

  /** Less than was donated while the host is short of memory. */
  private adjustOffer(): void {
    const { memoryBytes, force, spare = spareMemory } = this.options;
    const server = this.running();
    const before = this.offer;
    if (force !== true) this.offer = offerOf(memoryBytes, spare(), server.memory(), before);
    if (this.offer.bytes !== before.bytes) server.offerMemory(this.offer.bytes);
    if (this.offer.state === before.state) return;
    const figures = { offered: formatSize(this.offer.bytes), donated: formatSize(memoryBytes) };
    if (this.offer.state === 'whole') this.log.info(figures, 'this machine has memory to spare again; all that was donated is offered');
    else if (this.offer.state === 'lowered') this.log.warn(figures, 'this machine is short of memory; less is offered');
    else this.log.error(figures, 'this machine cannot give what is in regions already: free memory, or remove files');
  }

  /** Waits for the session's end, then comes back to the manager, until close(). */
  private async follow(): Promise<void> {
    let backoffMs = firstBackoffMs;
    while (!this.closing.signal.aborted) {
      if (this.session?.isOpen === true) {
        const reason = await this.session.closed;
        if (this.closing.signal.aborted) return;
        this.problem = `no manager: ${reason.message}`;
        this.log.warn({ why: reason.message }, 'the manager is gone; data goes on being served while we look for it');
        backoffMs = firstBackoffMs;
      }
      await sleep(backoffMs * (0.5 + Math.random() / 2), undefined, { signal: this.closing.signal }).catch(() => undefined);
      if (this.closing.signal.aborted) return;
      try {
        await this.register();
        this.log.info('registered with the manager again');
      } catch (error) {
        this.tellOnce(toExtmemError(error));
        backoffMs = Math.min(backoffMs * 2, longestBackoffMs);
      }
    }
  }

  /** The same failure again and again is one line in the log. */
  private tellOnce(error: ExtmemError): void {
    const problem = `no manager: ${error.message}`;
    if (this.problem !== problem) this.log.warn({ code: error.code }, error.message);
    this.problem = problem;
  }

  private running(): RegionServer {
    if (this.server === undefined) throw new ExtmemError('EAGAIN', 'this appliance does not serve yet');
    return this.server;
  }

  /** What comes while everything is being persisted for the last time would be left behind. */
  private checkStays(): void {
    if (this.closing.signal.aborted) throw new ExtmemError('EBUSY', `appliance ${this.id} is ending`);
  }

  /** Durable, where there is a backing store. */
  private async settled(work: Promise<void> | undefined): Promise<Record<string, never>> {
    await work;
    return {};
  }

  private activityOf({ region, absentBytes }: NativeRegionInfo): RegionInfo['activity'] {
    if (this.keeping?.isPersisting(region) === true) return 'persisting';
    return absentBytes > 0 && this.keeping?.isFreed(region) !== true ? 'restoring' : 'none';
  }

  /** What the manager may ask. Errors of the region server keep their code. */
  private handlers(): Handlers<typeof appliancePushes> {
    const on = <Ask, Answer>(act: (server: RegionServer, ask: Ask) => Answer) => {
      return (ask: Ask): Answer => {
        try {
          const answer = act(this.running(), ask);
          return answer instanceof Promise ? (answer.catch(rethrow) as Answer) : answer;
        } catch (error) {
          throw toExtmemError(error);
        }
      };
    };
    const done = {};
    return {
      createRegion: on((server, { region, bytes, thin }) => {
        this.checkStays();
        server.createRegion(region, bytes, thin);
        return done;
      }),
      resizeRegion: on((server, { region, bytes }) => (server.resizeRegion(region, bytes), done)),
      destroyRegions: on(async (server, { regions }) => {
        await this.copying?.stopIn(regions.map((region) => ({ region, offset: 0, length: Infinity })));
        for (const region of regions) ifThere(() => server.destroyRegion(region));
        return this.settled(this.keeping?.destroyed(regions));
      }),
      punch: on(async (server, { pieces }) => {
        await this.copying?.stopIn(pieces);
        for (const { region, offset, length } of pieces) server.punchRegion(region, offset, length);
        return this.settled(this.keeping?.punched(pieces));
      }),
      sum: on(async (server, { pieces }) => ({ sums: await server.sumPieces(pieces) })),
      copy: on(async (_server, ask) => {
        this.checkStays();
        if (this.copying === undefined) throw new ExtmemError('EAGAIN', 'this appliance does not serve yet');
        await this.copying.copy(ask);
        return done;
      }),
      persist: on((_server, { pieces, free = false }) => {
        if (this.keeping === undefined)
          throw new ExtmemError('ENOTSUP', `appliance ${this.id} has no backing store; start it with --store`);
        return this.keeping.persist(pieces, free);
      }),
      fence: on((server, { dead }) => server.fenceClients(dead).then(() => done)),
      setAccess: on(async (server, { regions, keep }) => {
        for (const { region, version } of regions) await server.setAccess(region, version, keep);
        return done;
      }),
      health: () => {
        const health = this.health();
        return { health, worries: worries(health) };
      },
      listRegions: on((server) => ({
        regions: server.listRegions().map((region) => ({ ...region, activity: this.activityOf(region) })),
      })),
      listRecords: on((server) => ({ records: server.listRecords() })),
      removeRecords: on((server, { records }) => {
        for (const { region, ino } of records) ifThere(() => server.removeRecord(region, ino));
        return done;
      }),
    };
  }
}

function rethrow(error: unknown): never {
  throw toExtmemError(error);
}

const isAnywhere = (address: string): boolean => address === '0.0.0.0' || address === '::';

/** Asked again after a lost answer, a removal finds nothing: that is what was wanted. */
function ifThere(remove: () => void): void {
  try {
    remove();
  } catch (error) {
    if (toExtmemError(error).code !== 'ENOENT') throw error;
  }
}

/** Two processes with the same boot id share memory and a kernel: that is what `same host` means to shm. */
function readHostId(): string {
  return readFileSync('/proc/sys/kernel/random/boot_id', 'utf8').trim();
}

function toExtmemError(error: unknown): ExtmemError {
  if (error instanceof ExtmemError) return error;
  const code = error instanceof Error && 'code' in error && typeof error.code === 'string' ? error.code : 'EIO';
  return new ExtmemError(code, messageOf(error), { cause: error });
}
