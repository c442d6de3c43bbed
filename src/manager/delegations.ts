/**
 * Delegations: who may cache what of a file.
 *
 * Invariants: the modes of one file's holders are all `read`, or one `write`, or (some `shared`, and the rest `read` only while
 * nobody has it open for writing). A stronger mode is granted only after every holder that it conflicts with has answered a
 * recall or is fenced. What a holder may do is written down before it is told. Delegations survive this process.
 *
 * One change at a time per file (`turns`), except what a recalled holder may need in order to answer: commit, gaveUp, extend, wrote,
 * dropCopies and release never wait for a turn.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import { ExtmemError } from '../base/errors.js';
import { allocatedBytes, decodeRecord } from '../base/file_record.js';
import type { Logger } from '../base/logger.js';
import type { Answer, Ask, Attr, clientOperations, clientPushes, DelegationMode, FileGrant } from '../base/messages.js';
import { RECALL_TIMEOUT_MS, Right } from '../base/protocol.js';
import type { Access } from './access.js';
import type { Client, Clients } from './clients.js';
import { demand } from './demand.js';
import type { Ends } from './ends.js';
import { laterOf, type Files } from './files.js';
import { acceptsEpoch, attrOf, findFile, findInode, recordOf, type Inode } from './inode.js';
import type { Interest } from './interest.js';
import { KeyedMutex } from './keyed_mutex.js';
import { times } from './limits.js';
import type { Locks } from './locks.js';
import { keys, takeNumber, type MetadataStore, type Transaction } from './metadata_store.js';
import type { Reclaimer } from './reclaim.js';
import { READ_WRITE, type Regions } from './regions.js';

type Mode = Exclude<DelegationMode, 'none'>;
type Recalled = Answer<typeof clientPushes, 'recall'>;
type GivenUp = Ask<typeof clientOperations, 'gaveUp'>;

/** The delegation that comes with making a file; those that are granted have numbers from one on. */
const MAKERS = 0;

/** As the store keeps it. */
interface HolderRow {
  readonly mode: Mode;
  /** The strongest way in which the file is open there. */
  readonly open: 'read' | 'write';
  /** Of mode write: which delegation it is (none: that of the file's maker). Who gives it up says so. */
  readonly delegation?: number;
}

export interface Holder {
  readonly client: number;
  row: HolderRow;
  /** Which version of the extents it was told. */
  knows: number;
  /** It has answered a recall, and what it gave up is being written down. */
  taking?: Promise<unknown>;
}

export interface OpenFile {
  readonly holders: Map<number, Holder>;
  /** Counts changes of the extents that holders must hear of. */
  version: number;
  asking?: Promise<Uint8Array | undefined>;
}

export interface DelegationParts {
  store: MetadataStore;
  clients: Clients;
  files: Files;
  regions: Regions;
  reclaimer: Reclaimer;
  interest: Interest;
  locks: Locks;
  ends: Ends;
  access: Access;
  log: Logger;
  fence(client: Client, why: string): Promise<void>;
  /** Cuts off what lies behind the end of a file, whose turn it is. */
  clearBeyondEnd(ino: number): Promise<void>;
}

export class Delegations {
  private readonly open = new Map<number, OpenFile>();
  readonly turns = new KeyedMutex();

  constructor(private readonly parts: DelegationParts) {
    for (const [key, row] of parts.store.scan<HolderRow>(keys.holders)) {
      const ino = keys.firstNumber(key);
      this.openFile(ino).holders.set(keys.lastNumber(key), { client: keys.lastNumber(key), row, knows: 0 });
      if (row.mode === 'shared' && row.open === 'write') parts.ends.foundShared(ino);
    }
  }

  isHeld(ino: number): boolean {
    return this.open.has(ino);
  }

  get heldFiles(): number {
    return this.open.size;
  }

  find(ino: number, client: number): Holder | undefined {
    return this.open.get(ino)?.holders.get(client);
  }

  /** Throws ESTALE. */
  checkWriter(client: Client, ino: number): Holder {
    const holder = this.find(ino, client.id);
    if (holder?.row.open !== 'write' || holder.row.mode === 'read')
      throw new ExtmemError('ESTALE', `client ${client.id} does not hold inode ${ino} for writing`);
    return holder;
  }

