/**
 * What clients may ask, operation by operation: which part of the manager does it, and what others are told before it is
 * answered. Nothing is answered before hello.
 */
import { ExtmemError } from '../base/errors.js';
import { clientKey } from '../base/keys.js';
import type { Answer, Ask, Attr, clientOperations } from '../base/messages.js';
import { PROTOCOL_VERSION, Right } from '../base/protocol.js';
import type { Handlers } from '../base/session.js';
import type { Client, ClientSession } from './clients.js';
import { attrOf, findInode, layoutOf, ROOT_INO, type Inode } from './inode.js';
import { directoryLock } from './interest.js';
import { times } from './limits.js';
import { takeNumber } from './metadata_store.js';
import type { Parts } from './parts.js';
import { READ_WRITE } from './regions.js';

type Operations = typeof clientOperations;

export interface ClientConnection {
  handlers: Handlers<Operations>;
  /** Must be called before the first request is handled. */
  attach(session: ClientSession): void;
}

/** What a change of the size brings along. */
const WITH_DATA = ['size', 'dropPrivileges'];

/** address: where the client's session comes from. */
export function clientConnection(parts: Parts, address: string): ClientConnection {
  const { interest, delegations, reclaimer } = parts;
  let session: ClientSession | undefined;
  let client: Client | undefined;
  const me = (): Client => {
    if (client === undefined) throw new ExtmemError('EPROTO', 'hello must come first');
    delegations.checkLive(client);
    return client;
  };
  const done = {};

  const handlers: Handlers<Operations> = {
    ...namespaceHandlers(parts, me),
    ...changeHandlers(parts, me),
    ...contentHandlers(parts, me),
    ...lockHandlers(parts, me),
    hello: async (ask) => {
      if (ask.version !== PROTOCOL_VERSION)
        throw new ExtmemError(
          'EVERSION',
          `this manager speaks version ${PROTOCOL_VERSION}, the client ${ask.version}; install the same extmem on both`,
        );
      if (session === undefined || client !== undefined) throw new ExtmemError('EPROTO', 'hello comes once');
      const keys = await Promise.all((ask.keys ?? []).map((key) => parts.access.digest(key)));
      const welcome = await parts.clients.welcome(ask, session);
      const known = welcome.client;
      known.address = address;
      known.keys = keys;
      client = known;
      void session.closed.then(() => parts.locks.cancelWaits(known.id));
      // It was not told of anything meanwhile, and has dropped what it had cached.
      if (welcome.resumed) interest.forget(known);
      setImmediate(() => {
        void reclaimer.tellFreed(known);
        void parts.protection.tellAgain(known);
      });
      return {
        client: known.id,
        generation: known.generation,
        secret: known.row.secret,
        key: clientKey(parts.clusterKey, known.id, known.generation),
        resumed: welcome.resumed,
        leaseMs: times.leaseMs,
        rootIno: ROOT_INO,
        cluster: parts.clusterName,
        appliances: parts.applianceInfos(),
      };
    },
    renew: () => (me(), done),
    statfs: () => statfs(parts, me()),
    goodbye: async () => {
      await parts.fencing.depart(me());
      setImmediate(() => session?.close('goodbye'));
      return done;
    },
  };
  return { handlers, attach: (opened) => void (session = opened) };
}

type NamespaceName = 'lookup' | 'getattr' | 'readdir' | 'create';

