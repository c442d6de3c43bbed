/**
 * Times at which something that was handed out to clients is to be taken back. A timer for each, none where nothing has an end.
 *
 * Owner: the event loop.
 */
const LONGEST_TIMER_MS = 2 ** 31 - 1;

export class Windows {
  private readonly timers = new Map<number, NodeJS.Timeout>();

  constructor(private readonly end: () => Promise<void>) {}

  add(atMs: number): void {
    if (this.timers.has(atMs)) return;
    const leftMs = Math.max(0, atMs - Date.now());
    const timer = setTimeout(() => this.due(atMs), Math.min(leftMs, LONGEST_TIMER_MS));
    this.timers.set(atMs, timer.unref());
  }

  close(): void {
    for (const timer of this.timers.values()) clearTimeout(timer);
    this.timers.clear();
  }

  private due(atMs: number): void {
    this.timers.delete(atMs);
    if (Date.now() < atMs) this.add(atMs);
    else this.end().catch(() => undefined); // closed meanwhile: nothing is served any more
  }
}
