/**
 * How a role (manager, appliance, mount, up) lives as a process: it starts, says that it is ready, serves until a signal, closes.
 * In the foreground it tells a person; started by another extmem process (--detach, or `up`) it tells that one over the IPC channel.
 * A supervised process ends when its supervisor does, however that died: nothing is left behind.
 */
import { spawn, type ChildProcess } from 'node:child_process';
import { closeSync, mkdirSync, openSync, readFileSync } from 'node:fs';
import { dirname } from 'node:path';
import { codeOf, ExtmemError, messageOf } from '../base/errors.js';
import { ExitCode, exitCodeOf } from './exit.js';
import { printError } from './output.js';

export interface Running {
  /** Facts for programs: told to the starter, or printed with --json. */
  facts: Record<string, unknown>;
  /** The same for a person. */
  banner: string;
  /** Settles when the role ends by itself: resolved when that is in order (unmounted), rejected when it failed. */
  ended?: Promise<void>;
  /** Closing may take as long as a disk needs for all of the memory. */
  closesSlowly?: boolean;
  close(): Promise<void>;
}

export interface RoleOptions {
  json: boolean;
  detach: boolean;
  logFile: string; // of a detached process
}

type Report = { extmem: 'ready'; facts: Record<string, unknown> } | { extmem: 'failed'; code: string; message: string };

/** Set for a process that another extmem process started: 'waits' for it to be ready, or 'supervises' it for life. */
const parentVariable = 'EXTMEM_PARENT';
const closeTimeoutMs = 30_000;

/** Runs a role to its end and answers the exit code. `start` is told by `stopping` when it need not go on. */
export async function runRole(options: RoleOptions, start: (stopping: AbortSignal) => Promise<Running>): Promise<ExitCode> {
  if (options.detach) return detach(options);
  const parent = process.env[parentVariable];
  delete process.env[parentVariable];
  // Before start(): a signal that comes meanwhile must find what was begun, and undo it.
  const stopping = new AbortController();
  const stopped = waitForStop(parent === 'supervises').then(() => stopping.abort());
  let running: Running;
  try {
    running = await start(stopping.signal);
  } catch (error) {
    if (stopping.signal.aborted) return ExitCode.interrupted;
    if (parent === undefined) throw error;
    await report({ extmem: 'failed', code: codeOf(error), message: messageOf(error) });
    return exitCodeOf(error);
  }
  if (parent === undefined) printReady(running, options.json);
  else await report({ extmem: 'ready', facts: running.facts });
  if (parent === 'waits') process.disconnect();
  return serve(running, stopped);
}

function printReady({ facts, banner }: Running, json: boolean): void {
  if (json) process.stdout.write(`${JSON.stringify({ pid: process.pid, ...facts })}\n`);
  else if (banner !== '') process.stdout.write(`${banner}\n`);
}

async function serve(running: Running, stopped: Promise<void>): Promise<ExitCode> {
  let exitCode: ExitCode = ExitCode.ok;
  const ended = (running.ended ?? new Promise<void>(() => undefined)).catch((error: unknown) => {
    printError(error);
    exitCode = exitCodeOf(error);
  });
  await Promise.race([stopped, ended]);
  const late = setTimeout(() => {
    if (running.closesSlowly === true) return;
    printError(new ExtmemError('ETIMEDOUT', `closing took longer than ${closeTimeoutMs / 1000} s; ending without it`));
    process.exit(ExitCode.failed);
  }, closeTimeoutMs);
  try {
    await running.close();
  } catch (error) {
    printError(error);
    exitCode = exitCodeOf(error);
  }
  clearTimeout(late);
  return exitCode;
}

/** Resolves at the first signal, or when the supervisor is gone. A second signal ends the process at once. */
function waitForStop(supervised: boolean): Promise<void> {
  return new Promise((stop) => {
    let signals = 0;
    for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP', 'SIGPWR'] as const) {
      process.on(signal, () => {
        signals += 1;
        if (signals > 1 && signal === 'SIGINT') process.exit(ExitCode.interrupted);
        stop();
      });
    }
    if (supervised) process.on('disconnect', stop);
  });
}

function report(message: Report): Promise<void> {
  return new Promise((done) => {
    // The starter may be gone already; then there is nobody to tell.
    if (process.send === undefined || !process.connected) done();
    else process.send(message, undefined, {}, () => done());
  });
}

/** Starts the same command again in the background, and waits until it is ready or has failed. */
async function detach(options: RoleOptions): Promise<ExitCode> {
  mkdirSync(dirname(options.logFile), { recursive: true });
  const log = openSync(options.logFile, 'a', 0o600);
  const args = process.argv.slice(1).filter((argument) => argument !== '--detach');
  const child = spawn(process.execPath, [...process.execArgv, ...args], {
    detached: true,
    stdio: ['ignore', log, log, 'ipc'],
    env: { ...process.env, [parentVariable]: 'waits' },
  });
  closeSync(log);
  const facts = await untilReady(child, process.argv[2] ?? 'extmem', options.logFile);
  if (child.connected) child.disconnect();
  child.unref();
  const told = { pid: child.pid, ...facts, logFile: options.logFile };
  process.stdout.write(options.json ? `${JSON.stringify(told)}\n` : `${child.pid ?? 0}\n`);
  return ExitCode.ok;
}

/** The facts that a started role reports, or its failure. */
export function untilReady(child: ChildProcess, name: string, logFile?: string): Promise<Record<string, unknown>> {
  return new Promise((done, failed) => {
    child.once('error', (error) => failed(new ExtmemError(codeOf(error), `${name} could not be started: ${error.message}`)));
    child.once('exit', (code, signal) => {
      const tail = logFile === undefined ? '' : `; the end of ${logFile}:\n${lastLines(logFile, 5)}`;
      failed(new ExtmemError('EIO', `${name} ended before it was ready (${signal ?? `exit ${code ?? 0}`})${tail}`));
    });
    child.on('message', (message) => {
      const told = message as Report;
      if (told.extmem === 'ready') done(told.facts);
      else if (told.extmem === 'failed') failed(new ExtmemError(told.code, told.message));
    });
  });
}

function lastLines(path: string, count: number): string {
  return readFileSync(path, 'utf8').trimEnd().split('\n').slice(-count).join('\n');
}

/** Starts a role as a supervised process of its own session: a Ctrl-C on the terminal reaches only the supervisor. */
export function spawnSupervised(args: readonly string[], environment: NodeJS.ProcessEnv = {}): ChildProcess {
  return spawn(process.execPath, [...process.execArgv, process.argv[1] ?? '', ...args], {
    detached: true,
    stdio: ['ignore', 'ignore', 'inherit', 'ipc'],
    env: { ...process.env, ...environment, [parentVariable]: 'supervises' },
  });
}
