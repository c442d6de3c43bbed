/** `extmem migrate`, `rebuild`, `drain` and `jobs`: memory that moves while it is in use (A11, B20, B22), asked of the manager. */
import { setTimeout as sleep } from 'node:timers/promises';
import { codeOf, messageOf } from '../base/errors.js';
import { formatSize, parseSize } from '../base/size.js';
import type { Job } from '../manager/index.js';
import { apiOf, pathOf } from './allocations.js';
import { ExitCode, UsageError } from './exit.js';
import type { Invocation } from './invocation.js';
import { printJson, printLine, printWarning, Progress, renderTable } from './output.js';

const LOOK_EVERY_MS = 250;
/** For so long a manager may be away. */
const AWAY_MS = 30_000;

export async function runMigrate(call: Invocation): Promise<ExitCode> {
  const to = call.text('to');
  if (to === undefined) throw new UsageError('--to is needed, as in: extmem migrate /table --to a2');
  const from = call.text('from');
  const paths = call.args.map(pathOf);
  return begin(call, { kind: 'migrate', paths, to, ...(from === undefined ? {} : { from }) });
}

export async function runRebuild(call: Invocation): Promise<ExitCode> {
  return begin(call, { kind: 'rebuild', ...(call.args.length === 0 ? {} : { paths: call.args.map(pathOf) }) });
}

export async function runCheck(call: Invocation): Promise<ExitCode> {
  const trust = call.text('trust');
  const paths = call.args.length === 0 ? {} : { paths: call.args.map(pathOf) };
  return begin(call, { kind: 'check', ...paths, ...(trust === undefined ? {} : { trust }) });
}

export async function runDrain(call: Invocation): Promise<ExitCode> {
  const [appliance] = call.args;
  if (appliance === undefined) throw new UsageError('say which appliance: extmem drain a1');
  if (!call.has('undo')) return begin(call, { kind: 'drain', appliance });
  await apiOf(call).ask('DELETE', `/v1/appliances/${encodeURIComponent(appliance)}/drain`);
  if (call.json) printJson({ appliance, draining: false });
  else printLine(`things are placed on ${appliance} again; what has moved away stays where it is`);
  return ExitCode.ok;
}

export async function runJobs(call: Invocation): Promise<ExitCode> {
  const [what, id] = call.args;
  const api = apiOf(call);
  if (what === 'cancel') {
    if (id === undefined || !/^[1-9]\d{0,14}$/.test(id)) throw new UsageError('say the number of the job: extmem jobs cancel 7');
    const job = await api.ask<Job>('DELETE', `/v1/jobs/${id}`);
    if (call.json) printJson(job);
    else printLine(`job ${id} ends after what is being moved right now; ${formatSize(job.doneBytes)} were moved, and stay where they are`);
    return ExitCode.ok;
  }
  if (what !== undefined) throw new UsageError(`'${what}': there are \`extmem jobs\` and \`extmem jobs cancel <id>\``);
  const { jobs } = await api.get<{ jobs: Job[] }>('/v1/jobs');
  if (call.json) printJson(jobs);
  else renderJobs(jobs);
  return ExitCode.ok;
}

/** Asks for a job, and waits for its end unless that is not wanted. */
async function begin(call: Invocation, body: Record<string, unknown>): Promise<ExitCode> {
  const rate = call.text('rate');
  const job = await apiOf(call).ask<Job>('POST', '/v1/jobs', {}, { ...body, ...(rate === undefined ? {} : { rate: rateOf(rate) }) });
  if (!call.has('background')) return watch(call, job);
  if (call.json) printJson(job);
  else printLine(`job ${job.id} has begun; extmem jobs tells how far it is`);
  return ExitCode.ok;
}

function rateOf(text: string): number {
  try {
    return parseSize(text);
  } catch (error) {
    throw new UsageError(`--rate: ${messageOf(error)}`);
  }
}

async function watch(call: Invocation, begun: Job): Promise<ExitCode> {
  const progress = new Progress();
  let job = begun;
  while (job.state === 'waiting' || job.state === 'running') {
    progress.show(`${describe(job)}: ${formatSize(job.doneBytes)} of ${formatSize(job.totalBytes)}`);
    await sleep(LOOK_EVERY_MS);
    job = await lookAgain(call, job);
  }
  progress.clear();
  if (call.json) printJson(job);
  else {
    printLine(outcomeOf(job));
    if (job.kind === 'drain' && job.state === 'done') printLine(`${job.from ?? ''} is empty, and can be stopped`);
    if (job.error !== '') printWarning(job.error);
    for (const { path, ino, why } of job.problems) printWarning(`${path ?? `inode ${ino}`}: ${why}`);
  }
  return job.state === 'done' ? ExitCode.ok : ExitCode.failed;
}

/** A manager that is started again goes on with it. */
async function lookAgain(call: Invocation, { id }: Job): Promise<Job> {
  for (const end = performance.now() + AWAY_MS; ; await sleep(LOOK_EVERY_MS)) {
    try {
      return await apiOf(call).get<Job>(`/v1/jobs/${id}`);
    } catch (error) {
      if (codeOf(error) !== 'EUNREACHABLE' || performance.now() > end) throw error;
    }
  }
}

function outcomeOf(job: Job): string {
  const { kind, state, problems, doneBytes } = job;
  if (kind !== 'check') return `${describe(job)}: ${state}, ${formatSize(doneBytes)} moved`;
  const found = state !== 'failed' || problems.length === 0 ? 'no copy differs' : `${problems.length} findings`;
  return `${describe(job)}: ${state === 'cancelled' ? 'cancelled, ' : ''}${formatSize(doneBytes)} compared, ${found}`;
}

function describe({ kind, files, to, from }: Job): string {
  if (kind === 'drain') return `drain ${from ?? ''}`;
  const [first] = files;
  const what = first === undefined ? 'all files' : files.length === 1 ? first.path : `${files.length} files`;
  return `${kind} ${what}${to === undefined ? '' : ` to ${to}`}`;
}

function renderJobs(jobs: readonly Job[]): void {
  const rows = jobs.map((job) => [
    String(job.id),
    `${describe(job)}${job.automatic ? ' (by itself)' : ''}`,
    job.state,
    `${formatSize(job.doneBytes)} of ${formatSize(job.totalBytes)}`,
    job.error || job.problems.map(({ path, ino, why }) => `${path ?? `inode ${ino}`}: ${why}`)[0] || '-',
  ]);
  printLine(
    rows.length === 0 ? 'Nothing is being moved, and nothing was.' : renderTable(['JOB', 'WHAT', 'STATE', 'MOVED', 'PROBLEM'], rows),
  );
}
