/** `extmem status`: the cluster as the manager sees it, and the mounts of this machine as they see themselves. */
import { codeOf, messageOf } from '../base/errors.js';
import { PAGE_BYTES } from '../base/protocol.js';
import { formatSize } from '../base/size.js';
import type { BackingDevice } from '../fs/backing_device.js';
import { fabricOf, percentileNs, type ApplianceStatistics, type LinkCounters } from '../fs/fabric_statistics.js';
import type { Residency } from '../fs/residency.js';
import type { StatusAnswer } from '../manager/index.js';
import { formatEndpoints, managerAccess } from './connection.js';
import { askSocket, mountSockets } from './endpoint.js';
import { ExitCode, exitCodeOf } from './exit.js';
import type { Invocation } from './invocation.js';
import { ManagerApi } from './manager_api.js';
import { extmemMounts } from './mount_point.js';
import { printJson, printLine, renderTable } from './output.js';

type ClusterStatus = StatusAnswer & { manager: string };

type MountStatus = Record<string, unknown>;

export async function runStatus(call: Invocation): Promise<ExitCode> {
  const mounts = await localMounts();
  let cluster: ClusterStatus | undefined;
  let failure: unknown;
  try {
    cluster = await askCluster(call);
  } catch (error) {
    failure = error;
  }
  const dead = deadMounts(mounts);
  if (call.json) {
    const error = failure === undefined ? {} : { error: { code: codeOf(failure), message: messageOf(failure) } };
    printJson({ ...cluster, mounts, deadMounts: dead, ...error });
  } else {
    if (cluster !== undefined) printCluster(cluster);
    for (const mount of mounts) {
      printLine('');
      for (const line of describeMount(mount)) printLine(line);
    }
    for (const path of dead) printLine(`\n${path}: no process of this user serves this mount; if it is dead: extmem umount ${path}`);
    if (failure !== undefined) process.stderr.write(`extmem: ${messageOf(failure)}\n`);
  }
  return failure === undefined ? ExitCode.ok : exitCodeOf(failure);
}

async function askCluster(call: Invocation): Promise<ClusterStatus> {
  const api = new ManagerApi(managerAccess(call.settings));
  return { manager: api.url, ...(await api.get<StatusAnswer>('/v1/status')) };
}

function printCluster({ manager, appliances, clients, pool, files, lostRegions }: ClusterStatus): void {
  printLine(
    `Manager ${manager}: ${files} files; ${formatSize(pool.totalBytes)} donated, ${formatSize(pool.reservedBytes)} in regions, ${formatSize(pool.usedBytes)} of them used by files, ${formatSize(pool.freeBytes)} free`,
  );
  if (lostRegions > 0) printLine(`${lostRegions} regions are LOST with appliances that went away; files that need them fail with EIO`);
  if (appliances.length === 0) {
    printLine(`No appliance has joined yet; start one with: extmem appliance --manager ${new URL(manager).host} --memory 8G`);
    return;
  }
  const rows = appliances.map((one) => [
    one.id,
    [one.state, ...worriesOf(one)].join(', '),
    formatEndpoints([one, ...(one.moreEndpoints ?? [])]),
    formatSize(one.donatedBytes),
    formatSize(one.reservedBytes),
    formatSize(one.residentBytes),
  ]);
  printLine(`\n${renderTable(['APPLIANCE', 'STATE', 'ADDRESS', 'DONATED', 'IN REGIONS', 'RESIDENT'], rows)}`);
  printStores(appliances);
  if (clients.length === 0) return;
  const users = clients.map((one) => [
    String(one.client),
    one.name,
    one.alive ? 'up' : 'away',
    formatSize(one.provisionBytes),
    formatSize(one.usedBytes),
    String(one.heldFiles),
  ]);
  printLine(`\n${renderTable(['CLIENT', 'NAME', 'STATE', 'PROVISION', 'USED', 'FILES HELD'], users)}`);
}