function namespaceHandlers(parts: Parts, me: () => Client): Pick<Handlers<Operations>, NamespaceName> {
  const { store, names, interest, delegations, directories, access } = parts;
  const child = (parent: number, name: string): Inode | undefined => names.lookup(store, parent, name);

  /** Attributes for an answer, at once where nobody needs to be asked. The client is told when those that it may keep change. */
  const attributesFor = (
    client: Client,
    inode: Inode,
  ): { attr: Attr; cacheable: boolean } | Promise<{ attr: Attr; cacheable: boolean }> => {
    access.check(inode, client, 'read-metadata');
    if (inode.kind === 'file' && delegations.hasWriter(inode.ino, client)) return delegations.attributes(client, inode.ino);
    const cacheable = delegations.isCacheable(client, inode.ino);
    if (cacheable) interest.noteAttributes(client, inode.ino);
    return { attr: attrOf(inode), cacheable };
  };

  return {
    lookup: ({ parent, name }) => {
      const client = me();
      return directories.seeing(
        client,
        () => [parent, child(parent, name)],
        () => {
          const inode = child(parent, name);
          interest.noteEntry(client, parent, name);
          return inode === undefined ? { cacheable: true } : attributesFor(client, inode);
        },
      );
    },
    getattr: ({ ino }) => {
      const client = me();
      const find = (): Inode => findInode(store, ino);
      return directories.seeing(
        client,
        () => [find()],
        () => attributesFor(client, find()),
      );
    },
    readdir: (ask) => {
      const client = me();
      const page = (): ReturnType<typeof names.readdir> => names.readdir(store, ask);
      return directories.seeing(
        client,
        () => [ask.ino, ...page().entries.map(({ inode }) => inode)],
        () => {
          const { entries, end } = page();
          return {
            // Whoever may not see what is told of a file sees no name of it either.
            entries: entries.flatMap(({ name, cookie, inode }) => {
              if (!access.allows(inode, client, 'read-metadata')) return [];
              interest.noteEntry(client, ask.ino, name);
              const cacheable = delegations.isCacheable(client, inode.ino);
              if (cacheable) interest.noteAttributes(client, inode.ino);
              return { name, cookie, attr: attrOf(inode), cacheable };
            }),
            end,
          };
        },
      );
    },
    create: (ask) => {
      const client = me();
      return directories.seeing(
        client,
        () => [ask.parent, child(ask.parent, ask.name)],
        () => create(parts, client, ask),
      );
    },
  };
}

type ChangeName = 'link' | 'unlink' | 'rename' | 'names' | 'inodeNumbers' | 'returnDirectories';

function changeHandlers(parts: Parts, me: () => Client): Pick<Handlers<Operations>, ChangeName> {
  const { store, names, interest, directories, reclaimer } = parts;
  const child = (parent: number, name: string): Inode | undefined => names.lookup(store, parent, name);
  return {
    names: (batch) => parts.nameBatches.take(me(), batch),
    inodeNumbers: async ({ count }) => (me(), await store.transact((tx) => ({ first: takeNumber(tx, 'ino', count), count }))),
    returnDirectories: async (ask) => (await directories.giveBack(me(), ask.directories), {}),
    link: async (ask) => {
      const client = me();
      return client.whileBusy([directoryLock(ask.newParent)], () =>
        directories.seeing(
          client,
          () => [ask.newParent, findInode(store, ask.ino)],
          async () => {
            const { attr, changes } = await store.transact((tx) => names.link(tx, ask, client));
            await interest.tell(client, changes);
            interest.noteEntry(client, ask.newParent, ask.newName);
            return { attr, parents: changes.parents };
          },
        ),
      );
    },
    unlink: async (ask) => {
      const client = me();
      return client.whileBusy([directoryLock(ask.parent)], () =>
        directories.seeing(
          client,
          () => [ask.parent, child(ask.parent, ask.name)],
          async () => {
            const { inode, changes, tickets } = await store.transact((tx) => ({
              ...names.unlink(tx, ask, client),
              tickets: reclaimer.ticketsOf(tx),
            }));
            await interest.tell(client, changes);
            reclaimer.start(tickets);
            return { attr: attrOf(inode), parents: changes.parents };
          },
        ),
      );
    },
    rename: async (ask) => {
      const client = me();
      return client.whileBusy([directoryLock(ask.parent), directoryLock(ask.newParent)], () =>
        directories.seeing(
          client,
          () => [ask.parent, ask.newParent, child(ask.parent, ask.name), child(ask.newParent, ask.newName)],
          async () => {
            const { moved, replaced, changes, tickets } = await store.transact((tx) => ({
              ...names.rename(tx, ask, client),
              tickets: reclaimer.ticketsOf(tx),
            }));
            await interest.tell(client, changes);
            reclaimer.start(tickets);
            interest.noteEntry(client, ask.newParent, ask.newName);
            return { moved, parents: changes.parents, ...(replaced === undefined ? {} : { replaced: attrOf(replaced) }) };
          },
        ),
      );
    },
  };
}

