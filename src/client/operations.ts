/**
 * Watching what is read and written on a mount (C12): a callback per interval with what was done with each file. The mount counts
 * only while somebody watches.
 */
import { statSync } from 'node:fs';
import { request, type IncomingMessage } from 'node:http';
import { resolve } from 'node:path';
import { ExtmemError, messageOf } from '../base/errors.js';
import { mountControlPath, runtimeFolder } from '../base/mount_socket.js';
import type { OperationsReport } from '../base/operations.js';

export type { FileOperations, OperationsReport } from '../base/operations.js';

export interface WatchOptions {
  /** A file on that mount. Default: all that are used. */
  file?: string;
  /** Default 1000; between 100 ms and an hour. */
  intervalMs?: number;
}

export interface OperationsWatch {
  /** Resolves when it is closed, or the mount ends; rejects when the mount dies in the middle of a report. */
  readonly ended: Promise<void>;
  close(): void;
}

/** Of a mount of this user on this machine. Rejects with ENOTCONN (none serves there), EINVAL (the interval), EBUSY (too many watch). */
export function onOperations(
  mountPoint: string,
  callback: (report: OperationsReport) => void,
  options: WatchOptions = {},
): Promise<OperationsWatch> {
  const query = new URLSearchParams({ intervalMs: String(options.intervalMs ?? 1000) });
  if (options.file !== undefined) query.set('ino', String(statSync(options.file).ino));
  const socketPath = mountControlPath(runtimeFolder(), resolve(mountPoint));
  return new Promise((done, failed) => {
    const asking = request({ socketPath, path: `/operations?${query.toString()}` }, (answer) => {
      if (answer.statusCode === 200) done(follow(answer, mountPoint, callback));
      else eachLine(answer, (line) => failed(errorOf(line)));
    });
    asking.on('error', (error: NodeJS.ErrnoException) => {
      const isAbsent = error.code === 'ENOENT' || error.code === 'ECONNREFUSED';
      failed(isAbsent ? new ExtmemError('ENOTCONN', `no extmem mount of this user serves ${mountPoint}`, { cause: error }) : error);
    });
    asking.end();
  });
}

function follow(answer: IncomingMessage, mountPoint: string, callback: (report: OperationsReport) => void): OperationsWatch {
  let closed = false;
  const ended = new Promise<void>((resolveEnd, rejectEnd) => {
    eachLine(answer, (line) => {
      if (!closed) callback(JSON.parse(line) as OperationsReport);
    });
    answer.once('close', resolveEnd);
    answer.on('error', (error) => {
      if (!closed) rejectEnd(new ExtmemError('EIO', `watching ${mountPoint}: ${messageOf(error)}`));
    });
  });
  ended.catch(() => undefined); // whoever does not look at it is not told
  return {
    ended,
    close: () => {
      closed = true;
      answer.destroy();
    },
  };
}

function eachLine(answer: IncomingMessage, take: (line: string) => void): void {
  let begun = '';
  answer.setEncoding('utf8');
  answer.on('data', (piece: string) => {
    const lines = (begun + piece).split('\n');
    begun = lines.pop() ?? '';
    for (const line of lines) take(line);
  });
  answer.on('end', () => {
    if (begun !== '') take(begun);
  });
}

function errorOf(line: string): ExtmemError {
  const { code = 'EIO', error = line } = JSON.parse(line) as { code?: string; error?: string };
  return new ExtmemError(code, error);
}
