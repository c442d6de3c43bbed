/**
 * What was done to names here and the manager does not know yet: operations in the order in which they were done, sent in
 * numbered batches. Whatever else is asked of the manager goes behind them on the same session, so that it never sees less than
 * whoever asks.
 *
 * Invariants: batches are sent, and sent again on a resumed session, in order; one is kept until it is answered; waits for an
 * answer end with EIO when the session is lost, and the batch stays.
 */
import { ExtmemError } from '../base/errors.js';
import type { Answer, Ask, NameOperation } from '../base/messages.js';
import { SessionFailure } from '../base/session.js';
import type { ClientOperations, Manager } from './manager.js';

/** After so long, what was done is sent although nobody asked for anything. */
const AGE_MS = 50;
const BATCH_OPERATIONS = 512;
/** Beyond that many, or when the oldest waits for so long, the manager does not keep up: whoever wants to do more waits for it. So
 *  what is asked of it behind them is answered in time. */
const MAX_UNANSWERED = 16_384;
const MAX_LAG_MS = 1000;

interface Batch {
  sequence: number;
  sentMs: number;
  operations: NameOperation[];
}

export interface JournalEvents {
  /** It is with the manager, and survives its death. */
  done(operation: NameOperation): void;
  /** It could not be taken. */
  failed(operation: NameOperation, code: string): void;
}

export class NameJournal implements Manager {
  private gathered: NameOperation[] = [];
  private readonly unanswered: Batch[] = [];
  private unansweredOperations = 0;
  private sequence = 0;
  private timer: NodeJS.Timeout | undefined;
  private waiters: { sequence: number; resolve: () => void; reject: (error: Error) => void }[] = [];
  private events: JournalEvents = { done: () => undefined, failed: () => undefined };
  private batches = 0;
  private operations = 0;

  constructor(private readonly session: Manager) {}

  get alive(): boolean {
    return this.session.alive;
  }

  /** Whether something may be done here without the manager. */
  get isOpen(): boolean {
    const waitsSinceMs = this.unanswered[0]?.sentMs ?? Infinity;
    return this.alive && this.unsettled < MAX_UNANSWERED && performance.now() - waitsSinceMs < MAX_LAG_MS;
  }

  leaseLeftMs(): number {
    return this.session.leaseLeftMs();
  }

  listen(events: JournalEvents): void {
    this.events = events;
  }

  ask<Name extends keyof ClientOperations>(name: Name, ask: Ask<ClientOperations, Name>): Promise<Answer<ClientOperations, Name>> {
    this.send();
    return this.session.ask(name, ask);
  }

  append(operation: NameOperation): void {
    this.gathered.push(operation);
    if (this.gathered.length >= BATCH_OPERATIONS) this.send();
    else this.timer ??= setTimeout(() => this.send(), AGE_MS).unref();
  }

  /** Everything appended so far survives the manager's death (or was reported as failed). Rejects with EIO while it is dead. */
  settled(): Promise<void> {
    this.send();
    return this.unsettled > 0 && !this.alive ? Promise.reject(this.unreachable()) : this.answered();
  }

  /** The same where the manager is known to be there, although the session may be being resumed. */
  answered(): Promise<void> {
    this.send();
    const { sequence } = this;
    if (this.unanswered.length === 0) return Promise.resolve();
    return new Promise((resolve, reject) => this.waiters.push({ sequence, resolve, reject }));
  }

  /** So many operations would be lost if this process ended now. */
  get unsettled(): number {
    return this.unansweredOperations + this.gathered.length;
  }

  unsettledParents(): number[] {
    return [...this.unanswered.map(({ operations }) => operations), this.gathered].flat().map(({ parent }) => parent);
  }

  sessionLost(): void {
    // A recall on the next session must wait for this too, and may come before sessionResumed.
    if (this.gathered.length > 0) this.close();
    const waiters = this.waiters;
    this.waiters = [];
    for (const { reject } of waiters) reject(this.unreachable());
  }

  /** Before anything else is asked on the new session. */
  async sessionResumed(): Promise<void> {
    await Promise.all(this.unanswered.map((batch) => this.ship(batch)));
  }

  /** We are another client now: what the former one did not tell of in time has not happened. */
  fenced(): void {
    if (this.gathered.length > 0) this.close();
    for (const batch of [...this.unanswered]) this.finish(batch, () => 'EIO');
  }

  counters(): Record<string, number> {
    return { batches: this.batches, operations: this.operations, unsettled: this.unsettled };
  }

  private send(): void {
    if (this.gathered.length > 0 && this.alive) void this.ship(this.close());
  }

  /** What was gathered becomes a batch. */
  private close(): Batch {
    clearTimeout(this.timer);
    this.timer = undefined;
    const batch = { sequence: ++this.sequence, sentMs: performance.now(), operations: this.gathered };
    this.gathered = [];
    this.unanswered.push(batch);
    this.unansweredOperations += batch.operations.length;
    this.batches += 1;
    this.operations += batch.operations.length;
    return batch;
  }

  private async ship(batch: Batch): Promise<void> {
    batch.sentMs = performance.now();
    try {
      const { failed } = await this.session.ask('names', batch);
      const codes = new Map(failed.map(({ index, code }) => [index, code]));
      this.finish(batch, (index) => codes.get(index));
    } catch (error) {
      const code = error instanceof ExtmemError ? error.code : 'EIO';
      const isLost = error instanceof SessionFailure ? error.reason === 'closed' : !this.alive && code === 'EIO';
      if (!isLost) this.finish(batch, () => code); // else it stays, and goes again on the next session
    }
  }

  private finish(batch: Batch, codeOf: (index: number) => string | undefined): void {
    const index = this.unanswered.indexOf(batch);
    if (index < 0) return; // answered on an earlier session too
    this.unanswered.splice(index, 1);
    this.unansweredOperations -= batch.operations.length;
    batch.operations.forEach((operation, at) => {
      const code = codeOf(at);
      if (code === undefined) this.events.done(operation);
      else this.events.failed(operation, code);
    });
    const first = this.unanswered[0]?.sequence ?? Infinity;
    const ready = this.waiters.filter(({ sequence }) => sequence < first);
    this.waiters = this.waiters.filter(({ sequence }) => sequence >= first);
    for (const { resolve } of ready) resolve();
  }

  private unreachable(): ExtmemError {
    return new ExtmemError(
      'EIO',
      `${this.unsettled} changes of names are not with the manager: it is not reachable; they go there when it is back`,
    );
  }
}
