/**
 * Networks that fail under the real programs, each on a host of its own: a cable, one direction only, an appliance that is stopped,
 * killed, or replaced by a stranger at its port; and two networks of which one goes.
 */
import { join } from 'node:path';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from '@jest/globals';
import { until } from '../until.js';
import { Actor } from './actor.js';
import { LIMIT_MS, quote, timed } from './bad_days.js';
import { canMakeHosts, countSockets, TestHosts } from './hosts.js';

/** Within so long either end knows that the other cannot be reached. */
const NOTICE_MS = 3000;

// In CI the lane must have what it needs: there the test fails rather than being skipped.
const describeHosts = canMakeHosts || process.env['CI'] ? describe : describe.skip;

describeHosts('one network', () => {
  const hosts = new TestHosts(['manager', 'appliance', 'client']);
  const mountPoint = join(hosts.folder, 'mnt');
  const path = quote(join(mountPoint, 'file'));
  const [atClient, atAppliance] = [hosts.address('client'), hosts.address('appliance')];
  let appliance = 0;
  let port = 0;
  let unused = 0; // sockets of the appliance without a client
  let actor: Actor;

  const startAppliance = async (): Promise<void> => {
    const facts = await hosts.start('appliance', 'appliance', '--manager', hosts.address('manager'), '--memory', '256M', '--id', 'a1');
    [appliance, port] = [facts.pid, Number(facts['port'])];
    unused = countSockets(appliance);
  };
  const state = async (): Promise<string> => (await hosts.fabric(mountPoint))['a1']?.state ?? 'unknown';
  const clients = (): number => countSockets(appliance) - unused;
  const write = (): Promise<{ error: string; ms: number }> =>
    timed(
      actor,
      `f = os.open(${path}, os.O_RDWR | os.O_CREAT); data = random.randbytes(1 << 20); os.pwrite(f, data, 0); os.fsync(f); os.close(f)`,
    );
  const noticed = async (who: string, condition: () => boolean | Promise<boolean>): Promise<void> => {
    const begin = Date.now();
    await until(who, condition);
    expect(Date.now() - begin).toBeLessThan(NOTICE_MS);
  };

  beforeAll(async () => {
    hosts.make();
    await hosts.start('manager', 'manager', '--listen', hosts.address('manager'));
    await startAppliance();
    await hosts.start('client', 'mount', '--manager', hosts.address('manager'), '--threads', '1', '--cache', '32M', '--mkdir', mountPoint);
  });
  afterAll(() => hosts.stop());
  beforeEach(async () => {
    actor = new Actor();
    await until('all is well', async () => (await write()).error === '' && clients() === 1);
  });
  afterEach(() => actor.end());

  test.each([
    ['the cable of the client', () => hosts.setLink('client', 0, 'down'), () => hosts.setLink('client', 0, 'up')],
    ['the cable of the appliance', () => hosts.setLink('appliance', 0, 'down'), () => hosts.setLink('appliance', 0, 'up')],
    ['the way there only', () => hosts.drop('client', atAppliance), () => hosts.admit('client')],
    ['the way back only', () => hosts.drop('appliance', atClient), () => hosts.admit('appliance')],
  ])('%s is cut while nothing is asked: both ends notice within 3 s', async (_what, cut, mend) => {
    cut();
    try {
      await Promise.all([
        noticed('the client notices', async () => (await state()) !== 'up'),
        noticed('the appliance notices, and has freed the connection', () => clients() === 0),
      ]);
    } finally {
      mend();
    }
    await until('it is back', async () => (await write()).error === '');
  });

  test('the way back is cut while reads are outstanding: the client notices within 3 s, the reads end within 5 s', async () => {
    await hosts.evict(mountPoint);
    hosts.drop('appliance', atClient);
    try {
      const read = timed(actor, `f = os.open(${path}, os.O_RDONLY); os.pread(f, 4096, 0)`);
      await noticed('the client notices', async () => (await state()) !== 'up');
      const { error, ms } = await read;
      expect(error).toBe('EIO');
      expect(ms).toBeLessThan(LIMIT_MS);
    } finally {
      hosts.admit('appliance');
    }
  });

  test('the appliance is stopped: noticed within 3 s, EIO within 5 s, then at once; when it goes on it is used', async () => {
    process.kill(appliance, 'SIGSTOP');
    try {
      await noticed('the client notices', async () => (await state()) !== 'up');
      const { error, ms } = await write();
      expect(error).toBe('EIO');
      expect(ms).toBeLessThan(LIMIT_MS);
      await until('the breaker opens', async () => (await state()) === 'down');
    } finally {
      process.kill(appliance, 'SIGCONT');
    }
    await until('it is back', async () => (await write()).error === '');
    expect((await hosts.fabric(mountPoint))['a1']?.breakerOpenings).toBeGreaterThan(0);
  });

  test('the appliance is killed, and its port taken by a stranger: EIO within 5 s, no hang; a new one is used', async () => {
    const stolen = port;
    process.kill(appliance, 'SIGKILL');
    await noticed('the client notices', async () => (await state()) !== 'up');
    const stranger = await hosts.startStranger('appliance', atAppliance, stolen);
    const { error, ms } = await timed(actor, `f = os.open(${path}, os.O_RDWR); os.pwrite(f, b'x' * 4096, 0); os.fsync(f)`);
    expect(error).toBe('EIO');
    expect(ms).toBeLessThan(LIMIT_MS);
    stranger.kill('SIGKILL');
    await startAppliance();
    await actor.do(`os.unlink(${path})`);
    await until('the new one is used', async () => (await write()).error === '');
  });
});

