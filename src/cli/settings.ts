/**
 * Every setting of the CLI, once: its flag, its environment variable, its key in configuration files, its default. What holds
 * is found layer by layer, and later layers win: default, the `extmem up` that runs here, /etc/extmem.json,
 * ~/.config/extmem.json, the file named by --config, environment, flags. Each value remembers the layer it came from.
 */
import { existsSync, readFileSync } from 'node:fs';
import { homedir } from 'node:os';
import { join } from 'node:path';
import type { Command } from 'commander';
import { messageOf } from '../base/errors.js';
import { parseLayout } from '../base/layout.js';
import { parseSize } from '../base/size.js';
import { UsageError } from './exit.js';
import { defaultUpFolder, noteOf, readRunning, stateHome } from './running.js';

interface Setting<Value> {
  flag: string;
  env: string;
  help: string;
  fallback: string | undefined; // as a user would write it
  parse(text: string): Value;
}

function setting<Value>(flag: string, env: string, parse: (text: string) => Value, help: string, fallback?: string): Setting<Value> {
  return { flag, env, help, fallback, parse };
}

const text = (value: string): string => value;

function count(value: string): number {
  if (!/^\d{1,9}$/.test(value)) throw new TypeError(`'${value}' is not a whole number`);
  return Number(value);
}

function oneOf<Name extends string>(...names: readonly Name[]): (value: string) => Name {
  return (value) => {
    const found = names.find((name) => name === value);
    if (found === undefined) throw new TypeError(`'${value}' is not one of ${names.join(', ')}`);
    return found;
  };
}

/** As it was written: the manager takes it so. */
function layoutWord(value: string): string {
  parseLayout(value);
  return value;
}

const logLevel = oneOf('trace', 'debug', 'info', 'warn', 'error', 'silent');