type ContentName =
  | 'acquire'
  | 'release'
  | 'gaveUp'
  | 'commit'
  | 'punch'
  | 'extend'
  | 'wrote'
  | 'claimEnd'
  | 'dropCopies'
  | 'giveUpEnd'
  | 'provision'
  | 'regions'
  | 'setattr'
  | 'getxattrs'
  | 'setxattr'
  | 'readlink';

function contentHandlers(parts: Parts, me: () => Client): Pick<Handlers<Operations>, ContentName> {
  const { store, interest, delegations, directories, contents, access } = parts;
  /** What a file is asked for by whoever may not have looked at it yet. */
  const seeing = <T>(client: Client, ino: number, look: () => T): T | Promise<Awaited<T>> =>
    directories.seeing(client, () => [findInode(store, ino)], look);
  return {
    acquire: ({ ino, mode }) => {
      const client = me();
      return seeing(client, ino, () => {
        parts.persistence.checkOpen(ino);
        return delegations.acquire(client, ino, mode);
      });
    },
    gaveUp: async (ask) => (await delegations.gaveUp(me(), ask), {}),
    release: async ({ ino, record }) => (await delegations.release(me(), ino, record), {}),
    commit: ({ records }) => contents.commit(me(), records),
    punch: (ask) => contents.punch(me(), ask),
    extend: (ask) => contents.extend(me(), ask),
    wrote: (ask) => contents.wrote(me(), ask),
    claimEnd: (ask) => contents.claimEnd(me(), ask),
    dropCopies: (ask) => parts.copies.drop(me(), ask),
    giveUpEnd: ({ ino }) => (contents.giveUpEnd(me(), ino), {}),
    provision: async ({ bytes, appliances }) => ({ regions: await parts.provisions.provision(me(), bytes, appliances) }),
    regions: ({ regions: ids }) => ({ regions: regionGrants(parts, me(), ids) }),
    setattr: (ask) => {
      const { size } = ask.set;
      const asker = me();
      return seeing(asker, ask.ino, () => {
        const rest = Object.keys(ask.set).filter((name) => !WITH_DATA.includes(name));
        const inode = findInode(store, ask.ino);
        if (size !== undefined || ask.set.dropPrivileges === true) access.check(inode, asker, 'write');
        if (rest.length > 0 && size === undefined) access.check(inode, asker, 'write-metadata');
        if (size === undefined) return contents.setAttributes(asker, ask);
        const { record, onlyGrow } = ask;
        return contents.truncate(asker, ask.ino, { ...ask.set, size }, { record, onlyGrow });
      });
    },
    getxattrs: ({ ino }) => {
      const client = me();
      return seeing(client, ino, () => {
        access.check(findInode(store, ino), client, 'read-metadata');
        return { xattrs: parts.xattrs.list(ino) };
      });
    },
    setxattr: (ask) => {
      const client = me();
      return seeing(client, ask.ino, async () => {
        const inode = await parts.xattrs.set(ask, client);
        const attr = attrOf(inode);
        await interest.tell(client, { entries: [], attributes: [attr] });
        return { attr };
      });
    },
    readlink: ({ ino }) => {
      me();
      const { target } = findInode(store, ino);
      if (target === undefined) throw new ExtmemError('EINVAL', `inode ${ino} is no symlink`);
      return { target };
    },
  };
}

function lockHandlers(parts: Parts, me: () => Client): Pick<Handlers<Operations>, 'getlk' | 'setlk' | 'cancelLock' | 'restateLocks'> {
  const { store, locks, fencing } = parts;
  return {
    getlk: (lock) => {
      const conflict = locks.getlk(me().id, lock);
      return conflict === undefined ? {} : { conflict };
    },
    setlk: async (ask) => {
      findInode(store, ask.lock.ino);
      const { lock, wait, waiter } = ask;
      const refusedBy = (client: number): void => fencing.wanted(client, 'a lock that it holds is wanted');
      await locks.setlk(me().id, { lock, wait, ...(waiter === undefined ? {} : { waiter }) }, refusedBy);
      return {};
    },
    cancelLock: ({ waiter }) => (locks.cancel(me().id, waiter), {}),
    restateLocks: async ({ ino, locks: held }) => (await locks.restate(me().id, ino, held), {}),
  };
}

