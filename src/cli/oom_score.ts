/**
 * Who serves a mount is the last that the kernel should kill when memory runs out: with it every program that maps its files would
 * be lost, and what was not written back. Root only; who is not root may be killed like anybody else.
 */
import { writeFileSync } from 'node:fs';

/** As little likely as can be without being exempt: a mount that grows without bound must still end. */
export const SERVER_OOM_SCORE = -900;

export function protectFromOom(): boolean {
  try {
    writeFileSync('/proc/self/oom_score_adj', String(SERVER_OOM_SCORE));
    return true;
  } catch {
    return false;
  }
}
