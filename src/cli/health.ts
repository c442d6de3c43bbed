/** `extmem health`: what the machines of the appliances say of themselves (A5). */
import type { ApplianceHealth, Sensor, StoreHealth } from '../base/messages.js';
import { formatSize } from '../base/size.js';
import type { HealthAnswer } from '../manager/index.js';
import { managerAccess } from './connection.js';
import { ExitCode } from './exit.js';
import type { Invocation } from './invocation.js';
import { ManagerApi } from './manager_api.js';
import { printJson, printLine } from './output.js';

export async function runHealth(call: Invocation): Promise<ExitCode> {
  const { appliances } = await new ManagerApi(managerAccess(call.settings)).get<HealthAnswer>('/v1/health');
  if (call.json) printJson({ appliances });
  else if (appliances.length === 0) printLine('No appliance has joined yet.');
  else for (const one of appliances) for (const line of describeHealth(one)) printLine(line);
  return appliances.some(({ worries }) => worries.length > 0) ? ExitCode.failed : ExitCode.ok;
}

export function describeHealth({ id, health, worries }: HealthAnswer['appliances'][number]): string[] {
  return [
    `appliance ${id}`,
    ...worries.map((worry) => `  LOOK AT THIS: ${worry}`),
    ...(health === undefined ? [] : describeSensors(health)),
  ];
}

function describeSensors(health: ApplianceHealth): string[] {
  const row = (what: string, found: readonly string[] | undefined): string => `  ${what.padEnd(14)} ${found?.join(', ') ?? 'absent'}`;
  const sensors = (unit: string, found: readonly Sensor[] | undefined): string[] | undefined =>
    found?.map(({ chip, label, value }) => `${chip} ${label} ${value} ${unit}`);
  const { pressure } = health;
  const waits = pressure && (['memory', 'cpu', 'io'] as const).map((what) => `${what} ${pressure[what].someOf10s} %`);
  return [
    row('temperatures', sensors('°C', health.temperatures)),
    row('voltages', sensors('V', health.voltages)),
    row('fans', sensors('/min', health.fans)),
    row(
      'memory errors',
      health.memoryErrors?.map((of) => `${of.controller} ${of.corrected} corrected, ${of.uncorrected} not`),
    ),
    row('power', health.power?.map(describePower)),
    row('disks', health.blockDevices?.map(describeDevice)),
    row('store', health.store && [describeStore(health.store)]),
    row('tasks waited', waits),
  ];
}

function describePower({ source, kind, online, percent, status }: NonNullable<ApplianceHealth['power']>[number]): string {
  const state = online === undefined ? (status ?? '') : online ? 'online' : 'offline';
  return [source, `(${kind})`, state, percent === undefined ? '' : `${percent} %`].filter((part) => part !== '').join(' ');
}

function describeDevice({ device, readOnly, state, errors }: NonNullable<ApplianceHealth['blockDevices']>[number]): string {
  return [device, state ?? '', readOnly ? 'read-only' : '', errors === undefined ? '' : `${errors} errors`]
    .filter((part) => part !== '')
    .join(' ');
}

function describeStore({ path, device, readOnly, errors, freeBytes, usedBytes, persistSeconds }: StoreHealth): string {
  const parts = [
    `${path} on ${device ?? 'no device that the kernel shows'}${readOnly === true ? ', read-only' : ''}`,
    ...(errors === undefined ? [] : [`${errors} errors`]),
    `${formatSize(usedBytes)} used`,
    ...(freeBytes === undefined ? [] : [`${formatSize(freeBytes)} free beside it`]),
    `persisting everything takes ${persistSeconds} s`,
  ];
  return parts.join('; ');
}