  holders(ino: number): Holder[] {
    return [...(this.open.get(ino)?.holders.values() ?? [])];
  }

  others(ino: number, client: Client | undefined): Holder[] {
    return this.holders(ino).filter((holder) => holder.client !== client?.id);
  }

  /** The extents changed: who is told next gets them. */
  extentsChanged(ino: number, knownTo: Client | undefined): void {
    const file = this.open.get(ino);
    if (file === undefined) return;
    file.version++;
    const holder = knownTo === undefined ? undefined : file.holders.get(knownTo.id);
    if (holder !== undefined) holder.knows = file.version;
  }

  /** The record for a holder that does not have the present extents yet. */
  newsFor(ino: number, holder: Holder): { record?: Uint8Array } {
    const file = this.open.get(ino);
    if (file === undefined || holder.knows >= file.version) return {};
    holder.knows = file.version;
    return { record: recordOf(this.parts.store, findInode(this.parts.store, ino)) };
  }

  acquire(client: Client, ino: number, mode: 'read' | 'write'): Promise<FileGrant> {
    return this.turns.run(ino, async () => {
      this.parts.access.check(findFile(this.parts.store, ino), client, mode);
      const open = mode === 'write' || this.find(ino, client.id)?.row.open === 'write' ? 'write' : 'read';
      await this.makeRoom(ino, client, open);
      this.checkLive(client);
      const durable = this.parts.store.transact((tx) =>
        this.put(tx, client.id, findFile(tx, ino), { open, mode: this.modeFor(ino, client, open) }),
      );
      await durable;
      await this.forgetAttributes(client, ino);
      // A growth that is being told to the others was not told to this one.
      await this.parts.ends.published(ino);
      if (this.holders(ino).some((holder) => holder.row.mode === 'shared')) this.rebalance(ino);
      return this.grantOf(client, ino);
    });
  }

  /** A file that was just made, opened by its maker: nobody else can have it. */
  putNew(tx: Transaction, client: Client, inode: Inode): void {
    this.put(tx, client.id, inode, { mode: 'write', open: 'write' }, true);
  }

  async release(client: Client, ino: number, record: Uint8Array | undefined): Promise<void> {
    if (this.find(ino, client.id) === undefined) return;
    await this.parts.ends.published(ino);
    const { store, reclaimer } = this.parts;
    const tickets = await store.transact((tx) => {
      this.releaseIn(tx, client, ino, record);
      return reclaimer.ticketsOf(tx);
    });
    reclaimer.start(tickets);
    if (this.isHeld(ino)) this.rebalance(ino);
  }

  /** The last record of a write delegation, once: it comes again when its answer, or this process, was lost, perhaps after another
   *  grant, whose writes it does not have. Done when this has returned; it survives when that has resolved. */
  async gaveUp(client: Client, { ino, delegation, open, record }: GivenUp): Promise<void> {
    const { store, reclaimer } = this.parts;
    const holder = this.find(ino, client.id);
    if (holder?.row.mode !== 'write' || (holder.row.delegation ?? MAKERS) !== delegation) return store.settled();
    const tickets = await store.transact((tx) => {
      this.tryCommit(tx, ino, record, client.id);
      this.takeBack(tx, ino, holder, open);
      return reclaimer.ticketsOf(tx);
    });
    reclaimer.start(tickets);
    if (open === 'none' && this.isHeld(ino)) this.rebalance(ino);
  }

  releaseIn(tx: Transaction, client: Client, ino: number, record: Uint8Array | undefined): void {
    const holder = this.find(ino, client.id);
    if (holder === undefined) return;
    if (record !== undefined && holder.row.mode === 'write') this.tryCommit(tx, ino, record, client.id);
    this.drop(tx, ino, client.id);
  }

  /** All others who have more than `shared`, or only those who write, are brought down to it. */
  async recall(ino: number, except: Client | undefined, which: 'all' | 'writers'): Promise<void> {
    const meant = this.others(ino, except).filter(({ row }) => row.mode === 'write' || (which === 'all' && row.mode === 'read'));
    await Promise.all(meant.map((holder) => this.recallOne(ino, holder)));
  }

