/**
 * The appliances: who they are, whether they are up, and asking them.
 *
 * An appliance is up while its session is open (a dead peer's session ends within 3 s). It is known by its id and, from start to
 * end of its process, by its incarnation: with a new one all regions of the old one are lost.
 * A fence that an appliance did not acknowledge is owed: it gets it with its next hello, and until it has acknowledged it
 * nobody is granted its regions.
 *
 * Owner: the event loop.
 */
import { ExtmemError } from '../base/errors.js';
import type { Logger } from '../base/logger.js';
import type { Answer, ApplianceInfo, Ask, applianceOperations, appliancePushes } from '../base/messages.js';
import type { Session } from '../base/session.js';
import { limits, times } from './limits.js';
import { keys, type MetadataStore } from './metadata_store.js';

export type ApplianceSession = Session<typeof appliancePushes, typeof applianceOperations>;
type Pushes = typeof appliancePushes;

interface FencedRow {
  client: number;
  generation: number;
  /** Appliances that have not acknowledged it. */
  owed: string[];
}

export class Appliance {
  session: ApplianceSession | undefined;
  constructor(public info: ApplianceInfo) {}

  get id(): string {
    return this.info.id;
  }
  get isUp(): boolean {
    return this.session?.isOpen === true;
  }
  describe(reservedBytes: number): ApplianceInfo {
    return { ...this.info, reservedBytes, state: this.isUp ? 'up' : 'down' };
  }
}

export interface ApplianceEvents {
  /** It is up, and has acknowledged every fence. */
  up(appliance: Appliance): void;
  down(appliance: Appliance): void;
  /** What an earlier incarnation held is gone. */
  lost(appliance: Appliance, incarnation: number, why: 'restarted' | 'left'): Promise<void>;
}

export class Appliances {
  private readonly appliances = new Map<string, Appliance>();
  private readonly fenced = new Map<number, FencedRow>();
  private events: ApplianceEvents | undefined;

  constructor(
    private readonly store: MetadataStore,
    private readonly log: Logger,
  ) {
    for (const [, info] of store.scan<ApplianceInfo>(keys.appliances))
      this.appliances.set(info.id, new Appliance({ ...info, state: 'down' }));
    for (const [, row] of store.scan<FencedRow>(keys.allFenced)) this.fenced.set(row.client, row);
  }

  listen(events: ApplianceEvents): void {
    this.events = events;
  }

  get(id: string): Appliance | undefined {
    return this.appliances.get(id);
  }

  all(): Appliance[] {
    return [...this.appliances.values()];
  }

  up(): Appliance[] {
    return this.all().filter((appliance) => appliance.isUp);
  }

  fencedClients(): { client: number; generation: number }[] {
    return [...this.fenced.values()].map(({ client, generation }) => ({ client, generation }));
  }

  /** Whether a fence is owed by this appliance: its regions are nobody's until it has acknowledged it. */
  owesFences(id: string): boolean {
    for (const row of this.fenced.values()) if (row.owed.includes(id)) return true;
    return false;
  }

  /** Before the answer to its hello. The appliance is up once `confirm` has run. */
  async register(info: ApplianceInfo, session: ApplianceSession): Promise<Appliance> {
    const known = this.appliances.get(info.id);
    if (known === undefined && this.appliances.size >= limits.appliances)
      throw new ExtmemError('EBUSY', `${limits.appliances} appliances are known already`);
    const before = known?.info.incarnation;
    const appliance = known ?? new Appliance(info);
    if (known?.isUp === true && known.session !== session) {
      this.log.warn(
        { appliance: info.id, address: info.address },
        'another session of this appliance takes over; two appliances must not have the same id',
      );
      known.session?.close('another appliance with this id has registered');
    }
    appliance.info = { ...info, state: 'up' };
    this.appliances.set(info.id, appliance);
    await this.store.transact((tx) => tx.put(keys.appliance(info.id), appliance.info));
    if (before !== undefined && before !== info.incarnation) await this.events?.lost(appliance, before, 'restarted');
    return appliance;
  }

  /** After the answer to its hello: what it still owes is acknowledged, then it is used. */
  async confirm(appliance: Appliance, session: ApplianceSession): Promise<void> {
    for (const row of [...this.fenced.values()].filter((one) => one.owed.includes(appliance.id))) {
      await session.call('fence', { client: row.client, generation: row.generation }, { timeoutMs: times.fenceAckMs });
      await this.settleFence(row, appliance.id);
    }
    if (!session.isOpen) return;
    appliance.session = session;
    this.log.info({ appliance: appliance.id, address: appliance.info.address, incarnation: appliance.info.incarnation }, 'appliance is up');
    void session.closed.then((reason) => {
      if (appliance.session !== session) return;
      appliance.session = undefined;
      this.log.warn({ appliance: appliance.id, why: reason.message }, 'appliance is down');
      this.events?.down(appliance);
    });
    this.events?.up(appliance);
  }

  /** Its process ends in order: what it held is gone. */
  async leave(appliance: Appliance): Promise<void> {
    const { session } = appliance;
    appliance.session = undefined;
    this.log.info({ appliance: appliance.id }, 'appliance left');
    await this.events?.lost(appliance, appliance.info.incarnation, 'left');
    this.events?.down(appliance);
    setImmediate(() => session?.close('goodbye'));
  }

  noteMemory(appliance: Appliance, memory: Ask<typeof applianceOperations, 'heartbeat'>): void {
    appliance.info = { ...appliance.info, ...memory };
  }

  async call<Name extends keyof Pushes>(
    appliance: Appliance,
    op: Name,
    ask: Ask<Pushes, Name>,
    timeoutMs: number = times.applianceCallMs,
  ): Promise<Answer<Pushes, Name>> {
    const { session } = appliance;
    if (session === undefined) throw new ExtmemError('EIO', `appliance ${appliance.id} is down`);
    return session.call(op, ask, { timeoutMs });
  }

  /** Kills every grant of a client. When it resolves, no appliance that is up accepts anything of it, and the others owe it. */
  async fenceEverywhere(client: number, generation: number): Promise<void> {
    const row: FencedRow = { client, generation, owed: this.all().map((appliance) => appliance.id) };
    this.fenced.set(client, row);
    await this.store.transact((tx) => tx.put(keys.fenced(client), { ...row }));
    await Promise.all(
      this.up().map(async (appliance) => {
        try {
          await this.call(appliance, 'fence', { client, generation }, times.fenceAckMs);
          row.owed = row.owed.filter((id) => id !== appliance.id);
        } catch (error) {
          // It may neither be trusted to refuse the client nor be used: down until its next hello.
          this.log.error({ appliance: appliance.id, client, error }, 'an appliance did not acknowledge a fence; it is put down');
          appliance.session?.terminate('it did not acknowledge a fence');
        }
      }),
    );
    await this.store.transact((tx) => tx.put(keys.fenced(client), { ...row }));
  }

  private async settleFence(row: FencedRow, appliance: string): Promise<void> {
    row.owed = row.owed.filter((id) => id !== appliance);
    await this.store.transact((tx) => tx.put(keys.fenced(row.client), { ...row }));
  }
}
