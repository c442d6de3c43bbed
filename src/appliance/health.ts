/**
 * What the machine of an appliance says of its health (A5): temperatures, voltages and fans (hwmon), memory errors (EDAC), power
 * sources, block devices, and how long work waited for memory, processor and disk (PSI). What a machine has no sensor for is absent,
 * which is said: it is not well, it is not known. Units are those of a person: degrees Celsius, volts, turns per minute.
 *
 * Sources: the kernel's Documentation/hwmon/sysfs-interface, ABI/testing/sysfs-devices-edac, ABI/testing/sysfs-class-power,
 * accounting/psi. Paths are below `root`, so that tests read machines of their own.
 */
import { basename, join } from 'node:path';
import type { ApplianceHealth, Sensor, StoreHealth } from '../base/messages.js';
import { list, read } from './memory.js';

type Part<Name extends keyof ApplianceHealth> = NonNullable<ApplianceHealth[Name]>;

export function readHealth(root = '/'): ApplianceHealth {
  const chips = list(join(root, 'sys/class/hwmon')).map((name) => join(root, 'sys/class/hwmon', name));
  const sensors = (kind: string, divisor: number): Sensor[] | undefined => some(chips.flatMap((chip) => sensorsOf(chip, kind, divisor)));
  return present({
    temperatures: sensors('temp', 1000),
    voltages: sensors('in', 1000),
    fans: sensors('fan', 1),
    memoryErrors: some(memoryControllers(join(root, 'sys/devices/system/edac/mc'))),
    power: some(powerSources(join(root, 'sys/class/power_supply'))),
    blockDevices: some(blockDevices(join(root, 'sys/block'))),
    pressure: pressures(join(root, 'proc/pressure')),
  });
}

/** What somebody should look at, one line each. */
export function worries(health: ApplianceHealth): string[] {
  const { temperatures = [], memoryErrors = [], power = [], blockDevices = [], pressure, store } = health;
  const mains = power.filter(({ kind }) => kind === 'Mains');
  const waits = pressure?.memory.allOf10s ?? 0;
  return [
    ...temperatures.flatMap(({ chip, label, value, critical = Infinity }) =>
      when(value >= critical, `${chip} ${label} has ${value} °C, critical from ${critical} °C on`),
    ),
    ...memoryErrors.flatMap(({ controller, uncorrected }) =>
      when(uncorrected > 0, `memory controller ${controller}: ${uncorrected} errors could not be corrected`),
    ),
    ...when(mains.length > 0 && mains.every(({ online }) => online === false), 'no power source is online: the machine runs on battery'),
    ...blockDevices.flatMap(({ device, state = 'running' }) => when(!['running', 'live'].includes(state), `disk ${device} is ${state}`)),
    ...when(waits >= 10, `everything waited for memory in ${waits} % of the last ten seconds`),
    ...(store === undefined ? [] : storeWorries(store)),
  ];
}

const when = (isSo: boolean, text: string): string[] => (isSo ? [text] : []);

function storeWorries({ path, readOnly, failure, broken, persistSeconds, batterySeconds = Infinity }: StoreHealth): string[] {
  const goesOn = 'what is in memory is served all the same';
  return [
    ...when(broken !== '', `nothing is persisted in ${path} any more (${broken}); ${goesOn}: start this appliance again when it is mended`),
    ...when(broken === '' && failure !== '', `persisting in ${path} failed (${failure}); ${goesOn}`),
    ...when(readOnly === true, `the device of ${path} is read-only`),
    ...when(
      persistSeconds > batterySeconds,
      `persisting everything takes ${persistSeconds} s, the battery lasts ${batterySeconds} s: at a power failure part of it would be lost`,
    ),
  ];
}

type Present<Shape> = { [Name in keyof Shape as undefined extends Shape[Name] ? never : Name]: Shape[Name] } & {
  [Name in keyof Shape as undefined extends Shape[Name] ? Name : never]?: Exclude<Shape[Name], undefined>;
};

/** Without the fields that have no value. */
const present = <Shape extends object>(shape: Shape): Present<Shape> =>
  Object.fromEntries(Object.entries(shape).filter(([, value]) => value !== undefined)) as Present<Shape>;

const some = <One>(found: One[]): One[] | undefined => (found.length === 0 ? undefined : found);

function numberIn(path: string): number | undefined {
  const text = read(path);
  return text === undefined || text === '' || Number.isNaN(Number(text)) ? undefined : Number(text);
}

function sensorsOf(chip: string, kind: string, divisor: number): Sensor[] {
  const name = read(join(chip, 'name')) ?? basename(chip);
  return list(chip).flatMap((file) => {
    const id = new RegExp(`^(${kind}\\d+)_input$`).exec(file)?.[1];
    // A sensor that is not connected answers with an error.
    const value = id === undefined ? undefined : numberIn(join(chip, file));
    if (id === undefined || value === undefined) return [];
    const critical = numberIn(join(chip, `${id}_crit`));
    return [
      present({
        chip: name,
        label: read(join(chip, `${id}_label`)) ?? id,
        value: value / divisor,
        critical: critical === undefined ? undefined : critical / divisor,
      }),
    ];
  });
}

function memoryControllers(folder: string): Part<'memoryErrors'> {
  return list(folder).flatMap((controller) => {
    const [corrected, uncorrected] = [numberIn(join(folder, controller, 'ce_count')), numberIn(join(folder, controller, 'ue_count'))];
    return corrected === undefined || uncorrected === undefined ? [] : [{ controller, corrected, uncorrected }];
  });
}

function powerSources(folder: string): Part<'power'> {
  return list(folder).map((source) => {
    const online = numberIn(join(folder, source, 'online'));
    return present({
      source,
      kind: read(join(folder, source, 'type')) ?? 'unknown',
      online: online === undefined ? undefined : online !== 0,
      percent: numberIn(join(folder, source, 'capacity')),
      status: read(join(folder, source, 'status')),
    });
  });
}

/** Those with a device behind them: no loops, no RAM disks. */
function blockDevices(folder: string): Part<'blockDevices'> {
  return list(folder).flatMap((device) => {
    const behind = join(folder, device, 'device');
    if (list(behind).length === 0) return [];
    const errors = read(join(behind, 'ioerr_cnt'));
    return [
      present({
        device,
        readOnly: read(join(folder, device, 'ro')) === '1',
        state: read(join(behind, 'state')),
        errors: errors === undefined ? undefined : Number(errors), // hexadecimal, with 0x
      }),
    ];
  });
}

function pressures(folder: string): Part<'pressure'> | undefined {
  const of = (what: string): Part<'pressure'>['memory'] | undefined => {
    const text = read(join(folder, what));
    if (text === undefined) return undefined;
    const share = (kind: string): number => Number(new RegExp(`^${kind} avg10=([\\d.]+)`, 'm').exec(text)?.[1] ?? 0);
    return { someOf10s: share('some'), allOf10s: share('full') };
  };
  const [memory, cpu, io] = [of('memory'), of('cpu'), of('io')];
  return memory === undefined || cpu === undefined || io === undefined ? undefined : { memory, cpu, io };
}
