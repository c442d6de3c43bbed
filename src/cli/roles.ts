/** The three roles as processes: manager, appliance, mount. Each turns settings into options, starts, and says how to go on. */
import { spawn } from 'node:child_process';
import { hostname } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import type { StoreSettings } from '../appliance/index.js';
import { codeOf } from '../base/errors.js';
import { runtimeFolder } from '../base/mount_socket.js';
import { createLogger } from '../base/logger.js';
import { formatSize } from '../base/size.js';
import type { Mount } from '../fs/mount.js';
import { defaultPort, formatEndpoints, managerAccess, parseList, parseListen, readSecret } from './connection.js';
import { runRole, type Running } from './daemon.js';
import { serveOnHttp, type Endpoint, type Listening } from './endpoint.js';
import { UsageError, type ExitCode } from './exit.js';
import type { Invocation } from './invocation.js';
import { leaveLimitedMemoryCgroup } from './memory_cgroup.js';
import { renderMetrics } from './metrics.js';
import { prepareMountPoint } from './mount_point.js';
import { protectFromOom } from './oom_score.js';
import { printWarning } from './output.js';
import { stateHome } from './running.js';
import type { Settings } from './settings.js';

/** How long open files may keep a detached mount alive that was told to end. */
const lazyEndMs = 2000;
const upsIntervalMs = 5000;

function logFileOf(name: string): string {
  return join(stateHome(), 'logs', `${name}.log`);
}

function loggerOf(call: Invocation, name: string): ReturnType<typeof createLogger> {
  return createLogger({ name, level: call.settings.required('logLevel') });
}

export function runManager(call: Invocation): Promise<ExitCode> {
  return runRole({ json: call.json, detach: call.has('detach'), logFile: logFileOf('manager') }, () => startManager(call));
}

async function startManager({ settings, ...call }: Invocation): Promise<Running> {
  const { createManager } = await import('../manager/index.js');
  const listen = parseListen(settings.required('managerListen'), defaultPort);
  const [cert, key] = [settings.optional('tlsCert'), settings.optional('tlsKey')];
  if ((cert === undefined) !== (key === undefined)) throw new UsageError('--tls-cert and --tls-key go together: give both, or none');
  const stateDir = settings.required('stateDir');
  const tokenFile = settings.optional('tokenFile');
  const token = settings.optional('token') ?? (tokenFile === undefined ? undefined : readSecret(tokenFile, 'the join token'));
  const rebuildRate = settings.optional('rebuildRate');
  const manager = await createManager({
    host: listen.address ?? '0.0.0.0',
    port: listen.port,
    stateDir,
    strategy: settings.required('strategy'),
    rebuild: { automatic: settings.required('rebuild') === 'auto', ...(rebuildRate === undefined ? {} : { rate: rebuildRate }) },
    checkDays: settings.required('checkDays'),
    ...(token === undefined ? {} : { token }),
    ...(cert === undefined || key === undefined
      ? {}
      : { tls: { cert: readSecret(cert, 'the certificate'), key: readSecret(key, 'the private key') } }),
    logger: loggerOf({ settings, ...call }, 'manager'),
  });
  const written = join(stateDir, 'token');
  return {
    facts: { url: manager.url, tokenFile: written },
    banner: howToJoin(manager.url, written),
    close: () => manager.close(),
  };
}

function howToJoin(url: string, tokenFile: string): string {
  const { host, hostname: name, protocol } = new URL(url);
  const address = protocol === 'https:' ? url : host.endsWith(`:${defaultPort}`) ? name : host;
  return [
    `The manager is ready on ${url}; its join token is in ${tokenFile} (keep it secret).`,
    'Copy that file to the other machines, and there:',
    `  extmem appliance --manager ${address} --token-file token --memory 8G`,
    `  extmem mount --manager ${address} --token-file token --mkdir /mnt/extmem`,
  ].join('\n');
}

export function runAppliance(call: Invocation): Promise<ExitCode> {
  const id = call.settings.optional('id') ?? hostname();
  return runRole({ json: call.json, detach: call.has('detach'), logFile: logFileOf(`appliance-${id}`) }, () => startAppliance(call, id));
}

