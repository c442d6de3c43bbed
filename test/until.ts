/** Bounded waiting for what nothing tells of, in tests and benchmarks. */
import { setTimeout as pause } from 'node:timers/promises';

const POLL_MS = 20;

/** Polls until the condition holds; its last failure is the complaint. */
export async function until(what: string, condition: () => boolean | Promise<boolean>, limitMs = 20_000): Promise<void> {
  const end = Date.now() + limitMs;
  let failure = '';
  for (;;) {
    try {
      if (await condition()) return;
      failure = '';
    } catch (error) {
      failure = `: ${String(error)}`;
    }
    if (Date.now() > end) throw new Error(`${what}: not within ${limitMs} ms${failure}`);
    await pause(POLL_MS);
  }
}
