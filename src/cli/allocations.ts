/** `extmem create`, `resize`, `rm`, `ls` and `info`: allocations (files), asked of the manager, with no mount needed. */
import { PERSIST_TIMEOUT_MS } from '../base/manager_http.js';
import type { Freed } from '../base/messages.js';
import { formatSize, parseSize } from '../base/size.js';
import type { AllocationInfo } from '../manager/index.js';
import { managerAccess, readSecret } from './connection.js';
import { messageOf } from '../base/errors.js';
import { ExitCode, UsageError } from './exit.js';
import type { Invocation } from './invocation.js';
import { ManagerApi } from './manager_api.js';
import { pinnedHere } from './status.js';
import { printError, printJson, printLine, printWarning, Progress, renderFacts, renderTable } from './output.js';

const route = '/v1/allocations';

export const routeOf = (path: string): string => `${route}/${path.split('/').filter(Boolean).map(encodeURIComponent).join('/')}`;

export function apiOf(call: Invocation): ManagerApi {
  return new ManagerApi(managerAccess(call.settings));
}

/** Paths are those below the mount: `table`, `/table` and `/table/` are one. */
export function pathOf(text: string): string {
  const parts = text.split('/').filter((part) => part !== '');
  if (parts.includes('.') || parts.includes('..'))
    throw new UsageError(`'${text}': paths are told from the mount's root, without . and ..`);
  return `/${parts.join('/')}`;
}

function argument(call: Invocation, index: number, what: string): string {
  const value = call.args[index];
  if (value === undefined) throw new UsageError(`say ${what}`);
  return value;
}

function sizeOf(text: string): number {
  try {
    return parseSize(text);
  } catch (error) {
    throw new UsageError(messageOf(error));
  }
}

function durabilityOf(call: Invocation): { durability?: string } {
  const durability = call.text('durability');
  if (durability === undefined) return {};
  if (durability !== 'memory' && durability !== 'persisted')
    throw new UsageError(`--durability ${durability}: there are memory and persisted`);
  return { durability };
}

/** What `--allow` and `--access-key-file` say. */
export function accessOf(call: Invocation): { access?: string; accessKey?: string } {
  const access = call.text('allow');
  const file = call.text('accessKeyFile');
  return {
    ...(access === undefined ? {} : { access }),
    ...(file === undefined ? {} : { accessKey: readSecret(file, 'the file of --access-key-file') }),
  };
}

export async function runCreate(call: Invocation): Promise<ExitCode> {
  const path = pathOf(argument(call, 0, 'which path to create'));
  const size = call.text('size');
  if (size === undefined) throw new UsageError('--size is needed, as in: extmem create /table --size 8G');
  const layout = call.settings.optional('layout');
  const across = call.settings.optional('across');
  const made = await apiOf(call).ask<AllocationInfo>(
    'POST',
    route,
    {},
    {
      ...{ path, bytes: sizeOf(size) },
      ...(layout === undefined ? {} : { layout }),
      ...(across === undefined ? {} : { across }),
      ...durabilityOf(call),
      ...(call.text('label') === undefined ? {} : { label: call.text('label') }),
      ...accessOf(call),
    },
  );
  if (call.json) printJson(made);
  else {
    printLine(`created ${made.path}: ${formatSize(made.bytes)}, ${made.layout}`);
    if (made.warning !== '') printWarning(made.warning);
  }
  return ExitCode.ok;
}

type Persisted = { appliances: string[] } & Partial<Freed>;

function printPersisted(what: string, { appliances, freedBytes, heldBytes = 0 }: Persisted): void {
  const where = appliances.join(', ') || 'no appliance: it has no contents';
  printLine(`persisted ${what} on ${where}${freedBytes === undefined ? '' : `; ${formatSize(freedBytes)} of memory freed`}`);
  if (heldBytes > 0)
    printLine(
      `${formatSize(heldBytes)} of ${what} are persisted and stay in memory: clients on the appliance's host, or by RDMA, hold it; ` +
        'they let go when they unmount, or mount with --transport tcp',
    );
}