async function startAppliance(call: Invocation, id: string): Promise<Running> {
  const { settings } = call;
  const access = managerAccess(settings);
  const listen = parseList(settings.optional('applianceListen') ?? '').map((point) => parseListen(point, 0));
  const advertised = settings.optional('advertise');
  const memoryBytes = settings.required('memory');
  const upsCommand = settings.optional('upsCommand');
  if (upsCommand !== undefined && settings.optional('store') === undefined)
    throw new UsageError('--ups-command is for an appliance with a --store');
  const closing = new AbortController();
  const { createAppliance } = await import('../appliance/index.js');
  protectFromOom();
  const appliance = await createAppliance({
    manager: access.url,
    token: access.token,
    ca: access.ca,
    id,
    rack: settings.optional('rack'),
    memoryBytes,
    listen,
    advertise: advertised === undefined ? undefined : parseList(advertised),
    threads: settings.optional('serverThreads'),
    store: storeOf(settings),
    force: call.has('force'),
    logger: loggerOf(call, 'appliance'),
  });
  const endpoint: Endpoint = {
    metrics: () => renderMetrics('extmem_appliance', appliance.status(), { appliance: id }),
    unhealthy: () => appliance.unhealthy(),
  };
  const http = await openHttp(settings.optional('http'), endpoint, () => appliance.close());
  return {
    ...(settings.optional('store') === undefined ? {} : { closesSlowly: true }),
    ...(upsCommand === undefined ? {} : { ended: powerGone(upsCommand, closing.signal) }),
    facts: { id, incarnation: appliance.incarnation, ...appliance.endpoints[0], endpoints: appliance.endpoints, memoryBytes },
    banner: `Appliance ${id} donates ${formatSize(memoryBytes)} to ${access.url}, served on ${formatEndpoints(appliance.endpoints)}. Ctrl-C leaves the cluster.`,
    close: async () => {
      closing.abort();
      http?.close();
      await appliance.close();
    },
  };
}

const keyDigits = /^[0-9a-f]{64}$/i;

function storeOf(settings: Settings): StoreSettings | undefined {
  const path = settings.optional('store');
  if (path === undefined) return undefined;
  const keyFile = settings.optional('storeKeyFile');
  const key = keyFile === undefined ? settings.optional('storeKey') : readSecret(keyFile, 'the key of the store');
  if (key !== undefined && !keyDigits.test(key)) throw new UsageError('the key of the store must be 64 hexadecimal digits (32 bytes)');
  return {
    path,
    limitBytes: settings.optional('storeLimit') ?? 0,
    compress: settings.required('storeCompression') === 'zstd',
    ...(key === undefined ? {} : { key: Buffer.from(key, 'hex') }),
    lazily: settings.required('restore') === 'lazily',
    ...(settings.required('persist') === 'continuously'
      ? { continuouslyMs: settings.required('persistInterval'), bytesPerSecond: settings.optional('persistRate') }
      : {}),
    batterySeconds: settings.optional('batterySeconds'),
  };
}

/** Resolves when the command says that mains power is gone. */
async function powerGone(command: string, closing: AbortSignal): Promise<void> {
  let told = 0;
  while (!closing.aborted) {
    const code = await new Promise<number>((resolve) => {
      const child = spawn('/bin/sh', ['-c', command], { stdio: 'ignore' });
      child.once('error', () => resolve(127));
      child.once('exit', (status) => resolve(status ?? 128));
    });
    if (code === 1) {
      printWarning('mains power is gone: everything is persisted now, and this appliance ends');
      return;
    }
    if (code > 1 && code !== told) printWarning(`--ups-command ended with ${code}: whether there is mains power is not known`);
    told = code;
    await sleep(upsIntervalMs, undefined, { signal: closing }).catch(() => undefined);
  }
}

/** A metrics address that cannot be had ends the role, which is then closed again. */
async function openHttp(address: string | undefined, endpoint: Endpoint, close: () => Promise<void>): Promise<Listening | undefined> {
  if (address === undefined) return undefined;
  try {
    return await serveOnHttp(address, endpoint);
  } catch (error) {
    await close();
    throw error;
  }
}

