/** The manager's HTTP API as the CLI uses it: JSON both ways, the join token as bearer, failures as errors with the manager's code. */
import { request as requestPlain, type IncomingMessage } from 'node:http';
import { request as requestTls } from 'node:https';
import { ExtmemError } from '../base/errors.js';
import type { ManagerAccess } from './connection.js';
import { messageOf } from './exit.js';

const timeoutMs = 30_000;

export class ManagerApi {
  constructor(private readonly access: ManagerAccess) {}

  get url(): string {
    return this.access.url;
  }

  get<Answer>(path: string, query: Record<string, string> = {}): Promise<Answer> {
    return this.ask<Answer>('GET', path, query);
  }

  async ask<Answer>(method: string, path: string, query: Record<string, string> = {}, body?: unknown): Promise<Answer> {
    const search = new URLSearchParams(query).toString();
    const answer = await this.send(method, `${path}${search === '' ? '' : `?${search}`}`, body);
    const content = parseJson(await readAll(answer));
    const status = answer.statusCode ?? 0;
    if (status >= 200 && status < 300) return content as Answer;
    throw this.toFailure(status, content);
  }

  private send(method: string, path: string, body: unknown): Promise<IncomingMessage> {
    const { url, token, ca } = this.access;
    const payload = body === undefined ? undefined : JSON.stringify(body);
    const headers = {
      authorization: `Bearer ${token}`,
      ...(payload === undefined ? {} : { 'content-type': 'application/json', 'content-length': Buffer.byteLength(payload) }),
    };
    const request = url.startsWith('https:') ? requestTls : requestPlain;
    return new Promise((done, failed) => {
      const asking = request(new URL(path, url), { method, headers, timeout: timeoutMs, ...(ca === undefined ? {} : { ca }) }, done);
      asking.on('timeout', () => asking.destroy(new ExtmemError('ETIMEDOUT', `no answer within ${timeoutMs / 1000} s`)));
      asking.on('error', (error: NodeJS.ErrnoException) =>
        failed(
          new ExtmemError(
            error.code ?? 'EUNREACHABLE',
            `no manager answers at ${url} (${messageOf(error)}); start one with: extmem manager, or name another with --manager`,
          ),
        ),
      );
      asking.end(payload);
    });
  }

  private toFailure(status: number, content: unknown): ExtmemError {
    if (status === 401 || status === 403)
      return new ExtmemError(
        'EACCES',
        `the manager at ${this.url} refused the join token; pass the one from its state folder with --token-file`,
      );
    const { code, message } = (typeof content === 'object' && content !== null ? content : {}) as { code?: unknown; message?: unknown };
    return new ExtmemError(
      typeof code === 'string' ? code : 'EIO',
      typeof message === 'string' ? message : `the manager at ${this.url} answered ${status}`,
    );
  }
}

async function readAll(answer: IncomingMessage): Promise<string> {
  const pieces: Buffer[] = [];
  for await (const piece of answer) pieces.push(piece as Buffer);
  return Buffer.concat(pieces).toString('utf8');
}

function parseJson(text: string): unknown {
  if (text === '') return undefined;
  try {
    return JSON.parse(text);
  } catch {
    throw new ExtmemError('EPROTO', 'the answer is not of a manager; is --manager the right address?');
  }
}