export const settings = {
  manager: setting(
    '--manager <address>',
    'EXTMEM_MANAGER',
    text,
    'manager to talk to: host, host:port or https://host:port',
    '127.0.0.1:7070',
  ),
  token: setting('--token <token>', 'EXTMEM_TOKEN', text, "the cluster's join token (seen by other users in ps: prefer --token-file)"),
  tokenFile: setting('--token-file <path>', 'EXTMEM_TOKEN_FILE', text, 'file with the join token'),
  tlsCa: setting('--tls-ca <path>', 'EXTMEM_TLS_CA', text, "certificate that the manager's is checked against (with https://)"),
  keyFile: setting('--key-file <path>', 'EXTMEM_KEY_FILE', text, 'file with keys of allocations that ask for one, one a line'),
  key: setting('--key <key>', 'EXTMEM_KEY', text, 'such a key itself (seen by other users in ps: prefer the file, or the environment)'),
  managerListen: setting('--listen <address>', 'EXTMEM_MANAGER_LISTEN', text, 'address or address:port to listen on', '127.0.0.1:7070'),
  stateDir: setting(
    '--state-dir <path>',
    'EXTMEM_STATE_DIR',
    text,
    "folder of the manager's records and token",
    join(stateHome(), 'manager'),
  ),
  tlsCert: setting('--tls-cert <path>', 'EXTMEM_TLS_CERT', text, 'certificate to serve TLS with'),
  tlsKey: setting('--tls-key <path>', 'EXTMEM_TLS_KEY', text, 'its private key'),
  strategy: setting(
    '--strategy <name>',
    'EXTMEM_STRATEGY',
    oneOf('spread', 'best-fit'),
    'how regions are placed: spread or best-fit',
    'spread',
  ),
  rebuild: setting('--rebuild <when>', 'EXTMEM_REBUILD', oneOf('auto', 'off'), 'make lost copies anew by itself: auto or off', 'auto'),
  rebuildRate: setting(
    '--rebuild-rate <size>',
    'EXTMEM_REBUILD_RATE',
    parseSize,
    'bytes a second of that at most; 0: as fast as it goes (default: 64M)',
  ),
  checkDays: setting(
    '--check-days <count>',
    'EXTMEM_CHECK_DAYS',
    count,
    'compare all copies by itself once in so many days; 0: never',
    '7',
  ),
  memory: setting('--memory <size>', 'EXTMEM_MEMORY', parseSize, 'memory to donate, as in 8G'),
  applianceListen: setting(
    '--listen <address>',
    'EXTMEM_APPLIANCE_LISTEN',
    text,
    'address or address:port to serve memory on; several with commas, of as many networks (default: the address that reaches the manager)',
  ),
  advertise: setting(
    '--advertise <address>',
    'EXTMEM_ADVERTISE',
    text,
    'address that clients are told to connect to, several with commas (default: the one that reaches the manager)',
  ),
  id: setting('--id <name>', 'EXTMEM_APPLIANCE_ID', text, 'name of the appliance in the cluster (default: the host name)'),
  serverThreads: setting(
    '--server-threads <count>',
    'EXTMEM_SERVER_THREADS',
    count,
    'threads that serve memory over tcp (default: half of the CPUs, at most 4)',
  ),
  store: setting(
    '--store <path>',
    'EXTMEM_STORE',
    text,
    'file, folder or block device to keep the memory in beyond the life of this process',
  ),
  storeLimit: setting('--store-limit <size>', 'EXTMEM_STORE_LIMIT', parseSize, 'the store does not grow beyond this'),
  storeCompression: setting('--store-compression <what>', 'EXTMEM_STORE_COMPRESSION', oneOf('none', 'zstd'), 'none or zstd', 'none'),
  storeKeyFile: setting(
    '--store-key-file <path>',
    'EXTMEM_STORE_KEY_FILE',
    text,
    'file with the key that the store is encrypted with: 64 hexadecimal digits',
  ),
  storeKey: setting(
    '--store-key <key>',
    'EXTMEM_STORE_KEY',
    text,
    'the same itself (seen by other users in ps: prefer the file, or the environment)',
  ),
  restore: setting(
    '--restore <when>',
    'EXTMEM_RESTORE',
    oneOf('at-once', 'lazily'),
    'what the store has: at-once, or lazily, when it is asked for',
    'at-once',
  ),
  persist: setting(
    '--persist <when>',
    'EXTMEM_PERSIST',
    oneOf('at-end', 'continuously'),
    'at-end (and where an allocation or a person asks), or continuously: changed pages, in the background',
    'at-end',
  ),
  persistInterval: setting(
    '--persist-interval <ms>',
    'EXTMEM_PERSIST_INTERVAL',
    count,
    'continuously: rest between two rounds, in ms',
    '1000',
  ),
  persistRate: setting('--persist-rate <size>', 'EXTMEM_PERSIST_RATE', parseSize, 'continuously: no more than so much a second, as in 20M'),
  batterySeconds: setting(
    '--battery-seconds <count>',
    'EXTMEM_BATTERY_SECONDS',
    count,
    'warn when persisting everything would take longer',
  ),
  upsCommand: setting(
    '--ups-command <command>',
    'EXTMEM_UPS_COMMAND',
    text,
    'asked every 5 s; exit 1 says that mains power is gone: everything is persisted, and the appliance ends',
  ),
  transport: setting(
    '--transport <name>',
    'EXTMEM_TRANSPORT',
    oneOf('auto', 'shm', 'tcp', 'verbs'),
    'auto, shm (same host only), tcp or verbs (RDMA)',
    'auto',
  ),
  cache: setting(
    '--cache <size>',
    'EXTMEM_CACHE',
    parseSize,
    'local memory used as page cache (with --memory-limit: at most half of that)',
    '1G',
  ),
  memoryLimit: setting(
    '--memory-limit <size>',
    'EXTMEM_MEMORY_LIMIT',
    parseSize,
    "local memory for files: the cache and the kernel's pages of them together (default: the kernel's are its own affair)",
  ),
  dirty: setting('--dirty <size>', 'EXTMEM_DIRTY', parseSize, 'of the cache, how much may wait to be written back (default: a quarter)'),
  readAhead: setting('--read-ahead <size>', 'EXTMEM_READ_AHEAD', parseSize, 'largest read-ahead of one stream; 0 for none', '8M'),
  referenceLog: setting(
    '--reference-log <file>',
    'EXTMEM_REFERENCE_LOG',
    text,
    'note what is asked of the page cache in this file, 24 bytes a request, for studies of eviction',
  ),
  threads: setting('--threads <count>', 'EXTMEM_THREADS', count, 'threads that serve the mount; 0: one per CPU, at most 8', '0'),
  ioUring: setting(
    '--io-uring <mode>',
    'EXTMEM_IO_URING',
    oneOf('auto', 'on', 'off'),
    'FUSE over io_uring: auto (where the kernel has it switched on), on or off',
    'auto',
  ),
  memoryCgroup: setting(
    '--memory-cgroup <what>',
    'EXTMEM_MEMORY_CGROUP',
    oneOf('leave', 'stay'),
    'a limited memory cgroup (of version 1): leave it, so that applications in it cannot stall the mount, or stay',
    'leave',
  ),
  layout: setting(
    '--layout <name>',
    'EXTMEM_LAYOUT',
    layoutWord,
    "layout: stripe, concat, mirror or raid10; with so many copies as in mirror:3 (default: the folder's, at first stripe)",
  ),
  across: setting(
    '--across <what>',
    'EXTMEM_ACROSS',
    oneOf('appliance', 'host', 'rack'),
    "copies never share one of these (default: the folder's, at first whatever lies farthest apart)",
  ),
  rack: setting('--rack <name>', 'EXTMEM_RACK', text, 'what fails together with this appliance: copies can be kept in different racks'),
  mountPoint: setting('--mount-point <path>', 'EXTMEM_MOUNT_POINT', text, 'where to mount'),
  name: setting('--name <name>', 'EXTMEM_CLIENT_NAME', text, 'name of this client in the cluster (default: the host name)'),
  http: setting('--http <address>', 'EXTMEM_HTTP', text, 'serve /metrics and /healthz on this port or address:port'),
  logLevel: setting('--log-level <level>', 'EXTMEM_LOG_LEVEL', logLevel, 'trace, debug, info, warn, error or silent', 'info'),
  appliances: setting('--appliances <count>', 'EXTMEM_APPLIANCES', count, 'appliances to run', '2'),
  dir: setting('--dir <path>', 'EXTMEM_DIR', text, 'folder for everything that `extmem up` keeps', defaultUpFolder()),
} as const;

