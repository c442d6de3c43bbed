/**
 * Changing who may do what with a file, and keeping what was handed out in step with it: when the access parameters change, when
 * a window of theirs begins or ends, and when a client is back that may have missed it.
 *
 * The order of a change: whoever loses the right to write writes back; the change survives; whoever keeps the data has capabilities
 * of the new version; the appliances refuse older ones and take back what was handed out by them; whoever lost something is
 * told; the change is answered. An appliance that is down gets it with its next hello, before it is used.
 *
 * Owner: the event loop. Changes of one file run in its turn (delegations.turns).
 */
import { covers, formatRules, isTimed, needsKey, nextChange, OPEN, parseRules, type Outcome } from '../base/access_rules.js';
import { ExtmemError } from '../base/errors.js';
import type { Logger } from '../base/logger.js';
import { Right } from '../base/protocol.js';
import { isProtected, type Access, type AccessRow, type Identity } from './access.js';
import type { Appliances } from './appliances.js';
import type { Client, Clients } from './clients.js';
import type { Delegations } from './delegations.js';
import type { Files } from './files.js';
import { findFile, touch, type Inode } from './inode.js';
import type { Interest } from './interest.js';
import { times } from './limits.js';
import { keys, type MetadataStore, type Transaction } from './metadata_store.js';
import { putInode } from './names.js';
import { READ_WRITE, type Regions } from './regions.js';

export interface ProtectionParts {
  store: MetadataStore;
  access: Access;
  files: Files;
  regions: Regions;
  appliances: Appliances;
  clients: Clients;
  delegations: Delegations;
  interest: Interest;
  log: Logger;
}

export interface AccessAsk {
  /** As base/access_rules.ts reads it; '': whoever has the join token may do everything. */
  rules: string;
  /** What rules with `key` ask for; absent: the one that is in force. */
  key?: string | undefined;
}

export interface AccessInfo {
  rules: string;
  version: number;
  /** Appliances that are out of reach: they take back what they handed out before they are used again. */
  pending: string[];
}

export class Protection {
  /** Files whose access parameters have windows, and when the next begins or ends. */
  private readonly timed = new Map<number, number>();

  constructor(private readonly parts: ProtectionParts) {
    const { store, regions, access, appliances } = parts;
    for (const [key] of store.scan<number>(keys.allTimed)) this.timed.set(keys.lastNumber(key), 0);
    regions.termsOf = (client, row) => {
      const inode = row.ino === 0 ? undefined : store.get<Inode>(keys.inode(row.ino));
      return inode?.access === undefined ? undefined : access.terms(inode, client, appliances.get(row.appliance)?.info);
    };
  }

  describe(inode: Inode): AccessInfo {
    const { rules, version } = inode.access ?? { rules: [], version: 0 };
    return { rules: formatRules(rules), version, pending: [] };
  }

  checkChange(inode: Inode, who: Identity | undefined): void {
    this.parts.access.check(inode, who, 'write-metadata');
  }

  /** The access parameters that a new file begins with. */
  async begin(ask: AccessAsk): Promise<AccessRow> {
    return this.rowOf(undefined, ask);
  }

  /** In the transaction that makes or changes a file. */
  put(tx: Transaction, inode: Inode, access: AccessRow): Inode {
    const next: Inode = { ...inode, access };
    const change = access.rules.some(isTimed) ? nextChange(access.rules, Date.now()) : undefined;
    putInode(tx, next);
    if (change === undefined) tx.remove(keys.timed(inode.ino));
    else tx.put(keys.timed(inode.ino), 1);
    if (change === undefined) this.timed.delete(inode.ino);
    else this.timed.set(inode.ino, change);
    return next;
  }

  async change(ino: number, ask: AccessAsk, who: Identity | undefined): Promise<{ inode: Inode; info: AccessInfo }> {
    const { store, access, delegations } = this.parts;
    access.check(findFile(store, ino), who, 'write-metadata');
    return delegations.turns.run(ino, async () => {
      const before = findFile(store, ino);
      access.check(before, who, 'write-metadata');
      const row = await this.rowOf(before.access, ask);
      await this.writeBack(before);
      if (row.rules.length > 0) this.checkOwnRegions(before);
      const inode = await this.store(ino, row);
      const pending = await this.enforce(before, inode);
      return { inode, info: { ...this.describe(inode), pending } };
    });
  }

  /** A client is back: what it was not told meanwhile. */
  async tellAgain(client: Client): Promise<void> {
    const { store, delegations } = this.parts;
    const inos = delegations.heldBy(client.id).map(({ ino }) => ino);
    const changed = inos.flatMap((ino) => store.get<Inode>(keys.inode(ino)) ?? []).filter((inode) => inode.access !== undefined);
    await Promise.all(changed.map((inode) => this.tell(client, inode)));
  }

  /** Windows that have begun or ended. Capabilities end by themselves, and the appliances take back what was handed out. */
  async noteTime(nowMs = Date.now()): Promise<void> {
    const { store, delegations } = this.parts;
    const due = [...this.timed].filter(([, at]) => at <= nowMs).map(([ino]) => ino);
    await Promise.all(
      due.map(async (ino) => {
        const inode = store.get<Inode>(keys.inode(ino));
        const next = inode?.access === undefined ? undefined : nextChange(inode.access.rules, nowMs);
        if (next === undefined) this.timed.delete(ino);
        else this.timed.set(ino, next);
        if (inode?.kind !== 'file') return;
        await delegations.turns.run(ino, () => this.tellAll(inode));
      }),
    );
  }