/** Persists files, or everything; tells which appliances took part. */
export async function runPersist(call: Invocation): Promise<ExitCode> {
  const all = call.has('all');
  const free = call.has('free');
  if (all === call.args.length > 0) throw new UsageError('say which paths to persist, or --all');
  const api = apiOf(call);
  const persisted: (Persisted & { path?: string })[] = [];
  const progress = new Progress();
  for (const path of all ? [undefined] : call.args.map(pathOf)) {
    progress.show(`persisting ${path ?? 'everything'} ...`);
    const answer = await api.ask<Persisted>(
      'POST',
      '/v1/persist',
      {},
      { ...(path === undefined ? {} : { path }), free },
      PERSIST_TIMEOUT_MS,
    );
    progress.clear();
    persisted.push({ ...(path === undefined ? {} : { path }), ...answer });
    if (!call.json) printPersisted(path ?? 'everything', answer);
  }
  if (call.json) printJson(persisted);
  return ExitCode.ok;
}

/** Accepts files as a backing store brought them back. */
export async function runRestore(call: Invocation): Promise<ExitCode> {
  const accepted: AllocationInfo[] = [];
  for (const path of call.args.map(pathOf)) {
    accepted.push(await apiOf(call).ask<AllocationInfo>('POST', '/v1/restore', {}, { path }));
    if (!call.json) printLine(`${path} can be opened again, as it was when it was last persisted`);
  }
  if (call.json) printJson(accepted);
  return ExitCode.ok;
}

/** A size, or one of the flags that name a range. */
function changeOf(call: Invocation): { bytes: number } | { how: string; offset: number; length: number } {
  const asked = ['punch', 'collapse', 'insert'].filter((how) => call.text(how) !== undefined);
  const [how] = asked;
  if (how === undefined) return { bytes: sizeOf(argument(call, 1, 'the new size, as in 16G')) };
  const [offset, length, more] = (call.text(how) ?? '').split(',');
  if (asked.length > 1 || call.args[1] !== undefined) throw new UsageError('one change at a time: a size, --punch, --collapse or --insert');
  if (offset === undefined || length === undefined || more !== undefined) throw new UsageError(`--${how}: say offset,length, as in 4M,1M`);
  return { how, offset: sizeOf(offset), length: sizeOf(length) };
}

export async function runResize(call: Invocation): Promise<ExitCode> {
  const path = pathOf(argument(call, 0, 'which path to resize'));
  const changed = await apiOf(call).ask<AllocationInfo>('PATCH', routeOf(path), {}, changeOf(call));
  if (call.json) printJson(changed);
  else printLine(`${path}: ${formatSize(changed.bytes)}, ${formatSize(changed.allocatedBytes)} of memory`);
  return ExitCode.ok;
}

export async function runRemove(call: Invocation): Promise<ExitCode> {
  const api = apiOf(call);
  const removed: string[] = [];
  let worst: ExitCode = ExitCode.ok;
  for (const text of call.args) {
    const path = pathOf(text);
    try {
      await api.ask('DELETE', routeOf(path), call.has('recursive') ? { recursive: 'true' } : {});
      removed.push(path);
    } catch (error) {
      printError(error);
      worst = ExitCode.failed;
      if (call.args.length === 1) throw error;
    }
  }
  if (call.json) printJson({ removed });
  return worst;
}

export async function runList(call: Invocation): Promise<ExitCode> {
  const path = pathOf(call.args[0] ?? '/');
  const found = await listAll(apiOf(call), path);
  if (call.json) {
    printJson(found);
    return ExitCode.ok;
  }
  const rows = found.map((one) => [
    formatSize(one.bytes),
    formatSize(one.allocatedBytes),
    one.attr.kind === 'file' ? one.layout : one.attr.kind,
    new Date(one.attr.mtime[0] * 1000).toISOString().slice(0, 16).replace('T', ' '),
    stateOf(one),
    one.attr.kind === 'directory' ? `${one.path}/` : one.path,
  ]);
  if (rows.length > 0) printLine(renderTable(['SIZE', 'MEMORY', 'LAYOUT', 'MODIFIED', 'STATE', 'PATH'], rows));
  return ExitCode.ok;
}

function stateOf({ lost, missing }: AllocationInfo): string {
  if (lost) return 'LOST';
  return missing.length > 0 ? 'degraded' : 'ok';
}

