/**
 * Three hosts, as three network namespaces on a bridge: a manager, an appliance and a mount, each started with one short
 * command in its own, find each other by address; a file goes over the wire and comes back the same. Needs root.
 * Only the network differs between these hosts: the mount is visible to this process, which uses it as a user would.
 */
import { spawn, spawnSync } from 'node:child_process';
import { createHash, randomBytes } from 'node:crypto';
import { createReadStream, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { open } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterAll, beforeAll, describe, expect, test } from '@jest/globals';

const cli = fileURLToPath(new URL('../../src/cli/main.js', import.meta.url));
const prefix = `xm${process.pid}`;
const hosts = { manager: '10.77.0.1', appliance: '10.77.0.2', client: '10.77.0.3' } as const;
type Host = keyof typeof hosts;
const bridge = `${prefix}-switch`;
const fileBytes = 48 * 1024 * 1024;

const folder = mkdtempSync(join(tmpdir(), 'extmem-hosts-'));
const environment: NodeJS.ProcessEnv = {
  ...process.env,
  NODE_OPTIONS: '',
  XDG_STATE_HOME: folder,
  EXTMEM_RUNTIME_DIR: join(folder, 'run'),
};

function ip(...args: string[]): void {
  const { status, stderr, error } = spawnSync('ip', args, { encoding: 'utf8' });
  if (status !== 0) throw new Error(`ip ${args.join(' ')}: ${error?.message ?? stderr}`);
}

function makeHosts(): void {
  // The bridge has a namespace of its own: the machine's own network sees nothing of all this.
  ip('netns', 'add', bridge);
  ip('-n', bridge, 'link', 'add', 'br0', 'type', 'bridge');
  ip('-n', bridge, 'link', 'set', 'br0', 'up');
  for (const [host, address] of Object.entries(hosts)) {
    const name = `${prefix}-${host}`;
    ip('netns', 'add', name);
    ip('-n', name, 'link', 'add', 'eth0', 'type', 'veth', 'peer', 'name', host, 'netns', bridge);
    ip('-n', bridge, 'link', 'set', host, 'master', 'br0', 'up');
    ip('-n', name, 'address', 'add', `${address}/24`, 'dev', 'eth0');
    ip('-n', name, 'link', 'set', 'eth0', 'up');
    ip('-n', name, 'link', 'set', 'lo', 'up');
  }
}

function removeHosts(): void {
  for (const name of [bridge, ...Object.keys(hosts).map((host) => `${prefix}-${host}`)]) spawnSync('ip', ['netns', 'delete', name]);
}

interface Ended {
  code: number | null;
  output: string;
  complaint: string;
}

/** `extmem ARGS` on a host. Only the network is the host's: `ip netns exec` would hide the mount from us too. */
function extmem(host: Host, ...args: string[]): Promise<Ended> {
  return new Promise((done, failed) => {
    const child = spawn('nsenter', [`--net=/run/netns/${prefix}-${host}`, process.execPath, cli, ...args], {
      env: environment,
      stdio: ['ignore', 'pipe', 'pipe'],
    });
    const ended: Ended = { code: null, output: '', complaint: '' };
    child.stdout.on('data', (piece: Buffer) => (ended.output += piece.toString()));
    child.stderr.on('data', (piece: Buffer) => (ended.complaint += piece.toString()));
    child.once('error', failed);
    child.once('close', (code) => done({ ...ended, code }));
  });
}

const started: number[] = [];

async function startDetached(host: Host, ...args: string[]): Promise<Record<string, unknown>> {
  const { code, output, complaint } = await extmem(host, ...args, '--detach', '--json');
  if (code !== 0) throw new Error(`extmem ${args.join(' ')}: exit ${code ?? 0}: ${complaint}`);
  const facts = JSON.parse(output) as Record<string, unknown>;
  started.push(Number(facts['pid']));
  return facts;
}