async function create(parts: Parts, client: Client, ask: Ask<Operations, 'create'>): Promise<Answer<Operations, 'create'>> {
  const { store, names, interest, delegations, directories } = parts;
  let numbers = { first: 0, count: 0 };
  let born: number | undefined; // known when transact() returns: its body runs at once
  const creating = store.transact((tx) => {
    const made = names.create(tx, ask);
    if (made.isNew && ask.open && ask.kind === 'file') {
      delegations.putNew(tx, client, made.inode);
      born = made.inode.ino;
    }
    if (made.isNew && ask.kind === 'directory' && ask.delegate !== undefined) {
      const count = ask.delegate.numbers;
      directories.put(tx, made.inode.ino, client);
      numbers = { first: takeNumber(tx, 'ino', count), count };
      born = made.inode.ino;
    }
    return made;
  });
  const answer = async (): Promise<Answer<Operations, 'create'>> => {
    const { inode, isNew, changes } = await creating;
    await interest.tell(client, changes);
    interest.noteEntry(client, ask.parent, ask.name);
    if (!ask.open || inode.kind !== 'file') {
      const { attr, cacheable } = await delegations.attributes(client, inode.ino);
      if (cacheable) interest.noteAttributes(client, inode.ino);
      const isDelegated = inode.kind === 'directory' && isNew && directories.isHeldBy(inode.ino, client);
      const delegated = isDelegated ? { delegated: { ...layoutOf(inode), numbers } } : {};
      return { attr, parents: changes.parents, ...delegated };
    }
    const grant = isNew ? delegations.grantOf(client, inode.ino) : await delegations.acquire(client, inode.ino, 'write');
    if (delegations.isCacheable(client, inode.ino)) interest.noteAttributes(client, inode.ino);
    return { attr: grant.attr, parents: changes.parents, grant };
  };
  // Nobody may recall it before its maker knows that it has it.
  return client.whileBusy([directoryLock(ask.parent)], () => (born === undefined ? answer() : delegations.turns.run(born, answer)));
}

/** Rights follow from how the files are open that consist of these regions. */
function regionGrants(parts: Parts, client: Client, ids: readonly number[]): Answer<Operations, 'regions'>['regions'] {
  const { regions, delegations, files, store } = parts;
  const rights = new Map(ids.map((id) => [id, client.granted.get(id)?.rights ?? 0]));
  if ([...rights.values()].some((right) => right !== READ_WRITE)) {
    for (const { ino, holder } of delegations.heldBy(client.id)) {
      const held = holder.row.open === 'write' ? READ_WRITE : Right.read;
      for (const id of files.regionIds(files.extents(store, ino))) if (rights.has(id)) rights.set(id, (rights.get(id) ?? 0) | held);
    }
  }
  return ids.flatMap((id) => {
    const right = rights.get(id) ?? 0;
    const grant = right === 0 ? undefined : regions.grant(client, id, right);
    return grant === undefined ? [] : [grant];
  });
}

function statfs(parts: Parts, client: Client): Answer<Operations, 'statfs'> {
  let totalBytes = 0;
  let freeBytes = 0;
  for (const appliance of parts.appliances.up()) {
    totalBytes += appliance.info.donatedBytes;
    freeBytes += parts.regions.freeBytes(appliance);
  }
  for (const region of parts.regions.all()) {
    const { row } = region;
    const isOurs = row.client === client.id || (row.client === 0 && row.ino === 0);
    if (isOurs && !row.lost && parts.appliances.get(row.appliance)?.isUp === true) freeBytes += region.freeBytes;
  }
  return { totalBytes, freeBytes, files: parts.fileCount() };
}
