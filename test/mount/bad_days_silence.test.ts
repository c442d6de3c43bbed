/**
 * An appliance that says nothing: stopped with dirty pages outstanding, or behind a network that holds writes back. Who needs it is told
 * within 5 s, nobody else notices, and when it speaks again nothing is lost and nothing old lands on what is newer.
 */
import { connect, createServer, type Server, type Socket } from 'node:net';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from '@jest/globals';
import { until } from '../until.js';
import { Actor } from './actor.js';
import { LIMIT_MS, makeConcatFolder, makeFileOn, peerState, quote, timed } from './bad_days.js';
import { TestCluster } from './cluster.js';

/** Nobody who does not need the silent appliance waits for longer. */
const UNDISTURBED_MS = 1000;

describe('an appliance stopped, over tcp', () => {
  const cluster = new TestCluster({ transport: 'tcp', cache: '32M', memory: '256M' });
  let actor: Actor;
  let other: Actor;
  let folder = '';

  beforeAll(async () => {
    await cluster.start();
    const first = new Actor();
    folder = await makeConcatFolder(cluster, first, 'on-one');
    await first.end();
  });
  afterAll(() => cluster.stop());
  beforeEach(() => {
    actor = new Actor();
    other = new Actor();
  });
  afterEach(async () => {
    process.kill(cluster.role('a1').pid, 'SIGCONT');
    await until('it is reached again', async () => {
      await timed(actor, `os.fsync(f)`);
      return (await peerState(cluster, 'a1')) === 'up';
    });
    await actor.end();
    await other.end();
  });

  const fileOn = (appliance: string, bytes: number): Promise<string> =>
    makeFileOn(cluster, actor, folder, appliance, `random.randbytes(${bytes})`).then(quote);

  test('its files give EIO within 5 s, others never take over a second, and afterwards all that was written is there', async () => {
    const silent = await fileOn('a1', 3 << 20);
    const lively = await fileOn('a2', 3 << 20);
    await actor.do(`f = os.open(${silent}, os.O_RDWR); new = random.randbytes(1 << 20)`);
    await other.do(`g = os.open(${lively}, os.O_RDWR); longest = 0; import time`);
    await cluster.evict();
    await cluster.signal('a1', 'SIGSTOP');
    const work = other.do<number>(`
end = time.monotonic() + 7; count = 0; mine = random.randbytes(200_000)
while time.monotonic() < end:
    for call in (lambda: os.pwrite(g, mine, count * 4096), lambda: os.fsync(g), lambda: os.pread(g, 100_000, 2 << 20),
                 lambda: os.stat(${lively}), lambda: os.listdir(${quote(folder)}), lambda: os.statvfs(${quote(folder)}),
                 lambda: os.rename(${lively}, ${lively} + 'x'), lambda: os.rename(${lively} + 'x', ${lively})):
        begun = time.monotonic(); call(); longest = max(longest, time.monotonic() - begun)
    count = (count + 1) % 500
longest`);
    expect((await timed(actor, `os.pwrite(f, new, 4096)`)).error).toBe(''); // accepted: it may be written later
    const sync = await timed(actor, `os.fsync(f)`);
    expect(sync.error).toBe('EIO');
    expect(sync.ms).toBeLessThan(LIMIT_MS);
    const read = await timed(actor, `os.pread(f, 4096, 2 << 20)`);
    expect(read.error).toBe('EIO');
    expect(read.ms).toBeLessThan(LIMIT_MS);
    expect((await work) * 1000).toBeLessThan(UNDISTURBED_MS);
    expect(await actor.do(`os.pread(f, 1 << 20, 4096) == new`)).toBe(true); // it is still here
    process.kill(cluster.role('a1').pid, 'SIGCONT');
    await until('what was dirty arrives', async () => (await timed(actor, `os.fsync(f)`)).error === '');
    await cluster.evict();
    expect(await actor.do(`os.pread(f, 1 << 20, 4096) == new`)).toBe(true);
    expect((await timed(actor, `os.fsync(f); os.pread(f, 4096, 2 << 20)`)).error).toBe('');
  });

  test('more is written than its share of the dirty limit: the writer is told, others write on', async () => {
    const silent = await fileOn('a1', 4096);
    const lively = await fileOn('a2', 4096);
    await actor.do(`f = os.open(${silent}, os.O_RDWR); piece = random.randbytes(1 << 20)`);
    await other.do(`g = os.open(${lively}, os.O_RDWR); import time`);
    await actor.do(`os.pwrite(f, piece * 20, 0); os.fsync(f)`); // its room is there
    await cluster.signal('a1', 'SIGSTOP');
    const written = actor.do<[number, string, number]>(`
import time
done = 0; failed = ''; longest = 0
for at in range(0, 20 << 20, 1 << 20):
    begun = time.monotonic()
    try: os.pwrite(f, piece[:1000] + piece[1000:], at); done += 1
    except OSError as error: failed = errno.errorcode[error.errno]
    longest = max(longest, time.monotonic() - begun)
    if failed: break
(done, failed, longest)`);
    const undisturbed = await other.do<number>(`
longest = 0; end = time.monotonic() + 6
while time.monotonic() < end:
    begun = time.monotonic(); os.pwrite(g, bytes(2 << 20), 0); os.fsync(g); longest = max(longest, time.monotonic() - begun)
longest`);
    expect(undisturbed * 1000).toBeLessThan(UNDISTURBED_MS);
    const [done, failed, longest] = await written;
    expect(failed).toBe('EIO');
    expect(done).toBeGreaterThan(0);
    expect(longest * 1000).toBeLessThan(LIMIT_MS);
  });

  test('new files and growth go to other appliances', async () => {
    const silent = await fileOn('a1', 4096);
    await actor.do(`f = os.open(${silent}, os.O_RDWR)`);
    await cluster.signal('a1', 'SIGSTOP');
    await timed(actor, `os.pwrite(f, b'x', 0)`);
    expect((await timed(actor, `os.fsync(f)`)).error).toBe('EIO');
    for (let at = 0; at < 10; at += 1) {
      const { error, ms } = await timed(other, `put(${quote(cluster.mount().path(`new-${at}`))}, bytes(3 << 20))`);
      expect(error).toBe('');
      expect(ms).toBeLessThan(UNDISTURBED_MS);
    }
  });

  test('a mapping of its file: SIGBUS within 5 s; of another file: undisturbed', async () => {
    const silent = await fileOn('a1', 40_000);
    const lively = await fileOn('a2', 40_000);
    await actor.do(`f = os.open(${silent}, os.O_RDWR)`);
    await other.do(`g = os.open(${lively}, os.O_RDWR); n = mmap.mmap(g, 40_000)`);
    const victim = new Actor();
    await victim.do(`f = os.open(${silent}, os.O_RDWR); m = mmap.mmap(f, 40_000)`);
    await cluster.evict();
    await cluster.signal('a1', 'SIGSTOP');
    const started = Date.now();
    const touched = victim.do(`m[20000]`);
    expect((await timed(other, `n[3] = n[20000]; n.flush()`)).ms).toBeLessThan(UNDISTURBED_MS);
    await expect(touched).rejects.toThrow(/the actor ended/);
    expect(Date.now() - started).toBeLessThan(LIMIT_MS);
  });
});