  private async rowOf(before: AccessRow | undefined, { rules: text, key }: AccessAsk): Promise<AccessRow> {
    const rules = parseRules(text);
    const version = (before?.version ?? 0) + 1;
    if (!needsKey(rules)) {
      if (key !== undefined) throw new ExtmemError('EINVAL', 'a key was given, and no rule asks for one: write `key` in those that do');
      return { version, rules };
    }
    const verifier = key === undefined ? before?.verifier : await this.parts.access.makeVerifier(key);
    if (verifier === undefined) throw new ExtmemError('EINVAL', 'a rule asks for a key, and none was given (extmem: --access-key-file)');
    return { version, rules, verifier };
  }

  /** In a slab region lie other files too, and rights are those of regions. */
  private checkOwnRegions({ ino }: Inode): void {
    const { files, regions, store } = this.parts;
    const others = [...files.regionIds(files.extents(store, ino))].filter((id) => regions.get(id)?.row.ino !== ino);
    if (others.length === 0) return;
    throw new ExtmemError(
      'EOPNOTSUPP',
      `inode ${ino} shares regions with other files, and access parameters are those of regions: make a new allocation with them (extmem create --allow), copy it there, and rename that`,
    );
  }

  /** Whoever is about to lose the right to write has it still, and what lies where is known. Whoever does not answer loses what it
   *  has not written back, if it loses the right. */
  private async writeBack({ ino }: Inode): Promise<void> {
    const { delegations, log } = this.parts;
    const writers = delegations.holders(ino).filter(({ row }) => row.mode === 'write');
    await Promise.all(
      writers.map(async (holder) => {
        if (await delegations.tryRecall(ino, holder)) return;
        log.warn({ ino, client: holder.client }, 'a client did not write back before access parameters were changed');
      }),
    );
    if (writers.length > 0) delegations.rebalance(ino); // after this turn
  }

  private async store(ino: number, row: AccessRow): Promise<Inode> {
    const { store, regions } = this.parts;
    return store.transact((tx) => {
      for (const region of regions.ofFile(ino)) regions.setRow(tx, region, { access: row.version });
      return this.put(tx, touch(findFile(tx, ino), 'attributes'), row);
    });
  }

  /** Answers the appliances that could not be told. */
  private async enforce(before: Inode, inode: Inode): Promise<string[]> {
    const { clients, access } = this.parts;
    const isKept = (client: Client): boolean => !hasWindows(inode) && covers(this.outcomeOf(inode, client), this.outcomeOf(before, client));
    const kept = [...clients.all()].filter(isKept);
    await this.tellHolders(inode, (client) => access.allows(inode, client, 'read') || access.allows(inode, client, 'write'));
    const pending = await this.takeBack(inode, kept);
    await this.tellAll(inode);
    return pending;
  }

  private outcomeOf(inode: Inode, client: Client): Outcome {
    return inode.access === undefined ? OPEN : this.parts.access.outcome(inode, client);
  }

  private async takeBack(inode: Inode, kept: readonly Client[]): Promise<string[]> {
    const { regions, appliances, log } = this.parts;
    const byAppliance = new Map<string, { region: number; version: number }[]>();
    for (const { row } of regions.ofFile(inode.ino)) {
      if (row.lost) continue;
      byAppliance.set(row.appliance, [...(byAppliance.get(row.appliance) ?? []), { region: row.region, version: row.access ?? 0 }]);
    }
    const pending: string[] = [];
    await Promise.all(
      [...byAppliance].map(async ([id, list]) => {
        const appliance = appliances.get(id);
        try {
          if (appliance === undefined) throw new ExtmemError('EIO', `appliance ${id} is gone`);
          await appliances.call(appliance, 'setAccess', { regions: list, keep: kept.map((client) => client.id) });
        } catch (error) {
          // It may not be used while it serves by what is void: down until its next hello, which tells it.
          log.error({ appliance: id, ino: inode.ino, error }, 'an appliance did not take a change of access parameters; it is put down');
          appliance?.session?.terminate('it did not take a change of access parameters');
          pending.push(id);
        }
      }),
    );
    return pending.sort();
  }

  /** Everybody who has the file, and whoever has cached something of it. */
  private async tellAll(inode: Inode): Promise<void> {
    await Promise.all([this.tellHolders(inode, () => true), this.parts.interest.forgetAttributes(inode.ino)]);
  }

  private async tellHolders(inode: Inode, meant: (client: Client) => boolean): Promise<void> {
    const { clients, delegations } = this.parts;
    const holders = delegations.holders(inode.ino).flatMap(({ client }) => clients.get(client) ?? []);
    await Promise.all(holders.filter(meant).map((client) => this.tell(client, inode)));
  }

  private async tell(client: Client, inode: Inode): Promise<void> {
    const { clients, delegations, access, files, regions, store } = this.parts;
    const holder = delegations.find(inode.ino, client.id);
    if (holder === undefined || !client.isConnected) return;
    const rights = holder.row.open === 'write' ? READ_WRITE : Right.read;
    const ask = {
      ino: inode.ino,
      read: access.allows(inode, client, 'read'),
      write: access.allows(inode, client, 'write'),
      ownRegions: isProtected(inode),
      regions: regions.grantAll(client, files.regionIds(files.extents(store, inode.ino)), rights),
    };
    await clients.tell(client, 'access', ask, { limitMs: times.wroteTellMs });
  }
}

/** A kept grant would keep its old end. */
function hasWindows(inode: Inode): boolean {
  return isProtected(inode) && inode.access?.rules.some(isTimed) === true;
}
