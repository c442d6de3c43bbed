/**
 * Which directories have an operation of the kernel's under way. The kernel holds a directory's lock until such an operation is
 * answered, and a notice about one of its names waits for that lock; were the manager's push answered only after the notice,
 * two clients that create in one directory would wait for each other. So a notice is not waited for while its directory is
 * busy: the kernel handles it as soon as the operation under way has its answer.
 */
export class DirectoryActivity {
  private readonly busy = new Map<number, number>();
  private readonly waiting = new Map<number, Set<() => void>>();

  enter(parent: number): void {
    this.busy.set(parent, (this.busy.get(parent) ?? 0) + 1);
    const waiting = this.waiting.get(parent);
    if (waiting !== undefined) for (const resolve of waiting) resolve();
  }

  leave(parent: number): void {
    const left = (this.busy.get(parent) ?? 1) - 1;
    if (left === 0) this.busy.delete(parent);
    else this.busy.set(parent, left);
  }

  /** Resolves when `notice` is done or the directory is, or becomes, busy. */
  async settleUnlessBusy(parent: number, notice: Promise<void>): Promise<void> {
    if (this.busy.has(parent)) {
      notice.catch(() => undefined); // a notice that fails leaves the entry to its time-out
      return;
    }
    let resolve: () => void = () => undefined;
    const becomesBusy = new Promise<void>((done) => (resolve = done));
    const waiting = this.waiting.get(parent) ?? new Set();
    this.waiting.set(parent, waiting.add(resolve));
    try {
      await Promise.race([notice, becomesBusy]);
    } finally {
      waiting.delete(resolve);
      if (waiting.size === 0 && this.waiting.get(parent) === waiting) this.waiting.delete(parent);
    }
  }
}