async function hashOf(path: string): Promise<string> {
  const digest = createHash('sha256');
  for await (const piece of createReadStream(path, { highWaterMark: 1 << 20 })) digest.update(piece as Buffer);
  return digest.digest('hex');
}

function isAlive(pid: number): boolean {
  try {
    // A zombie has ended; only its parent has not looked.
    return !/^State:\s+Z/m.test(readFileSync(`/proc/${pid}/status`, 'utf8'));
  } catch {
    return false;
  }
}

async function stopAll(): Promise<void> {
  for (const pid of started.reverse()) {
    if (!isAlive(pid)) continue;
    process.kill(pid, 'SIGTERM');
    const deadline = Date.now() + 10_000;
    while (isAlive(pid) && Date.now() < deadline) await new Promise((next) => setTimeout(next, 20));
    if (isAlive(pid)) process.kill(pid, 'SIGKILL');
  }
}

const canMakeHosts = process.getuid?.() === 0 && spawnSync('ip', ['netns', 'list']).status === 0;
// In CI the lane must have what it needs: there the test fails rather than being skipped.
const describeHosts = canMakeHosts || process.env['CI'] ? describe : describe.skip;

describeHosts('three hosts', () => {
  const mountPoint = join(folder, 'mnt');
  const token = join(folder, 'extmem/manager/token');
  const mount = (): Promise<Record<string, unknown>> => startDetached('client', 'mount', '--manager', hosts.manager, '--mkdir', mountPoint);

  beforeAll(async () => {
    makeHosts();
    await startDetached('manager', 'manager', '--listen', hosts.manager);
    await startDetached('appliance', 'appliance', '--manager', hosts.manager, '--memory', '256M');
    await mount();
  }, 60_000);

  afterAll(async () => {
    await stopAll();
    removeHosts();
    rmSync(folder, { recursive: true, force: true });
  }, 60_000);

  test('the appliance is advertised by the address that reaches the manager', async () => {
    const { output } = await extmem('client', 'status', '--json', '--manager', hosts.manager, '--token-file', token);
    const status = JSON.parse(output) as { appliances: { address: string }[] };
    expect(status.appliances.map(({ address }) => address)).toEqual([hosts.appliance]);
  });

  test('a file written on one host is read back the same over the wire after a remount', async () => {
    const path = join(mountPoint, 'file');
    const content = randomBytes(fileBytes);
    const file = await open(path, 'w');
    await file.write(content);
    await file.sync();
    await file.close();
    expect((await extmem('client', 'umount', mountPoint)).code).toBe(0);
    await mount();
    expect(await hashOf(path)).toBe(createHash('sha256').update(content).digest('hex'));
    const { output } = await extmem('client', 'status', '--json', '--manager', hosts.manager);
    const { mounts } = JSON.parse(output) as { mounts: { fabric: Record<string, { transport: string; bytesRead: number }> }[] };
    const [fabric] = mounts.flatMap((mount) => Object.values(mount.fabric));
    expect(fabric?.transport).toBe('tcp');
    expect(fabric?.bytesRead).toBeGreaterThanOrEqual(fileBytes);
  }, 60_000);

  test('a manager that nobody runs is a message that says what to do', async () => {
    const { code, complaint } = await extmem(
      'client',
      'mount',
      '--manager',
      '10.77.0.9',
      '--token',
      'none',
      '--mkdir',
      join(folder, 'other'),
    );
    expect(complaint).toMatch(/no manager|EHOSTUNREACH|10\.77\.0\.9/);
    expect(code).toBe(3);
  });

  test('a wrong token is refused by name', async () => {
    const { code, complaint } = await extmem(
      'appliance',
      'appliance',
      '--manager',
      hosts.manager,
      '--id',
      'other',
      '--memory',
      '64M',
      '--token',
      'wrong',
    );
    expect(complaint).toMatch(/token/);
    expect(code).toBe(4);
  });
});
