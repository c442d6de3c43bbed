/**
 * Waiting for the kernel's caches, but not for ever: a notice can be held up by an operation that itself waits for the manager,
 * and the manager waits for us. After the bound the answer goes out anyhow; the kernel's own timeout (the lease) is the backstop.
 */
import type { Logger } from '../base/logger.js';

const NOTICE_BOUND_MS = 1000;

export class BoundedWait {
  private logged = false;

  constructor(private readonly log: Logger) {}

  /** Resolves when `notices` are done, failed (logged), or the bound has passed (logged once). */
  async settle(notices: Promise<unknown>, what: string): Promise<void> {
    let timer: NodeJS.Timeout | undefined;
    const bound = new Promise<'late'>((resolve) => {
      timer = setTimeout(() => resolve('late'), NOTICE_BOUND_MS);
    });
    try {
      if ((await Promise.race([notices, bound])) === 'late' && !this.logged) {
        this.logged = true;
        this.log.warn({ what, afterMs: NOTICE_BOUND_MS }, 'the kernel did not drop its cache in time; answering the manager without it');
      }
    } catch (error) {
      this.log.warn({ what, error }, 'telling the kernel to drop its cache failed');
    } finally {
      clearTimeout(timer);
    }
  }
}
