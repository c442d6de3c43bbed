/**
 * Jobs that move memory: what an operator asked for, and the rebuilding of copies that goes on by itself. A job is a row in the store:
 * it goes on when the manager starts again, from how the files lie then.
 *
 * What was asked for and what goes on by itself do not wait for each other; of each, one job runs at a time, a stretch at a time.
 *
 * Owner: the event loop.
 */
import { ExtmemError, messageOf } from '../../base/errors.js';
import { namesCopies, decodeRecord } from '../../base/file_record.js';
import type { Logger } from '../../base/logger.js';
import type { Appliances } from '../appliances.js';
import type { Delegations } from '../delegations.js';
import type { Files } from '../files.js';
import type { Inode } from '../inode.js';
import { limits, times } from '../limits.js';
import { keys, takeNumber, type MetadataStore } from '../metadata_store.js';
import type { Regions } from '../regions.js';
import { draining, hasBad, isLeftBad, isOn, migrating, rebuilding, whyLeft } from './choices.js';
import type { Checker } from './checker.js';
import type { Draining } from './drain.js';
import type { Mover } from './mover.js';
import { bytesMeant, type Choice } from './plan.js';
import type { Room } from './room.js';

export const JOB_KINDS = ['migrate', 'rebuild', 'drain', 'check'] as const;
export type JobKind = (typeof JOB_KINDS)[number];
export const JOB_STATES = ['waiting', 'running', 'done', 'failed', 'cancelled'] as const;
export type JobState = (typeof JOB_STATES)[number];

/** As the store keeps it, and as it is told. */
export interface Job {
  readonly id: number;
  readonly kind: JobKind;
  /** Not asked for by anybody. */
  readonly automatic: boolean;
  /** None: all there are. */
  readonly files: readonly { ino: number; path: string }[];
  readonly to?: string;
  readonly from?: string;
  /** Of a check: where the truth is. */
  readonly trust?: string;
  /** Bytes per second at most; 0: as fast as it goes. */
  readonly rate: number;
  readonly state: JobState;
  readonly doneBytes: number;
  readonly totalBytes: number;
  /** Files that it could not, or not wholly, do. */
  readonly problems: readonly { ino: number; path?: string; why: string }[];
  /** Why it failed; ''. */
  readonly error: string;
  /** Milliseconds since the epoch; 0: not yet. */
  readonly startedAt: number;
  readonly endedAt: number;
}

export type JobAsk = Pick<Job, 'kind' | 'files' | 'rate'> & {
  to?: string | undefined;
  from?: string | undefined;
  trust?: string | undefined;
  automatic?: boolean;
};

export interface JobsParts {
  store: MetadataStore;
  files: Files;
  regions: Regions;
  appliances: Appliances;
  delegations: Delegations;
  mover: Mover;
  checker: Checker;
  room: Room;
  draining: Draining;
  log: Logger;
}

export interface RebuildOptions {
  automatic: boolean;
  /** Bytes per second of what goes on by itself; 0: no limit. */
  rate: number;
}

export interface CheckOptions {
  /** All copies are compared by itself once in so many days; 0: never. */
  everyDays: number;
  /** Bytes of files per second; 0: no limit. */
  rate: number;
}

/** Each runs one job at a time, and none waits for another. */
type Lane = 'asked' | 'rebuild' | 'check';
const LANES: readonly Lane[] = ['asked', 'rebuild', 'check'];

const TELL_EVERY_MS = 1000;
const SCAN_AT_ONCE = 1000;
/** An appliance that went may be back, or be found to be down, by then. */
const TRIES = 4;
const REST_MS = 1000;
/** After that it is looked whether a job was cancelled. */
const LONGEST_PAUSE_MS = 200;
const DAY_MS = 24 * 3600 * 1000;
/** Whether it is time to check. */
const LOOK_EVERY_MS = 10 * 60_000;
/** What is written while an appliance is being emptied may still go there. */
const DRAIN_ROUNDS = 5;
/** What has moved is zeroed, and its regions are gone, by then. */
const EMPTY_MS = 10_000;
const LOOK_MS = 100;

export class Jobs {
  private readonly jobs = new Map<number, Job>();
  private readonly cancelled = new Set<number>();
  private readonly running = new Set<Lane>();
  private readonly looking: NodeJS.Timeout;
  private nudged: { timer: NodeJS.Timeout; at: number } | undefined;
  private isStopped = false;
  private isStarted = false;

