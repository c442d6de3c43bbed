/**
 * A real manager on a loopback port, and peers that play clients and appliances on real sessions.
 */
import { randomBytes } from 'node:crypto';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { pino } from 'pino';
import { encodeRecord, decodeRecord, type Extent, type FileRecord } from '../../../src/base/file_record.js';
import {
  applianceOperations,
  appliancePushes,
  clientOperations,
  clientPushes,
  type Answer,
  type ApplianceInfo,
  type Ask,
  type ClientRange,
  type FileGrant,
  type RegionGrant,
  type RegionPiece,
} from '../../../src/base/messages.js';
import { PAGE_BYTES, PROTOCOL_VERSION, SUM_BYTES } from '../../../src/base/protocol.js';
import { connectSession, sessionUrl, type Handlers, type Session } from '../../../src/base/session.js';
import { createManager, type Manager, type ManagerOptions } from '../../../src/manager/index.js';
import { until } from '../../until.js';
import { emptyRegion } from '../storeless_server.js';

export const MIB = 1024 * 1024;
export const TOKEN = 'a token for tests';
export const ROOT = 1;

type Operations = typeof clientOperations;
type Pushes = typeof clientPushes;

/** What a client that gives a file up says of it, and the record that it takes to the manager before. */
type GivenUp = Answer<Pushes, 'recall'> & { record?: Uint8Array };
type ClientOverrides = Omit<Overrides<Pushes>, 'recall'> & { recall?: (ask: Ask<Pushes, 'recall'>) => GivenUp | Promise<GivenUp> };

type Overrides<Table extends Pushes | typeof appliancePushes> = { -readonly [Name in keyof Handlers<Table>]?: Handlers<Table>[Name] };

export class Cluster {
  readonly stateDir = mkdtempSync(join(tmpdir(), 'extmem-manager-'));
  manager!: Manager;
  private readonly peers: { session: { terminate(why: string): void } }[] = [];

  static async start(options: Partial<ManagerOptions> = {}): Promise<Cluster> {
    const cluster = new Cluster();
    await cluster.startManager(options);
    return cluster;
  }

  async startManager(options: Partial<ManagerOptions> = {}): Promise<void> {
    const level = process.env['EXTMEM_TEST_LOG'] ?? 'silent';
    this.manager = await createManager({
      host: '127.0.0.1',
      port: 0,
      stateDir: this.stateDir,
      token: TOKEN,
      logger: pino({ level }),
      ...options,
    });
  }

  async restartManager(): Promise<void> {
    const { port } = this.manager;
    await this.manager.close();
    await this.startManager({ port });
  }

  async appliance(id: string, donatedBytes = 1024 * MIB): Promise<TestAppliance> {
    const appliance = new TestAppliance(this, id, donatedBytes);
    await appliance.connect();
    this.peers.push(appliance);
    return appliance;
  }

  async client(name = 'client'): Promise<TestClient> {
    const client = new TestClient(this, name);
    await client.connect();
    this.peers.push(client);
    return client;
  }

  async http(
    method: string,
    path: string,
    body?: unknown,
    token = TOKEN,
  ): Promise<{ status: number; body: Record<string, unknown>; text: string }> {
    const response = await fetch(`${this.manager.url}${path}`, {
      method,
      headers: { authorization: `Bearer ${token}`, ...(body === undefined ? {} : { 'content-type': 'application/json' }) },
      ...(body === undefined ? {} : { body: JSON.stringify(body) }),
    });
    const text = await response.text();
    let parsed: unknown = {};
    if (text.startsWith('{')) parsed = JSON.parse(text);
    return { status: response.status, body: parsed as Record<string, unknown>, text };
  }

  async close(): Promise<void> {
    for (const { session } of this.peers) session.terminate('the test is over');
    await this.manager.close();
    rmSync(this.stateDir, { recursive: true, force: true });
  }
}

export class TestAppliance {
  session!: Session<typeof applianceOperations, typeof appliancePushes>;
  incarnation = randomBytes(5).readUIntBE(0, 5);
  readonly regions = new Map<number, { bytes: number; thin: boolean }>();
  readonly records: { region: number; ino: number; record: Uint8Array }[] = [];
  readonly punched: RegionPiece[] = [];
  readonly copied: Ask<typeof appliancePushes, 'copy'>['pieces'] = [];
  readonly fenced: ClientRange[][] = [];
  readonly events: string[] = [];
  /** Replaces what a handler does. */
  override: Overrides<typeof appliancePushes> = {};
  welcome!: Answer<typeof applianceOperations, 'hello'>;

  constructor(
    private readonly cluster: Cluster,
    readonly id: string,
    readonly donatedBytes: number,
  ) {}

