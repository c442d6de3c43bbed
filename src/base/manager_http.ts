/** The manager's HTTP interface, asked: JSON both ways, the join token as bearer, failures as errors with the manager's code. */
import { request as requestPlain, type RequestOptions } from 'node:http';
import { request as requestTls } from 'node:https';
import { codeOf, ExtmemError, messageOf } from './errors.js';

const ASK_TIMEOUT_MS = 30_000;
/** For what takes as long as a disk does: the manager waits no longer for its appliances either. */
export const PERSIST_TIMEOUT_MS = 3_600_000;
const MAX_ANSWER_BYTES = 64 * 1024 * 1024;

export interface ManagerAddress {
  /** http(s)://host:port, or host:port. */
  manager: string;
  token: string;
  /** PEM of the authority behind the manager's certificate. */
  ca?: string | Buffer | undefined;
  /** Who asks, and the keys of allocations that it has. */
  name?: string | undefined;
  keys?: readonly string[] | undefined;
}

/** Headers by which who asks is told, percent-encoded. */
export const NAME_HEADER = 'x-extmem-name';
export const KEYS_HEADER = 'x-extmem-keys';

export function managerUrl(manager: string): URL {
  return new URL(/^\w+:\/\//.test(manager) ? manager : `http://${manager}`);
}

/**
 * What the manager answers, or undefined where it answers nothing. Rejects with the manager's own code and message, EACCES for a
 * refused token, EUNREACHABLE when no manager answers, EPROTO when what answers is none.
 */
export async function askManager(
  address: ManagerAddress,
  method: string,
  route: string,
  body?: unknown,
  timeoutMs = ASK_TIMEOUT_MS,
): Promise<unknown> {
  const { status, text } = await send(address, method, route, body, timeoutMs);
  let answer: unknown;
  try {
    answer = text === '' ? undefined : JSON.parse(text);
  } catch (error) {
    throw new ExtmemError('EPROTO', `${address.manager} answered ${method} ${route} with what is no JSON: is that an extmem manager?`, {
      cause: error,
    });
  }
  if (status === 401) {
    throw new ExtmemError(
      'EACCES',
      `the manager at ${address.manager} refused the join token; pass the one from its state folder with --token-file`,
    );
  }
  if (status < 400) return answer;
  const { code, message } = (typeof answer === 'object' && answer !== null ? answer : {}) as { code?: unknown; message?: unknown };
  if (typeof code === 'string' && typeof message === 'string') throw new ExtmemError(code, message);
  throw new ExtmemError('EPROTO', `${address.manager} answered ${method} ${route} with ${status}: is that an extmem manager?`);
}

/** Why nothing that could be used answers at a manager's address, and what to do about it. */
export function managerUnreachable(manager: string, error: unknown): ExtmemError {
  const why = messageOf(error);
  const advice = /CERT|ERR_TLS|VERIFY_LEAF|ISSUER/.test(codeOf(error))
    ? `its certificate cannot be checked (${why}); name the one that vouches for it with --tls-ca`
    : /WRONG_VERSION|SSL/.test(codeOf(error))
      ? `it does not speak TLS (${why}); write http://, or start it with --tls-cert and --tls-key`
      : codeOf(error) === 'ECONNRESET' && !/^(https|wss):/.test(manager)
        ? `it hung up (${why}); if it serves TLS, write https:// before its address`
        : `${why}; start one with \`extmem manager\`, or name its address with --manager`;
  return new ExtmemError('EUNREACHABLE', `no manager answers at ${manager}: ${advice}`, { cause: error });
}

function send(
  { manager, token, ca, name, keys = [] }: ManagerAddress,
  method: string,
  route: string,
  body: unknown,
  timeoutMs: number,
): Promise<{ status: number; text: string }> {
  const url = new URL(route, managerUrl(manager));
  const content = body === undefined ? undefined : JSON.stringify(body);
  const headers = {
    authorization: `Bearer ${token}`,
    ...(name === undefined ? {} : { [NAME_HEADER]: encodeURIComponent(name) }),
    ...(keys.length === 0 ? {} : { [KEYS_HEADER]: keys.map(encodeURIComponent).join(',') }),
    ...(content === undefined ? {} : { 'content-type': 'application/json', 'content-length': Buffer.byteLength(content) }),
  };
  const options: RequestOptions & { ca?: string | Buffer } = {
    method,
    headers,
    timeout: timeoutMs,
    ...(ca === undefined ? {} : { ca }),
  };
  return new Promise((resolve, reject) => {
    const asking = (url.protocol === 'https:' ? requestTls : requestPlain)(url, options, (answer) => {
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
    asking.on('timeout', () => asking.destroy(new Error(`no answer within ${timeoutMs} ms`)));
    asking.on('error', (error) => reject(managerUnreachable(manager, error)));
    asking.end(content);
  });
}