/** Carries bytes to an appliance; `hold()` keeps back what clients send from then on, `release()` lets go of it, to where it was meant. */
class HoldingProxy {
  private readonly server: Server;
  private held: (() => void)[] | undefined;
  private readonly sockets = new Set<Socket>();
  private target = 0;

  constructor() {
    this.server = createServer((client) => {
      const appliance = connect(this.target, '127.0.0.1');
      for (const socket of [client, appliance]) {
        this.sockets.add(socket);
        socket.on('error', () => undefined);
      }
      client.on('data', (bytes: Buffer) => this.pass(() => appliance.write(bytes)));
      appliance.on('data', (bytes: Buffer) => client.writable && client.write(bytes));
      // The client gives up a connection: the appliance hears of it only after what is held back.
      client.on('close', () => this.pass(() => appliance.end()));
      appliance.on('close', () => client.destroy());
    });
  }

  async listen(address: string, target: number): Promise<void> {
    this.target = target;
    await new Promise<void>((resolve) => this.server.listen(target, address, resolve));
  }

  hold(): void {
    this.held = [];
  }

  get heldPieces(): number {
    return this.held?.length ?? 0;
  }

  /** New connections pass from now on, those that are held back do not. */
  passNew(): void {
    const held = this.held ?? [];
    this.held = undefined;
    this.release = (): void => held.forEach((deliver) => deliver());
  }

  release: () => void = () => undefined;

  async close(): Promise<void> {
    for (const socket of this.sockets) socket.destroy();
    await new Promise((resolve) => this.server.close(resolve));
  }

  private pass(deliver: () => void): void {
    if (this.held === undefined) deliver();
    else this.held.push(deliver);
  }
}

describe('a network that holds writes back, over tcp', () => {
  const cluster = new TestCluster({ transport: 'tcp', cache: '32M', memory: '256M', appliances: 0 });
  const proxy = new HoldingProxy();
  let actor: Actor;

  beforeAll(async () => {
    await cluster.startManager();
    const { port } = (await cluster.startAppliance('a1', '--advertise', '127.0.0.2')).facts;
    await proxy.listen('127.0.0.2', Number(port));
    await cluster.startMount('m1');
    actor = new Actor();
  });
  afterAll(async () => {
    await actor.end();
    await cluster.stop();
    await proxy.close();
  });

  test('a write that is let go after its deadline changes nothing', async () => {
    const path = quote(cluster.mount().path('held'));
    await actor.do(`f = os.open(${path}, os.O_RDWR | os.O_CREAT); os.write(f, b'a' * 65536); os.fsync(f)`);
    proxy.hold();
    await actor.do(`os.pwrite(f, b'b' * 65536, 0)`);
    const { error, ms } = await timed(actor, `os.fsync(f)`);
    expect(error).toBe('EIO');
    expect(ms).toBeLessThan(LIMIT_MS);
    expect(proxy.heldPieces).toBeGreaterThan(0);
    proxy.passNew();
    await actor.do(`os.pwrite(f, b'c' * 65536, 0)`);
    await until('the appliance is reached anew', async () => (await timed(actor, `os.fsync(f)`)).error === '');
    proxy.release();
    // What was let go is with the appliance before anything that is asked of it from now on.
    await until('another write passes', async () => (await timed(actor, `os.pwrite(f, b'd', 65536); os.fsync(f)`)).error === '');
    for (let round = 0; round < 5; round += 1) {
      await cluster.evict();
      expect(await actor.do(`os.pread(f, 65537, 0) == b'c' * 65536 + b'd'`)).toBe(true);
    }
  });
});
