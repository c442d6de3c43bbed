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