  /** Gives the holders that are left what they may have now. Later, in turn. */
  rebalance(ino: number): void {
    this.turns
      .run(ino, () => this.raise(ino))
      .catch((error: unknown) => this.parts.log.error({ ino, error }, 'granting a delegation again failed'));
  }

  /** Attributes as they are now, asked of whoever holds the file for writing; and whether `client` may keep them. */
  async attributes(client: Client | undefined, ino: number): Promise<{ attr: Attr; cacheable: boolean }> {
    const writer = this.others(ino, client).find(({ row }) => row.mode === 'write');
    if (writer !== undefined) {
      const record = await this.askWriter(ino, writer);
      const inode = findInode(this.parts.store, ino);
      const still = record !== undefined && this.find(ino, writer.client) === writer && writer.row.mode === 'write';
      return { attr: still ? overlay(inode, record) : attrOf(inode), cacheable: false };
    }
    return { attr: attrOf(findInode(this.parts.store, ino)), cacheable: this.isCacheable(client, ino) };
  }

  /** What is known without asking anybody. */
  isCacheable(client: Client | undefined, ino: number): boolean {
    const file = this.open.get(ino);
    if (file === undefined) return true;
    for (const { row, client: id } of file.holders.values())
      if (row.mode === 'shared' || (row.mode === 'write' && id !== client?.id)) return false;
    return true;
  }

  hasWriter(ino: number, except: Client | undefined): boolean {
    return this.others(ino, except).some(({ row }) => row.mode === 'write');
  }

  heldBy(client: number): { ino: number; holder: Holder }[] {
    const held: { ino: number; holder: Holder }[] = [];
    for (const [ino, file] of this.open) {
      const holder = file.holders.get(client);
      if (holder !== undefined) held.push({ ino, holder });
    }
    return held;
  }

  /** A client was fenced: what it wrote last, nobody was told. */
  died(client: Client): void {
    this.parts.ends.died(client, this.heldBy(client.id));
  }

  /** Everything that a client held is nobody's. Its grants are dead. */
  async dropClient(client: Client): Promise<void> {
    const { store, reclaimer } = this.parts;
    const inos = this.heldBy(client.id).map(({ ino }) => ino);
    const tickets = await store.transact((tx) => {
      for (const ino of inos) this.drop(tx, ino, client.id);
      return reclaimer.ticketsOf(tx);
    });
    reclaimer.start(tickets);
    for (const ino of inos) if (this.isHeld(ino)) this.rebalance(ino);
  }

  /** At start: orphans that nobody holds any more, and holders that no longer exist; what an earlier life changed, it may not have told
   *  everybody. */
  async clean(): Promise<void> {
    const { store, reclaimer, clients, files } = this.parts;
    const tickets = await store.transact((tx) => {
      for (const [ino, file] of [...this.open]) {
        for (const id of [...file.holders.keys()]) if (clients.get(id) === undefined) this.drop(tx, ino, id);
      }
      for (const [key] of [...tx.scan(keys.orphans)]) {
        const ino = keys.lastNumber(key);
        const inode = tx.get<Inode>(keys.inode(ino));
        if (inode !== undefined && !this.isHeld(ino)) files.destroy(tx, inode);
      }
      return reclaimer.ticketsOf(tx);
    });
    reclaimer.start(tickets);
    for (const ino of reclaimer.restoredCuts()) this.extentsChanged(ino, undefined);
  }

  grantOf(client: Client, ino: number): FileGrant {
    const { store, files, regions } = this.parts;
    const inode = findFile(store, ino);
    const holder = this.find(ino, client.id);
    if (holder === undefined) throw new ExtmemError('ESTALE', `client ${client.id} does not hold inode ${ino} any more`);
    holder.knows = this.open.get(ino)?.version ?? 0;
    const rights = holder.row.open === 'write' ? READ_WRITE : Right.read;
    const ids = files.regionIds(files.extents(store, ino));
    const { mode, delegation = MAKERS } = holder.row;
    const grants = regions.grantAll(client, ids, rights);
    return { mode, ...(mode === 'write' ? { delegation } : {}), attr: attrOf(inode), record: recordOf(store, inode), regions: grants };
  }