/** What of its copies can be lost, and which of them do not count. */
function describeCopies(found: AllocationInfo): [string, string][] {
  if (found.copies === 1) return [];
  const { copies, across, apart, bears, missing, unsynced } = found;
  const asked = across === undefined ? '' : `, never on one ${across}`;
  const lie = apart === 'none' ? '' : `; they lie on different ${apart}s`;
  const facts: [string, string][] = [['copies', `${copies}${asked}${lie}`]];
  const unit = apart === 'none' ? 'appliance' : apart;
  facts.push(['bears', bears === 0 ? 'no further loss of what holds it' : `the loss of ${bears} ${unit}${bears > 1 ? 's' : ''}`]);
  if (missing.length > 0) facts.push(['missing', `copies on ${missing.join(', ')}: they missed a write, or were lost`]);
  if (unsynced.length > 0) facts.push(['unsynced', `copies on ${unsynced.join(', ')}: their writer died; others are read`]);
  return facts;
}

/** Page by page: a folder may have 100,000 names. */
async function listAll(api: ManagerApi, path: string): Promise<AllocationInfo[]> {
  const found: AllocationInfo[] = [];
  const progress = new Progress();
  for (let after: number | undefined = 0; after !== undefined;) {
    const page: { allocations: AllocationInfo[]; next?: number } = await api.get(route, { path, after: String(after), limit: '1000' });
    found.push(...page.allocations);
    after = page.next;
    if (after !== undefined) progress.show(`${found.length} names ...`);
  }
  progress.clear();
  return found;
}

export async function runInfo(call: Invocation): Promise<ExitCode> {
  const path = pathOf(argument(call, 0, 'which path to tell about'));
  const api = apiOf(call);
  const found = await api.get<AllocationInfo>(routeOf(path));
  const pinned = await pinnedHere(found.attr.ino, api.url);
  if (call.json) {
    printJson({ ...found, pinnedHere: pinned });
    return ExitCode.ok;
  }
  const { attr, regions, holders } = found;
  const facts: [string, string][] = [
    ['path', found.path],
    ['inode', String(attr.ino)],
    ...(found.label === '' ? [] : [['label', found.label] as [string, string]]),
    ['size', `${formatSize(found.bytes)} (${found.bytes} bytes)`],
    ['memory', `${formatSize(found.allocatedBytes)}${found.dedicated ? ', in regions of its own' : ''}`],
    ['layout', found.layout],
    ...describeCopies(found),
    ['durability', found.durability],
    ['access', found.access === '' ? 'whoever has the join token: everything' : found.access],
    ['owner', `${attr.uid}:${attr.gid}, mode ${attr.mode.toString(8).padStart(4, '0')}`],
    ['modified', new Date(attr.mtime[0] * 1000).toISOString()],
  ];
  const lost = found.lostRanges.map(({ offset, length }) => `${offset} to ${offset + length}`);
  if (found.lost) facts.push(['state', 'LOST in part: what held some of it is gone']);
  if (found.lost) facts.push(['lost bytes', lost.length > 8 ? `${lost.slice(0, 8).join(', ')} and more` : lost.join(', ')]);
  if (found.behind) facts.push(['state', 'BEHIND: an earlier state came back; extmem restore accepts it']);
  for (const { mountPoint, pinnedBytes } of pinned) facts.push(['pinned', `${formatSize(pinnedBytes)} in the cache of ${mountPoint}`]);
  printLine(renderFacts(facts));
  if (regions.length > 0) {
    printLine(
      `\n${renderTable(
        ['REGION', 'SIZE', 'APPLIANCE', 'STATE'],
        regions.map((one) => [String(one.region), formatSize(one.bytes), one.appliance, one.lost ? 'lost' : 'ok']),
      )}`,
    );
  }
  if (holders.length > 0) {
    printLine(
      `\n${renderTable(
        ['CLIENT', 'NAME', 'MODE', 'OPEN FOR', 'CONNECTED'],
        holders.map((one) => [String(one.client), one.name, one.mode, one.open, one.connected ? 'yes' : 'no']),
      )}`,
    );
  }
  if (found.warning !== '') printLine(`\nNote: ${found.warning}.`);
  return ExitCode.ok;
}
