/**
 * Which client may have cached which names and attributes, and telling them when those change.
 *
 * A name or an attribute that is not in here is cached by nobody else. Telling waits for every answer, but never longer than a
 * lease: no kernel keeps an entry or attributes for longer than that.
 */
import type { Logger } from '../base/logger.js';
import type { Attr } from '../base/messages.js';
import type { Client, Clients } from './clients.js';
import { limits, times } from './limits.js';
import type { Changes } from './names.js';

const EVICTION_BATCH = 1000;

/** Something that a kernel may hold locked while its client asks for a change in this directory. */
export function directoryLock(ino: number): string {
  return `d${ino}`;
}

class InterestSet {
  private readonly byThing = new Map<string, Set<Client>>();
  private readonly byClient = new Map<Client, Set<string>>();

  /** Answers things that the client must be told to drop, because it has too many. */
  add(client: Client, thing: string): string[] {
    let things = this.byClient.get(client);
    if (things === undefined) this.byClient.set(client, (things = new Set()));
    if (things.has(thing)) return [];
    things.add(thing);
    const clients = this.byThing.get(thing);
    if (clients === undefined) this.byThing.set(thing, new Set([client]));
    else clients.add(client);
    if (things.size <= limits.interestPerClient) return [];
    const oldest: string[] = [];
    for (const old of things) {
      if (oldest.length === EVICTION_BATCH) break;
      oldest.push(old);
    }
    for (const old of oldest) this.drop(client, old);
    return oldest;
  }

  /** Everybody but `except` who has it; they have it no more (they are being told). */
  take(thing: string, except: Client | undefined): Client[] {
    const clients = this.byThing.get(thing);
    if (clients === undefined) return [];
    const others = [...clients].filter((client) => client !== except);
    for (const client of others) this.drop(client, thing);
    return others;
  }

  forget(client: Client): void {
    for (const thing of this.byClient.get(client) ?? []) this.drop(client, thing);
    this.byClient.delete(client);
  }

  private drop(client: Client, thing: string): void {
    this.byClient.get(client)?.delete(thing);
    const clients = this.byThing.get(thing);
    clients?.delete(client);
    if (clients?.size === 0) this.byThing.delete(thing);
  }
}

interface Notice {
  entries: { parent: number; name: string }[];
  attributes: Attr[];
}

export class Interest {
  private readonly names = new InterestSet();
  private readonly attributes = new InterestSet();

  constructor(
    private readonly clients: Clients,
    private readonly log: Logger,
  ) {}

  noteEntry(client: Client, parent: number, name: string): void {
    const evicted = this.names.add(client, `${parent}/${name}`);
    if (evicted.length > 0) void this.send(client, { entries: evicted.map(parseEntry), attributes: [] });
  }

  noteAttributes(client: Client, ino: number): void {
    const evicted = this.attributes.add(client, String(ino));
    for (const old of evicted)
      void this.clients.tell(client, 'invalidate', { ino: Number(old), offset: 0, length: 0 }, { limitMs: times.leaseMs });
  }

  /** Tells all others what changed, and waits until none of them can see what was before. */
  async tell(except: Client | undefined, changes: Omit<Changes, 'parents'>): Promise<void> {
    const notices = new Map<Client, Notice>();
    const noticeTo = (client: Client): Notice => {
      let notice = notices.get(client);
      if (notice === undefined) notices.set(client, (notice = { entries: [], attributes: [] }));
      return notice;
    };
    for (const entry of changes.entries) {
      for (const client of this.names.take(`${entry.parent}/${entry.name}`, except)) noticeTo(client).entries.push(entry);
    }
    for (const attr of changes.attributes) {
      for (const client of this.attributes.take(String(attr.ino), except)) noticeTo(client).attributes.push(attr);
    }
    if (notices.size > 0) await Promise.all([...notices].map(([client, notice]) => this.send(client, notice)));
  }

  /** Nobody believes what it has cached of an inode's attributes; what they are it asks, if it may. */
  async forgetAttributes(ino: number): Promise<void> {
    const meant = this.attributes.take(String(ino), undefined);
    await Promise.all(
      meant.map((client) => this.clients.tell(client, 'invalidate', { ino, offset: 0, length: 0 }, { limitMs: times.leaseMs })),
    );
  }

  forget(client: Client): void {
    this.names.forget(client);
    this.attributes.forget(client);
  }

  private async send(client: Client, notice: Notice): Promise<void> {
    const limitMs = times.leaseMs;
    const told = notice.attributes.map((attr) =>
      this.clients.tell(client, 'invalidate', { ino: attr.ino, offset: 0, length: 0, attr }, { limitMs }),
    );
    if (notice.entries.length > 0) {
      // Two mounts that change the same directory at once would wait for each other's directory lock.
      const unlessBusyWith = notice.entries.map((entry) => directoryLock(entry.parent));
      told.push(this.clients.tell(client, 'invalidateEntries', { entries: notice.entries }, { limitMs, unlessBusyWith }));
    }
    for (const outcome of await Promise.all(told)) {
      if (outcome.status === 'failed')
        this.log.warn({ client: client.id, why: outcome.error.message }, 'a client failed to drop what it had cached');
    }
  }
}

function parseEntry(thing: string): { parent: number; name: string } {
  const slash = thing.indexOf('/');
  return { parent: Number(thing.slice(0, slash)), name: thing.slice(slash + 1) };
}
