/**
 * The manager as the rest of the client sees it: one way to ask, and what is known of the session. Implemented by
 * manager_session.ts; tests of the layers above pass their own.
 */
import type { Answer, Ask, clientOperations, clientPushes } from '../base/messages.js';

export type ClientOperations = typeof clientOperations;
export type ClientPushes = typeof clientPushes;

/** A method per push; the answer is sent when it returns or its promise settles. */
export type PushHandlers = {
  [Name in keyof ClientPushes]: (ask: Ask<ClientPushes, Name>) => Promise<Answer<ClientPushes, Name>> | Answer<ClientPushes, Name>;
};

export interface Manager {
  /** False from the moment the session is known to be dead until it is resumed: every ask then fails at once with EIO. */
  readonly alive: boolean;
  /** For how long, from now on, the manager tells us before anything changes that it said to be cacheable. 0 when dead. */
  leaseLeftMs(): number;
  ask<Name extends keyof ClientOperations>(name: Name, ask: Ask<ClientOperations, Name>): Promise<Answer<ClientOperations, Name>>;
}