export function runMount(call: Invocation): Promise<ExitCode> {
  const path = call.args[0] ?? call.settings.optional('mountPoint');
  if (path === undefined) throw new UsageError('say where to mount, as in: extmem mount --manager 10.0.0.1 /mnt/extmem');
  const name = path.replace(/[^\w.-]+/g, '-').replace(/^-+/, '');
  return runRole({ json: call.json, detach: call.has('detach'), logFile: logFileOf(`mount-${name}`) }, () => startMount(call, path));
}

/** What the kernel must at least have for our files, or nothing of them could be read. */
const leastKernelBytes = 8 * 1024 ** 2;

/** The cache, and the limit that it shares with the kernel's pages. */
export function localMemory(settings: Settings): { cacheBytes: number; memoryLimitBytes: number | undefined } {
  const memoryLimitBytes = settings.optional('memoryLimit');
  const asked = settings.required('cache');
  if (memoryLimitBytes === undefined) return { cacheBytes: asked, memoryLimitBytes };
  const isDefault = settings.origin('cache').from === 'default';
  const cacheBytes = isDefault ? Math.min(asked, Math.floor(memoryLimitBytes / 8192) * 4096) : asked;
  if (memoryLimitBytes - cacheBytes < leastKernelBytes)
    throw new UsageError(
      `--memory-limit ${formatSize(memoryLimitBytes)} is for the cache (${formatSize(cacheBytes)}) and for the kernel's pages, which need ` +
        `${formatSize(leastKernelBytes)} at least: say more, or a smaller --cache`,
    );
  return { cacheBytes, memoryLimitBytes };
}

async function startMount(call: Invocation, path: string): Promise<Running> {
  const { settings } = call;
  const access = managerAccess(settings);
  const mountPoint = await prepareMountPoint(path, { create: call.has('mkdir'), warn: printWarning });
  const left = settings.required('memoryCgroup') === 'leave' ? leaveLimitedMemoryCgroup(printWarning) : undefined;
  const { cacheBytes, memoryLimitBytes } = localMemory(settings);
  const referenceLog = settings.optional('referenceLog');
  protectFromOom();
  const [{ mountFileSystem }, { metricsOf }] = await Promise.all([import('../fs/mount.js'), import('../fs/mount_control.js')]);
  const mount = await mountFileSystem({
    mountPoint,
    manager: access.url,
    token: access.token,
    ...(access.ca === undefined ? {} : { ca: access.ca }),
    name: access.name,
    keys: access.keys,
    cacheBytes,
    ...(memoryLimitBytes === undefined ? {} : { memoryLimitBytes }),
    dirtyBytes: settings.optional('dirty') ?? Math.floor(cacheBytes / 4),
    readAheadBytes: settings.required('readAhead'),
    ...(referenceLog === undefined ? {} : { referenceLog }),
    threads: settings.required('threads'),
    ioUring: settings.required('ioUring'),
    transport: settings.required('transport'),
    runtimeDir: runtimeFolder(),
    log: loggerOf(call, 'mount'),
  });
  const endpoint: Endpoint = { metrics: () => metricsOf(mount.statistics(), mountPoint), unhealthy: () => mount.unhealthy() };
  const http = await openHttp(settings.optional('http'), endpoint, () => mount.unmount());
  return {
    facts: {
      mountPoint,
      manager: access.url,
      cacheBytes,
      memoryLimitBytes,
      ...(left === undefined ? {} : { leftMemoryCgroup: left.path }),
    },
    banner: `${mountPoint} is mounted (manager ${access.url}, cache ${formatSize(cacheBytes)}). Ctrl-C or 'extmem umount ${mountPoint}' unmounts.`,
    ended: mount.ended,
    close: async () => {
      http?.close();
      await takeDown(mount);
    },
  };
}

/** Asked to end, a mount ends: where files are still open, they are written back, then lost to those who hold them. */
async function takeDown(mount: Mount): Promise<void> {
  try {
    await mount.unmount();
  } catch (error) {
    if (codeOf(error) !== 'EBUSY') throw error;
    printWarning(`${error instanceof Error ? error.message : ''}; what was written is safe, the mount is detached all the same`);
    await mount.unmount({ lazy: true });
    await Promise.race([mount.ended, sleep(lazyEndMs, undefined, { ref: false })]);
  }
}