export type SettingName = keyof typeof settings;

/** How a mount serves: `extmem up` passes them to its mount as they are. */
export const servingSettings = [
  'cache',
  'memoryLimit',
  'dirty',
  'readAhead',
  'referenceLog',
  'threads',
  'ioUring',
  'memoryCgroup',
  'transport',
] as const satisfies readonly SettingName[];

type ValueOf<Name extends SettingName> = ReturnType<(typeof settings)[Name]['parse']>;

export interface Origin {
  text: string | undefined;
  from: string;
}

export class Settings {
  constructor(private readonly origins: ReadonlyMap<SettingName, Origin>) {}

  /** The value that holds, or undefined when nobody gave one and there is no default. */
  optional<Name extends SettingName>(name: Name): ValueOf<Name> | undefined {
    const origin = this.origin(name);
    if (origin.text === undefined) return undefined;
    try {
      return settings[name].parse(origin.text) as ValueOf<Name>;
    } catch (error) {
      throw new UsageError(`${name} (from ${origin.from}): ${messageOf(error)}`);
    }
  }

  /** The value that holds; a usage error when there is none. */
  required<Name extends SettingName>(name: Name): ValueOf<Name> {
    const value = this.optional(name);
    if (value === undefined) {
      throw new UsageError(`${settings[name].flag} is needed (or ${settings[name].env}, or "${name}" in a configuration file)`);
    }
    return value;
  }

  origin(name: SettingName): Origin {
    return this.origins.get(name) ?? { text: settings[name].fallback, from: 'default' };
  }
}

/** Adds the flags of these settings to a command. */
export function addSettings(command: Command, names: readonly SettingName[]): Command {
  for (const name of names) {
    const { flag, help, fallback, env } = settings[name];
    command.option(flag, `${help}${fallback === undefined ? '' : ` (default: ${fallback})`} [${env}]`);
  }
  return command;
}

