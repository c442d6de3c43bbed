/** Where the manager is and what we show it: its URL from what people write, the join token from wherever it was given. */
import { readFileSync } from 'node:fs';
import { hostname } from 'node:os';
import { join } from 'node:path';
import { ExtmemError, messageOf } from '../base/errors.js';
import type { Endpoint } from '../base/messages.js';
import { UsageError } from './exit.js';
import { stateHome } from './running.js';
import type { Settings } from './settings.js';

export const defaultPort = 7070;

export interface ManagerAccess {
  /** With scheme and port: http://10.0.0.1:7070. */
  url: string;
  token: string;
  ca: string | undefined;
  /** What we call ourselves, and the keys of allocations that we have. */
  name: string;
  keys: readonly string[];
}

export function managerAccess(settings: Settings): ManagerAccess {
  const ca = settings.optional('tlsCa');
  return {
    url: parseManager(settings.required('manager')),
    token: joinToken(settings),
    ca: ca === undefined ? undefined : readSecret(ca, 'the certificate of --tls-ca'),
    name: settings.optional('name') ?? hostname(),
    keys: accessKeys(settings),
  };
}

/** `10.0.0.1`, `host:7071`, `[::1]:7070`, `https://host`: a URL with a port. */
export function parseManager(text: string): string {
  const match = /^(?:(https?):\/\/)?(\[[0-9a-f:.%]+\]|[^:/\s[\]]+)(?::(\d{1,5}))?\/?$/i.exec(text);
  const port = Number(match?.[3] ?? defaultPort);
  if (match === null || port < 1 || port > 65535) {
    throw new UsageError(`'${text}' is no address of a manager; write host, host:port or https://host:port (an IPv6 address in brackets)`);
  }
  return `${(match[1] ?? 'http').toLowerCase()}://${match[2] ?? ''}:${port}`;
}

/** `10.0.0.1`, `10.0.0.1:7070`, `:7070`, `[::]:7070`. */
export function parseListen(text: string, fallbackPort: number): { address: string | undefined; port: number } {
  const match = /^(\[[0-9a-f:.%]+\]|[^:\s[\]]*)(?::(\d{1,5}))?$/i.exec(text);
  const port = Number(match?.[2] ?? fallbackPort);
  if (match === null || port > 65535) throw new UsageError(`--listen: '${text}' is neither an address nor address:port`);
  const address = (match[1] ?? '').replace(/^\[|\]$/g, '');
  return { address: address === '' ? undefined : address, port };
}

/** `10.0.0.1,10.1.0.1`: the parts. */
export function parseList(text: string): string[] {
  return text
    .split(',')
    .map((part) => part.trim())
    .filter((part) => part !== '');
}

export function formatEndpoints(endpoints: readonly Endpoint[]): string {
  return endpoints.map(({ address, port }) => `${address.includes(':') ? `[${address}]` : address}:${port}`).join(', ');
}

function joinToken(settings: Settings): string {
  const token = settings.optional('token');
  if (token !== undefined) return token;
  const file = settings.optional('tokenFile');
  if (file !== undefined) return readSecret(file, 'the join token');
  // The manager of this machine, started without further ado: its token lies where it always does.
  const local = join(stateHome(), 'manager/token');
  try {
    return readFileSync(local, 'utf8').trim();
  } catch {
    throw new UsageError(
      "the cluster's join token is needed: pass --token-file (or EXTMEM_TOKEN_FILE, --token, EXTMEM_TOKEN); the manager's host has it in the file 'token' of its state folder",
    );
  }
}

/** One a line. */
function accessKeys(settings: Settings): string[] {
  const key = settings.optional('key');
  const file = settings.optional('keyFile');
  const text = key ?? (file === undefined ? '' : readSecret(file, 'the file of --key-file'));
  return text
    .split('\n')
    .map((line) => line.trim())
    .filter((line) => line !== '');
}

export function readSecret(path: string, what: string): string {
  let content: string;
  try {
    content = readFileSync(path, 'utf8').trim();
  } catch (error) {
    throw new ExtmemError('EUSAGE', `${what} cannot be read: ${messageOf(error)}`);
  }
  if (content === '') throw new ExtmemError('EUSAGE', `${what} cannot be used: ${path} is empty`);
  return content;
}