  async connect(): Promise<void> {
    this.session = await connectSession(
      sessionUrl(this.cluster.manager.url, 'appliances'),
      TOKEN,
      { out: applianceOperations, in: appliancePushes },
      this.handlers(),
    );
    await this.session.call('join', { version: PROTOCOL_VERSION, id: this.id });
    this.welcome = await this.session.call('hello', { version: PROTOCOL_VERSION, appliance: this.info() });
    for (const id of [...this.regions.keys()]) if (!this.welcome.regions.includes(id)) this.regions.delete(id);
    await until(`${this.id} is up`, async () => {
      const { body } = await this.cluster.http('GET', '/v1/appliances');
      return (body['appliances'] as ApplianceInfo[]).some(({ id, state }) => id === this.id && state === 'up');
    });
  }

  /** Its process dies and starts again. */
  async restart(): Promise<void> {
    this.session.terminate('killed');
    this.incarnation++;
    this.regions.clear();
    this.records.length = 0;
    await this.connect();
  }

  info(): ApplianceInfo {
    return {
      id: this.id,
      hostId: 'host',
      address: '127.0.0.1',
      port: 7000,
      linkName: '',
      incarnation: this.incarnation,
      donatedBytes: this.donatedBytes,
      reservedBytes: 0,
      residentBytes: 0,
      state: 'up',
    };
  }

  reserved(): number {
    return [...this.regions.values()].reduce((sum, { bytes }) => sum + bytes, 0);
  }

  private handlers(): Handlers<typeof appliancePushes> {
    const done = {};
    const usual: Handlers<typeof appliancePushes> = {
      createRegion: ({ region, bytes, thin }) => (this.regions.set(region, { bytes, thin }), done),
      resizeRegion: () => done,
      destroyRegions: ({ regions }) => {
        for (const region of regions) this.regions.delete(region);
        return done;
      },
      punch: ({ pieces }) => (this.punched.push(...pieces), done),
      sum: ({ pieces }) => ({ sums: pieces.map(({ length }) => Buffer.alloc(Math.ceil(length / SUM_BYTES) * 8)) }),
      copy: ({ pieces }) => (this.copied.push(...pieces), done),
      fence: (ask) => {
        this.fenced.push(ask.dead);
        this.events.push(...ask.dead.map(({ first, last }) => `fence ${first}-${last}`));
        return done;
      },
      setAccess: ({ regions, keep }) => {
        for (const { region, version } of regions) this.events.push(`access ${region} ${version} keep ${keep.join(' ')}`);
        return done;
      },
      health: () => ({ health: {}, worries: [] }),
      listRegions: () => ({
        regions: [...this.regions].map(([region, { bytes, thin }]) => ({
          ...emptyRegion(region, bytes),
          thin,
          activity: 'none' as const,
        })),
      }),
      listRecords: () => ({ records: this.records }),
      removeRecords: () => done,
      persist: ({ pieces }) => {
        this.events.push(`persist ${pieces.map(({ region }) => region).join(' ')}`);
        return { freedBytes: 0, heldBytes: 0 };
      },
    };
    const dispatch = <Name extends keyof typeof usual>(name: Name): (typeof usual)[Name] =>
      ((ask: never) => (this.override[name] ?? usual[name])(ask)) as (typeof usual)[Name];
    return {
      createRegion: dispatch('createRegion'),
      resizeRegion: dispatch('resizeRegion'),
      destroyRegions: dispatch('destroyRegions'),
      punch: dispatch('punch'),
      sum: dispatch('sum'),
      copy: dispatch('copy'),
      fence: dispatch('fence'),
      setAccess: dispatch('setAccess'),
      health: dispatch('health'),
      listRegions: dispatch('listRegions'),
      listRecords: dispatch('listRecords'),
      removeRecords: dispatch('removeRecords'),
      persist: dispatch('persist'),
    };
  }
}

export class TestClient {
  session!: Session<Operations, Pushes>;
  hello!: Answer<Operations, 'hello'>;
  /** Every push, as it came. */
  readonly pushes: { op: keyof Pushes; ask: Record<string, unknown> }[] = [];
  override: ClientOverrides = {};
  /** Its write delegations, as they were granted. */
  private readonly delegations = new Map<number, number>();
  private readonly waiters: { op: keyof Pushes; resolve(ask: never): void }[] = [];

  constructor(
    private readonly cluster: Cluster,
    readonly name: string,
  ) {}

  get id(): number {
    return this.hello.client;
  }

  async connect(resume = false): Promise<void> {
    const { client, generation, secret } = resume ? this.hello : { client: 0, generation: 0, secret: '' };
    this.session = await connectSession(
      sessionUrl(this.cluster.manager.url, 'clients'),
      TOKEN,
      { out: clientOperations, in: clientPushes },
      this.handlers(),
    );
    this.hello = await this.session.call('hello', {
      version: PROTOCOL_VERSION,
      name: this.name,
      hostId: 'host',
      ...(resume ? { resume: { client, generation, secret } } : {}),
    });
  }