export interface Sources {
  environment: NodeJS.ProcessEnv;
  files: readonly string[]; // those that need not exist, in order
  config: string | undefined; // must exist
  running: Partial<Record<SettingName, string>>; // of the `extmem up` that runs here
  runningFrom: string;
}

/** The layers below the flags. */
export function defaultSources(config: string | undefined, environment: NodeJS.ProcessEnv = process.env): Sources {
  const home = environment['XDG_CONFIG_HOME'] || join(environment['HOME'] || homedir(), '.config');
  const dir = environment['EXTMEM_DIR'] || defaultUpFolder(environment);
  const up = readRunning(dir);
  return {
    environment,
    files: ['/etc/extmem.json', join(home, 'extmem.json')],
    config: config ?? (environment['EXTMEM_CONFIG'] || undefined),
    running: up === undefined || up.manager === '' ? {} : { manager: up.manager, tokenFile: up.tokenFile },
    runningFrom: `extmem up (${noteOf(dir)})`,
  };
}

/** `flags` are commander's options by attribute name; those that are no settings are passed over. */
export function resolveSettings(names: readonly SettingName[], flags: Record<string, unknown>, sources: Sources): Settings {
  const origins = new Map<SettingName, Origin>();
  const put = (values: Partial<Record<SettingName, string>>, from: (name: SettingName) => string): void => {
    for (const [name, value] of Object.entries(values) as [SettingName, string][]) origins.set(name, { text: value, from: from(name) });
  };
  put(sources.running, () => sources.runningFrom);
  for (const file of sources.files) if (existsSync(file)) put(readConfig(file), () => file);
  if (sources.config !== undefined) put(readConfig(sources.config), () => sources.config ?? '');
  for (const [name, { env }] of Object.entries(settings) as [SettingName, Setting<unknown>][]) {
    const value = sources.environment[env];
    if (value !== undefined && value !== '') origins.set(name, { text: value, from: env });
  }
  for (const name of names) {
    const { flag } = settings[name];
    const value = flags[attributeOf(flag)];
    if (typeof value === 'string') origins.set(name, { text: value, from: flag.split(' ', 1)[0] ?? flag });
  }
  preferNearerToken(origins, sources);
  return new Settings(origins);
}

/** `--token-file <path>` is commander's `tokenFile`. */
function attributeOf(flag: string): string {
  const long = flag.split(' ', 1)[0] ?? '';
  return long.slice(2).replace(/-([a-z])/g, (_, letter: string) => letter.toUpperCase());
}

/** A token and a token file say the same thing: the one from the later layer counts, so that a flag beats a variable. */
function preferNearerToken(origins: Map<SettingName, Origin>, sources: Sources): void {
  const order = [sources.runningFrom, ...sources.files, sources.config ?? ''];
  const rank = (origin: Origin): number => {
    if (origin.from.startsWith('--')) return 1000;
    if (origin.from.startsWith('EXTMEM_')) return 999;
    return order.lastIndexOf(origin.from);
  };
  const token = origins.get('token');
  const file = origins.get('tokenFile');
  if (token === undefined || file === undefined) return;
  origins.delete(rank(file) > rank(token) ? 'token' : 'tokenFile');
}

function readConfig(path: string): Partial<Record<SettingName, string>> {
  let content: unknown;
  try {
    content = JSON.parse(readFileSync(path, 'utf8'));
  } catch (error) {
    throw new UsageError(`configuration file ${path} cannot be used: ${messageOf(error)}`);
  }
  if (typeof content !== 'object' || content === null || Array.isArray(content))
    throw new UsageError(`configuration file ${path} must hold a JSON object`);
  const values: Partial<Record<SettingName, string>> = {};
  for (const [key, value] of Object.entries(content)) {
    if (!(key in settings))
      throw new UsageError(`configuration file ${path}: there is no setting '${key}'; there are ${Object.keys(settings).join(', ')}`);
    if (typeof value !== 'string' && typeof value !== 'number')
      throw new UsageError(`configuration file ${path}: '${key}' must be a string or a number`);
    values[key as SettingName] = String(value);
  }
  return values;
}
