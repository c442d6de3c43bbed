/**
 * Exit codes of the CLI, and how an error becomes one line that says what to do. Scripts rely on the numbers: they are
 * listed in `extmem --help` and docs/operations.md, and do not change.
 */
import { codeOf, ExtmemError } from '../base/errors.js';

export const ExitCode = {
  ok: 0,
  failed: 1,
  usage: 2,
  unreachable: 3, // no manager (or no mount) answers there
  refused: 4, // token or version not accepted
  notFound: 5,
  busy: 6, // exists already, in use, or still mounted
  noSpace: 7,
  interrupted: 130,
} as const;
export type ExitCode = (typeof ExitCode)[keyof typeof ExitCode];

export const exitCodeHelp = `
Exit codes:
  0  done            3  no manager or mount answers     6  busy, or exists already
  1  failed          4  token or version refused        7  not enough memory in the pool
  2  wrong usage     5  not found                     130  interrupted`;

const byExitCode: readonly (readonly [ExitCode, readonly string[]])[] = [
  [ExitCode.usage, ['EUSAGE']],
  [
    ExitCode.unreachable,
    ['ECONNREFUSED', 'ECONNRESET', 'EHOSTUNREACH', 'ENETUNREACH', 'ENOTFOUND', 'EAI_AGAIN', 'ETIMEDOUT', 'ENOTCONN', 'EUNREACHABLE'],
  ],
  [ExitCode.refused, ['EACCES', 'EPERM', 'EVERSION', 'EPROTO', 'ECLUSTER']],
  [ExitCode.notFound, ['ENOENT']],
  [ExitCode.busy, ['EBUSY', 'EEXIST', 'EADDRINUSE']],
  [ExitCode.noSpace, ['ENOSPC', 'EDOMAIN']],
  [ExitCode.interrupted, ['EINTR']],
];

/** Wrong arguments or settings: exit code 2. */
export class UsageError extends ExtmemError {
  constructor(message: string) {
    super('EUSAGE', message);
  }
}

export function exitCodeOf(error: unknown): ExitCode {
  const code = codeOf(error);
  return byExitCode.find(([, codes]) => codes.includes(code))?.[0] ?? ExitCode.failed;
}