describeHosts('two networks', () => {
  const hosts = new TestHosts(['manager', 'appliance', 'client'], 2);
  const mountPoint = join(hosts.folder, 'mnt');
  const path = quote(join(mountPoint, 'file'));
  let actor: Actor;

  interface Link {
    connections: number;
    bytesRead: number;
    bytesWritten: number;
  }
  /** By network. */
  const links = async (): Promise<Link[]> => {
    const all = (await hosts.fabric(mountPoint))['a1']?.links ?? [];
    const none = { connections: 0, bytesRead: 0, bytesWritten: 0 };
    return [0, 1].map((network) => all.find(({ address }) => address.startsWith(`${hosts.address('appliance', network)}:`)) ?? none);
  };
  /** What is written is what is read, over the network. */
  const transfer = async (): Promise<void> => {
    await actor.do(`f = os.open(${path}, os.O_RDWR | os.O_CREAT); data = random.randbytes(16 << 20); os.pwrite(f, data, 0); os.fsync(f)`);
    await hosts.evict(mountPoint);
    expect(await actor.do(`got = os.pread(f, 16 << 20, 0); os.close(f); got == data`)).toBe(true);
  };
  const bothCarry = async (): Promise<boolean> => {
    const before = await links();
    await transfer();
    return (await links()).every(
      ({ bytesRead, bytesWritten }, network) =>
        bytesRead > (before[network]?.bytesRead ?? 0) && bytesWritten > (before[network]?.bytesWritten ?? 0),
    );
  };

  beforeAll(async () => {
    hosts.make();
    const manager = hosts.address('manager');
    await hosts.start('manager', 'manager', '--listen', manager);
    const both = [0, 1].map((network) => hosts.address('appliance', network)).join(',');
    await hosts.start('appliance', 'appliance', '--manager', manager, '--memory', '256M', '--id', 'a1', '--listen', both);
    await hosts.start('client', 'mount', '--manager', manager, '--threads', '2', '--cache', '32M', '--mkdir', mountPoint);
    actor = new Actor();
  });
  afterAll(async () => {
    await actor.end();
    await hosts.stop();
  });

  test('both carry traffic', async () => {
    await until('both carry traffic', bothCarry);
  });

  test.each([
    ['the second loses its cable', () => hosts.setLink('appliance', 1, 'down'), () => hosts.setLink('appliance', 1, 'up')],
    ['the first is silent to appliances', () => hosts.drop('client', hosts.address('appliance', 0)), () => hosts.admit('client')],
  ])('%s under load: nothing fails, nothing is late, nothing is lost; it comes back by itself', async (_what, cut, mend) => {
    await until('both carry traffic', bothCarry);
    const load = new Actor();
    const busy = load.do<number>(`
import time
g = os.open(${quote(join(mountPoint, 'load'))}, os.O_RDWR | os.O_CREAT); longest = 0; stamp = 0; end = time.monotonic() + 6
while time.monotonic() < end:
    begun = time.monotonic(); stamp += 1
    os.pwrite(g, struct.pack('<Q', stamp) * 65536, 0); os.fsync(g)
    longest = max(longest, time.monotonic() - begun)
longest`);
    await new Promise((next) => setTimeout(next, 1000));
    cut();
    try {
      expect((await busy) * 1000).toBeLessThan(LIMIT_MS);
      await transfer();
    } finally {
      mend();
    }
    await until('both carry traffic again', bothCarry, 30_000);
    await hosts.evict(mountPoint);
    expect(await load.do(`os.pread(g, 65536 * 8, 0) == struct.pack('<Q', stamp) * 65536`)).toBe(true);
    await load.end();
    expect((await hosts.fabric(mountPoint))['a1']).toMatchObject({ failures: 0, breakerOpenings: 0 });
  });
});
