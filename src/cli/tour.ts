/**
 * `extmem tour` (and `npm start`): starts a cluster on this machine and shows with a real file of 100 MB and more what it does.
 * The steps are in tour_steps.ts. This process drives the tour; the mount is served by another, and the programs that use it
 * (cp, dd, cmp, a mapping) are further ones, each with a time limit, so that nothing here can hang on the mount.
 */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { ExtmemError } from '../base/errors.js';
import { formatSize } from '../base/size.js';
import { runRole, type Running } from './daemon.js';
import type { ExitCode } from './exit.js';
import type { Invocation } from './invocation.js';
import { LocalCluster } from './local_cluster.js';
import { printLine, printWarning } from './output.js';
import { findRealFiles, tourSteps, type StepOutcome, type TourStep } from './tour_steps.js';

export const repositoryRoot = fileURLToPath(new URL('../../../', import.meta.url));

interface ToldStep {
  step: string;
  ok: boolean;
  seconds: number;
  figure: string;
  error?: string;
}

export function runTour(call: Invocation): Promise<ExitCode> {
  return runRole({ json: call.json, detach: false, logFile: '' }, (stopping) => startTour(call, stopping));
}

async function startTour(call: Invocation, stopping: AbortSignal): Promise<Running> {
  const say = (line: string): void => {
    if (!call.json) printLine(line);
  };
  const scratch = mkdtempSync(join(tmpdir(), 'extmem-tour-'));
  const cluster = new LocalCluster({
    settings: call.settings,
    dir: scratch,
    mountPoint: call.settings.optional('mountPoint') ?? join(repositoryRoot, 'mounts/extmem'),
    warn: printWarning,
    step: (message) => say(`  ${message}`),
    stopping,
  });
  const close = async (): Promise<void> => {
    const inOrder = await cluster.stop();
    rmSync(scratch, { recursive: true, force: true });
    if (!inOrder) throw new ExtmemError('EIO', 'not every process ended in order');
    say('Unmounted; every process has ended.');
  };
  try {
    say('A manager, appliances and a mount on this machine, each a process of its own:');
    await cluster.start();
    say(`  ${formatSize(cluster.memoryBytes)} of their memory is now ${cluster.mountPoint}\n`);
    const told = await runSteps(tourSteps({ mountPoint: cluster.mountPoint, scratch, files: findRealFiles() }), say, stopping);
    return finish(call, cluster, told, close);
  } catch (error) {
    await cluster.stop();
    rmSync(scratch, { recursive: true, force: true });
    throw error;
  }
}

function finish(call: Invocation, cluster: LocalCluster, told: ToldStep[], close: () => Promise<void>): Running {
  const failed = told.filter(({ ok }) => !ok).length;
  const verdict = failed === 0 ? `All ${told.length} steps of the tour are ok.` : `${failed} of ${told.length} steps FAILED.`;
  const running = { facts: { mountPoint: cluster.mountPoint, manager: cluster.managerUrl, steps: told }, close };
  if (call.has('exit')) {
    const ended = failed === 0 ? Promise.resolve() : Promise.reject(new ExtmemError('EIO', verdict));
    ended.catch(() => undefined);
    return { ...running, banner: `\n${verdict}`, ended };
  }
  const banner = `\n${verdict}\n${cluster.mountPoint} stays mounted: use it from another terminal. Ctrl-C unmounts and stops everything.`;
  return { ...running, banner, ended: cluster.ended };
}

async function runSteps(steps: TourStep[], say: (line: string) => void, stopping: AbortSignal): Promise<ToldStep[]> {
  const told: ToldStep[] = [];
  for (const { title, run } of steps) {
    stopping.throwIfAborted();
    const started = process.hrtime.bigint();
    let outcome: StepOutcome | undefined;
    let error: string | undefined;
    try {
      outcome = await run();
    } catch (cause) {
      // A Ctrl-C reaches the programs of the step too: that is no failure of theirs.
      stopping.throwIfAborted();
      error = cause instanceof Error ? cause.message : String(cause);
    }
    const seconds = Number(process.hrtime.bigint() - started) / 1e9;
    const ok = error === undefined;
    const figure = outcome?.figure ?? '';
    told.push({ step: title, ok, seconds, figure, ...(error === undefined ? {} : { error }) });
    say(`${ok ? '  ok    ' : '  FAILED'}  ${title.padEnd(64)} ${seconds.toFixed(2).padStart(6)} s  ${figure}`.trimEnd());
    for (const line of outcome?.lines ?? []) say(`            ${line}`);
    if (error !== undefined) for (const line of error.split('\n')) say(`            ${line}`);
  }
  return told;
}
