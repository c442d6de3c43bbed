/**
 * What others wait for a client to give up. It has a bounded time for that; if it does not answer it is fenced, and has given up
 * everything.
 */
import { ExtmemError } from '../base/errors.js';
import type { Answer, Ask, clientPushes } from '../base/messages.js';
import { RECALL_TIMEOUT_MS } from '../base/protocol.js';
import type { Client, Clients } from './clients.js';

type Pushes = typeof clientPushes;

export interface DemandParts {
  clients: Clients;
  fence(client: Client, why: string): Promise<void>;
}

export interface Demand<Name extends keyof Pushes> {
  op: Name;
  ask: Ask<Pushes, Name>;
  /** What the client is to do, in words. */
  deed: string;
  /** Asked when it has answered, or did not: whether anybody still waits for it. */
  stands?: () => boolean;
}

/** The client's answer; undefined when it is fenced instead, or the demand stands no more. Throws when it cannot do it. */
export async function demand<Name extends keyof Pushes>(
  parts: DemandParts,
  client: Client,
  { op, ask, deed, stands = () => true }: Demand<Name>,
): Promise<Answer<Pushes, Name> | undefined> {
  const told = await parts.clients.tell(client, op, ask, { limitMs: RECALL_TIMEOUT_MS, again: true });
  if (!stands()) return undefined;
  // It lives, and cannot do this (write back to an appliance that is dead, say): what else it holds is not to suffer for it.
  if (told.status === 'failed') throw new ExtmemError('EIO', `client ${client.id} cannot ${deed}: ${told.error.message}`);
  if (told.status === 'answered') return told.answer;
  await parts.fence(client, `it did not ${deed} (${told.status})`);
  return undefined;
}
