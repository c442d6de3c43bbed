/**
 * The client of one mount: the manager's session, native, and between them the parts that each keep one thing. The file system
 * (src/fs) is written against this; it knows neither the session's state nor the order in which caches are given up.
 *
 * Invariant: everything here runs on the event loop; a part is changed by itself only.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import type { Logger } from '../base/logger.js';
import type { Answer, Attr } from '../base/messages.js';
import type { NativeMount } from '../binding/index.js';
import { AttributeCache } from './attribute_cache.js';
import { BoundedWait } from './bounded_wait.js';
import { Commits } from './commits.js';
import { GivenUp } from './given_up.js';
import { Cuts } from './cuts.js';
import { DirectoryActivity } from './directory_activity.js';
import { HeldFiles } from './held_files.js';
import { LocalDirectories } from './local_directories.js';
import { LockKeeper } from './lock_keeper.js';
import type { ClientOperations, Manager, PushHandlers } from './manager.js';
import type { Hello, SessionEvents } from './manager_session.js';
import { NameJournal } from './name_journal.js';
import { Pushes } from './pushes.js';
import { KnownRegions, regionsIn } from './regions.js';
import { Rejoining } from './rejoining.js';
import { Reserve } from './reserve.js';
import { Upcalls, type Question } from './upcalls.js';

const ROOM_VALID_MS = 1000;

/** What of a session this needs: ManagerSession, or a test's. */
export interface ClientSession extends Manager {
  readonly hello: Hello;
  serve(pushes: PushHandlers, events: SessionEvents): void;
  close(options: { goodbye: boolean }): Promise<void>;
  counters(): Record<string, unknown>;
}

export interface MountClientOptions {
  session: ClientSession;
  native: NativeMount;
  log: Logger;
  /** Room kept ready to be written to without asking. */
  reserveBytes: number;
  maxIdleFiles?: number;
  errnoOf: (failure: unknown) => { errno: number; expected: boolean };
  /** The manager is another cluster's: the mount must end. */
  onFenced(why: string): void;
}

type Room = Answer<ClientOperations, 'statfs'>;

export class MountClient {
  /** Whatever is asked by it goes behind what was done in our directories. */
  readonly manager: Manager;
  readonly native: NativeMount;
  readonly log: Logger;
  readonly cache: AttributeCache;
  readonly held: HeldFiles;
  readonly locks: LockKeeper;
  readonly cuts: Cuts;
  readonly directories: LocalDirectories;
  readonly activity = new DirectoryActivity();

  private readonly session: ClientSession;
  private readonly regions: KnownRegions;
  private readonly commits: Commits;
  private readonly givenUp: GivenUp;
  private readonly reserve: Reserve;
  private readonly upcalls: Upcalls;
  private readonly pushes: Pushes;
  private readonly rejoining: Rejoining;
  private readonly onFenced: (why: string) => void;
  private room: Room | undefined;
  private roomAtMs = 0;

  constructor(options: MountClientOptions) {
    const { session, native, log, errnoOf } = options;
    this.session = session;
    const journal = new NameJournal(session);
    this.manager = journal;
    this.native = native;
    this.log = log;
    this.onFenced = (why) => options.onFenced(why);
    this.cache = new AttributeCache(session);
    this.regions = new KnownRegions(journal, native);
    this.regions.onBehind = (regions) => this.fallBehind(regions);
    this.held = new HeldFiles(journal, native, this.regions, log, options.maxIdleFiles);
    this.held.onWriteEnded = (ino) => this.cache.dropAttr(ino);
    this.locks = new LockKeeper(journal, native, this.held);
    this.commits = new Commits(journal, native, this.held, log);
    this.givenUp = new GivenUp(journal, this.held, log);
    this.cuts = new Cuts(journal, native, this.held, this.regions);
    this.reserve = new Reserve(journal, native, this.regions, log, options.reserveBytes);
    const wait = new BoundedWait(log);
    this.directories = new LocalDirectories({ journal, native, cache: this.cache, held: this.held, wait, log });
    const parts = { ...this.parts(), wait, errnoOf };
    this.upcalls = new Upcalls(parts);
    this.rejoining = new Rejoining(parts);
    this.pushes = new Pushes({ ...parts, activity: this.activity });
  }

  /** Tells native who there is, takes pushes, and gets the first room to write to (or warns that there is none). */
  async start(): Promise<void> {
    const { appliances } = this.session.hello;
    this.regions.putAppliances(appliances);
    this.session.serve(this.pushes, {
      lost: () => this.dropBeliefs(),
      resumed: (hello) => this.resumed(hello),
      rejoined: (hello) => this.rejoining.begin(hello),
      fenced: (why) => this.fenced(why),
    });
    if (!appliances.some(({ state }) => state === 'up'))
      this.log.warn('the cluster has no appliance yet: writes fail with ENOSPC until one joins (start one with `extmem appliance`)');
    await this.reserve.start();
  }

  answerUpcall(question: Question): void {
    this.upcalls.answer(question);
  }

  /** Before the kernel is told attributes of a file that others write: what it has cached of its end must be gone. */
  kernelSettled(ino: number): Promise<unknown> | undefined {
    return this.pushes.kernelSettled(ino);
  }

  /** Attributes that the kernel may believe: of a directory of ours, or cached. */
  knownAttr(ino: number): Attr | undefined {
    return this.directories.attrOf(ino) ?? this.cache.attr(ino);
  }