  async ask<Name extends keyof Operations>(op: Name, ask: Ask<Operations, Name>): Promise<Answer<Operations, Name>> {
    const answer = await this.session.call(op, ask, { timeoutMs: 20_000 });
    if ('regions' in answer && 'mode' in answer) this.noteGrant(answer);
    if ('grant' in answer && answer.grant !== undefined) this.noteGrant(answer.grant);
    return answer;
  }

  private noteGrant({ attr, delegation }: FileGrant): void {
    if (delegation !== undefined) this.delegations.set(attr.ino, delegation);
  }

  private async recall(ask: Ask<Pushes, 'recall'>): Promise<Answer<Pushes, 'recall'>> {
    const { ino } = ask;
    const { record, ...answer } = (await this.override.recall?.(ask)) ?? { open: 'none' as const };
    const delegation = this.delegations.get(ino);
    if (record !== undefined && delegation !== undefined) await this.ask('gaveUp', { ino, delegation, open: answer.open, record });
    return answer;
  }

  /** The next push of this kind. */
  next<Name extends keyof Pushes>(op: Name): Promise<Ask<Pushes, Name>> {
    return new Promise((resolve) => this.waiters.push({ op, resolve }));
  }

  count(op: keyof Pushes): number {
    return this.pushes.filter((push) => push.op === op).length;
  }

  async lookup(name: string, parent = ROOT): Promise<Answer<Operations, 'lookup'>> {
    return this.ask('lookup', { parent, name });
  }

  async make(name: string, more: Partial<Ask<Operations, 'create'>> = {}): Promise<Answer<Operations, 'create'>> {
    return this.ask('create', {
      parent: ROOT,
      name,
      kind: 'file',
      mode: 0o644,
      uid: 1,
      gid: 2,
      rdev: 0,
      open: false,
      exclusive: true,
      ...more,
    });
  }

  async mkdir(name: string, parent = ROOT): Promise<number> {
    const { attr } = await this.make(name, { parent, kind: 'directory', mode: 0o755 });
    return attr.ino;
  }

  async openNew(name: string, parent = ROOT): Promise<FileGrant> {
    const { grant } = await this.make(name, { parent, open: true });
    if (grant === undefined) throw new Error('no grant');
    return grant;
  }

  async provision(bytes = MIB): Promise<RegionGrant[]> {
    return (await this.ask('provision', { bytes })).regions;
  }

  unlink(name: string, more: Partial<Ask<Operations, 'unlink'>> = {}): Promise<Answer<Operations, 'unlink'>> {
    return this.ask('unlink', { parent: ROOT, name, directory: false, ...more });
  }

  rename(name: string, newName: string, more: Partial<Ask<Operations, 'rename'>> = {}): Promise<Answer<Operations, 'rename'>> {
    return this.ask('rename', { parent: ROOT, name, newParent: ROOT, newName, noReplace: false, exchange: false, ...more });
  }

  private handlers(): Handlers<Pushes> {
    const usual: Handlers<Pushes> = {
      recall: (ask) => this.recall(ask),
      recallDirectory: () => ({}),
      grant: ({ grant }) => (this.noteGrant(grant), {}),
      attributes: () => ({}),
      invalidateEntries: () => ({}),
      invalidate: () => ({}),
      pauseWriters: () => ({}),
      yieldEnd: () => ({ unclean: false }),
      access: () => ({}),
      retire: () => ({}),
      freed: () => ({}),
      appliances: () => ({}),
    };
    const dispatch = <Name extends keyof Pushes>(op: Name): Handlers<Pushes>[Name] =>
      ((ask: never) => {
        this.pushes.push({ op, ask });
        for (const waiter of this.waiters.filter((one) => one.op === op)) {
          this.waiters.splice(this.waiters.indexOf(waiter), 1);
          waiter.resolve(ask);
        }
        return ((op === 'recall' ? undefined : this.override[op]) ?? usual[op])(ask);
      }) as Handlers<Pushes>[Name];
    return {
      recall: dispatch('recall'),
      recallDirectory: dispatch('recallDirectory'),
      grant: dispatch('grant'),
      attributes: dispatch('attributes'),
      invalidateEntries: dispatch('invalidateEntries'),
      invalidate: dispatch('invalidate'),
      pauseWriters: dispatch('pauseWriters'),
      yieldEnd: dispatch('yieldEnd'),
      access: dispatch('access'),
      retire: dispatch('retire'),
      freed: dispatch('freed'),
      appliances: dispatch('appliances'),
    };
  }
}

/** The record of a grant with some things changed; the change counter goes on. */
export function changed(grant: { record: Uint8Array }, change: Partial<FileRecord>): Buffer {
  const record = decodeRecord(grant.record);
  return encodeRecord({ ...record, change: record.change + 1, ...change });
}

export function extent(fileOffset: number, length: number, region: number, offset: number): Extent {
  return { fileOffset, length, unit: length, members: [{ region, offset }] };
}

export const PAGE = PAGE_BYTES;
