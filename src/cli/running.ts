/**
 * The note that a running `extmem up` leaves in its folder (up.json): who it is, where its manager and mount are. It keeps a
 * second `up` out of the same folder, and tells the other commands on this machine where to find things.
 */
import { mkdirSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { homedir } from 'node:os';
import { join } from 'node:path';
import { ExtmemError } from '../base/errors.js';

export interface RunningUp {
  pid: number;
  started: string; // of the process, in clock ticks since boot: a reused pid has another
  manager: string;
  tokenFile: string;
  mountPoint: string;
}

/** Where state lives unless said otherwise: /var/lib for root, the XDG folder for everybody else. */
export function stateHome(environment: NodeJS.ProcessEnv = process.env, uid = process.getuid?.() ?? 0): string {
  if (environment['XDG_STATE_HOME']) return join(environment['XDG_STATE_HOME'], 'extmem');
  return uid === 0 ? '/var/lib/extmem' : join(environment['HOME'] || homedir(), '.local/state/extmem');
}

export const defaultUpFolder = (environment: NodeJS.ProcessEnv = process.env): string => join(stateHome(environment), 'up');

export const noteOf = (dir: string): string => join(dir, 'up.json');

/** When the process started, or undefined when there is none. The name in parentheses may hold anything, so count from its end. */
export function processStart(pid: number): string | undefined {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, 'utf8');
    return stat.slice(stat.lastIndexOf(')') + 2).split(' ')[19];
  } catch {
    return undefined;
  }
}

/** The note of an `up` that is alive; a dead one's counts as none. */
export function readRunning(dir: string): RunningUp | undefined {
  try {
    const note = JSON.parse(readFileSync(noteOf(dir), 'utf8')) as RunningUp;
    return processStart(note.pid) === note.started ? note : undefined;
  } catch {
    return undefined;
  }
}

/** Makes the folder this process's own; call again with more facts. Fails with EBUSY while another `up` lives there. */
export function claimFolder(dir: string, facts: { manager: string; tokenFile: string; mountPoint: string }): void {
  mkdirSync(dir, { recursive: true, mode: 0o700 });
  const other = readRunning(dir);
  if (other !== undefined && other.pid !== process.pid) {
    throw new ExtmemError(
      'EBUSY',
      `extmem up runs already in ${dir} (process ${other.pid}, mounted on ${other.mountPoint}); stop it, or choose another --dir`,
    );
  }
  const note: RunningUp = { pid: process.pid, started: processStart(process.pid) ?? '', ...facts };
  writeFileSync(`${noteOf(dir)}.new`, `${JSON.stringify(note, undefined, 2)}\n`, { mode: 0o600 });
  renameSync(`${noteOf(dir)}.new`, noteOf(dir));
}

export function releaseFolder(dir: string): void {
  rmSync(noteOf(dir), { force: true });
}
