/** The kernel's switch of FUSE over io_uring: on while the benchmark runs, then as it was before, also when it is interrupted. */
import { readFileSync, writeFileSync } from 'node:fs';

const SWITCH = '/sys/module/fuse/parameters/enable_uring';

function write(value: string): boolean {
  try {
    writeFileSync(SWITCH, value);
    return true;
  } catch {
    return false; // not root, or no such kernel
  }
}

/** Switches it on where that can be done; answers what undoes it. */
export function switchUringOn(): () => void {
  let before: string;
  try {
    before = readFileSync(SWITCH, 'utf8').trim();
  } catch {
    return () => undefined;
  }
  if (before === 'Y' || !write('Y')) return () => undefined;
  const restore = (): void => void write(before);
  process.once('exit', restore);
  for (const signal of ['SIGINT', 'SIGTERM'] as const) process.once(signal, () => process.exit(1));
  return restore;
}