  constructor(
    private readonly parts: JobsParts,
    private readonly rebuild: RebuildOptions,
    private readonly check: CheckOptions,
  ) {
    this.looking = setInterval(() => this.checkIfDue(), LOOK_EVERY_MS).unref();
    for (const [, job] of parts.store.scan<Job>(keys.jobs)) this.jobs.set(job.id, job);
  }

  /** Those that an earlier life of this manager did not end go on. */
  start(): void {
    this.isStarted = true;
    // What goes on by itself begins anew, as it is to be now.
    const old = this.list().filter((job) => job.automatic && !isEnded(job));
    for (const { id } of old) this.jobs.delete(id);
    this.parts.store
      .transact((tx) => old.forEach(({ id }) => tx.remove(keys.job(id))))
      .catch((error: unknown) => this.tellFailure('jobs of an earlier life could not be ended', error));
    for (const lane of LANES) this.run(lane);
    this.nudge();
  }

  stop(): void {
    this.isStopped = true;
    clearTimeout(this.nudged?.timer);
    clearInterval(this.looking);
  }

  /** Newest first. */
  list(): Job[] {
    return [...this.jobs.values()].sort((a, b) => b.id - a.id);
  }

  get(id: number): Job {
    const job = this.jobs.get(id);
    if (job === undefined) throw new ExtmemError('ENOENT', `there is no job ${id}; extmem jobs shows those there are`);
    return job;
  }

  async add({ automatic = false, to, from, trust, ...ask }: JobAsk): Promise<Job> {
    for (const id of [to, from, trust])
      if (id !== undefined && this.parts.appliances.get(id) === undefined)
        throw new ExtmemError('ENOENT', `there is no appliance ${id}; extmem status shows those there are`);
    const { store, appliances } = this.parts;
    if (ask.kind === 'drain' && from !== undefined) {
      const begun = this.list().find((job) => job.kind === 'drain' && job.from === from && !isEnded(job));
      if (begun !== undefined) return begun;
      await appliances.drain(from, true);
    }
    const places = {
      ...(to === undefined ? {} : { to }),
      ...(from === undefined ? {} : { from }),
      ...(trust === undefined ? {} : { trust }),
    };
    const begun = { state: 'waiting', doneBytes: 0, totalBytes: 0, problems: [], error: '', startedAt: 0, endedAt: 0 } as const;
    const job = await store.transact((tx) => {
      const job: Job = { id: takeNumber(tx, 'job'), automatic, ...ask, ...places, ...begun };
      tx.put(keys.job(job.id), job);
      this.jobs.set(job.id, job);
      for (const old of this.ended().slice(limits.jobsKept)) {
        tx.remove(keys.job(old.id));
        this.jobs.delete(old.id);
      }
      return job;
    });
    this.run(laneOf(job));
    return job;
  }

  /** After the stretch that is being moved; what was moved stays where it is. */
  async cancel(id: number): Promise<Job> {
    const job = this.get(id);
    if (isEnded(job)) throw new ExtmemError('EINVAL', `job ${id} has ended: it is ${job.state}`);
    this.cancelled.add(id);
    if (job.state === 'waiting') await this.put({ ...job, state: 'cancelled', endedAt: Date.now() });
    return this.get(id);
  }

  /** Things may be placed there again; what has moved away stays where it is. */
  async endDrain(appliance: string): Promise<void> {
    await this.parts.appliances.drain(appliance, false);
    for (const job of this.list()) if (job.kind === 'drain' && job.from === appliance && !isEnded(job)) await this.cancel(job.id);
  }

  /** Copies may have been lost, or there may be room for those that were: soon, they are made anew. */
  nudge(afterMs: number = times.rebuildRestMs): void {
    const at = performance.now() + afterMs;
    if (!this.rebuild.automatic || !this.isStarted || this.isStopped || (this.nudged !== undefined && this.nudged.at <= at)) return;
    clearTimeout(this.nudged?.timer);
    const begin = (): void => {
      this.nudged = undefined;
      this.rebuildAll().catch((error: unknown) => this.tellFailure('rebuilding copies could not begin', error));
    };
    this.nudged = { at, timer: setTimeout(begin, afterMs).unref() };
  }