function worriesOf({ offer, draining, reservedBytes }: ClusterStatus['appliances'][number]): string[] {
  const drained = reservedBytes === 0 ? ['drained: it can be stopped'] : ['draining'];
  return [...(offer === undefined || offer === 'whole' ? [] : ['short of memory']), ...(draining === true ? drained : [])];
}

function printStores(appliances: ClusterStatus['appliances']): void {
  const rows = appliances.flatMap(({ id, store }) => {
    if (store === undefined) return [];
    const { usedBytes, absentBytes, damagedPages, persistSeconds, lagSeconds, bytesPerSecond, batterySeconds, broken } = store;
    const late = batterySeconds !== undefined && persistSeconds > batterySeconds ? ` (the battery lasts ${batterySeconds} s)` : '';
    const rate = bytesPerSecond === undefined ? '' : ` (at most ${formatSize(bytesPerSecond)}/s)`;
    const state = broken !== '' ? `FAILED: ${broken}` : damagedPages > 0 ? `${damagedPages} pages are damaged` : 'ok';
    return [
      [
        id,
        formatSize(usedBytes),
        formatSize(absentBytes),
        `${persistSeconds} s${late}`,
        lagSeconds === undefined ? '-' : `${lagSeconds} s${rate}`,
        state,
      ],
    ];
  });
  if (rows.length > 0) printLine(`\n${renderTable(['STORE OF', 'USED', 'ONLY THERE', 'PERSISTING ALL TAKES', 'LAG', 'STATE'], rows)}`);
}

/** What every mount of this user on this machine says of itself. */
export async function localMounts(): Promise<MountStatus[]> {
  const answers = await Promise.allSettled((await mountSockets()).map((path) => askSocket(path, 'GET', '/status')));
  return answers.flatMap((answer) => (answer.status === 'fulfilled' ? [answer.value] : []));
}

/** The mounts of this machine that have a file pinned. */
export async function pinnedHere(ino: number, manager: string): Promise<{ mountPoint: string; pinnedBytes: number }[]> {
  return (await localMounts())
    .filter((mount) => mount['manager'] === manager)
    .flatMap((mount) => {
      const files = mount['files'] as ReturnType<Residency['statistics']> | undefined;
      const found = files?.pinned.find((one) => one.ino === ino);
      return found === undefined ? [] : [{ mountPoint: String(mount['mountPoint']), pinnedBytes: found.pinnedBytes }];
    });
}

function deadMounts(mounts: readonly MountStatus[]): string[] {
  const served = new Set(mounts.map((mount) => mount['mountPoint']));
  return extmemMounts()
    .map(({ mountPoint }) => mountPoint)
    .filter((mountPoint) => !served.has(mountPoint));
}

function numbers(value: unknown): Record<string, number> {
  return typeof value === 'object' && value !== null ? (value as Record<string, number>) : {};
}

const percent = (part: number, whole: number): string => (whole === 0 ? '-' : `${((100 * part) / whole).toFixed(1)} %`);

/** What of this machine's memory the mount's files take, here and in the kernel, and what is pinned of it. */
function describeLocalMemory(mount: MountStatus): string[] {
  const kernel = numbers(mount['kernel']);
  const resident = numbers(mount['cache'])['residentBytes'] ?? 0;
  const pages = kernel['pageBytes'] ?? 0;
  const limit = kernel['limitBytes'] ?? 0;
  const lines = [
    `local memory: ${formatSize(resident)} of frames, and at most ${formatSize(pages)} of the kernel's pages; ` +
      (limit > 0
        ? `together ${formatSize(resident + pages)} of ${formatSize(limit)}, for which ${formatSize(kernel['droppedBytes'] ?? 0)} were dropped`
        : 'the kernel drops its own as it likes (--memory-limit bounds both)'),
  ];
  const device = mount['backingDevice'] as BackingDevice | undefined;
  if (device !== undefined)
    lines.push(
      `backing device ${device.device}: read-ahead ${device.readAheadKb} KiB, dirty at most ${device.maxRatio} %` +
        `${device.maxBytes === undefined || device.maxBytes === 0 ? '' : ` (${formatSize(device.maxBytes)})`}${device.strictLimit === true ? ', strictly' : ''}`,
    );
  const files = mount['files'] as ReturnType<Residency['statistics']> | undefined;
  for (const { path, sizeBytes, pinnedBytes } of files?.pinned ?? [])
    lines.push(`pinned: ${path}, ${formatSize(pinnedBytes)} of ${formatSize(sizeBytes)} here`);
  if (files !== undefined && files.warming > 0) lines.push(`warming: ${files.warming} ${files.warming === 1 ? 'file' : 'files'}`);
  return lines;
}