  /** A record of a holder, if it may write one; what is wrong with it is logged, not thrown. */
  tryCommit(tx: Transaction, ino: number, record: Uint8Array, client: number): void {
    try {
      this.parts.files.commit(tx, findFile(tx, ino), record, client);
    } catch (error) {
      if (!(error instanceof ExtmemError)) throw error;
      this.parts.log.error({ ino, client, code: error.code, why: error.message }, "a writer's last record could not be taken");
    }
  }

  checkLive(client: Client): void {
    if (client.state !== 'live') throw new ExtmemError('EIO', `client ${client.id} was fenced`);
  }

  private async makeRoom(ino: number, client: Client, open: 'read' | 'write'): Promise<void> {
    const others = this.others(ino, client);
    const conflicts = open === 'write' || others.some(({ row }) => row.open === 'write' || row.mode === 'write');
    if (others.length > 0 && conflicts) await this.recall(ino, client, 'all');
  }

  private modeFor(ino: number, client: Client, open: 'read' | 'write'): Mode {
    const others = this.others(ino, client);
    if (others.length === 0) return open;
    return open === 'write' || others.some(({ row }) => row.open === 'write') ? 'shared' : 'read';
  }

  private async recallOne(ino: number, holder: Holder): Promise<void> {
    const client = this.parts.clients.get(holder.client);
    if (client === undefined) return;
    const answer = await demand(this.parts, client, {
      op: 'recall',
      ask: { ino, to: 'shared' },
      deed: `give up inode ${ino}`,
      stands: () => this.find(ino, holder.client) === holder, // neither released nor fenced meanwhile
    });
    if (answer === undefined) return;
    const taking = this.takeAnswer(ino, client, holder, answer);
    holder.taking = taking;
    try {
      await taking;
    } finally {
      delete holder.taking;
    }
  }

  /** Has a holder write back and give up what it caches, if it does so in time. Nobody is fenced for it. */
  async tryRecall(ino: number, holder: Holder): Promise<boolean> {
    const client = this.parts.clients.get(holder.client);
    if (client === undefined) return true;
    // An answer that comes late is taken all the same: the locks that it brings are nowhere else any more.
    const recalled = this.parts.clients
      .tell(client, 'recall', { ino, to: 'shared' }, { limitMs: times.lateRecallMs })
      .then(async (told) => {
        if (told.status !== 'answered') return false;
        if (this.find(ino, holder.client) === holder) await this.takeAnswer(ino, client, holder, told.answer);
        return true;
      });
    const end = new AbortController();
    const isLate = sleep(RECALL_TIMEOUT_MS, false, { signal: end.signal, ref: false }).catch(() => false);
    recalled.catch((error: unknown) => this.parts.log.error({ ino, error }, 'a late answer to a recall could not be taken'));
    return Promise.race([recalled, isLate]).finally(() => end.abort());
  }

  /** What a client asks after its answer to a recall is about the file as that answer made it. */
  async answerTaken(ino: number, client: Client): Promise<void> {
    await this.find(ino, client.id)?.taking;
  }

  private async takeAnswer(ino: number, client: Client, holder: Holder, answer: Recalled): Promise<void> {
    const { store, reclaimer, locks } = this.parts;
    if (answer.locks !== undefined) await locks.restate(client.id, ino, answer.locks);
    if (this.find(ino, holder.client) !== holder) return;
    if (holder.row.mode === 'shared' && holder.row.open === answer.open) return; // as it gave it up
    const tickets = await store.transact((tx) => {
      this.takeBack(tx, ino, holder, answer.open);
      return reclaimer.ticketsOf(tx);
    });
    reclaimer.start(tickets);
  }

  private takeBack(tx: Transaction, ino: number, holder: Holder, open: Recalled['open']): void {
    if (open === 'none') this.drop(tx, ino, holder.client);
    else this.put(tx, holder.client, findInode(tx, ino), { mode: 'shared', open });
  }