  private async rebuildAll(): Promise<void> {
    if (this.of('rebuild').some((job) => !isEnded(job))) return this.nudge();
    if ((await this.badFiles(1)).length === 0) return;
    await this.addAnew('rebuild', this.rebuild.rate);
  }

  private checkIfDue(): void {
    const { everyDays, rate } = this.check;
    const isFresh = (job: Job): boolean => !isEnded(job) || job.endedAt > Date.now() - everyDays * DAY_MS;
    if (everyDays === 0 || this.isStopped || this.of('check').some(isFresh)) return;
    this.addAnew('check', rate).catch((error: unknown) => this.tellFailure('checking copies could not begin', error));
  }

  private of(lane: Lane): Job[] {
    return [...this.jobs.values()].filter((job) => laneOf(job) === lane);
  }

  /** Of what goes on by itself only the last is told of. */
  private async addAnew(kind: Exclude<Lane, 'asked'>, rate: number): Promise<void> {
    const old = this.of(kind);
    await this.parts.store.transact((tx) => old.forEach(({ id }) => tx.remove(keys.job(id))));
    for (const { id } of old) this.jobs.delete(id);
    await this.add({ kind, files: [], rate, automatic: true });
  }

  private ended(): Job[] {
    return this.list().filter(isEnded);
  }

  /** One after the other. */
  private run(lane: Lane): void {
    if (this.running.has(lane) || !this.isStarted) return;
    this.running.add(lane);
    const next = (): Job | undefined =>
      this.list()
        .reverse()
        .find((job) => laneOf(job) === lane && !isEnded(job));
    const work = async (): Promise<void> => {
      for (let job = next(); job !== undefined && !this.isStopped; job = next()) await this.runOne(job.id);
    };
    work()
      .catch((error: unknown) => this.tellFailure('a job could not be written down', error))
      .finally(() => {
        this.running.delete(lane);
        const isMoving = LANES.some((one) => one !== 'check' && this.running.has(one));
        if (!isMoving && !this.isStopped)
          this.parts.room
            .release()
            .catch((error: unknown) => this.tellFailure('regions that things moved to could not be given up', error));
      });
  }

  private tellFailure(what: string, error: unknown): void {
    if (!this.isStopped) this.parts.log.error({ error }, what);
  }

  private async runOne(id: number): Promise<void> {
    await this.put({ ...this.get(id), state: 'running', startedAt: this.get(id).startedAt || Date.now(), problems: [] });
    try {
      await this.moveAll(id);
      await this.end(id, this.cancelled.has(id) ? 'cancelled' : this.get(id).problems.length > 0 ? 'failed' : 'done', '');
    } catch (error) {
      if (this.isStopped) return; // it goes on in the next life
      await this.end(id, 'failed', messageOf(error));
    }
  }

  private async end(id: number, state: JobState, error: string): Promise<void> {
    if (this.isStopped) return;
    this.cancelled.delete(id);
    const job = await this.put({ ...this.get(id), state, error, endedAt: Date.now() });
    const { kind, doneBytes, problems } = job;
    this.parts.log[state === 'failed' ? 'warn' : 'info'](
      { job: id, kind, state, doneBytes, problems: problems.slice(0, 5), error },
      'a job has ended',
    );
    // Where nothing could be done, that will not be otherwise soon.
    if (laneOf(job) === 'rebuild' && state === 'failed') this.nudge(times.rebuildAgainMs * (doneBytes > 0 ? 1 : 10));
  }

  private async moveAll(id: number): Promise<void> {
    const job = this.get(id);
    if (job.kind === 'check') return this.checkAll(job);
    if (job.kind === 'drain' && job.from !== undefined) return this.drain(id, job.from);
    const isAll = job.kind === 'rebuild' && job.files.length === 0;
    await this.moveFiles(id, isAll ? await this.badFiles() : job.files.map(({ ino }) => ino));
  }

