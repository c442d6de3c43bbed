/**
 * One thing at a time per key. The next in line begins in a later turn of the event loop, so that what the one before it
 * answered is on the wire before anything that the next one sends.
 */
export class KeyedMutex {
  private readonly queues = new Map<number, (() => void)[]>();

  async run<T>(key: number, body: () => Promise<T>): Promise<T> {
    const queue = this.queues.get(key);
    if (queue === undefined) this.queues.set(key, []);
    else await new Promise<void>((resolve) => queue.push(resolve));
    try {
      return await body();
    } finally {
      const waiting = this.queues.get(key) as (() => void)[];
      const next = waiting.shift();
      if (next === undefined) this.queues.delete(key);
      else setImmediate(next);
    }
  }
}
