/**
 * A running mount's control socket: HTTP over a unix socket that only its owner may open. GET /status (statistics), GET /metrics
 * (the same for Prometheus), POST /evict (drop clean caches, for measurements), POST /unmount; of one file, by its inode:
 * GET /files/INO?waitMs= (how much of it is here), POST /files/INO/evict, /files/INO/warm?offset=&length=,
 * /files/INO/pin?path= (the path is for people only), /files/INO/unpin. GET /operations?intervalMs=&ino= streams what is read and
 * written, a line of JSON per interval (base/operations.ts).
 *
 * The socket's name is derived from the mount point, so that the CLI finds it without touching the mount.
 */
import fastify, { type FastifyInstance } from 'fastify';
import { chmod, mkdir, rm } from 'node:fs/promises';
import { request } from 'node:http';
import { join } from 'node:path';
import { ExtmemError } from '../base/errors.js';
import { mountControlPath } from '../base/mount_socket.js';
import { fabricMetrics, fabricOf, quoted } from './fabric_statistics.js';
import type { Residency } from './residency.js';
import type { Watching } from './watching.js';

const ASK_TIMEOUT_MS = 10_000;
/** A watcher that does not read is told no more until it has. */
const MAX_UNREAD_BYTES = 1 << 20;

export interface ControlledMount {
  readonly mountPoint: string;
  statistics(): Record<string, unknown>;
  evict(): Promise<void>;
  readonly files: Residency;
  readonly watching: Watching;
  unmount(): Promise<void>;
}

export interface MountControl {
  readonly path: string;
  close(): Promise<void>;
}

export async function serveMountControl(mount: ControlledMount, runtimeDir: string): Promise<MountControl> {
  const path = mountControlPath(runtimeDir, mount.mountPoint);
  await mkdir(join(runtimeDir, 'mounts'), { recursive: true, mode: 0o700 });
  await rm(path, { force: true });
  const server = fastify({ logger: false, forceCloseConnections: 'idle' });
  server.get('/status', () => mount.statistics());
  server.get('/metrics', (_request, reply) =>
    reply.type('text/plain; version=0.0.4').send(metricsOf(mount.statistics(), mount.mountPoint)),
  );
  server.post('/evict', async () => {
    await mount.evict();
    return { evicted: true };
  });
  serveFiles(server, mount.files);
  serveOperations(server, mount.watching);
  server.post('/unmount', async () => {
    await mount.unmount();
    return { unmounted: true };
  });
  server.setErrorHandler((error: Error & { code?: string }, _request, reply) =>
    reply.status(500).send({ code: error.code ?? 'EIO', error: error.message }),
  );
  await server.listen({ path });
  await chmod(path, 0o600);
  return {
    path,
    close: async () => {
      mount.watching.close();
      // Not awaited: /unmount is answered on a connection of this server, after this.
      void server.close();
      await rm(path, { force: true });
    },
  };
}

function serveFiles(server: FastifyInstance, files: Residency): void {
  type Asked = { Params: { ino: string }; Querystring: { waitMs?: string; offset?: string; length?: string; path?: string } };
  server.get<Asked>('/files/:ino', ({ params, query }) => files.tell(wholeNumber(params.ino), wholeNumber(query.waitMs ?? '0')));
  server.post<Asked>('/files/:ino/evict', ({ params }) => files.evict(wholeNumber(params.ino)));
  server.post<Asked>('/files/:ino/pin', ({ params, query }) => files.pin(wholeNumber(params.ino), query.path ?? ''));
  server.post<Asked>('/files/:ino/unpin', ({ params }) => ({ unpinned: files.unpin(wholeNumber(params.ino)) }));
  server.post<Asked>('/files/:ino/warm', ({ params, query: { offset, length } }) =>
    files.warm(wholeNumber(params.ino), {
      offset: wholeNumber(offset ?? '0'),
      ...(length === undefined ? {} : { length: wholeNumber(length) }),
    }),
  );
}

function serveOperations(server: FastifyInstance, watching: Watching): void {
  type Asked = { Querystring: { intervalMs?: string; ino?: string } };
  server.get<Asked>('/operations', ({ query: { intervalMs, ino } }, reply) => {
    const { raw } = reply;
    const stop = watching.add({
      ...(ino === undefined ? {} : { ino: wholeNumber(ino) }),
      intervalMs: wholeNumber(intervalMs ?? '1000'),
      tell: (report) => {
        if (raw.writableLength > MAX_UNREAD_BYTES) return false;
        raw.write(`${JSON.stringify(report)}\n`);
        return true;
      },
      end: () => raw.end(),
    });
    reply.hijack();
    raw.on('close', stop);
    raw.writeHead(200, { 'content-type': 'application/x-ndjson' }).flushHeaders();
  });
}

function wholeNumber(text: string): number {
  const value = Number(text);
  if (!/^\d+$/.test(text) || !Number.isSafeInteger(value)) throw new ExtmemError('EINVAL', `'${text}' is not a whole number`);
  return value;
}

/** Asks a running mount. ENOTCONN: none runs there. */
export function askMount(runtimeDir: string, mountPoint: string, method: 'GET' | 'POST', path: string): Promise<string> {
  const socketPath = mountControlPath(runtimeDir, mountPoint);
  return new Promise((resolve, reject) => {
    const asking = request({ socketPath, method, path, timeout: ASK_TIMEOUT_MS }, (answer) => {
      const pieces: Buffer[] = [];
      answer.on('data', (piece: Buffer) => pieces.push(piece));
      answer.on('error', reject);
      answer.on('end', () => {
        const body = Buffer.concat(pieces).toString('utf8');
        if (answer.statusCode === 200) resolve(body);
        else reject(new ExtmemError('EIO', `the mount at ${mountPoint} answered ${path} with ${answer.statusCode ?? 0}: ${body}`));
      });
    });
    asking.on('timeout', () =>
      asking.destroy(new ExtmemError('ETIMEDOUT', `the mount at ${mountPoint} did not answer within ${ASK_TIMEOUT_MS} ms`)),
    );
    asking.on('error', (error: NodeJS.ErrnoException) => {
      const absent = error.code === 'ENOENT' || error.code === 'ECONNREFUSED';
      reject(absent ? new ExtmemError('ENOTCONN', `no extmem mount of this machine serves ${mountPoint}`, { cause: error }) : error);
    });
    asking.end();
  });
}

/** Every number of the statistics as a gauge, named by where it stands in them; the fabric's with labels. */
export function metricsOf(statistics: Record<string, unknown>, mountPoint: string): string {
  const label = `{mount=${quoted(mountPoint)}}`;
  const lines: string[] = [];
  const visit = (name: string, value: unknown): void => {
    if (typeof value === 'number' && Number.isFinite(value)) lines.push(`${name}${label} ${value}`);
    else if (typeof value === 'object' && value !== null)
      for (const [key, inner] of Object.entries(value)) visit(`${name}_${snakeCase(key)}`, inner);
  };
  const { fabric: _, ...rest } = statistics;
  visit('extmem_mount', rest);
  lines.push(...fabricMetrics(fabricOf(statistics), mountPoint));
  return `${lines.join('\n')}\n`;
}

function snakeCase(key: string): string {
  return key.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`).replace(/[^a-z0-9_]/g, '_');
}
