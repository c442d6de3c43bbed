/**
 * Allocations over the manager's HTTP interface (C1): created, resized, listed, described, removed by path, without a mount.
 * Failures are ExtmemErrors with the manager's code and message; EUNREACHABLE when no manager answers.
 */
import { request as httpRequest, type RequestOptions } from 'node:http';
import { request as httpsRequest } from 'node:https';
import { Type, type Static, type TSchema } from '@sinclair/typebox';
import { Value } from '@sinclair/typebox/value';
import { ExtmemError } from '../base/errors.js';
import { Attr, LayoutName } from '../base/messages.js';

const ASK_TIMEOUT_MS = 30_000;
const LIST_PAGE = 1000;
const MAX_ANSWER_BYTES = 64 * 1024 * 1024;

export const AllocationInfo = Type.Object({
  path: Type.String(),
  ino: Type.Integer(),
  /** Size of the file. */
  bytes: Type.Integer(),
  /** Memory that it occupies in the pool. */
  allocatedBytes: Type.Integer(),
  layout: LayoutName,
  /** Has regions of its own. */
  dedicated: Type.Boolean(),
  regions: Type.Array(Type.Object({ region: Type.Integer(), bytes: Type.Integer(), appliance: Type.String(), lost: Type.Boolean() })),
  appliances: Type.Array(Type.String()),
  /** Part of it is gone with an appliance. */
  lost: Type.Boolean(),
  attr: Attr,
});
export type AllocationInfo = Static<typeof AllocationInfo>;

const AllocationPage = Type.Object({ allocations: Type.Array(AllocationInfo), next: Type.Optional(Type.Integer()) });
const Failure = Type.Object({ code: Type.String(), message: Type.String() });
const Anything = Type.Unknown();

export interface ManagerAddress {
  /** http(s)://host:port, or host:port. */
  manager: string;
  token: string;
  /** PEM of the authority behind the manager's certificate. */
  ca?: string | Buffer;
}

export class Allocations {
  private readonly base: URL;

  constructor(private readonly address: ManagerAddress) {
    this.base = new URL(/^\w+:\/\//.test(address.manager) ? address.manager : `http://${address.manager}`);
  }

  /** The directory must exist. All of its memory is reserved, or none, if it is `dedicated` (large ones are by themselves). */
  create(path: string, options: { bytes: number; layout?: LayoutName; dedicated?: boolean }): Promise<AllocationInfo> {
    return this.ask('POST', '/v1/allocations', AllocationInfo, { path, ...options });
  }

  resize(path: string, bytes: number): Promise<AllocationInfo> {
    return this.ask('PATCH', routeOf(path), AllocationInfo, { bytes });
  }

  async remove(path: string): Promise<void> {
    await this.ask('DELETE', routeOf(path), Anything);
  }

  info(path: string): Promise<AllocationInfo> {
    return this.ask('GET', routeOf(path), AllocationInfo);
  }

  /** What is in a directory; page by page, so that large ones need no more memory than small ones. */
  async *list(path = '/'): AsyncGenerator<AllocationInfo> {
    for (let after: number | undefined = 0; after !== undefined;) {
      const query = new URLSearchParams({ path, after: String(after), limit: String(LIST_PAGE) });
      const page: Static<typeof AllocationPage> = await this.ask('GET', `/v1/allocations?${query.toString()}`, AllocationPage);
      yield* page.allocations;
      after = page.next;
    }
  }

  /** Rejects unless a manager answers there and accepts the token. */
  async check(): Promise<void> {
    await this.ask('GET', '/v1/space', Anything);
  }

  private async ask<Schema extends TSchema>(method: string, route: string, schema: Schema, body?: unknown): Promise<Static<Schema>> {
    const { status, text } = await this.send(method, route, body);
    let answer: unknown;
    try {
      answer = text === '' ? undefined : JSON.parse(text);
    } catch (error) {
      throw new ExtmemError('EPROTO', `${this.base.host} answered ${method} ${route} with what is no JSON: is that an extmem manager?`, {
        cause: error,
      });
    }
    if (status >= 400) {
      if (Value.Check(Failure, answer)) throw new ExtmemError(answer.code, answer.message);
      throw new ExtmemError('EPROTO', `${this.base.host} answered ${method} ${route} with ${status}: is that an extmem manager?`);
    }
    if (!Value.Check(schema, answer))
      throw new ExtmemError('EPROTO', `${this.base.host} answered ${method} ${route} in an unknown form: it may be of another version`);
    return answer;
  }

  private send(method: string, route: string, body: unknown): Promise<{ status: number; text: string }> {
    const url = new URL(route, this.base);
    const content = body === undefined ? undefined : JSON.stringify(body);
    const { token, ca } = this.address;
    const headers = {
      authorization: `Bearer ${token}`,
      ...(content === undefined ? {} : { 'content-type': 'application/json', 'content-length': Buffer.byteLength(content) }),
    };
    const options: RequestOptions & { ca?: string | Buffer } = {
      method,
      headers,
      timeout: ASK_TIMEOUT_MS,
      ...(ca === undefined ? {} : { ca }),
    };
    return new Promise((resolve, reject) => {
      const asking = (url.protocol === 'https:' ? httpsRequest : httpRequest)(url, options, (answer) => {
        const pieces: Buffer[] = [];
        let bytes = 0;
        answer.on('data', (piece: Buffer) => {
          bytes += piece.length;
          if (bytes > MAX_ANSWER_BYTES) asking.destroy(new Error(`the answer is larger than ${MAX_ANSWER_BYTES} bytes`));
          else pieces.push(piece);
        });
        answer.on('error', reject);
        answer.on('end', () => resolve({ status: answer.statusCode ?? 0, text: Buffer.concat(pieces).toString('utf8') }));
      });
      asking.on('timeout', () => asking.destroy(new Error(`no answer within ${ASK_TIMEOUT_MS} ms`)));
      asking.on('error', (error) =>
        reject(
          new ExtmemError(
            'EUNREACHABLE',
            `no manager answers at ${this.base.origin}: ${error.message}; start one with \`extmem manager\``,
            { cause: error },
          ),
        ),
      );
      asking.end(content);
    });
  }
}

function routeOf(path: string): string {
  const names = path.split('/').filter((name) => name !== '');
  if (names.length === 0) throw new ExtmemError('EINVAL', 'an allocation has a path, as in /data/table');
  return `/v1/allocations/${names.map(encodeURIComponent).join('/')}`;
}
