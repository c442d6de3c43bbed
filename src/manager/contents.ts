/**
 * Operations on the contents of files, as clients ask for them: commit, truncate, punch, and the write-through mode (extend,
 * wrote). Order matters and is the same everywhere: the change survives, then everybody who could see the old state has been
 * told (or is fenced), then the call is answered and freed pieces are zeroed.
 */
import { ExtmemError } from '../base/errors.js';
import { locate, recordIno } from '../base/file_record.js';
import type { Answer, Ask, Attr, clientOperations, SetAttr } from '../base/messages.js';
import { PAGE_BYTES } from '../base/protocol.js';
import type { Appliances } from './appliances.js';
import type { Client, Clients } from './clients.js';
import type { Delegations, Holder } from './delegations.js';
import type { Files } from './files.js';
import { attrOf, findFile, findInode, recordOf, type Inode } from './inode.js';
import type { Interest } from './interest.js';
import { limits, times } from './limits.js';
import type { MetadataStore, Transaction } from './metadata_store.js';
import type { Names } from './names.js';
import type { Reclaimer } from './reclaim.js';
import { READ_WRITE, type Regions } from './regions.js';

type Operations = typeof clientOperations;

export interface ContentsParts {
  store: MetadataStore;
  names: Names;
  files: Files;
  regions: Regions;
  reclaimer: Reclaimer;
  appliances: Appliances;
  clients: Clients;
  interest: Interest;
  delegations: Delegations;
  fence(client: Client, why: string): Promise<void>;
}

interface CutAnswer {
  attr: Attr;
  record: Buffer;
  /** By the manager; else whoever cut does it itself. */
  edgesZeroed: boolean;
}

interface CutAsk {
  ino: number;
  /** In bytes; whole pages of it are freed, and what is left at its edges is zeroed. */
  range: { offset: number; length: number };
  set?: SetAttr;
  record?: Uint8Array | undefined;
  also?: (tx: Transaction, inode: Inode) => Inode;
}

export class Contents {
  constructor(private readonly parts: ContentsParts) {}

  async commit(client: Client, records: readonly Uint8Array[]): Promise<Answer<Operations, 'commit'>> {
    if (records.length > limits.recordsPerCommit)
      throw new ExtmemError('EINVAL', `${records.length} records at once are more than ${limits.recordsPerCommit}`);
    const { store, reclaimer } = this.parts;
    const { failed, tickets } = await store.transact((tx) => {
      const failed: { ino: number; code: string }[] = [];
      for (const record of records) {
        const failure = this.commitOne(tx, client, record);
        if (failure !== undefined) failed.push(failure);
      }
      return { failed, tickets: reclaimer.ticketsOf(tx) };
    });
    // In shared mode the transaction may have been empty: what was written through before must survive too.
    await store.settled();
    reclaimer.start(tickets);
    return { failed };
  }

  /** Attributes other than the size: nobody needs to be recalled. */
  async setAttributes(client: Client, ask: Ask<Operations, 'setattr'>): Promise<Answer<Operations, 'setattr'>> {
    const { store, names, interest, delegations } = this.parts;
    const inode = await store.transact((tx) => {
      if (ask.record !== undefined) this.takeRecord(tx, client, ask.ino, ask.record);
      return names.setAttributes(tx, findInode(tx, ask.ino), ask.set);
    });
    const attr = attrOf(inode);
    const others = delegations.others(ask.ino, client).filter(({ row }) => row.mode === 'write');
    await Promise.all([
      interest.tell(client, { entries: [], attributes: [attr] }),
      this.tellHolders(others, { ino: ask.ino, offset: 0, length: 0, attr }),
    ]);
    if (ask.record === undefined) return { attr };
    return { attr, record: recordOf(store, findInode(store, ask.ino)) };
  }

  /** `also` runs in the same transaction, while nobody has anything of the file that is not written back. */
  async truncate(
    client: Client | undefined,
    ino: number,
    set: SetAttr & { size: number },
    options: { record?: Uint8Array; also?: (tx: Transaction, inode: Inode) => Inode } = {},
  ): Promise<CutAnswer> {
    return this.cut(client, { ino, range: { offset: set.size, length: Infinity }, set, ...options });
  }

  async punch(client: Client, ask: Ask<Operations, 'punch'>): Promise<Answer<Operations, 'punch'>> {
    const range = { offset: ask.offset, length: ask.length };
    const { record, edgesZeroed } = await this.cut(client, { ino: ask.ino, range, record: ask.record });
    return { record, edgesZeroed };
  }