  private async drain(id: number, appliance: string): Promise<void> {
    const { log, appliances, draining } = this.parts;
    for (let round = 1; round <= DRAIN_ROUNDS && !this.isStopped && !this.cancelled.has(id); round++) {
      if (appliances.get(appliance)?.isUp !== true)
        throw new ExtmemError(
          'EIO',
          `${appliance} is down: it is drained when it is up; if what it held is lost, extmem rebuild makes copies anew`,
        );
      try {
        await draining.vacate(appliance);
      } catch (error) {
        if (round === DRAIN_ROUNDS) throw error;
        log.warn({ job: id, appliance, why: messageOf(error) }, 'what clients have there could not be had back yet; it is tried again');
        await sleep(REST_MS);
        continue;
      }
      await this.moveFiles(id, await this.filesWith(draining.namer(appliance)));
      await this.parts.room.release(appliance);
      if (this.get(id).problems.length > 0 || (await this.isEmpty(appliance))) return;
    }
    const left = draining.regionsOn(appliance).length;
    if (left > 0 && !this.cancelled.has(id))
      throw new ExtmemError('EBUSY', `${left} regions of ${appliance} are still in use; drain it again`);
  }

  private async isEmpty(appliance: string): Promise<boolean> {
    const until = Date.now() + EMPTY_MS;
    while (!this.isStopped && Date.now() < until) {
      if (this.parts.draining.regionsOn(appliance).length === 0) return true;
      await sleep(LOOK_MS);
    }
    return false;
  }

  private async moveFiles(id: number, inos: readonly number[]): Promise<void> {
    const { store, files } = this.parts;
    const job = this.get(id);
    const choose = this.choiceFor(job);
    let left = 0;
    for (const [index, ino] of inos.entries()) {
      left += bytesMeant(files.extents(store, ino), choose);
      if (index % SCAN_AT_ONCE === SCAN_AT_ONCE - 1) await immediate();
    }
    await this.put({ ...job, totalBytes: job.doneBytes + left });
    for (const ino of inos) {
      if (this.isStopped || this.cancelled.has(id)) return;
      const why = await this.moveFile(id, ino, choose);
      if (why !== undefined) this.noteProblem(id, ino, why);
    }
  }

  private async checkAll({ id, files, ...job }: Job): Promise<void> {
    const { store } = this.parts;
    const inos = files.length > 0 ? files.map(({ ino }) => ino) : await this.filesWith(namesCopies);
    const totalBytes = inos.reduce((sum, ino) => sum + (store.get<Inode>(keys.inode(ino))?.size ?? 0), 0);
    await this.put({ ...job, id, files, doneBytes: 0, totalBytes });
    for (const ino of inos) await this.checkFile(id, ino);
  }

  private async checkFile(id: number, ino: number): Promise<void> {
    const { checker } = this.parts;
    let next: number | undefined = 0;
    while (next !== undefined && !this.isStopped && !this.cancelled.has(id)) {
      const began = performance.now();
      const from: number = next;
      try {
        const checked = await checker.checkStretch(ino, from, this.get(id));
        for (const finding of checked.findings) this.noteProblem(id, ino, finding);
        next = checked.next;
        const job = this.get(id);
        const doneBytes = job.doneBytes + checked.bytes;
        await this.note({ ...job, doneBytes, totalBytes: Math.max(job.totalBytes, doneBytes) });
        if (job.rate > 0) await this.pause(id, (checked.bytes / job.rate) * 1000 - (performance.now() - began));
      } catch (error) {
        return this.noteProblem(id, ino, `it could not be checked from byte ${from} on: ${messageOf(error)}`);
      }
    }
  }

  /** Why something of it is left. */
  private async moveFile(id: number, ino: number, choose: Choice): Promise<string | undefined> {
    const { store, files, mover, log } = this.parts;
    for (let tries = 1; !this.isStopped && !this.cancelled.has(id);) {
      const job = this.get(id);
      const began = performance.now();
      try {
        const expectedBytes = Math.max(0, job.totalBytes - job.doneBytes);
        const bytes = await mover.moveStretch(ino, { choose, to: job.to, expectedBytes, gently: job.automatic });
        if (bytes === 0) return this.whyLeft(job, ino);
        await this.note({ ...job, doneBytes: job.doneBytes + bytes, totalBytes: Math.max(job.totalBytes, job.doneBytes + bytes) });
        tries = 1;
        await this.rest(job, ino, { bytes, tookMs: performance.now() - began });
      } catch (error) {
        if (!(error instanceof ExtmemError) || error.code === 'ENOSPC' || error.code === 'EDOMAIN' || tries >= TRIES)
          return messageOf(error);
        log.warn({ job: id, ino, code: error.code, why: error.message }, 'a stretch could not be moved; it is tried again');
        tries++;
        await sleep(REST_MS);
        if (files.extents(store, ino).length === 0) return undefined; // removed meanwhile
      }
    }
    return undefined;
  }

