/** `extmem regions`: the regions of the pool, or one of them (A8, A9); what is done with them (A13). */
import { formatSize } from '../base/size.js';
import type { OneRegionAnswer, RegionAnswer, RegionsAnswer } from '../manager/index.js';
import { apiOf } from './allocations.js';
import { ExitCode, UsageError } from './exit.js';
import type { Invocation } from './invocation.js';
import { printJson, printLine, printWarning, renderFacts, renderTable } from './output.js';

export async function runRegions(call: Invocation): Promise<ExitCode> {
  const [id] = call.args;
  const api = apiOf(call);
  if (id !== undefined) {
    if (!/^[1-9]\d{0,15}$/.test(id)) throw new UsageError(`'${id}' is no number of a region`);
    const found = await api.get<OneRegionAnswer>(`/v1/regions/${id}`);
    if (call.json) printJson(found);
    else printLine(renderOne(found));
    return ExitCode.ok;
  }
  const appliance = call.text('appliance');
  const answer = await api.get<RegionsAnswer>('/v1/regions', appliance === undefined ? {} : { appliance });
  if (call.json) printJson(answer);
  else if (call.has('stats')) renderUsage(answer);
  else renderAll(answer);
  return ExitCode.ok;
}

function warnOf(silent: RegionsAnswer['silent']): void {
  for (const { appliance, why } of silent) printWarning(`${appliance} does not answer: ${why}`);
}

function renderUsage({ regions, silent }: RegionsAnswer): void {
  warnOf(silent);
  const seen = regions.flatMap((one) => (one.usage === undefined ? [] : [{ ...one, usage: one.usage }]));
  const rows = seen.map(({ region, appliance, usage }) => [
    `${region}${usage.given ? '*' : ''}`,
    appliance,
    String(usage.operations),
    formatSize(usage.bytesRead),
    formatSize(usage.bytesWritten),
    String(usage.toldChunks),
    describeAccess(usage.lastAccessMs),
    usage.hot
      .slice(0, 3)
      .map(({ offset, heat }) => `${formatSize(offset)} (${heat.toFixed(1)})`)
      .join(', ') || '-',
  ]);
  const head = ['REGION', 'APPLIANCE', 'OPERATIONS', 'READ', 'WRITTEN', 'TOLD', 'LAST ACCESS', 'HOTTEST AT (HEAT)'];
  printLine(rows.length === 0 ? 'There are no regions.' : renderTable(head, rows));
  if (seen.some(({ usage }) => usage.given))
    printLine('\n* clients have the memory itself, over shm or RDMA: of what they do there, only chunks written (TOLD) are known.');
}

const describeAccess = (ms: number): string => (ms === 0 ? 'never' : new Date(ms).toISOString());

function renderAll({ regions, silent }: RegionsAnswer): void {
  warnOf(silent);
  const rows = regions.map((one) => [
    String(one.region),
    one.appliance,
    formatSize(one.bytes),
    formatSize(one.usedBytes),
    one.residentBytes === undefined ? '?' : formatSize(one.residentBytes),
    describeState(one),
    describeOwner(one),
  ]);
  printLine(
    rows.length === 0 ? 'There are no regions.' : renderTable(['REGION', 'APPLIANCE', 'SIZE', 'USED', 'IN MEMORY', 'STATE', 'OF'], rows),
  );
}

function renderOne(found: OneRegionAnswer): string {
  const facts: [string, string][] = [
    ['region', String(found.region)],
    ['appliance', found.appliance],
    ['size', formatSize(found.bytes)],
    ['used', formatSize(found.usedBytes)],
    ['in memory', found.residentBytes === undefined ? 'not known' : formatSize(found.residentBytes)],
    ['state', describeState(found)],
    ['of', describeOwner(found)],
    ...describeUsage(found.usage),
    ...found.files.map(({ ino, bytes }): [string, string] => ['file', `inode ${ino}: ${formatSize(bytes)}`]),
  ];
  if (found.otherBytes > 0) facts.push(['others', formatSize(found.otherBytes)]);
  return renderFacts(facts);
}

function describeUsage(usage: RegionAnswer['usage']): [string, string][] {
  if (usage === undefined) return [];
  const { operations, bytesRead, bytesWritten, toldChunks, lastAccessMs, given, hot } = usage;
  return [
    ['operations', `${operations}${given ? ' (and what clients do that have the memory itself)' : ''}`],
    ['read, written', `${formatSize(bytesRead)}, ${formatSize(bytesWritten)}`],
    ...(toldChunks > 0 ? [['told', `${toldChunks} times that clients have written a chunk themselves`] as [string, string]] : []),
    ['last access', describeAccess(lastAccessMs)],
    ...hot.map(({ offset, heat }): [string, string] => ['hot', `2 MiB at ${formatSize(offset)}: ${heat.toFixed(1)}`]),
  ];
}

function describeState({ state, activity, absentBytes = 0, damagedPages = 0 }: RegionAnswer): string {
  const words = { memory: 'in memory', part: 'in memory in part', store: 'in the store', lost: 'LOST', unknown: 'not known' };
  return [
    words[state],
    ...(activity === undefined || activity === 'none' ? [] : [activity]),
    ...(absentBytes > 0 ? [`${formatSize(absentBytes)} in the store only`] : []),
    ...(damagedPages > 0 ? [`${damagedPages} pages DAMAGED`] : []),
  ].join(', ');
}

function describeOwner({ ino, label, client, clientName }: RegionAnswer): string {
  if (ino !== undefined) return `inode ${ino}${label === undefined ? '' : ` (${label})`}`;
  if (client !== undefined) return `client ${client} (${clientName ?? ''})`;
  return 'nobody';
}
