/**
 * Who watches the operations on a mount's files: each is told at an interval of its own what was done since it was last told. What
 * native counts is taken by whoever's time has come, and kept for the others. Nothing is counted while nobody watches.
 *
 * Owner: the event loop. Bounded: in watchers, and in files per watcher.
 */
import { ExtmemError } from '../base/errors.js';
import { addOperations, hottest, type FileOperations, type OperationsReport } from '../base/operations.js';
import type { NativeMount } from '../binding/index.js';

const MAX_WATCHERS = 16;
const MAX_FILES = 4096;
const SHORTEST_MS = 100;
const LONGEST_MS = 3_600_000;

export interface Watcher {
  /** Default: all files. */
  ino?: number | undefined;
  intervalMs: number;
  /** False: it cannot take more now. What it was not told then it is told the next time. */
  tell(report: OperationsReport): boolean;
  end(): void;
}

interface Watch {
  watcher: Watcher;
  timer: NodeJS.Timeout;
  files: Map<number, FileOperations>;
  otherOperations: number;
  sinceMs: number;
}

export class Watching {
  private readonly watches = new Set<Watch>();

  constructor(private readonly native: Pick<NativeMount, 'watchOperations' | 'takeOperations'>) {}

  /** Answers what ends it. */
  add(watcher: Watcher): () => void {
    const { intervalMs } = watcher;
    if (!(intervalMs >= SHORTEST_MS && intervalMs <= LONGEST_MS))
      throw new ExtmemError('EINVAL', `an interval of ${intervalMs} ms: it is between ${SHORTEST_MS} and ${LONGEST_MS} ms`);
    if (this.watches.size >= MAX_WATCHERS)
      throw new ExtmemError('EBUSY', `${MAX_WATCHERS} watch this mount already; that is as many as there may be`);
    if (this.watches.size === 0) this.native.watchOperations(true);
    else this.take(); // what was done before is not this one's
    const watch: Watch = {
      watcher,
      timer: setInterval(() => this.tell(watch), intervalMs),
      files: new Map(),
      otherOperations: 0,
      sinceMs: performance.now(),
    };
    this.watches.add(watch);
    return () => this.remove(watch);
  }

  close(): void {
    for (const watch of [...this.watches]) {
      this.remove(watch);
      watch.watcher.end();
    }
  }

  private remove(watch: Watch): void {
    clearInterval(watch.timer);
    if (this.watches.delete(watch) && this.watches.size === 0) this.native.watchOperations(false);
  }

  private tell(watch: Watch): void {
    this.take();
    const now = performance.now();
    const told = watch.watcher.tell({
      atMs: Date.now(),
      intervalMs: Math.round(now - watch.sinceMs),
      files: [...watch.files.values()],
      otherOperations: watch.otherOperations,
    });
    if (!told) return;
    watch.files.clear();
    watch.otherOperations = 0;
    watch.sinceMs = now;
  }

  private take(): void {
    const { files, otherOperations } = this.native.takeOperations();
    for (const watch of this.watches) {
      if (watch.watcher.ino === undefined) watch.otherOperations += otherOperations;
      for (const file of files) {
        if (watch.watcher.ino !== undefined && watch.watcher.ino !== file.ino) continue;
        const known = watch.files.get(file.ino);
        if (known !== undefined) watch.files.set(file.ino, addOperations(known, file));
        else if (watch.files.size < MAX_FILES) watch.files.set(file.ino, { ...file, hot: hottest([...file.hot]) });
        else watch.otherOperations += file.reads + file.writes;
      }
    }
  }
}