  /** Those who write to the file are not to wait more than they work; and no faster than was asked. */
  private async rest({ id, rate }: Job, ino: number, { bytes, tookMs }: { bytes: number; tookMs: number }): Promise<void> {
    const isWritten = this.parts.delegations.holders(ino).some(({ row }) => row.open === 'write');
    const paced = rate > 0 ? (bytes / rate) * 1000 - tookMs : 0;
    const restMs = Math.max(paced, isWritten ? tookMs : 0);
    await this.pause(id, restMs);
  }

  /** Less, once the job is cancelled. */
  private async pause(id: number, ms: number): Promise<void> {
    const end = performance.now() + ms;
    for (let left = ms; left > 0 && !this.isStopped && !this.cancelled.has(id); left = end - performance.now())
      await sleep(Math.min(left, LONGEST_PAUSE_MS));
  }

  private choiceFor({ kind, to, from }: Job): Choice {
    if (kind === 'migrate' && to !== undefined) return migrating(this.parts, { to, from });
    if (kind === 'drain' && from !== undefined) return draining(this.parts, from);
    return rebuilding(this.parts);
  }

  private whyLeft({ kind, to, from = '' }: Job, ino: number): string | undefined {
    const { store, files } = this.parts;
    const extents = files.extents(store, ino);
    if (kind === 'rebuild') return whyLeft(this.parts, extents, isLeftBad(this.parts));
    if (kind === 'drain') return whyLeft(this.parts, extents, (copies) => copies.some((copy) => isOn(this.parts, copy, from)));
    const isThere = (region: number): boolean => this.parts.regions.get(region)?.row.appliance === to;
    return whyLeft(this.parts, extents, (copies) => !copies.some(({ region, missing }) => missing === undefined && isThere(region)));
  }

  private noteProblem(id: number, ino: number, why: string): void {
    const job = this.get(id);
    if (job.problems.length >= limits.problemsPerJob || job.problems.some((one) => one.ino === ino && one.why === why)) return;
    const path = job.files.find((file) => file.ino === ino)?.path;
    this.jobs.set(id, { ...job, problems: [...job.problems, { ino, ...(path === undefined ? {} : { path }), why }] });
  }

  /** Of files with copies, those of which one is not whole. */
  private badFiles(limit = Infinity): Promise<number[]> {
    return this.filesWith((record) => namesCopies(record) && hasBad(this.parts, decodeRecord(record).extents), limit);
  }

  private async filesWith(isMeant: (record: Uint8Array) => boolean, limit = Infinity): Promise<number[]> {
    const { store } = this.parts;
    const found: number[] = [];
    for (let after = ''; ;) {
      const page = [...store.scan<Uint8Array>(keys.records, { limit: SCAN_AT_ONCE, ...(after === '' ? {} : { after }) })];
      for (const [key, record] of page) {
        const ino = keys.lastNumber(key);
        if (store.get<Inode>(keys.inode(ino)) !== undefined && isMeant(record)) found.push(ino);
        if (found.length >= limit) return found;
      }
      const last = page.at(-1)?.[0];
      if (last === undefined || page.length < SCAN_AT_ONCE) return found;
      after = last;
      await immediate();
    }
  }

  private readonly written = new Map<number, number>();

  /** How far it is: in the store now and then. */
  private async note(job: Job): Promise<void> {
    this.jobs.set(job.id, job);
    if (Date.now() - (this.written.get(job.id) ?? 0) < TELL_EVERY_MS) return;
    this.written.set(job.id, Date.now());
    await this.put(job);
  }

  private async put(job: Job): Promise<Job> {
    this.jobs.set(job.id, job);
    await this.parts.store.transact((tx) => tx.put(keys.job(job.id), job));
    if (isEnded(job)) this.written.delete(job.id);
    return job;
  }
}

function laneOf({ automatic, kind }: Pick<Job, 'automatic' | 'kind'>): Lane {
  if (!automatic) return 'asked';
  return kind === 'check' ? 'check' : 'rebuild';
}

function isEnded({ state }: Job): boolean {
  return state === 'done' || state === 'failed' || state === 'cancelled';
}

function immediate(): Promise<void> {
  return new Promise((resolve) => setImmediate(resolve));
}

function sleep(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms).unref());
}
