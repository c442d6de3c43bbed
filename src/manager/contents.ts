/**
 * Operations on the contents of files, as clients ask for them: commit, truncate, punch, and the write-through mode (extend,
 * wrote). Order matters and is the same everywhere: the change survives, then everybody who could see the old state has been
 * told (or is fenced), then the call is answered and freed pieces are zeroed.
 */
import { ExtmemError } from '../base/errors.js';
import { locateCopies, recordIno } from '../base/file_record.js';
import type { Answer, Ask, Attr, clientOperations, clientPushes, RegionPiece, SetAttr } from '../base/messages.js';
import { PAGE_BYTES, RECALL_TIMEOUT_MS } from '../base/protocol.js';
import { isProtected, type Access } from './access.js';
import type { Appliances } from './appliances.js';
import type { Client, Clients } from './clients.js';
import type { Copies } from './copies.js';
import type { Delegations, Holder } from './delegations.js';
import { demand } from './demand.js';
import type { Ends } from './ends.js';
import type { Files } from './files.js';
import { attrOf, findFile, findInode, recordOf, type Inode } from './inode.js';
import type { Interest } from './interest.js';
import { limits, times } from './limits.js';
import { keys, type MetadataStore, type Transaction } from './metadata_store.js';
import type { Names } from './names.js';
import type { OwnRoom } from './own_room.js';
import type { Persistence } from './persistence.js';
import type { Protection } from './protection.js';
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
  ends: Ends;
  persistence: Persistence;
  copies: Copies;
  access: Access;
  protection: Protection;
  ownRoom: OwnRoom;
  fence(client: Client, why: string): Promise<void>;
}

type News = Ask<typeof clientPushes, 'invalidate'>;

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
  onlyGrow?: boolean | undefined;
  record?: Uint8Array | undefined;
  also?: (tx: Transaction, inode: Inode) => Inode;
}

export class Contents {
  constructor(private readonly parts: ContentsParts) {}

  async commit(client: Client, records: readonly Uint8Array[]): Promise<Answer<Operations, 'commit'>> {
    if (records.length > limits.recordsPerCommit)
      throw new ExtmemError('EINVAL', `${records.length} records at once are more than ${limits.recordsPerCommit}`);
    const { store, reclaimer } = this.parts;
    const { failed, taken, tickets } = await store.transact((tx) => {
      const failed: { ino: number; code: string }[] = [];
      const taken: number[] = [];
      for (const record of records) {
        const failure = this.commitOne(tx, client, record);
        if (failure !== undefined) failed.push(failure);
        else taken.push(recordIno(record));
      }
      return { failed, taken, tickets: reclaimer.ticketsOf(tx) };
    });
    // In shared mode the transaction may have been empty: what was written through before must survive too.
    await store.settled();
    reclaimer.start(tickets);
    const unpersisted = await this.parts.persistence.fulfil(taken);
    return { failed: [...failed, ...unpersisted.map((ino) => ({ ino, code: 'EIO' }))] };
  }

  /** Attributes other than the size: nobody needs to be recalled. */
  async setAttributes(client: Client, ask: Ask<Operations, 'setattr'>): Promise<Answer<Operations, 'setattr'>> {
    const { store, names, interest, delegations } = this.parts;
    const inode = await store.transact((tx) => {
      if (ask.record !== undefined) this.takeRecord(tx, client, ask.ino, ask.record);
      return names.setAttributes(tx, findInode(tx, ask.ino), ask.set);
    });
    const attr = attrOf(inode);
    const others = delegations.others(ask.ino, client).filter(({ row }) => row.mode !== 'read');
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
    options: Pick<CutAsk, 'record' | 'onlyGrow' | 'also'> = {},
  ): Promise<CutAnswer> {
    return this.cut(client, { ino, range: { offset: set.size, length: Infinity }, set, ...options });
  }

  /** As an administrator asks for it. */
  async free(ino: number, range: { offset: number; length: number }): Promise<void> {
    await this.cut(undefined, { ino, range });
  }

