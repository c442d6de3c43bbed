/**
 * The last records of write delegations that this mount gave up. The manager is asked to take each before the recall is answered,
 * and again on every session until it has said that it did: an answer that is lost with a session, or comes too late to be heard,
 * loses nothing.
 *
 * Invariant: on a new session what is owed goes out before anything but names, so that whatever is asked there of a file, or written
 * to it, comes after what was given up of it. The manager takes a delegation's record once.
 */
import { messageOf } from '../base/errors.js';
import type { Logger } from '../base/logger.js';
import { isOpen, type HeldFile, type HeldFiles } from './held_files.js';
import type { Manager } from './manager.js';

interface Owed {
  readonly delegation: number;
  readonly record: Uint8Array;
}

export class GivenUp {
  private readonly owed = new Map<number, Owed>();

  constructor(
    private readonly manager: Manager,
    private readonly held: HeldFiles,
    private readonly log: Logger,
  ) {}

  /** Nobody can write to the file without the manager any more. */
  note(file: HeldFile, record: Uint8Array): void {
    const { ino, delegation } = file;
    if (delegation === undefined) return;
    this.owed.set(ino, { delegation, record });
    file.delegation = undefined;
  }

  /** The manager has what this mount gave up of the file when this resolves. */
  async deliver(ino: number): Promise<void> {
    const owed = this.owed.get(ino);
    if (owed === undefined) return;
    await this.manager.ask('gaveUp', { ino, ...owed, open: openState(this.held.get(ino)) });
    if (this.owed.get(ino) === owed) this.owed.delete(ino);
  }

  /** Everything that is owed is on its way when this has returned. */
  async deliverAll(): Promise<void> {
    const delivered = [...this.owed.keys()].map((ino) =>
      this.deliver(ino).catch((error: unknown) =>
        this.log.warn({ ino, why: messageOf(error) }, 'what was given up of a file is not with the manager yet'),
      ),
    );
    await Promise.all(delivered);
  }

  /** It was another client's. */
  fenced(): void {
    this.owed.clear();
  }
}

/** What is held and not open is given back by an ask of its own, or by the recall's answer. */
function openState(file: HeldFile | undefined): 'none' | 'read' | 'write' {
  if (file === undefined) return 'none';
  return isOpen(file) && file.writers > 0 ? 'write' : 'read';
}
