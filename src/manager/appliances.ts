/**
 * The appliances: who they are, whether they are up, and asking them.
 *
 * An appliance is up while its session is open (a dead peer's session ends within 3 s). It is known by its id and, from start to
 * end of its process, by its incarnation: with a new one all regions of the old one are lost.
 * A fence that an appliance did not acknowledge is owed: it gets it with its next hello, and until it has acknowledged it
 * nobody is granted its regions. What it is told is all clients that are dead (Clients.dead), so that whatever it missed it has
 * then, and this table has no row per client.
 *
 * Owner: the event loop.
 */
import { ExtmemError } from '../base/errors.js';
import type { Logger } from '../base/logger.js';
import type { Answer, ApplianceInfo, Ask, applianceOperations, appliancePushes, ClientRange } from '../base/messages.js';
import type { Session } from '../base/session.js';
import { limits, times } from './limits.js';
import { keys, type MetadataStore } from './metadata_store.js';

export type ApplianceSession = Session<typeof appliancePushes, typeof applianceOperations>;
export type RestoredRegion = NonNullable<Ask<typeof applianceOperations, 'hello'>['restored']>[number];
type Pushes = typeof appliancePushes;

export class Appliance {
  session: ApplianceSession | undefined;
  /** Nothing new is placed there. */
  isDraining = false;
  constructor(public info: ApplianceInfo) {}

  get id(): string {
    return this.info.id;
  }
  get isUp(): boolean {
    return this.session?.isOpen === true;
  }
  describe(reservedBytes: number): ApplianceInfo {
    const draining = this.isDraining ? { draining: true } : {};
    return { ...this.info, reservedBytes, ...draining, state: this.isUp ? 'up' : 'down' };
  }
}

export interface ApplianceEvents {
  /** It is up, and has acknowledged every fence. */
  up(appliance: Appliance): void;
  down(appliance: Appliance): void;
  /** What is known of one is another. */
  changed(): void;
  /** What an earlier incarnation held is gone. */
  lost(appliance: Appliance, incarnation: number, why: 'restarted' | 'left'): Promise<void>;
  /** A process of it has begun with what its backing store had; `before`: the incarnation that was. */
  restored(appliance: Appliance, before: number, regions: readonly RestoredRegion[]): Promise<void>;
}

export class Appliances {
  private readonly appliances = new Map<string, Appliance>();
  /** By appliance: the number of the latest fence that it has not acknowledged. */
  private readonly owing = new Map<string, number>();
  private fences = 0;
  private events: ApplianceEvents | undefined;

  constructor(
    private readonly store: MetadataStore,
    private readonly log: Logger,
  ) {
    for (const [, info] of store.scan<ApplianceInfo>(keys.appliances))
      this.appliances.set(info.id, new Appliance({ ...info, state: 'down' }));
    for (const [, id] of store.scan<string>(keys.allOwing)) this.owing.set(id, 0);
    for (const [, id] of store.scan<string>(keys.allDraining)) this.setDraining(id, true);
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

  /** Whether a fence is owed by this appliance: its regions are nobody's until it has acknowledged it. */
  owesFences(id: string): boolean {
    return this.owing.has(id);
  }

  /** Whether something new may be placed there, as far as is known here. */
  mayPlace(id: string): boolean {
    return !this.owesFences(id) && this.appliances.get(id)?.isDraining !== true;
  }

  /** From now on, also in the next lives of this manager. */
  async drain(id: string, draining: boolean): Promise<void> {
    if (!this.setDraining(id, draining))
      throw new ExtmemError('ENOENT', `there is no appliance ${id}; extmem status shows those there are`);
    await this.store.transact((tx) => (draining ? tx.put(keys.draining(id), id) : tx.remove(keys.draining(id))));
    this.events?.changed();
  }

  private setDraining(id: string, draining: boolean): boolean {
    const appliance = this.appliances.get(id);
    if (appliance !== undefined) appliance.isDraining = draining;
    return appliance !== undefined;
  }

  /** Before the answer to its hello. The appliance is up once `confirm` has run. */
  async register(info: ApplianceInfo, session: ApplianceSession, restored?: readonly RestoredRegion[]): Promise<Appliance> {
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
    if (before !== undefined && restored !== undefined) await this.events?.restored(appliance, before, restored);
    else if (before !== undefined && before !== info.incarnation) await this.events?.lost(appliance, before, 'restarted');
    return appliance;
  }

  /** After the answer to its hello: what it still owes is acknowledged, then it is used. */
  async confirm(appliance: Appliance, session: ApplianceSession, dead: () => ClientRange[]): Promise<void> {
    while (this.owing.has(appliance.id)) {
      const fence = this.fences; // of all so far
      await session.call('fence', { dead: dead() }, { timeoutMs: times.fenceAckMs });
      await this.settleFence(appliance.id, fence);
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

  /** Its process ends in order: what it held is gone, or kept in its backing store. */
  async leave(appliance: Appliance, kept: boolean): Promise<void> {
    const { session } = appliance;
    appliance.session = undefined;
    this.log.info({ appliance: appliance.id, kept }, 'appliance left');
    if (!kept) await this.events?.lost(appliance, appliance.info.incarnation, 'left');
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

  /** Kills every grant of these clients. When it resolves, no appliance that is up accepts anything of them, and the others owe it. */
  async fenceEverywhere(dead: ClientRange[]): Promise<void> {
    this.fences += 1;
    const fence = this.fences;
    for (const { id } of this.all()) this.owing.set(id, fence);
    await this.store.transact((tx) => this.all().forEach(({ id }) => tx.put(keys.owing(id), id)));
    await Promise.all(
      this.up().map(async (appliance) => {
        try {
          await this.call(appliance, 'fence', { dead }, times.fenceAckMs);
          await this.settleFence(appliance.id, fence);
        } catch (error) {
          // It may neither be trusted to refuse the clients nor be used: down until its next hello.
          this.log.error({ appliance: appliance.id, error }, 'an appliance did not acknowledge a fence; it is put down');
          appliance.session?.terminate('it did not acknowledge a fence');
        }
      }),
    );
  }

  /** It has acknowledged that fence, and all before it. */
  private async settleFence(appliance: string, fence: number): Promise<void> {
    if ((this.owing.get(appliance) ?? 0) > fence) return;
    this.owing.delete(appliance);
    await this.store.transact((tx) => tx.remove(keys.owing(appliance)));
  }
}
