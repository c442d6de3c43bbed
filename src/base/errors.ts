/**
 * Errors of the control plane. `code` is stable and listed in docs/errors.md; for file operations it is an errno name, so that
 * src/fs can answer the kernel with it. The message says what was being done, to what, why it failed and what to do.
 */
export class ExtmemError extends Error {
  override readonly name = 'ExtmemError';
  constructor(
    readonly code: string,
    message: string,
    options?: ErrorOptions,
  ) {
    super(message, options);
  }
}

/** The stable code of whatever was thrown; EUNKNOWN where it has none. */
export function codeOf(error: unknown): string {
  return typeof error === 'object' && error !== null && 'code' in error && typeof error.code === 'string' ? error.code : 'EUNKNOWN';
}

export function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
