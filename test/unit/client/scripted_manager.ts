/** A manager session for unit tests: answers what a test scripted, writes down what it was asked, and plays the manager's pushes. */
import { ExtmemError } from '../../../src/base/errors.js';
import { encodeRecord } from '../../../src/base/file_record.js';
import type { Answer, Ask, Attr, FileGrant } from '../../../src/base/messages.js';
import type { ClientOperations, PushHandlers } from '../../../src/client/manager.js';
import type { Hello, SessionEvents } from '../../../src/client/manager_session.js';
import type { ClientSession } from '../../../src/client/mount_client.js';

type Script = {
  -readonly [Name in keyof ClientOperations]?: (
    ask: Ask<ClientOperations, Name>,
  ) => Answer<ClientOperations, Name> | Promise<Answer<ClientOperations, Name>>;
};

export class ScriptedManager implements ClientSession {
  alive = true;
  leaseMs = 4000;
  readonly asked: { name: string; ask: unknown }[] = [];
  script: Script = { gaveUp: () => ({}) };
  pushes: PushHandlers | undefined;
  events: SessionEvents | undefined;
  closedWith: { goodbye: boolean } | undefined;

  readonly hello: Hello = {
    client: 7,
    generation: 1,
    secret: 's',
    key: new Uint8Array(32),
    resumed: false,
    leaseMs: 4000,
    rootIno: 1,
    cluster: 'test',
    appliances: [],
  };

  leaseLeftMs(): number {
    return this.alive ? this.leaseMs : 0;
  }

  async ask<Name extends keyof ClientOperations>(name: Name, ask: Ask<ClientOperations, Name>): Promise<Answer<ClientOperations, Name>> {
    this.asked.push({ name, ask });
    await Promise.resolve();
    if (!this.alive) throw new ExtmemError('EIO', 'the manager is dead');
    const answer = this.script[name];
    if (answer === undefined) throw new ExtmemError('ENOSYS', `the test did not script ${name}`);
    return answer(ask);
  }

  serve(pushes: PushHandlers, events: SessionEvents): void {
    this.pushes = pushes;
    this.events = events;
  }

  close(options: { goodbye: boolean }): Promise<void> {
    this.closedWith = options;
    return Promise.resolve();
  }

  counters(): Record<string, unknown> {
    return {};
  }

  /** What was asked since the last call of this. */
  takeAsked(): string[] {
    return this.asked.splice(0).map(({ name }) => name);
  }
}

export function attrOfFile(ino: number, changes: Partial<Attr> = {}): Attr {
  return {
    ino,
    kind: 'file',
    mode: 0o644,
    uid: 0,
    gid: 0,
    nlink: 1,
    rdev: 0,
    size: 0,
    blocks: 0,
    atime: [1000, 0],
    mtime: [1000, 0],
    ctime: [1000, 0],
    change: 1,
    ...changes,
  };
}

export function emptyRecord(ino: number, changes: { size?: number; change?: number } = {}): Buffer {
  return encodeRecord({
    ino,
    layout: 'concat',
    stripeUnit: 2097152,
    size: changes.size ?? 0,
    mtime: [1000, 0],
    ctime: [1000, 0],
    change: changes.change ?? 1,
    epoch: 1,
    extents: [],
  });
}

export function grantOf(ino: number, mode: FileGrant['mode'], changes: { size?: number; change?: number } = {}): FileGrant {
  const delegation = mode === 'write' ? { delegation: 1 } : {};
  return { mode, ...delegation, attr: attrOfFile(ino, changes), record: emptyRecord(ino, changes), regions: [] };
}
