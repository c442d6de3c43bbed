/**
 * The newcomer's commands as processes: the tour ends with every step ok; `up` leaves no process, no mount and no socket however
 * it ends; what dies under it is reported and started again; the commands for the mount find it.
 */
import { spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterEach, beforeEach, describe, expect, test } from '@jest/globals';
import { mountedAt } from '../../src/cli/mount_point.js';

const cli = fileURLToPath(new URL('../../src/cli/main.js', import.meta.url));
const limitMs = 90_000;

let folder = '';
let mountPoint = '';
let environment: NodeJS.ProcessEnv = {};
const children: ChildProcess[] = [];

beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'extmem-up-'));
  mountPoint = join(folder, 'mnt');
  environment = {
    ...process.env,
    NODE_OPTIONS: '',
    EXTMEM_MEMORY: '512M',
    EXTMEM_CACHE: '128M',
    XDG_STATE_HOME: folder,
    EXTMEM_RUNTIME_DIR: join(folder, 'run'),
    EXTMEM_MANAGER_LISTEN: '127.0.0.1:0',
  };
});

afterEach(async () => {
  for (const child of children.splice(0)) {
    if (child.exitCode !== null || child.signalCode !== null) continue;
    child.kill('SIGTERM');
    await once(child, 'exit');
  }
  await untilNothingIsLeft();
  rmSync(folder, { recursive: true, force: true });
}, limitMs);

interface Extmem {
  child: ChildProcess;
  output(): string;
  complaint(): string;
  /** Resolves when the text has appeared on standard error. */
  complains(text: RegExp): Promise<void>;
  ended: Promise<number | null>;
}

function extmem(...args: string[]): Extmem {
  const child = spawn(process.execPath, [cli, ...args], { env: environment, stdio: ['ignore', 'pipe', 'pipe'] });
  children.push(child);
  let output = '';
  let complaint = '';
  child.stdout.on('data', (piece: Buffer) => (output += piece.toString()));
  child.stderr.on('data', (piece: Buffer) => (complaint += piece.toString()));
  // `close` would wait for grandchildren that inherited standard error: `exit` is this process's own end.
  const ended = once(child, 'exit').then(([code]) => code as number | null);
  const complains = async (text: RegExp): Promise<void> => {
    while (!text.test(complaint)) await once(child.stderr, 'data');
  };
  return { child, output: () => output, complaint: () => complaint, complains, ended };
}

interface UpFacts {
  pid: number;
  mountPoint: string;
  manager: string;
  processes: Record<string, number>;
}

async function startUp(): Promise<{ up: Extmem; facts: UpFacts }> {
  const up = extmem('up', '--json', mountPoint);
  const ready = async (): Promise<void> => {
    while (!up.output().includes('\n')) if (up.child.stdout !== null) await once(up.child.stdout, 'data');
  };
  await Promise.race([
    ready(),
    up.ended.then((code) => {
      throw new Error(`extmem up ended with ${code ?? 0}: ${up.complaint()}`);
    }),
  ]);
  return { up, facts: JSON.parse(up.output()) as UpFacts };
}

function isAlive(pid: number): boolean {
  try {
    // A zombie has ended; only its parent has not looked.
    return !/^State:\s+Z/m.test(readFileSync(`/proc/${pid}/status`, 'utf8'));
  } catch {
    return false;
  }
}

/** Processes that were started with our folder in their arguments. */
function ourProcesses(): number[] {
  return readdirSync('/proc')
    .filter((name) => /^\d+$/.test(name) && Number(name) !== process.pid)
    .filter((pid) => {
      try {
        return readFileSync(`/proc/${pid}/cmdline`, 'utf8').includes(folder);
      } catch {
        return false;
      }
    })
    .map(Number)
    .filter(isAlive);
}

async function eventually(holds: () => boolean, what: string): Promise<void> {
  const deadline = Date.now() + 40_000;
  while (!holds()) {
    if (Date.now() > deadline) throw new Error(`not within 40 s: ${what}`);
    await new Promise((next) => setTimeout(next, 25));
  }
}

async function untilNothingIsLeft(): Promise<void> {
  await eventually(() => ourProcesses().length === 0, `processes left: ${ourProcesses().join(' ')}`);
  expect(mountedAt(mountPoint)).toBeUndefined();
  const sockets = join(folder, 'run/mounts');
  expect(existsSync(sockets) ? readdirSync(sockets) : []).toEqual([]);
}

describe('tour', () => {
  test.each(['shm', 'tcp'])(
    'every step is ok over %s, and nothing is left',
    async (transport) => {
      const tour = extmem('tour', '--exit', '--json', '--transport', transport, '--mount-point', mountPoint);
      expect({ code: await tour.ended, complaint: tour.complaint() }).toMatchObject({ code: 0 });
      const { steps } = JSON.parse(tour.output()) as { steps: { step: string; ok: boolean; error?: string }[] };
      expect(steps.filter(({ ok }) => !ok)).toEqual([]);
      expect(steps.length).toBeGreaterThanOrEqual(10);
      await untilNothingIsLeft();
    },
    limitMs,
  );
});

