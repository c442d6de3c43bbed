/**
 * The one place where an error becomes an errno for the kernel. Codes that are errno names stand for themselves; the few codes of
 * our own are listed; anything else is a fault of ours and becomes EIO, which the caller logs.
 */
import { constants } from 'node:os';

const OWN_CODES: Record<string, number> = {
  ECLOSED: constants.errno.EIO, // native object or session is closed
  MANAGER_UNREACHABLE: constants.errno.EIO,
  FENCED: constants.errno.EIO, // this client's right to the data is gone
  EDOMAIN: constants.errno.ENOSPC, // copies cannot be kept as far apart as asked
  BAD_REQUEST: constants.errno.EINVAL,
};

const ERRNO = new Map<string, number>([...Object.entries(constants.errno), ...Object.entries(OWN_CODES)]);

export const ENOSYS = constants.errno.ENOSYS;
export const EIO = constants.errno.EIO;
export const ESTALE = constants.errno.ESTALE;
export const EINVAL = constants.errno.EINVAL;

/** Errno of a failure's `code`; undefined when the failure carries none that is known. */
export function errnoOfCode(code: string | undefined): number | undefined {
  return code === undefined ? undefined : ERRNO.get(code);
}

/** Errno of anything that was thrown, and whether it was expected (a known code) or is to be logged as a fault. */
export function errnoOf(failure: unknown): { errno: number; expected: boolean } {
  const code = failure instanceof Error && 'code' in failure && typeof failure.code === 'string' ? failure.code : undefined;
  const errno = errnoOfCode(code);
  return { errno: errno ?? EIO, expected: errno !== undefined };
}
