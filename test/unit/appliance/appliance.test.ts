/**
 * The appliance against a manager made for the test (a real WebSocket, the real session) and a region server that keeps notes:
 * order of joining, what it does at a hello, and that it comes back as the same incarnation.
 */
import { createServer, type Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { afterEach, describe, expect, test } from '@jest/globals';
import { pino } from 'pino';
import { WebSocketServer } from 'ws';
import { startAppliance, type Appliance } from '../../../src/appliance/appliance.js';
import { applianceOperations, appliancePushes, type ApplianceInfo } from '../../../src/base/messages.js';
import { Session, type Handlers } from '../../../src/base/session.js';
import type { RegionServer } from '../../../src/binding/index.js';
import { emptyRegion, StorelessServer } from '../storeless_server.js';

const silent = pino({ level: 'silent' });
const memoryBytes = 64 * 1024 ** 2;

/** Regions are names and sizes; every call is noted. */
class NotedServer extends StorelessServer implements RegionServer {
  readonly ports = [4711];
  readonly servesVerbs = false;
  readonly notes: string[] = [];
  readonly regions = new Map<number, number>();
  closed = false;

  createRegion(region: number, bytes: number): void {
    if (bytes > this.options.donatedBytes) throw Object.assign(new Error('no room'), { code: 'ENOSPC' });
    this.regions.set(region, bytes);
    this.notes.push(`create ${region}`);
  }
  resizeRegion(region: number, bytes: number): void {
    this.regions.set(region, bytes);
  }
  destroyRegion(region: number): void {
    if (!this.regions.delete(region)) throw Object.assign(new Error('no such region'), { code: 'ENOENT' });
    this.notes.push(`destroy ${region}`);
  }
  punchRegion(region: number, offset: number, length: number): void {
    this.notes.push(`punch ${region} ${offset} ${length}`);
  }
  async fenceClients(clients: { first: number; last: number }[]): Promise<void> {
    for (const { first, last } of clients) this.notes.push(`fence ${first}-${last}`);
  }
  offerMemory(bytes: number): void {
    this.notes.push(`offer ${bytes}`);
  }
  listRegions() {
    return [...this.regions].map(([region, bytes]) => emptyRegion(region, bytes));
  }
  listRecords() {
    return [];
  }
  removeRecord(): void {
    this.notes.push('remove record');
  }
  memory() {
    return { donatedBytes: this.options.donatedBytes, reservedBytes: 0, residentBytes: 0 };
  }
  takeTrace() {
    return [];
  }
  counters() {
    return { operations: 0 };
  }
  close(): void {
    this.closed = true;
  }
}

type ManagerSide = Session<typeof appliancePushes, typeof applianceOperations>;

class TestManager {
  clusterKey = Buffer.alloc(32, 1);
  dead: { first: number; last: number }[] = [];
  known: number[] = [];
  access: { region: number; version: number }[] = [];
  readonly asked: string[] = [];
  readonly infos: ApplianceInfo[] = [];
  session: ManagerSide | undefined;
  private readonly sockets = new WebSocketServer({ noServer: true });
  private waiting: (() => void)[] = [];

  private constructor(
    private readonly http: Server,
    readonly token: string,
  ) {}

  static async listen(port = 0): Promise<TestManager> {
    const manager = new TestManager(createServer(), 'secret');
    manager.http.on('upgrade', (request, socket, head) => {
      if (request.headers.authorization !== 'Bearer secret') {
        socket.end('HTTP/1.1 401 Unauthorized\r\n\r\n');
        return;
      }
      manager.sockets.handleUpgrade(request, socket, head, (webSocket) => {
        manager.session = new Session(webSocket, { out: appliancePushes, in: applianceOperations }, manager.handlers());
      });
    });
    await new Promise<void>((done) => manager.http.listen(port, '127.0.0.1', done));
    return manager;
  }

  get port(): number {
    return (this.http.address() as AddressInfo).port;
  }

  private handlers(): Handlers<typeof applianceOperations> {
    const note = (what: string): void => {
      this.asked.push(what);
      for (const wake of this.waiting.splice(0)) wake();
    };
    return {
      join: () => (note('join'), { clusterKey: this.clusterKey, access: [] }),
      hello: ({ appliance }) => {
        this.infos.push(appliance);
        note('hello');
        return { clusterKey: this.clusterKey, heartbeatMs: 20, dead: this.dead, regions: this.known, access: this.access };
      },
      heartbeat: () => (note('heartbeat'), {}),
      goodbye: () => (note('goodbye'), {}),
    };
  }

  async untilAsked(what: string, times = 1): Promise<void> {
    while (this.asked.filter((asked) => asked === what).length < times) await new Promise<void>((wake) => this.waiting.push(wake));
  }

  async close(): Promise<void> {
    this.session?.terminate('the test manager dies');
    this.http.closeAllConnections();
    await new Promise<void>((done) => this.http.close(() => done()));
  }
}

const closers: (() => Promise<void>)[] = [];
afterEach(async () => {
  for (const close of closers.splice(0).reverse()) await close();
});

async function startManager(port?: number): Promise<TestManager> {
  const manager = await TestManager.listen(port);
  closers.push(() => manager.close());
  return manager;
}

async function startMember(manager: TestManager, token = manager.token): Promise<{ appliance: Appliance; server: NotedServer }> {
  let server: NotedServer | undefined;
  const appliance = await startAppliance({
    manager: `http://127.0.0.1:${manager.port}`,
    token,
    id: 'one',
    memoryBytes,
    logger: silent,
    startServer: (options) => (server = new NotedServer(options)),
  });
  closers.push(() => appliance.close());
  if (server === undefined) throw new Error('no region server was started');
  return { appliance, server };
}

describe('joining', () => {
  test('asks for the key, serves with it, and only then says hello with its port and address', async () => {
    const manager = await startManager();
    const { appliance, server } = await startMember(manager);
    expect(manager.asked.slice(0, 2)).toEqual(['join', 'hello']);
    expect(Buffer.from(server.options.clusterKey)).toEqual(manager.clusterKey);
    expect(server.options.listenAddress).toBe('127.0.0.1');
    expect(manager.infos[0]).toMatchObject({
      id: 'one',
      address: '127.0.0.1',
      port: 4711,
      donatedBytes: memoryBytes,
      linkName: `extmem/one/${appliance.incarnation}`,
    });
    expect(appliance.unhealthy()).toBeUndefined();
  });

  test('sends heartbeats', async () => {
    const manager = await startManager();
    await startMember(manager);
    await manager.untilAsked('heartbeat', 2);
  });

  test('each start is another incarnation, of 48 bits at most', async () => {
    const manager = await startManager();
    const first = await startMember(manager);
    await first.appliance.close();
    const second = await startMember(manager);
    expect(second.appliance.incarnation).not.toBe(first.appliance.incarnation);
    expect(second.appliance.incarnation).toBeLessThan(2 ** 48);
  });

  test('a wrong token is refused by a message that names it', async () => {
    const manager = await startManager();
    await expect(startMember(manager, 'wrong')).rejects.toMatchObject({
      code: 'EACCES',
      message: expect.stringContaining('token') as unknown,
    });
  });

  test('no manager there is a message that says what to do', async () => {
    const manager = await TestManager.listen();
    const { port } = manager;
    await manager.close();
    const starting = startAppliance({
      manager: `http://127.0.0.1:${port}`,
      token: 'secret',
      id: 'one',
      memoryBytes,
      logger: silent,
      startServer: (options) => new NotedServer(options),
    });
    await expect(starting).rejects.toMatchObject({
      code: 'EUNREACHABLE',
      message: expect.stringContaining('extmem manager') as unknown,
    });
  });

  test('more memory than there is, is not donated unless forced', async () => {
    const starting = startAppliance({
      manager: 'http://127.0.0.1:1',
      token: 'secret',
      id: 'one',
      memoryBytes: 2 ** 50,
      logger: silent,
      startServer: (options) => new NotedServer(options),
    });
    await expect(starting).rejects.toMatchObject({ code: 'ENOMEM', message: expect.stringContaining('--force') as unknown });
  });
});

describe('the manager asks', () => {
  test('regions are made, and a failure keeps its code', async () => {
    const manager = await startManager();
    const { server } = await startMember(manager);
    await manager.session?.call('createRegion', { region: 5, bytes: 4096, thin: false });
    expect(server.notes).toContain('create 5');
    await expect(manager.session?.call('createRegion', { region: 6, bytes: memoryBytes * 2, thin: false })).rejects.toMatchObject({
      code: 'ENOSPC',
    });
    expect((await manager.session?.call('listRegions', {}))?.regions).toEqual([{ ...emptyRegion(5, 4096), activity: 'none' }]);
  });

  test('destroying a region that is gone already is done', async () => {
    const manager = await startManager();
    const { server } = await startMember(manager);
    await manager.session?.call('createRegion', { region: 5, bytes: 4096, thin: false });
    await manager.session?.call('destroyRegions', { regions: [4, 5] });
    expect(server.notes).toEqual(['create 5', 'destroy 5']);
  });

  test('a fence is answered when it holds', async () => {
    const manager = await startManager();
    const { server } = await startMember(manager);
    await manager.session?.call('fence', { dead: [{ first: 1, last: 7 }] });
    expect(server.notes).toEqual(['fence 1-7']);
  });
});

describe('the manager dies', () => {
  test('the appliance comes back to it as the same incarnation, fenced and without unknown regions', async () => {
    const first = await startManager();
    const { appliance, server } = await startMember(first);
    server.createRegion(1, 4096);
    server.createRegion(2, 4096);
    const { port } = first;
    await first.close();
    expect(server.closed).toBe(false);
    const second = await startManager(port);
    second.known = [2];
    second.dead = [{ first: 3, last: 9 }];
    await second.untilAsked('heartbeat');
    expect(second.infos[0]?.incarnation).toBe(appliance.incarnation);
    expect([...server.regions.keys()]).toEqual([2]);
    expect(server.notes).toContain('fence 3-9');
  });

  test('a manager of another cluster is refused, and what is here goes on being served', async () => {
    const first = await startManager();
    const { appliance, server } = await startMember(first);
    server.createRegion(1, 4096);
    const { port } = first;
    await first.close();
    const second = await startManager(port);
    second.clusterKey = Buffer.alloc(32, 2);
    await second.untilAsked('join', 2);
    expect(second.asked).not.toContain('hello');
    expect(appliance.unhealthy()).toMatch(/another cluster/);
    expect([...server.regions.keys()]).toEqual([1]);
  });
});

describe('closing', () => {
  test('says goodbye, then stops serving', async () => {
    const manager = await startManager();
    const { appliance, server } = await startMember(manager);
    await appliance.close();
    expect(manager.asked).toContain('goodbye');
    expect(server.closed).toBe(true);
  });

  test('does not wait for a manager that is dead', async () => {
    const manager = await startManager();
    const { appliance, server } = await startMember(manager);
    await manager.close();
    await appliance.close();
    expect(server.closed).toBe(true);
  });
});
