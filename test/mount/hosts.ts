/**
 * Hosts, as network namespaces on one or more networks (a bridge each), for tests of what a network does to us. Needs root.
 * Only the network differs between them: a mount that was made on one is visible to this process, which uses it as a user would.
 */
import { spawn, spawnSync, type ChildProcess } from 'node:child_process';
import { mkdtempSync, readdirSync, readFileSync, readlinkSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { askMount } from '../../src/fs/mount_control.js';
import type { FabricStatistics } from '../../src/fs/fabric_statistics.js';
import { cli } from './cluster.js';

const STOP_MS = 10_000;

export const canMakeHosts = process.getuid?.() === 0 && spawnSync('ip', ['netns', 'list']).status === 0;

export interface Ended {
  code: number | null;
  output: string;
  complaint: string;
}

let made = 0;

export class TestHosts {
  readonly folder = mkdtempSync(join(tmpdir(), 'extmem-hosts-'));
  readonly environment: NodeJS.ProcessEnv;
  private readonly prefix = `xm${process.pid}-${++made}`;
  private readonly started: number[] = [];
  private readonly strangers: ChildProcess[] = [];

  constructor(
    private readonly names: readonly string[],
    private readonly networks = 1,
  ) {
    this.environment = {
      ...process.env,
      NODE_OPTIONS: '',
      NODE_NO_WARNINGS: '1',
      XDG_STATE_HOME: this.folder,
      EXTMEM_RUNTIME_DIR: join(this.folder, 'run'),
    };
  }

  address(host: string, network = 0): string {
    return `10.77.${network}.${this.names.indexOf(host) + 1}`;
  }

  make(): void {
    // Bridges have a namespace of their own: the machine's own network sees nothing of all this.
    run('ip', 'netns', 'add', this.space('switch'));
    for (const host of this.names) {
      run('ip', 'netns', 'add', this.space(host));
      run('ip', '-n', this.space(host), 'link', 'set', 'lo', 'up');
    }
    for (let network = 0; network < this.networks; network += 1) {
      run('ip', '-n', this.space('switch'), 'link', 'add', `br${network}`, 'type', 'bridge');
      run('ip', '-n', this.space('switch'), 'link', 'set', `br${network}`, 'up');
      for (const host of this.names) this.plug(host, network);
    }
  }

  private plug(host: string, network: number): void {
    const [space, inner, outer] = [this.space(host), `eth${network}`, `${host.slice(0, 8)}-${network}`];
    run('ip', '-n', space, 'link', 'add', inner, 'type', 'veth', 'peer', 'name', outer, 'netns', this.space('switch'));
    run('ip', '-n', this.space('switch'), 'link', 'set', outer, 'master', `br${network}`, 'up');
    run('ip', '-n', space, 'address', 'add', `${this.address(host, network)}/24`, 'dev', inner);
    run('ip', '-n', space, 'link', 'set', inner, 'up');
  }

  /** The host's port at the switch goes down, or up: the host itself sees no carrier. */
  setLink(host: string, network: number, state: 'up' | 'down'): void {
    run('ip', '-n', this.space('switch'), 'link', 'set', `${host.slice(0, 8)}-${network}`, state);
  }

  /** What this host sends to that address is dropped on its way, silently, until admit(). */
  drop(host: string, address: string): void {
    const nft = (...words: string[]): void => run('ip', 'netns', 'exec', this.space(host), 'nft', ...words);
    nft('add', 'table', 'inet', 'silence');
    nft('add', 'chain', 'inet', 'silence', 'out', '{ type filter hook output priority 0 ; }');
    nft('add', 'rule', 'inet', 'silence', 'out', 'ip', 'daddr', address, 'drop');
  }

  admit(host: string): void {
    run('ip', 'netns', 'exec', this.space(host), 'nft', 'delete', 'table', 'inet', 'silence');
  }

  /** A program on a host. Only the network is the host's: `ip netns exec` would hide mounts from us too. */
  spawn(host: string, program: string, ...parameters: string[]): ChildProcess {
    return spawn('nsenter', [`--net=/run/netns/${this.space(host)}`, program, ...parameters], {
      env: this.environment,
      stdio: ['ignore', 'pipe', 'pipe'],
    });
  }

  /** `extmem ARGS` on a host, to its end. */
  extmem(host: string, ...parameters: string[]): Promise<Ended> {
    return new Promise((done, failed) => {
      const child = this.spawn(host, process.execPath, cli, ...parameters);
      const ended: Ended = { code: null, output: '', complaint: '' };
      child.stdout?.on('data', (piece: Buffer) => (ended.output += piece.toString()));
      child.stderr?.on('data', (piece: Buffer) => (ended.complaint += piece.toString()));
      child.once('error', failed);
      child.once('close', (code) => done({ ...ended, code }));
    });
  }

  /** A role in the background; what it says of itself. */
  async start(host: string, ...parameters: string[]): Promise<Record<string, unknown> & { pid: number }> {
    const { code, output, complaint } = await this.extmem(host, ...parameters, '--detach', '--json');
    if (code !== 0) throw new Error(`extmem ${parameters.join(' ')}: exit ${code ?? 0}: ${complaint}`);
    const facts = JSON.parse(output) as Record<string, unknown>;
    const pid = Number(facts['pid']);
    this.started.push(pid);
    return { ...facts, pid };
  }

  /** Whoever connects to that port of a host is told something that is no protocol of ours. Resolves when it listens. */
  async startStranger(host: string, address: string, port: number): Promise<ChildProcess> {
    const script = `require('net').createServer((s) => { s.on('error', () => 0); s.end('x'.repeat(500)); }).listen(${port}, '${address}', () => console.log('up'))`;
    const child = this.spawn(host, process.execPath, '-e', script);
    this.strangers.push(child);
    await new Promise((done) => child.stdout?.once('data', done));
    return child;
  }

  async fabric(mountPoint: string): Promise<FabricStatistics> {
    const answer = await askMount(join(this.folder, 'run'), mountPoint, 'GET', '/status');
    return (JSON.parse(answer) as { fabric: FabricStatistics }).fabric;
  }

  async evict(mountPoint: string): Promise<void> {
    await askMount(join(this.folder, 'run'), mountPoint, 'POST', '/evict');
  }

  /** Roles end in the opposite order of their start. */
  async stop(): Promise<void> {
    for (const child of this.strangers) child.kill('SIGKILL');
    for (const pid of this.started.reverse()) {
      if (!isAlive(pid)) continue;
      process.kill(pid, 'SIGCONT');
      process.kill(pid, 'SIGTERM');
      const deadline = Date.now() + STOP_MS;
      while (isAlive(pid) && Date.now() < deadline) await sleep(20);
      if (isAlive(pid)) process.kill(pid, 'SIGKILL');
    }
    for (const host of ['switch', ...this.names]) spawnSync('ip', ['netns', 'delete', this.space(host)]);
    rmSync(this.folder, { recursive: true, force: true });
  }

  private space(host: string): string {
    return `${this.prefix}-${host}`;
  }
}

/** How many sockets a process has open. */
export function countSockets(pid: number): number {
  return readdirSync(`/proc/${pid}/fd`).filter((fd) => {
    try {
      return readlinkSync(`/proc/${pid}/fd/${fd}`).startsWith('socket:');
    } catch {
      return false; // closed meanwhile
    }
  }).length;
}

export function isAlive(pid: number): boolean {
  try {
    // A zombie has ended; only its parent has not looked.
    return !/^State:\s+Z/m.test(readFileSync(`/proc/${pid}/status`, 'utf8'));
  } catch {
    return false;
  }
}

function run(program: string, ...parameters: string[]): void {
  const { status, stderr, error } = spawnSync(program, parameters, { encoding: 'utf8' });
  if (status !== 0) throw new Error(`${program} ${parameters.join(' ')}: ${error?.message ?? stderr}`);
}
