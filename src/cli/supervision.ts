/**
 * A role as a supervised child process: started, watched, started again when it dies, stopped in the end. A restarted
 * appliance is a new incarnation: what it held is gone, and files that need it say so (EIO) rather than lie.
 */
import type { ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { setTimeout as sleep } from 'node:timers/promises';
import { spawnSupervised, untilReady } from './daemon.js';
import { messageOf } from '../base/errors.js';

const stopTimeoutMs = 35_000;
const startTimeoutMs = 60_000;
/** More crashes than this within the window, and the child is given up: it would only crash again. */
const mostRestarts = 5;
const restartWindowMs = 60_000;
const firstRestartDelayMs = 200;

export interface SupervisedOptions {
  name: string;
  /** Command line of the role; asked again for each start. */
  args: () => string[];
  warn: (message: string) => void;
  /** It ended in order, though we did not ask (a mount that was unmounted): it is not started again. */
  onEnded?: () => void;
  /** It crashed too often: nothing runs any more. */
  onGivenUp?: () => void;
}

export class Supervised {
  facts: Record<string, unknown> = {};
  private child: ChildProcess | undefined;
  private stopping = false;
  private crashes: number[] = [];

  constructor(private readonly options: SupervisedOptions) {}

  get name(): string {
    return this.options.name;
  }

  get pid(): number | undefined {
    return this.child?.pid;
  }

  /** Resolves when the role is ready; rejects with its own error when it is not. */
  async start(): Promise<void> {
    const child = spawnSupervised(this.options.args());
    this.child = child;
    try {
      this.facts = await withTimeout(
        untilReady(child, this.options.name),
        startTimeoutMs,
        `${this.options.name} was not ready within ${startTimeoutMs / 1000} s`,
      );
    } catch (error) {
      child.kill('SIGKILL');
      throw error;
    }
    child.once('exit', (code, signal) => {
      if (code === 0 && !this.stopping && this.options.onEnded !== undefined) this.options.onEnded();
      else void this.revive(child, signal ?? `exit ${code ?? 0}`);
    });
  }

  /** SIGTERM, then SIGKILL. Answers whether it ended by itself and in order. */
  async stop(): Promise<boolean> {
    this.stopping = true;
    const { child } = this;
    if (child === undefined || hasEnded(child)) return true;
    const ended = once(child, 'exit');
    child.kill('SIGTERM');
    const inTime = await Promise.race([ended.then(() => true), sleep(stopTimeoutMs, false, { ref: false })]);
    if (inTime) return child.exitCode === 0;
    this.options.warn(`${this.options.name} (process ${child.pid ?? 0}) does not stop; killing it`);
    child.kill('SIGKILL');
    await ended;
    return false;
  }

  private async revive(child: ChildProcess, why: string): Promise<void> {
    if (this.stopping) return;
    const { name, warn } = this.options;
    warn(`${name} (process ${child.pid ?? 0}) ended unexpectedly: ${why}`);
    for (;;) {
      const now = Date.now();
      this.crashes = [...this.crashes.filter((at) => now - at < restartWindowMs), now];
      if (this.crashes.length > mostRestarts) {
        warn(`${name} failed ${this.crashes.length} times within ${restartWindowMs / 1000} s and is not started again`);
        this.options.onGivenUp?.();
        return;
      }
      await sleep(firstRestartDelayMs * 2 ** (this.crashes.length - 1));
      // stop() may have come while we waited.
      if (this.stopping) return;
      try {
        await this.start();
        warn(`${name} runs again (process ${this.pid ?? 0})`);
        return;
      } catch (error) {
        warn(`${name} could not be started again: ${messageOf(error)}`);
      }
    }
  }
}

function hasEnded(child: ChildProcess): boolean {
  return child.exitCode !== null || child.signalCode !== null;
}

async function withTimeout<Value>(work: Promise<Value>, timeoutMs: number, message: string): Promise<Value> {
  const timer = new AbortController();
  try {
    return await Promise.race([
      work,
      sleep(timeoutMs, undefined, { signal: timer.signal }).then(() => {
        throw new Error(message);
      }),
    ]);
  } finally {
    timer.abort();
  }
}
