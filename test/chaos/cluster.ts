/** A manager, appliances and a client, each on a host of its own (a network namespace). What is made in `folder` has two copies. */
import { spawnSync } from 'node:child_process';
import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { isAlive, TestHosts } from '../mount/hosts.js';
import { python } from '../python.js';
import { until } from '../until.js';

const HEALED_MS = 120_000;

export class ChaosCluster {
  readonly appliances = ['a1', 'a2', 'a3'];
  readonly client = 'client';
  readonly hosts = new TestHosts(['manager', ...this.appliances, this.client]);
  readonly mountPoint = join(this.hosts.folder, 'mnt');
  readonly folder = join(this.mountPoint, 'mirrored');
  private readonly pids = new Map<string, number>();

  constructor(private readonly layout: string) {}

  async start(): Promise<void> {
    this.hosts.make();
    await this.startManager();
    for (const name of this.appliances) await this.startAppliance(name);
    const manager = this.hosts.address('manager');
    await this.hosts.start(this.client, 'mount', '--manager', manager, '--threads', '2', '--cache', '16M', '--mkdir', this.mountPoint);
    mkdirSync(this.folder);
    setAttribute(this.folder, 'user.extmem.layout', this.layout);
  }

  async startManager(): Promise<void> {
    const at = this.hosts.address('manager');
    const facts = await this.hosts.start('manager', 'manager', '--listen', at);
    this.pids.set('manager', facts.pid);
  }

  async startAppliance(name: string): Promise<void> {
    const manager = this.hosts.address('manager');
    const facts = await this.hosts.start(name, 'appliance', '--manager', manager, '--memory', '512M', '--id', name);
    this.pids.set(name, facts.pid);
  }

  signal(name: string, signal: NodeJS.Signals): void {
    process.kill(this.pid(name), signal);
  }

  async kill(name: string): Promise<void> {
    const pid = this.pid(name);
    process.kill(pid, 'SIGKILL');
    await until(`${name} is gone`, () => !isAlive(pid));
  }

  /** Every appliance serves. */
  async healed(): Promise<void> {
    await until('all is well again', () => this.isWell(), HEALED_MS);
  }

  async stop(): Promise<void> {
    await this.hosts.stop();
  }

  private async isWell(): Promise<boolean> {
    const { code, output } = await this.hosts.extmem('manager', 'status', '--json', '--manager', this.hosts.address('manager'));
    if (code !== 0) return false;
    const status = JSON.parse(output) as { appliances: { state: string }[] };
    return status.appliances.filter(({ state }) => state === 'up').length === this.appliances.length;
  }

  private pid(name: string): number {
    const pid = this.pids.get(name);
    if (pid === undefined) throw new Error(`no ${name} runs`);
    return pid;
  }
}

function setAttribute(path: string, name: string, value: string): void {
  const script = 'import os, sys; os.setxattr(sys.argv[1], sys.argv[2], sys.argv[3].encode())';
  const { status, stderr } = spawnSync(python, ['-c', script, path, name, value], { encoding: 'utf8' });
  if (status !== 0) throw new Error(`${name} of ${path} cannot be set: ${stderr}`);
}
