/**
 * Sockets and small HTTP endpoints of the roles. A mount has a control socket (src/fs/mount_control.ts), which is found and asked
 * here; where --http is given, a mount or an appliance serves /healthz and /metrics. The manager has an HTTP API of its own.
 */
import { readdir } from 'node:fs/promises';
import { createServer, request, type Server, type ServerResponse } from 'node:http';
import { join } from 'node:path';
import { codeOf, ExtmemError, messageOf } from '../base/errors.js';
import { mountControlPath, runtimeFolder } from '../base/mount_socket.js';
import { UsageError } from './exit.js';

export interface Endpoint {
  /** Prometheus text. */
  metrics(): string;
  /** undefined: healthy; otherwise what is wrong. */
  unhealthy(): string | undefined;
}

export interface Listening {
  close(): void;
}

export const socketOfMount = (mountPoint: string): string => mountControlPath(runtimeFolder(), mountPoint);

/** Sockets of all mounts of this user on this machine, dead ones included. */
export async function mountSockets(): Promise<string[]> {
  const folder = join(runtimeFolder(), 'mounts');
  const names = await readdir(folder).catch(() => [] as string[]);
  return names.filter((name) => name.endsWith('.sock')).map((name) => join(folder, name));
}

/** `9100`, `10.0.0.1:9100` or `[::1]:9100`. */
export function parseHttpAddress(value: string): { host: string; port: number } {
  const match = /^(?:(\[[^\]]+\]|[^:]*):)?(\d{1,5})$/.exec(value);
  const port = Number(match?.[2]);
  if (match === null || port > 65535) throw new UsageError(`--http: '${value}' is neither a port nor address:port`);
  return { host: (match[1] ?? '127.0.0.1').replace(/^\[|\]$/g, '') || '127.0.0.1', port };
}

export async function serveOnHttp(address: string, endpoint: Endpoint): Promise<Listening> {
  const server = createServer((asked, answer) => handle(endpoint, `${asked.method ?? ''} ${asked.url ?? ''}`, answer));
  await listen(server, parseHttpAddress(address)).catch((error: unknown) => {
    throw new ExtmemError(codeOf(error), `cannot serve metrics on ${address}: ${messageOf(error)}; choose another --http address`);
  });
  return {
    close: () => {
      server.close();
      server.closeIdleConnections();
    },
  };
}

function listen(server: Server, where: { host: string; port: number }): Promise<void> {
  return new Promise((done, failed) => {
    server.once('error', failed);
    server.listen(where, () => {
      server.off('error', failed);
      done();
    });
  });
}

function handle(endpoint: Endpoint, wanted: string, answer: ServerResponse): void {
  const send = (status: number, type: string, body: string): void => void answer.writeHead(status, { 'content-type': type }).end(body);
  if (wanted === 'GET /healthz') {
    const why = endpoint.unhealthy();
    send(
      why === undefined ? 200 : 503,
      'application/json',
      `${JSON.stringify(why === undefined ? { status: 'ok' } : { status: 'failing', why })}\n`,
    );
  } else if (wanted === 'GET /metrics') {
    send(200, 'text/plain; version=0.0.4', endpoint.metrics());
  } else {
    send(404, 'text/plain', 'there are /metrics and /healthz\n');
  }
}

/** Asks a mount through its socket. ECONNREFUSED or ENOENT when nobody listens there (any more). */
export function askSocket(socketPath: string, method: 'GET' | 'POST', path: string, timeoutMs = 5000): Promise<Record<string, unknown>> {
  return new Promise((done, failed) => {
    const asking = request({ socketPath, method, path, timeout: timeoutMs }, (answer) => {
      let body = '';
      answer.setEncoding('utf8');
      answer.on('data', (piece: string) => (body += piece));
      answer.on('error', failed);
      answer.on('end', () => {
        const content = JSON.parse(body) as Record<string, unknown>;
        if (answer.statusCode === 200) done(content);
        else failed(toFailure(content, answer.statusCode ?? 0));
      });
    });
    asking.on('timeout', () => asking.destroy(new ExtmemError('ETIMEDOUT', `${socketPath} did not answer within ${timeoutMs} ms`)));
    asking.on('error', failed);
    asking.end();
  });
}

function toFailure(content: Record<string, unknown>, status: number): ExtmemError {
  const { code, error } = content;
  return new ExtmemError(typeof code === 'string' ? code : 'EIO', typeof error === 'string' ? error : `answered ${status}`);
}