  async punch(client: Client, ask: Ask<Operations, 'punch'>): Promise<Answer<Operations, 'punch'>> {
    const range = { offset: ask.offset, length: ask.length };
    const { record, edgesZeroed } = await this.cut(client, { ino: ask.ino, range, record: ask.record });
    return { record, edgesZeroed };
  }

  /** Nobody reads or writes the file while what follows moves: all have written back, and go on with the new record. */
  async shift(ino: number, how: 'collapse' | 'insert', range: { offset: number; length: number }): Promise<void> {
    const { store, files, delegations, interest, reclaimer } = this.parts;
    await delegations.turns.run(ino, async () => {
      findFile(store, ino);
      await delegations.recall(ino, undefined, 'writers');
      await this.whilePaused(ino, async () => {
        const { inode, tickets } = await store.transact((tx) => ({
          inode: files.shift(tx, findFile(tx, ino), how, range),
          tickets: reclaimer.ticketsOf(tx),
        }));
        const told = interest.tell(undefined, { entries: [], attributes: [attrOf(inode)] });
        await Promise.all([this.tellCut(inode, undefined, { offset: range.offset, length: -1 }), told]);
        reclaimer.start(tickets);
      });
      delegations.rebalance(ino);
    });
  }

  /** In the file's turn: nobody writes to it while `change` runs, and all that was written is with the appliances. Who has it open goes
   *  on by what tellMoved() or tellSame() says, or where it was if `change` fails. */
  async whileStill<T>(ino: number, change: () => Promise<T>, { gently = false } = {}): Promise<T> {
    await this.settleWriters(ino, gently);
    return this.whilePaused(ino, change, gently);
  }

  /** In the file's turn: whoever has it open has written back. gently: nobody has asked for this, and no mount that is away is fenced
   *  for it. Throws EBUSY. */
  async settleWriters(ino: number, gently: boolean): Promise<void> {
    const { delegations, clients } = this.parts;
    if (!gently) return delegations.recall(ino, undefined, 'writers');
    for (const holder of delegations.holders(ino)) {
      const client = clients.get(holder.client);
      const isThere = client?.isConnected === true && (holder.row.mode !== 'write' || (await delegations.tryRecall(ino, holder)));
      if (!isThere)
        throw new ExtmemError('EBUSY', `inode ${ino} is open on mount ${client?.name ?? holder.client}, which does not answer now`);
    }
  }

  /** It has not changed: its writers go on. */
  async tellSame(ino: number, dropped = { offset: 0, length: 0 }): Promise<void> {
    const inode = this.parts.store.get<Inode>(keys.inode(ino));
    if (inode?.kind === 'file') await this.tellCut(inode, undefined, dropped);
  }

  /** The same bytes lie elsewhere: nobody reads where they were when this resolves. */
  async tellMoved(inode: Inode): Promise<void> {
    await this.tellCut(inode, undefined, { offset: 0, length: 0 });
  }