  async extend(client: Client, ask: Ask<Operations, 'extend'>): Promise<Answer<Operations, 'extend'>> {
    const { store, files, regions, delegations, reclaimer } = this.parts;
    this.checkWriter(client, ask.ino);
    const { inode, unused, tickets } = await store.transact((tx) => {
      const before = findFile(tx, ask.ino);
      const extended = files.extend(tx, before, ask.record, client.id);
      if (extended.inode !== before) delegations.extentsChanged(ask.ino, client);
      return { ...extended, tickets: reclaimer.ticketsOf(tx) };
    });
    reclaimer.start(tickets);
    return {
      record: recordOf(store, inode),
      regions: regions.grantAll(client, files.regionIds(files.extents(store, ask.ino)), READ_WRITE),
      unused,
    };
  }

  async wrote(client: Client, ask: Ask<Operations, 'wrote'>): Promise<{ attr: Attr }> {
    const { store, files, delegations } = this.parts;
    this.checkWriter(client, ask.ino);
    const lock = writeLock(ask.ino);
    return client.whileBusy([lock], async () => {
      const { before, inode } = await store.transact((tx) => {
        const before = findFile(tx, ask.ino);
        return { before, inode: files.wrote(tx, before, ask.offset + ask.length, ask.mtime) };
      });
      const attr = attrOf(inode);
      // A holder whose record ends earlier would read zeros where the file has grown.
      const grown = inode.size > before.size ? { record: recordOf(store, inode) } : {};
      const news = { ino: ask.ino, offset: ask.offset, length: ask.length, attr, ...grown };
      await this.tellHolders(delegations.others(ask.ino, client), news, lock);
      return { attr };
    });
  }

  private commitOne(tx: Transaction, client: Client, record: Uint8Array): { ino: number; code: string } | undefined {
    let ino = 0;
    try {
      ino = recordIno(record);
      const holder = this.parts.delegations.find(ino, client.id);
      if (holder === undefined) throw new ExtmemError('ESTALE', `client ${client.id} does not hold inode ${ino}`);
      // Otherwise it was recalled, and its record came with the answer: there is nothing newer in this one.
      if (holder.row.mode === 'write') this.parts.files.commit(tx, findFile(tx, ino), record, client.id);
      return undefined;
    } catch (error) {
      if (error instanceof ExtmemError) return { ino, code: error.code };
      throw error;
    }
  }

  private takeRecord(tx: Transaction, client: Client, ino: number, record: Uint8Array): void {
    if (this.parts.delegations.find(ino, client.id)?.row.mode !== 'write') return;
    this.parts.files.commit(tx, findFile(tx, ino), record, client.id);
  }

  private checkWriter(client: Client, ino: number): void {
    const row = this.parts.delegations.find(ino, client.id)?.row;
    if (row?.open !== 'write' || row.mode === 'read')
      throw new ExtmemError('ESTALE', `client ${client.id} does not hold inode ${ino} for writing`);
  }

  private async cut(client: Client | undefined, ask: CutAsk): Promise<CutAnswer> {
    const { store, delegations, interest, reclaimer } = this.parts;
    return delegations.turns.run(ask.ino, async () => {
      findFile(store, ask.ino);
      await delegations.recall(ask.ino, client, 'writers');
      if (client !== undefined) delegations.checkLive(client);
      const before = findFile(store, ask.ino).size;
      const { inode, tickets } = await store.transact((tx) => {
        const inode = this.cutIn(tx, client, ask);
        return { inode, tickets: reclaimer.ticketsOf(tx) };
      });
      const size = ask.set?.size;
      // In what a writer caches only the writer can zero; what others may read at any time is zeroed before they are told.
      const isWriter = client !== undefined && delegations.find(ask.ino, client.id)?.row.mode === 'write';
      const edgesZeroed = !(isWriter && ask.record !== undefined);
      const zeroed = edgesZeroed ? await settle(this.zeroEdges(inode, ask.range, before)) : undefined;
      delegations.extentsChanged(ask.ino, client);
      const attr = attrOf(inode);
      const dropped =
        size === undefined ? { offset: ask.range.offset, length: ask.range.length } : { offset: Math.min(size, before), length: -1 };
      const news = { ino: ask.ino, ...dropped, attr };
      await Promise.all([
        this.tellHolders(delegations.others(ask.ino, client), news),
        interest.tell(client, { entries: [], attributes: [attr] }),
      ]);
      reclaimer.start(tickets);
      delegations.rebalance(ask.ino);
      // All are told first: the file is cut, also if its last page could not be cleaned.
      if (zeroed instanceof Error) throw zeroed;
      return { attr, record: recordOf(store, inode), edgesZeroed };
    });
  }

