/**
 * A whole cluster on this machine, each role a process of its own: one manager, some appliances, one mount. Starts them in
 * that order, supervises them, and stops them in the opposite one, so that nothing is left: no process, no mount, no socket.
 * The manager's records are made anew each time, as the memory they speak of is gone with the processes that held it.
 */
import { rmSync } from 'node:fs';
import { join } from 'node:path';
import { spareMemory } from '../appliance/memory.js';
import { codeOf, ExtmemError } from '../base/errors.js';
import { formatExactSize, formatSize } from '../base/size.js';
import { UsageError } from './exit.js';
import { detachIfDead, prepareMountPoint } from './mount_point.js';
import { claimFolder, releaseFolder } from './running.js';
import { servingSettings, settings as table, type Settings } from './settings.js';
import { Supervised } from './supervision.js';

const mostMemory = 4 * 1024 ** 3;
const leastMemoryEach = 64 * 1024 ** 2;

export interface LocalClusterOptions {
  settings: Settings;
  dir: string;
  mountPoint: string;
  warn: (message: string) => void;
  step: (message: string) => void;
  /** Checked between the roles' starts. */
  stopping: AbortSignal;
}

export class LocalCluster {
  managerUrl = '';
  mountPoint = '';
  readonly tokenFile: string;
  readonly memoryBytes: number;
  /** Resolves when the mount was unmounted by somebody else, rejects when a role had to be given up. */
  readonly ended: Promise<void>;

  private readonly applianceCount: number;
  private readonly logLevel: string;
  private readonly roles: Supervised[] = [];
  private readonly settle: { end: () => void; fail: (error: Error) => void };
  private claimed = false;
  private stopped: Promise<boolean> | undefined;

  constructor(private readonly options: LocalClusterOptions) {
    const { settings, dir } = options;
    this.tokenFile = join(dir, 'manager/token');
    this.applianceCount = settings.required('appliances');
    if (this.applianceCount < 1 || this.applianceCount > 64) throw new UsageError('--appliances must be 1 to 64');
    this.memoryBytes = settings.optional('memory') ?? Math.min(mostMemory, Math.floor(spareMemory().bytes / 4));
    // Warnings only, unless somebody asked for more.
    const level = settings.origin('logLevel');
    this.logLevel = level.from === 'default' ? 'warn' : settings.required('logLevel');
    if (this.memoryBytes / this.applianceCount < leastMemoryEach) {
      throw new UsageError(
        `${formatSize(this.memoryBytes)} for ${this.applianceCount} appliances is too little: each needs ${formatSize(leastMemoryEach)} at least; say more with --memory, or run fewer`,
      );
    }
    let settle = { end: (): void => undefined, fail: (_error: Error): void => undefined };
    this.ended = new Promise((end, fail) => (settle = { end, fail }));
    this.ended.catch(() => undefined);
    this.settle = settle;
  }

  async start(): Promise<void> {
    const { dir, step, warn } = this.options;
    claimFolder(dir, { manager: '', tokenFile: this.tokenFile, mountPoint: this.options.mountPoint });
    this.claimed = true;
    this.mountPoint = await prepareMountPoint(this.options.mountPoint, { create: true, warn });
    rmSync(join(dir, 'manager'), { recursive: true, force: true });
    step('starting the manager');
    await this.startManager();
    const each = Math.floor(this.memoryBytes / this.applianceCount / 4096) * 4096;
    for (let index = 0; index < this.applianceCount; index += 1) {
      step(`starting appliance ${index + 1} of ${this.applianceCount} (${formatSize(each)})`);
      const id = `local-${index + 1}`;
      const args = ['appliance', ...this.joinArgs(), '--id', id, '--memory', formatExactSize(each), '--force'];
      await this.run(`appliance ${id}`, () => args);
    }
    step(`mounting ${this.mountPoint}`);
    await this.run('mount', () => ['mount', ...this.joinArgs(), ...this.mountArgs(), '--', this.mountPoint]);
    claimFolder(dir, { manager: this.managerUrl, tokenFile: this.tokenFile, mountPoint: this.mountPoint });
  }

  /** Process ids by role. */
  processes(): Record<string, number | undefined> {
    return Object.fromEntries(this.roles.map((role) => [role.name, role.pid]));
  }

  /** Mount first, manager last. Answers whether all of them ended in order. Idempotent. */
  stop(): Promise<boolean> {
    this.stopped ??= this.stopAll();
    return this.stopped;
  }

  private async stopAll(): Promise<boolean> {
    let inOrder = true;
    for (const role of [...this.roles].reverse()) inOrder = (await role.stop()) && inOrder;
    // A mount process that was killed, or given up, could not do it.
    if (this.mountPoint !== '') await detachIfDead(this.mountPoint);
    if (this.claimed) releaseFolder(this.options.dir);
    return inOrder;
  }

  private async startManager(): Promise<void> {
    const { settings, dir, warn } = this.options;
    let listen = settings.required('managerListen');
    const args = (): string[] => ['manager', '--listen', listen, '--state-dir', join(dir, 'manager'), '--log-level', this.logLevel];
    let manager: Supervised;
    try {
      manager = await this.run('manager', args);
    } catch (error) {
      // Nobody asked for this port: any other will do.
      if (codeOf(error) !== 'EADDRINUSE' || settings.origin('managerListen').from !== 'default') throw error;
      listen = '127.0.0.1:0';
      manager = await this.run('manager', args);
      warn(
        `port ${(table.managerListen.fallback ?? '').split(':')[1] ?? ''} is in use; the manager listens on ${String(manager.facts['url'])}`,
      );
    }
    this.managerUrl = String(manager.facts['url']);
    // A manager that is started again must be where the others look for it.
    listen = new URL(this.managerUrl).host;
  }

  private async run(name: string, args: () => string[]): Promise<Supervised> {
    this.options.stopping.throwIfAborted();
    const role = new Supervised({
      name,
      args,
      warn: this.options.warn,
      onGivenUp: () => this.settle.fail(new ExtmemError('EIO', `${name} cannot be kept running`)),
      ...(name === 'mount' ? { onEnded: () => this.settle.end() } : {}),
    });
    this.roles.push(role);
    try {
      await role.start();
    } catch (error) {
      this.roles.splice(this.roles.indexOf(role), 1);
      throw error;
    }
    return role;
  }

  private joinArgs(): string[] {
    return ['--manager', this.managerUrl, '--token-file', this.tokenFile, '--log-level', this.logLevel];
  }

  private mountArgs(): string[] {
    return servingSettings.flatMap((name) => {
      const { text } = this.options.settings.origin(name);
      return text === undefined ? [] : [table[name].flag.split(' ', 1)[0] ?? '', text];
    });
  }
}