/** A mount's figures for a person: its cache, and each appliance with the transport that reaches it. */
export function describeMount(mount: MountStatus): string[] {
  const cache = numbers(mount['cache']);
  const fuse = numbers(mount['fuse']);
  const of = (counters: Record<string, number>, name: string): number => counters[name] ?? 0;
  const lookups = of(cache, 'hits') + of(cache, 'misses');
  const lines = [
    `${String(mount['mountPoint'])}: process ${String(mount['pid'])}, ${of(fuse, 'threads')} threads, ${of(fuse, 'requests')} requests over ${String(fuse['session'])}`,
    `cache: ${formatSize(of(cache, 'usedBytes'))} of ${formatSize(of(cache, 'limitBytes'))} used, ${formatSize(of(cache, 'dirtyBytes'))} dirty; ` +
      `${percent(of(cache, 'hits'), lookups)} of ${lookups} page look-ups hit; ${of(cache, 'evictions')} evicted`,
    `read-ahead: ${formatSize(of(cache, 'readAhead') * PAGE_BYTES)}, ${percent(of(cache, 'readAheadUsed'), of(cache, 'readAhead'))} of it asked for since; ` +
      `${formatSize(of(cache, 'readAheadWasted') * PAGE_BYTES)} went unasked for`,
    ...describeLocalMemory(mount),
    `fuse: ${formatSize(of(fuse, 'readBytes'))} read, ${formatSize(of(fuse, 'writeBytes'))} written, ${of(fuse, 'errors')} errors`,
  ];
  for (const [id, appliance] of Object.entries(fabricOf(mount))) lines.push(...describeAppliance(id, appliance));
  return lines;
}

function describeAppliance(id: string, appliance: ApplianceStatistics): string[] {
  const breaker = appliance.state === 'down' ? 'down: refused at once, and probed' : appliance.state;
  const lines = [
    `appliance ${id}: ${appliance.transport}, ${breaker}; ${describeCounters(appliance)}` +
      (appliance.breakerOpenings > 0 ? `; ${appliance.refused} refused while it was down (${appliance.breakerOpenings} times)` : ''),
  ];
  const links = appliance.links.filter(({ address }) => address !== '');
  if (links.length > 1) {
    for (const link of links)
      lines.push(`  link ${link.transport} ${link.address}: ${link.connections > 0 ? 'up' : 'not connected'}; ${describeCounters(link)}`);
  }
  return lines;
}

function describeCounters(of: LinkCounters): string {
  const [half, most] = [percentileNs(of, 0.5), percentileNs(of, 0.99)];
  const times = half === undefined || most === undefined ? '' : `, half within ${formatTime(half)}, 99 % within ${formatTime(most)}`;
  return `${of.operations} operations${times}, ${formatSize(of.bytesRead)} read, ${formatSize(of.bytesWritten)} written, ${of.failures} failures, ${of.retries} retries`;
}

const formatTime = (ns: number): string => (ns < 1e6 ? `${Math.round(ns / 1e3)} us` : `${Math.round(ns / 1e6)} ms`);