  private cutIn(tx: Transaction, client: Client | undefined, ask: CutAsk): Inode {
    const { files, names } = this.parts;
    if (client !== undefined && ask.record !== undefined) this.takeRecord(tx, client, ask.ino, ask.record);
    const whole = files.cut(tx, findFile(tx, ask.ino), ask.range, ask.set?.size);
    const cut = ask.also?.(tx, whole) ?? whole;
    if (ask.set === undefined) return cut;
    const { size: _, ...rest } = ask.set;
    return Object.keys(rest).length === 0 ? cut : names.setAttributes(tx, cut, rest);
  }

  /** The parts of pages at the ends of a cut: of a hole both, of a truncation what follows the new end in its page, so that
   *  whoever makes the file longer again reads zeros. */
  private async zeroEdges(inode: Inode, range: { offset: number; length: number }, sizeBefore: number): Promise<void> {
    const end = Math.min(range.offset + range.length, Math.ceil(sizeBefore / PAGE_BYTES) * PAGE_BYTES);
    const first = Math.ceil(range.offset / PAGE_BYTES) * PAGE_BYTES;
    const last = Math.max(first, Math.floor(end / PAGE_BYTES) * PAGE_BYTES);
    const edges = [
      { from: range.offset, to: Math.min(first, end) },
      { from: last, to: end },
    ];
    await Promise.all(edges.map(async ({ from, to }) => (from < to ? this.zeroInPage(inode, from, to) : undefined)));
  }

  private async zeroInPage(inode: Inode, from: number, to: number): Promise<void> {
    const { store, files, regions, appliances } = this.parts;
    const at = locate({ extents: files.extents(store, inode.ino) }, from);
    const region = at === undefined ? undefined : regions.get(at.region);
    if (at === undefined || region === undefined || region.row.lost) return;
    const appliance = appliances.get(region.row.appliance);
    if (appliance === undefined) return;
    await appliances.call(appliance, 'punch', { pieces: [{ region: at.region, offset: at.offset, length: to - from }] });
  }

  /** All of these have dropped what changed when this resolves; who cannot be told is fenced. */
  private async tellHolders(
    holders: readonly Holder[],
    news: { ino: number; offset: number; length: number; attr: Attr; record?: Uint8Array },
    lock?: string,
  ): Promise<void> {
    await Promise.all(
      holders.map(async (holder) => {
        const client = this.parts.clients.get(holder.client);
        if (client !== undefined) await this.tellHolder(client, { ...news, ...this.parts.delegations.newsFor(news.ino, holder) }, lock);
      }),
    );
  }

  private async tellHolder(
    client: Client,
    news: Ask<typeof import('../base/messages.js').clientPushes, 'invalidate'>,
    lock?: string,
  ): Promise<void> {
    const unlessBusyWith = lock === undefined ? {} : { unlessBusyWith: [lock] };
    // On a new session too: it needs the record, and its kernel's pages of a shared file are not dropped with a session.
    const options = { again: true, ...unlessBusyWith };
    let told = await this.parts.clients.tell(client, 'invalidate', news, { limitMs: times.wroteTellMs, ...options });
    const isAlive = client.isConnected && (client.session?.silentMs ?? Infinity) < times.wroteTellMs;
    if (told.status === 'silent' && (!isAlive || news.record !== undefined))
      told = await this.parts.clients.tell(client, 'invalidate', news, { limitMs: times.leaseMs, ...options });
    const isStillAlive = client.isConnected && (client.session?.silentMs ?? Infinity) < times.wroteTellMs;
    if (told.status === 'gone' || (told.status === 'silent' && !isStillAlive))
      await this.parts.fence(client, `it could not be told of a change of inode ${news.ino}`);
  }
}

/** The error, if it fails. */
async function settle(work: Promise<void>): Promise<Error | undefined> {
  try {
    await work;
    return undefined;
  } catch (error) {
    return error instanceof Error ? error : new Error(String(error));
  }
}

/** What a kernel holds locked of a file while a write to it is under way: its pages cannot be dropped before that ends. */
function writeLock(ino: number): string {
  return `w${ino}`;
}