  private async raise(ino: number): Promise<void> {
    const { store, clients } = this.parts;
    const holders = this.holders(ino);
    const [only] = holders;
    if (only === undefined) return;
    const isOpenForWriting = holders.some(({ row }) => row.open === 'write');
    if (holders.length > 1 && isOpenForWriting) return;
    const { ends } = this.parts;
    await ends.published(ino);
    if (ends.isUnclean(ino)) await this.parts.clearBeyondEnd(ino);
    ends.released(ino);
    const target: Mode = isOpenForWriting ? 'write' : 'read';
    const meant = holders.filter(({ row }) => row.mode === 'shared' || (row.mode === 'read' && target === 'write'));
    if (meant.length === 0) return;
    await store.transact((tx) => {
      const inode = findFile(tx, ino);
      for (const { client, row } of meant) this.put(tx, client, inode, { ...row, mode: target });
    });
    await Promise.all(
      meant.map(async (holder) => {
        const client = clients.get(holder.client);
        if (client === undefined || !client.isConnected) return;
        if (target === 'write') await this.forgetAttributes(client, ino);
        if (this.find(ino, client.id) === undefined) return;
        // Not waited for longer: it is written down that it may have it, and a recall finds out.
        await clients.tell(client, 'grant', { grant: this.grantOf(client, ino) }, { limitMs: times.wroteTellMs });
      }),
    );
  }

  /** Whoever has attributes of a file that somebody may now change by himself must not believe them any longer. */
  private async forgetAttributes(client: Client, ino: number): Promise<void> {
    if (this.find(ino, client.id)?.row.mode === 'read') return;
    const inode = this.parts.store.get<Inode>(keys.inode(ino));
    if (inode !== undefined) await this.parts.interest.tell(client, { entries: [], attributes: [attrOf(inode)] });
  }

  /** One question at a time per file, for all who want to know. */
  private askWriter(ino: number, writer: Holder): Promise<Uint8Array | undefined> {
    const file = this.openFile(ino);
    file.asking ??= this.askOnce(ino, writer).finally(() => delete file.asking);
    return file.asking;
  }

  private async askOnce(ino: number, writer: Holder): Promise<Uint8Array | undefined> {
    const client = this.parts.clients.get(writer.client);
    if (client === undefined || !client.isConnected) return undefined;
    const told = await this.parts.clients.tell(client, 'attributes', { ino }, { limitMs: times.wroteTellMs });
    return told.status === 'answered' ? told.answer.record : undefined;
  }

  private openFile(ino: number): OpenFile {
    let file = this.open.get(ino);
    if (file === undefined) this.open.set(ino, (file = { holders: new Map(), version: 0 }));
    return file;
  }

  private put(tx: Transaction, client: number, inode: Inode, { mode, open }: HolderRow, isMaker = false): void {
    const { holders, version } = this.openFile(inode.ino);
    const holder = holders.get(client);
    let row: HolderRow = { mode, open };
    if (mode === 'write' && !isMaker) {
      const goesOn = holder?.row.mode === 'write'; // its holder may not know of a grant that changes nothing
      row = { ...row, delegation: goesOn ? (holder.row.delegation ?? MAKERS) : takeNumber(tx, 'delegation') };
    }
    tx.put(keys.holder(inode.ino, client), row);
    if (holder === undefined) holders.set(client, { client, row, knows: version });
    else holder.row = row;
  }

  private drop(tx: Transaction, ino: number, client: number): void {
    tx.remove(keys.holder(ino, client));
    const file = this.open.get(ino);
    file?.holders.delete(client);
    this.parts.ends.dropped(ino, client);
    if (file === undefined || file.holders.size > 0) return;
    this.open.delete(ino);
    const isUnclean = this.parts.ends.closed(ino);
    const inode = tx.get<Inode>(keys.inode(ino));
    if (inode === undefined) return;
    if (inode.nlink > 0) {
      if (isUnclean) this.parts.files.cutBeyondEnd(tx, inode);
      return;
    }
    this.parts.files.destroy(tx, inode);
    this.parts.locks.dropInode(ino);
  }
}

function overlay(inode: Inode, bytes: Uint8Array): Attr {
  const attr = attrOf(inode);
  try {
    const record = decodeRecord(bytes);
    if (!acceptsEpoch(inode, record.epoch)) return attr;
    return {
      ...attr,
      size: record.size,
      mtime: record.mtime,
      ctime: laterOf(inode.ctime, record.ctime),
      change: Math.max(inode.change, record.change),
      blocks: allocatedBytes(record) / 512,
    };
  } catch {
    return attr; // a holder's nonsense is no reason not to answer somebody else
  }
}