  async extend(client: Client, ask: Ask<Operations, 'extend'>): Promise<Answer<Operations, 'extend'>> {
    const { store, files, regions, delegations, reclaimer } = this.parts;
    await delegations.answerTaken(ask.ino, client);
    delegations.checkWriter(client, ask.ino);
    if (isProtected(findFile(store, ask.ino))) return this.extendOwn(client, ask);
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

  /** Of a file in regions of its own: the holes are filled here, and whoever asks has nothing to propose. */
  private async extendOwn(client: Client, { ino, record, room }: Ask<Operations, 'extend'>): Promise<Answer<Operations, 'extend'>> {
    const { store, files, regions, delegations, ownRoom, access } = this.parts;
    access.check(findFile(store, ino), client, 'write');
    if (room === undefined)
      throw new ExtmemError('EAGAIN', `inode ${ino} has had access parameters set meanwhile: it lies in regions of its own`);
    const inode = await ownRoom.fill(ino, room, (tx) => this.takeRecord(tx, client, ino, record));
    delegations.extentsChanged(ino, client);
    const grants = regions.grantAll(client, files.regionIds(files.extents(store, ino)), READ_WRITE);
    return { record: recordOf(store, inode), regions: grants, unused: [] };
  }

  /** The others have dropped what they had of the range, and take the new size, before the file is longer: nobody sees the size
   *  without the bytes. */
  async wrote(client: Client, ask: Ask<Operations, 'wrote'>): Promise<{ attr: Attr }> {
    const { store, files, delegations, ends } = this.parts;
    await delegations.answerTaken(ask.ino, client);
    const holder = delegations.checkWriter(client, ask.ino);
    const lock = writeLock(ask.ino);
    const end = ask.offset + ask.length;
    const grows = (): boolean => end > findFile(store, ask.ino).size;
    const publish = async (grownTo: number): Promise<{ attr: Attr }> => {
      const inode = findFile(store, ask.ino);
      const grown = { ...inode, size: Math.max(inode.size, grownTo) };
      // A holder whose record ends earlier would read zeros where the file has grown.
      const record = grownTo > 0 ? { record: recordOf(store, grown) } : {};
      const news = { ino: ask.ino, offset: ask.offset, length: ask.length, attr: attrOf(grown), ...record };
      await this.tellHolders(delegations.others(ask.ino, client), news, { lock });
      const written = await store.transact((tx) => files.wrote(tx, findFile(tx, ask.ino), grownTo, ask.mtime));
      return { attr: attrOf(written) };
    };
    return client.whileBusy(ask.holdsPages === false ? [] : [lock], async () => {
      // Within what another is making the file longer by, which this client was told of already.
      if (grows() && !ends.isItsOwn(holder, ask.ino)) await ends.published(ask.ino);
      return grows() ? ends.publish(holder, ask.ino, () => publish(end)) : publish(0);
    });
  }

  async claimEnd(client: Client, ask: Ask<Operations, 'claimEnd'>): Promise<Answer<Operations, 'claimEnd'>> {
    const { store, delegations, ends } = this.parts;
    const { ino } = ask;
    await delegations.answerTaken(ino, client);
    delegations.checkWriter(client, ino);
    if (ask.unclean) ends.giveUp(client, ino);
    return client.whileBusy(ask.holdsPages ? [writeLock(ino)] : [], async () => {
      await ends.claim(client, ino);
      const holder = delegations.checkWriter(client, ino);
      return { attr: attrOf(findFile(store, ino)), ...delegations.newsFor(ino, holder) };
    });
  }

  giveUpEnd(client: Client, ino: number): void {
    this.parts.delegations.checkWriter(client, ino);
    this.parts.ends.giveUp(client, ino);
  }

  /** In the file's turn: what was written behind its end, and not told, is gone. */
  async clearBeyondEnd(ino: number): Promise<void> {
    const { store, files, ends, reclaimer } = this.parts;
    await this.whilePaused(ino, async () => {
      const { inode, tickets } = await store.transact((tx) => ({
        inode: files.cutBeyondEnd(tx, findFile(tx, ino)),
        tickets: reclaimer.ticketsOf(tx),
      }));
      ends.cleared(ino);
      await this.tellCut(inode, undefined, { offset: inode.size, length: -1 });
      reclaimer.start(tickets);
    });
  }

  /** What this manager cut before it died, it may not have told everybody. */
  async retellCuts(inos: Iterable<number>): Promise<void> {
    const { store, delegations } = this.parts;
    const retell = async (ino: number): Promise<void> => {
      const inode = store.get<Inode>(keys.inode(ino));
      if (inode?.kind === 'file') await this.tellCut(inode, undefined, { offset: 0, length: -1 });
    };
    await Promise.all([...inos].map((ino) => delegations.turns.run(ino, () => retell(ino))));
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

  private async cut(client: Client | undefined, ask: CutAsk): Promise<CutAnswer> {
    const { store, delegations } = this.parts;
    return delegations.turns.run(ask.ino, async () => {
      findFile(store, ask.ino);
      await delegations.recall(ask.ino, client, 'writers');
      if (client !== undefined) delegations.checkLive(client);
      this.checkMode(client, ask);
      const { answer, zeroed } = await this.whilePaused(ask.ino, () => this.cutPaused(client, ask));
      delegations.rebalance(ask.ino);
      // All are told first: the file is cut, also if its last page could not be cleaned.
      if (zeroed instanceof Error) throw zeroed;
      return answer;
    });
  }

  /** Whoever writes alone gives its record, and has stopped its writers by itself. */
  private checkMode(client: Client | undefined, { ino, record }: CutAsk): void {
    const mode = client === undefined ? undefined : this.parts.delegations.find(ino, client.id)?.row.mode;
    if ((mode === 'write' && record === undefined) || (mode === 'shared' && record !== undefined))
      throw new ExtmemError('EAGAIN', `how inode ${ino} is held has changed meanwhile`);
  }

  private async cutPaused(client: Client | undefined, ask: CutAsk): Promise<{ answer: CutAnswer; zeroed: Error | undefined }> {
    const { store, delegations, interest, reclaimer } = this.parts;
    const before = findFile(store, ask.ino).size;
    const { inode, range, tickets } = await store.transact((tx) => ({ ...this.cutIn(tx, client, ask), tickets: reclaimer.ticketsOf(tx) }));
    // In what a writer caches only the writer can zero; what others may read at any time is zeroed before they are told.
    const isWriter = client !== undefined && delegations.find(ask.ino, client.id)?.row.mode === 'write';
    const edgesZeroed = !(isWriter && ask.record !== undefined);
    const zeroed = edgesZeroed ? await settle(this.zeroEdges(inode, range, before)) : undefined;
    const dropped = ask.set === undefined ? range : { offset: Math.min(inode.size, before), length: -1 };
    const attr = attrOf(inode);
    await Promise.all([this.tellCut(inode, client, dropped), interest.tell(client, { entries: [], attributes: [attr] })]);
    reclaimer.start(tickets);
    return { answer: { attr, record: recordOf(store, inode), edgesZeroed }, zeroed };
  }

  private cutIn(tx: Transaction, client: Client | undefined, ask: CutAsk): { inode: Inode; range: CutAsk['range'] } {
    const { files, names } = this.parts;
    if (client !== undefined && ask.record !== undefined) this.takeRecord(tx, client, ask.ino, ask.record);
    const before = findFile(tx, ask.ino);
    const size = ask.set?.size === undefined ? undefined : Math.max(ask.set.size, ask.onlyGrow === true ? before.size : 0);
    const range = size === undefined ? ask.range : { offset: size, length: Infinity };
    const whole = files.cut(tx, before, range, size);
    const cut = ask.also?.(tx, whole) ?? whole;
    if (ask.set === undefined) return { inode: cut, range };
    const { size: _, ...rest } = ask.set;
    return { inode: Object.keys(rest).length === 0 ? cut : names.setAttributes(tx, cut, rest), range };
  }

  /** In the file's turn: nobody writes to it through while `change` changes its extents, and tells of it (tellCut), by which they go
   *  on. Their kernels may hold pages locked meanwhile: they count as busy. */
  private async whilePaused<T>(ino: number, change: () => Promise<T>, gently = false): Promise<T> {
    const { clients, delegations, ends } = this.parts;
    const writers = delegations.holders(ino).filter(({ row }) => row.mode === 'shared' && row.open === 'write');
    const meant = writers.flatMap(({ client }) => clients.get(client) ?? []);
    let stands = true;
    let body = async (): Promise<T> => {
      try {
        const pause = { op: 'pauseWriters', ask: { ino }, deed: `stop writing to inode ${ino}`, stands: () => stands } as const;
        await Promise.all(meant.map((client) => (gently ? this.pauseGently(client, ino) : demand(this.parts, client, pause))));
        await ends.published(ino);
        return await change();
      } catch (error) {
        stands = false; // whoever has not answered yet is not fenced for it
        await this.endPause(ino, meant, gently);
        throw error;
      }
    };
    for (const client of meant) {
      const inner = body;
      body = () => client.whileBusy([writeLock(ino)], inner);
    }
    return body();
  }

  private async pauseGently(client: Client, ino: number): Promise<void> {
    const told = await this.parts.clients.tell(client, 'pauseWriters', { ino }, { limitMs: RECALL_TIMEOUT_MS });
    if (told.status !== 'answered') throw new ExtmemError('EBUSY', `mount ${client.name} does not stop writing to inode ${ino} now`);
  }

  /** Nothing has changed: the writers go on with the file as it was. */
  private async endPause(ino: number, meant: readonly Client[], gently: boolean): Promise<void> {
    const { clients, store } = this.parts;
    const inode = store.get<Inode>(keys.inode(ino));
    if (inode?.kind !== 'file' || meant.length === 0) return;
    if (!gently) return this.tellCut(inode, undefined, { offset: 0, length: 0 });
    const news = { ino, offset: 0, length: 0, attr: attrOf(inode), record: recordOf(store, inode), cut: true };
    await Promise.all(meant.map((client) => clients.tell(client, 'invalidate', news, { limitMs: RECALL_TIMEOUT_MS, again: true })));
  }

  /** Everybody but whoever cuts its own file has the new record when this resolves, and reads no more where it was cut; or is
   *  fenced. */
  private async tellCut(inode: Inode, asker: Client | undefined, dropped: { offset: number; length: number }): Promise<void> {
    const { store, delegations } = this.parts;
    const { ino } = inode;
    const isAsker = (holder: Holder): boolean => holder.client === asker?.id;
    delegations.extentsChanged(ino, asker);
    const news = { ino, attr: attrOf(inode), record: recordOf(store, inode), cut: true };
    const meant = delegations
      .holders(ino)
      .filter((holder) => holder.row.mode === 'shared' || (holder.row.mode === 'read' && !isAsker(holder)));
    await Promise.all(
      meant.map((holder) => {
        // The kernel that asked drops its pages by itself.
        const pages = isAsker(holder) ? { offset: 0, length: 0 } : dropped;
        return this.tellHolders([holder], { ...news, ...pages }, { must: true });
      }),
    );
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
    const { store, files, copies } = this.parts;
    const there = locateCopies({ extents: files.extents(store, inode.ino) }, from).filter(({ missing }) => missing === undefined);
    const zeroed = await Promise.all(there.map(({ region, offset }) => settle(this.zeroAt({ region, offset, length: to - from }))));
    const failed = there.filter((_, index) => zeroed[index] !== undefined);
    if (failed.length > 0 && failed.length < there.length) return copies.dropPlaces(inode.ino, failed);
    const [error] = zeroed;
    if (error !== undefined) throw error;
  }

  private async zeroAt(piece: RegionPiece): Promise<void> {
    const { regions, appliances } = this.parts;
    const row = regions.get(piece.region)?.row;
    const appliance = row === undefined || row.lost ? undefined : appliances.get(row.appliance);
    if (appliance !== undefined) await appliances.call(appliance, 'punch', { pieces: [piece] });
  }

  /** All of these have dropped what changed when this resolves; who cannot be told is fenced. must: so is who does not answer. */
  private async tellHolders(holders: readonly Holder[], news: News, how: { lock?: string; must?: boolean } = {}): Promise<void> {
    const { clients, delegations } = this.parts;
    await Promise.all(
      holders.map(async (holder) => {
        const client = clients.get(holder.client);
        if (client === undefined) return;
        const full = { ...delegations.newsFor(news.ino, holder), ...news };
        await (how.must === true ? this.tellSurely(client, full) : this.tellHolder(client, full, how.lock));
      }),
    );
  }

  private async tellSurely(client: Client, news: News): Promise<void> {
    const told = await this.parts.clients.tell(client, 'invalidate', news, { limitMs: RECALL_TIMEOUT_MS, again: true });
    if (told.status !== 'answered') await this.parts.fence(client, `it did not take a cut of inode ${news.ino} (${told.status})`);
  }

  private async tellHolder(client: Client, news: News, lock?: string): Promise<void> {
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