  /** For how long the kernel may believe what it is told now. */
  validityMs(): number {
    return Math.max(0, this.manager.leaseLeftMs());
  }

  /** Room in the pool, at most a second old; the last that was known while the manager is dead. */
  statfs(): Room | Promise<Room> {
    if (this.room !== undefined && (!this.manager.alive || performance.now() - this.roomAtMs < ROOM_VALID_MS)) return this.room;
    return this.manager.ask('statfs', {}).then((room) => {
      this.roomAtMs = performance.now();
      return (this.room = room);
    });
  }

  /** Pages that a mapping dirtied reach native only when the last handle goes: nobody is waiting, but they are taken home. */
  writeBehind(ino: number): void {
    this.writeBack(ino).catch((error: unknown) => {
      if (this.manager.alive) this.log.warn({ ino, error }, 'a file written through a mapping could not be written back yet');
    });
  }

  /** Everything written to the appliances and every record to the manager. Answers the inodes that could not be. */
  async writeBackAll(): Promise<number[]> {
    const failed: number[] = [];
    const files = [...this.held.all()].filter(({ delegation, unlinked }) => delegation !== undefined && !unlinked);
    await Promise.all(files.map(({ ino }) => this.writeBack(ino).catch(() => void failed.push(ino))));
    await this.directories.settled().catch((error: unknown) => {
      this.log.error({ error }, 'changes of names could not be told to the manager');
      failed.push(...this.directories.unwritten());
    });
    return failed;
  }

  async close(options: { goodbye: boolean }): Promise<void> {
    this.reserve.stop();
    this.rejoining.stop();
    await this.session.close(options);
  }

  counters(): Record<string, unknown> {
    return {
      session: this.session.counters(),
      attributeCache: this.cache.counters(),
      files: this.held.counters(),
      commits: this.commits.counters(),
      reserve: this.reserve.counters(),
      locks: this.locks.counters(),
      directories: this.directories.counters(),
      pushes: this.pushes.counters(),
      fences: this.rejoining.counters(),
    };
  }

  private async writeBack(ino: number): Promise<void> {
    await this.held.get(ino)?.changing; // which writes it back too; where that fails it is as it was
    const state = this.native.fileState(ino);
    if (state === undefined) return;
    if (state.dirtyBytes > 0) await this.native.flushFile(ino);
    const after = this.native.fileState(ino);
    if (after === undefined || !after.recordChanged || this.held.get(ino)?.delegation === undefined) return;
    await this.commits.commit(ino, this.native.record(ino, false));
    // Changed again meanwhile: then the next commit has it.
    if (this.native.fileState(ino)?.change === after.change) this.native.record(ino, true);
  }

  /** What the kernel was told to believe ends with the lease at the latest; no need to wait longer than that. */
  private async dropBeliefs(): Promise<void> {
    this.locks.sessionLost();
    this.pushes.refusePaused();
    const entries = [...this.cache.cachedEntries()];
    const inodes = [...this.cache.cachedInodes()];
    this.cache.clear();
    this.held.forgetChanges();
    const notices = [
      this.directories.sessionLost(),
      ...entries.map(({ parent, name }) => this.native.invalidateEntry(parent, name)),
      ...inodes.map((ino) => this.native.invalidateInode(ino, -1, 0)),
    ];
    const lease = new AbortController();
    const leaseEnd = sleep(this.session.hello.leaseMs, undefined, { signal: lease.signal }).catch(() => undefined);
    await Promise.race([Promise.allSettled(notices), leaseEnd]);
    lease.abort();
  }

  private async resumed(hello: Hello): Promise<void> {
    const named = this.directories.sessionResumed(); // before anything else is asked: what was given up may have a name of these
    const givenUp = this.givenUp.deliverAll(); // before anything but that
    const restated = this.locks.restate();
    this.regions.putAppliances(hello.appliances);
    await named;
    await givenUp;
    await restated;
    await this.commits.recommit();
    setImmediate(() => this.held.giveBackOwed()); // once this has returned the session is alive
    this.rejoining.renewAll(); // after a fence that the session was lost again in
    void this.pushes.settlePaused();
    void this.reserve.spread();
  }

  private fallBehind(regions: ReadonlySet<number>): void {
    const meant = [...this.held.all()].filter(({ ino }) =>
      [...regionsIn(this.native.record(ino, false))].some((region) => regions.has(region)),
    );
    if (meant.length === 0) return;
    this.log.error(
      { files: meant.length },
      'an appliance came back with an earlier state of what files have there: those that have them open are told ESTALE',
    );
    for (const file of meant) {
      this.held.fallBehind(file);
      this.native.invalidateInode(file.ino, 0, -1).catch((error: unknown) => {
        this.log.warn({ ino: file.ino, error }, 'the kernel did not drop what it had of a file that came back as it was earlier');
      });
    }
  }

  private fenced(why: string): void {
    this.cache.clear();
    this.log.error({ why }, 'the manager does not know the files of this mount; what was not written back is lost, and the mount ends');
    this.onFenced(why);
  }

  private parts(): Pick<MountClient, 'manager' | 'native' | 'log' | 'cache' | 'held' | 'locks' | 'directories'> & {
    regions: KnownRegions;
    commits: Commits;
    givenUp: GivenUp;
    reserve: Reserve;
  } {
    const { manager, native, log, cache, held, locks, directories, regions, commits, givenUp, reserve } = this;
    return { manager, native, log, cache, held, locks, directories, regions, commits, givenUp, reserve };
  }
}