describe('up', () => {
  test.each(['SIGINT', 'SIGTERM', 'SIGHUP'] as const)(
    '%s unmounts and leaves nothing',
    async (signal) => {
      const { up } = await startUp();
      writeFileSync(join(mountPoint, 'file'), 'content');
      up.child.kill(signal);
      expect(await up.ended).toBe(0);
      await untilNothingIsLeft();
      expect(existsSync(join(folder, 'extmem/up/up.json'))).toBe(false);
    },
    limitMs,
  );

  test(
    'killed, it leaves nothing either: its processes end with it',
    async () => {
      const { up } = await startUp();
      up.child.kill('SIGKILL');
      await up.ended;
      await untilNothingIsLeft();
    },
    limitMs,
  );

  test(
    'a mount whose process was killed with its supervisor is cleaned away by the next start',
    async () => {
      const { up, facts } = await startUp();
      process.kill(facts.processes['mount'] ?? 0, 'SIGSTOP');
      up.child.kill('SIGKILL');
      await up.ended;
      process.kill(facts.processes['mount'] ?? 0, 'SIGKILL');
      await eventually(() => ourProcesses().length === 0, 'the old processes end');
      expect(mountedAt(mountPoint)?.type).toBe('fuse.extmem');
      const next = await startUp();
      expect(next.up.complaint()).toMatch(/mount without a server/);
      writeFileSync(join(mountPoint, 'file'), 'content');
      expect(readFileSync(join(mountPoint, 'file'), 'utf8')).toBe('content');
      // The socket of the killed process has been replaced by the new one's.
    },
    limitMs,
  );

  test(
    'an appliance that crashes is reported and started again as another incarnation',
    async () => {
      const { up, facts } = await startUp();
      const before = await incarnationOf('local-1');
      process.kill(facts.processes['appliance local-1'] ?? 0, 'SIGKILL');
      await up.complains(/appliance local-1 \(process \d+\) ended unexpectedly: SIGKILL[^]*appliance local-1 runs again/);
      expect(await incarnationOf('local-1')).not.toBe(before);
    },
    limitMs,
  );

  test(
    '`extmem umount` ends it',
    async () => {
      const { up } = await startUp();
      expect(await extmem('umount', mountPoint).ended).toBe(0);
      expect(await up.ended).toBe(0);
      await untilNothingIsLeft();
    },
    limitMs,
  );

  test(
    'a second one on the same folder is refused',
    async () => {
      const { facts } = await startUp();
      const second = extmem('up', join(folder, 'other'));
      expect(await second.ended).toBe(6);
      expect(second.complaint()).toContain(`process ${facts.pid}`);
    },
    limitMs,
  );

  test(
    'in the background it prints its process id, and ends with SIGTERM',
    async () => {
      const up = extmem('up', '--detach', mountPoint);
      expect(await up.ended).toBe(0);
      const pid = Number(up.output());
      expect(isAlive(pid)).toBe(true);
      expect(mountedAt(mountPoint)?.type).toBe('fuse.extmem');
      process.kill(pid, 'SIGTERM');
      await untilNothingIsLeft();
    },
    limitMs,
  );

  test(
    'in the background, what kept it from starting is told',
    async () => {
      writeFileSync(mountPoint, 'a file');
      const up = extmem('up', '--detach', mountPoint);
      expect(await up.ended).toBe(1);
      expect(up.complaint()).toMatch(/not a directory/);
    },
    limitMs,
  );
});

async function incarnationOf(id: string): Promise<number | undefined> {
  const status = extmem('status', '--json');
  await status.ended;
  const { appliances } = JSON.parse(status.output()) as { appliances: { id: string; incarnation: number }[] };
  return appliances.find((one) => one.id === id)?.incarnation;
}

describe('commands that find a running up by themselves', () => {
  test(
    'status, create, info, resize, ls, rm and evict',
    async () => {
      await startUp();
      const run = async (...args: string[]): Promise<string> => {
        const one = extmem(...args);
        const code = await one.ended;
        if (code !== 0) throw new Error(`extmem ${args.join(' ')}: exit ${code ?? 0}: ${one.complaint()}`);
        return one.output();
      };
      expect(await run('create', '/table', '--size', '8M')).toMatch(/created \/table: 8 MiB/);
      expect(await run('info', '/table')).toMatch(/size:\s+8 MiB/);
      await run('resize', 'table', '12M');
      expect(JSON.parse(await run('info', '/table', '--json'))).toMatchObject({ bytes: 12 * 1024 ** 2 });
      expect(await run('ls')).toMatch(/table/);
      expect(readFileSync(join(mountPoint, 'table')).length).toBe(12 * 1024 ** 2);
      expect(await run('evict', mountPoint)).toMatch(/1 mount has dropped/);
      expect(await run('status')).toMatch(/local-2\s+up/);
      await run('rm', '/table');
      expect(existsSync(join(mountPoint, 'table'))).toBe(false);
      expect(await extmem('info', '/table').ended).toBe(5);
    },
    limitMs,
  );
});
