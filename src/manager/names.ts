/**
 * The name space: directories, entries, links, attributes that belong to no file's contents. Semantics of POSIX and renameat2(2);
 * permissions are checked by the kernel of the mount.
 *
 * Every method runs within a transaction's body and answers, besides the result, what it changed for others to be told (Changes).
 * An inode without names is handed to `unlinked`: the owner of file contents decides when it goes.
 */
import { now } from '../base/clock.js';
import { ExtmemError } from '../base/errors.js';
import type { Ask, Attr, InodeKind, SetAttr, Time, clientOperations } from '../base/messages.js';
import { S_ISGID, withoutPrivileges } from '../base/mode_bits.js';
import type { Access, Identity } from './access.js';
import { attrOf, findDirectory, findInode, FIRST_COOKIE, layoutOf, ROOT_INO, touch, type Entry, type Inode } from './inode.js';
import { limits } from './limits.js';
import { keys, takeNumber, type ReadView, type Transaction } from './metadata_store.js';

export interface Changes {
  entries: { parent: number; name: string }[];
  attributes: Attr[];
  /** Of these, the directories whose names changed. */
  parents: Attr[];
}

const NONE: Changes = { entries: [], attributes: [], parents: [] };

/** The number and the time that a file's maker gave it. */
export interface Made {
  ino: number;
  at: Time;
}

export type CreateAsk = Ask<typeof clientOperations, 'create'>;
export type RenameAsk = Ask<typeof clientOperations, 'rename'>;

export class Names {
  constructor(
    private readonly unlinked: (tx: Transaction, inode: Inode) => void,
    private readonly access: Access,
  ) {}

  ensureRoot(tx: Transaction): void {
    if (tx.get(keys.inode(ROOT_INO)) !== undefined) return;
    const ino = takeNumber(tx, 'ino');
    if (ino !== ROOT_INO) throw new ExtmemError('EIO', 'the store has no root directory, but inodes: it is damaged');
    putInode(tx, { ...newInode(ino, 'directory'), mode: 0o755, nlink: 2, parent: ROOT_INO, nextCookie: FIRST_COOKIE });
  }

  lookup(view: ReadView, parent: number, name: string): Inode | undefined {
    const entry = view.get<Entry>(keys.entry(parent, name));
    if (entry !== undefined) return findInode(view, entry.ino);
    findDirectory(view, parent);
    if (Buffer.byteLength(name) > limits.nameBytes)
      throw new ExtmemError('ENAMETOOLONG', `a name is longer than ${limits.nameBytes} bytes`);
    return undefined;
  }

  readdir(
    view: ReadView,
    ask: { ino: number; cookie: number; limit: number },
  ): { entries: { name: string; cookie: number; inode: Inode }[]; end: boolean } {
    findDirectory(view, ask.ino);
    const entries: { name: string; cookie: number; inode: Inode }[] = [];
    let end = true;
    for (const [key, { name, ino }] of view.scan<Listed>(keys.cookies(ask.ino), {
      after: keys.cookie(ask.ino, ask.cookie),
      limit: ask.limit + 1,
    })) {
      if (entries.length === ask.limit) {
        end = false;
        break;
      }
      entries.push({ name, cookie: keys.lastNumber(key), inode: findInode(view, ino) });
    }
    return { entries, end };
  }

  /** Makes a name, or answers what has it already (isNew false). `made`: its maker has done so already. */
  create(tx: Transaction, ask: CreateAsk, made?: Made): { inode: Inode; isNew: boolean; changes: Changes } {
    checkName(ask.name);
    const existing = tx.get<Entry>(keys.entry(ask.parent, ask.name));
    if (existing !== undefined) {
      if (ask.exclusive) throw new ExtmemError('EEXIST', `'${ask.name}' exists in directory ${ask.parent}`);
      return { inode: findInode(tx, existing.ino), isNew: false, changes: NONE };
    }
    const parent = findDirectory(tx, ask.parent);
    const isDirectory = ask.kind === 'directory';
    if (isDirectory && parent.nlink >= limits.linksPerInode)
      throw new ExtmemError('EMLINK', `directory ${parent.ino} has ${parent.nlink} links`);
    const inode = this.makeInode(tx, ask, parent, made);
    putInode(tx, inode);
    const after = addEntry(
      tx,
      { ...touch(parent, 'contents', made?.at), nlink: parent.nlink + (isDirectory ? 1 : 0) },
      ask.name,
      inode.ino,
    );
    putInode(tx, after);
    return { inode, isNew: true, changes: changesIn([ask], [after]) };
  }

  link(tx: Transaction, ask: { ino: number; newParent: number; newName: string }, who?: Identity): { attr: Attr; changes: Changes } {
    checkName(ask.newName);
    const inode = findInode(tx, ask.ino);
    if (inode.kind === 'directory') throw new ExtmemError('EPERM', `inode ${ask.ino} is a directory: it has one name`);
    this.access.check(inode, who, 'write-metadata');
    if (inode.nlink === 0) throw new ExtmemError('ENOENT', `inode ${ask.ino} has no name any more`);
    if (inode.nlink >= limits.linksPerInode) throw new ExtmemError('EMLINK', `inode ${ask.ino} has ${inode.nlink} names`);
    const parent = findDirectory(tx, ask.newParent);
    if (tx.get(keys.entry(ask.newParent, ask.newName)) !== undefined)
      throw new ExtmemError('EEXIST', `'${ask.newName}' exists in directory ${ask.newParent}`);
    const linked = { ...touch(inode, 'attributes'), nlink: inode.nlink + 1 };
    putInode(tx, linked);
    const after = addEntry(tx, touch(parent, 'contents'), ask.newName, ask.ino);
    putInode(tx, after);
    return { attr: attrOf(linked), changes: changesIn([{ parent: ask.newParent, name: ask.newName }], [after], [linked]) };
  }

  unlink(
    tx: Transaction,
    ask: { parent: number; name: string; directory: boolean; at?: Time },
    who?: Identity,
  ): { inode: Inode; changes: Changes } {
    const parent = findDirectory(tx, ask.parent);
    const { entry, inode } = this.find(tx, ask.parent, ask.name);
    this.access.check(inode, who, 'destroy');
    if (ask.directory) {
      if (inode.kind !== 'directory') throw new ExtmemError('ENOTDIR', `'${ask.name}' is no directory`);
      checkEmpty(tx, inode, ask.name);
    } else if (inode.kind === 'directory') throw new ExtmemError('EISDIR', `'${ask.name}' is a directory`);
    removeEntry(tx, ask.parent, ask.name, entry);
    const after = { ...touch(parent, 'contents', ask.at), nlink: parent.nlink - (ask.directory ? 1 : 0) };
    putInode(tx, after);
    const left = this.loseName(tx, inode, ask.at);
    return { inode: left, changes: changesIn([ask], [after], [left]) };
  }

  rename(tx: Transaction, ask: RenameAsk, who?: Identity): { moved: Attr; replaced: Inode | undefined; changes: Changes } {
    checkName(ask.newName);
    if (ask.exchange && ask.noReplace) throw new ExtmemError('EINVAL', 'rename: exchange and noReplace exclude each other');
    findDirectory(tx, ask.parent);
    findDirectory(tx, ask.newParent);
    const from = this.find(tx, ask.parent, ask.name);
    this.access.check(from.inode, who, 'write-metadata');
    const there = tx.get<Entry>(keys.entry(ask.newParent, ask.newName));
    if (there === undefined && ask.exchange) throw new ExtmemError('ENOENT', `'${ask.newName}' does not exist: nothing to exchange`);
    if (there !== undefined && ask.noReplace) throw new ExtmemError('EEXIST', `'${ask.newName}' exists`);
    this.checkLoop(tx, from.inode, ask.newParent);
    if (there === undefined) return this.move(tx, ask, from);
    const to = { entry: there, inode: findInode(tx, there.ino) };
    if (to.inode.ino === from.inode.ino) return { moved: attrOf(from.inode), replaced: undefined, changes: NONE };
    this.access.check(to.inode, who, ask.exchange ? 'write-metadata' : 'destroy');
    if (!ask.exchange) return this.replace(tx, ask, from, to);
    this.checkLoop(tx, to.inode, ask.parent);
    return this.exchange(tx, ask, from, to);
  }

  /** Everything but the size of a file, which is the business of files.ts. */
  setAttributes(tx: Transaction, inode: Inode, set: SetAttr): Inode {
    const at = now();
    const next: Inode = {
      ...inode,
      change: inode.change + 1,
      ctime: set.ctime ?? at,
      ...(set.mode === undefined ? {} : { mode: set.mode & 0o7777 }),
      ...(set.dropPrivileges === true ? { mode: withoutPrivileges(inode.mode) } : {}),
      ...(set.uid === undefined ? {} : { uid: set.uid }),
      ...(set.gid === undefined ? {} : { gid: set.gid }),
      ...(set.atime === undefined ? {} : { atime: set.atime }),
      ...(set.mtime === undefined ? {} : { mtime: set.mtime }),
    };
    putInode(tx, next);
    return next;
  }

  private makeInode(tx: Transaction, ask: CreateAsk, parent: Inode, made: Made | undefined): Inode {
    // A directory with the set-group-id bit gives its group on, and the bit to directories (the kernel leaves that to us).
    const inherits = (parent.mode & S_ISGID) !== 0;
    const isDirectory = ask.kind === 'directory';
    const mode = ask.kind === 'symlink' ? 0o777 : (ask.mode & 0o7777) | (inherits && isDirectory ? S_ISGID : 0);
    const inode: Inode = {
      ...newInode(made?.ino ?? takeNumber(tx, 'ino'), ask.kind, made?.at),
      mode,
      uid: ask.uid,
      gid: inherits ? parent.gid : ask.gid,
      nlink: isDirectory ? 2 : 1,
      rdev: ask.kind === 'character' || ask.kind === 'block' ? ask.rdev : 0,
      ...(isDirectory ? { parent: parent.ino, nextCookie: FIRST_COOKIE } : {}),
      ...(made === undefined ? {} : { home: parent.ino }),
      ...((isDirectory || ask.kind === 'file') && parent.layout !== undefined ? layoutOf(parent) : {}),
    };
    if (ask.kind !== 'symlink') return inode;
    const target = ask.target ?? '';
    const bytes = Buffer.byteLength(target);
    if (bytes === 0) throw new ExtmemError('ENOENT', `symlink '${ask.name}': its target is empty`);
    if (bytes > limits.symlinkBytes)
      throw new ExtmemError('ENAMETOOLONG', `symlink '${ask.name}': its target is longer than ${limits.symlinkBytes} bytes`);
    return { ...inode, target, size: bytes };
  }

  private move(tx: Transaction, ask: RenameAsk, from: Found) {
    removeEntry(tx, ask.parent, ask.name, from.entry);
    const isDirectory = from.inode.kind === 'directory';
    const parents = this.touchParents(tx, ask, isDirectory ? -1 : 0, isDirectory ? 1 : 0);
    putInode(tx, addEntry(tx, findInode(tx, ask.newParent), ask.newName, from.inode.ino));
    const moved = this.settle(tx, from.inode, ask.newParent);
    return { moved: attrOf(moved), replaced: undefined, changes: changesIn(bothEntries(ask), parents, [moved]) };
  }

  private replace(tx: Transaction, ask: RenameAsk, from: Found, to: Found) {
    const isDirectory = from.inode.kind === 'directory';
    if (isDirectory && to.inode.kind !== 'directory') throw new ExtmemError('ENOTDIR', `'${ask.newName}' is no directory`);
    if (!isDirectory && to.inode.kind === 'directory') throw new ExtmemError('EISDIR', `'${ask.newName}' is a directory`);
    if (isDirectory) checkEmpty(tx, to.inode, ask.newName);
    removeEntry(tx, ask.parent, ask.name, from.entry);
    putEntry(tx, ask.newParent, ask.newName, { ino: from.inode.ino, cookie: to.entry.cookie });
    const parents = this.touchParents(tx, ask, isDirectory ? -1 : 0, 0); // the new parent loses one directory and gains one
    const moved = this.settle(tx, from.inode, ask.newParent);
    const replaced = this.loseName(tx, to.inode);
    return { moved: attrOf(moved), replaced, changes: changesIn(bothEntries(ask), parents, [moved, replaced]) };
  }

  private exchange(tx: Transaction, ask: RenameAsk, from: Found, to: Found) {
    putEntry(tx, ask.newParent, ask.newName, { ino: from.inode.ino, cookie: to.entry.cookie });
    putEntry(tx, ask.parent, ask.name, { ino: to.inode.ino, cookie: from.entry.cookie });
    const moves = Number(from.inode.kind === 'directory') - Number(to.inode.kind === 'directory');
    const parents = this.touchParents(tx, ask, -moves, moves);
    const moved = this.settle(tx, from.inode, ask.newParent);
    const other = this.settle(tx, to.inode, ask.parent);
    return { moved: attrOf(moved), replaced: undefined, changes: changesIn(bothEntries(ask), parents, [moved, other]) };
  }

  private touchParents(tx: Transaction, ask: RenameAsk, oldLinks: number, newLinks: number): Inode[] {
    const at = now();
    const isSame = ask.parent === ask.newParent;
    const old = touch(findInode(tx, ask.parent), 'contents', at);
    const oldAfter = { ...old, nlink: old.nlink + oldLinks + (isSame ? newLinks : 0) };
    putInode(tx, oldAfter);
    if (isSame) return [oldAfter];
    const young = touch(findInode(tx, ask.newParent), 'contents', at);
    const youngAfter = { ...young, nlink: young.nlink + newLinks };
    putInode(tx, youngAfter);
    return [oldAfter, youngAfter];
  }

  /** The inode under its new parent. */
  private settle(tx: Transaction, inode: Inode, parent: number): Inode {
    const present = findInode(tx, inode.ino); // exchanged with its own parent's sibling, it may have been touched above
    const next = {
      ...touch(present, 'attributes'),
      ...(present.kind === 'directory' ? { parent } : {}),
      ...(present.home === undefined ? {} : { home: parent }),
    };
    putInode(tx, next);
    return next;
  }

  private loseName(tx: Transaction, inode: Inode, at?: Time): Inode {
    const nlink = inode.kind === 'directory' ? 0 : inode.nlink - 1;
    const left = { ...touch(inode, 'attributes', at), nlink };
    putInode(tx, left);
    if (nlink === 0) this.unlinked(tx, left);
    return left;
  }

  private find(tx: Transaction, parent: number, name: string): Found {
    const entry = tx.get<Entry>(keys.entry(parent, name));
    if (entry === undefined) throw new ExtmemError('ENOENT', `'${name}' does not exist in directory ${parent}`);
    return { entry, inode: findInode(tx, entry.ino) };
  }

  /** A directory may not come to lie within itself. */
  private checkLoop(tx: Transaction, inode: Inode, newParent: number): void {
    if (inode.kind !== 'directory') return;
    for (let at = newParent; ;) {
      if (at === inode.ino) throw new ExtmemError('EINVAL', `directory ${inode.ino} cannot be moved into itself`);
      if (at === ROOT_INO) return;
      at = findInode(tx, at).parent ?? ROOT_INO;
    }
  }
}

/** A directory's entry in the order of the cookies. */
interface Listed {
  readonly name: string;
  readonly ino: number;
}

interface Found {
  entry: Entry;
  inode: Inode;
}

export function putInode(tx: Transaction, inode: Inode): void {
  tx.put(keys.inode(inode.ino), inode);
}

function newInode(ino: number, kind: InodeKind, at = now()): Inode {
  return {
    ino,
    kind,
    mode: 0,
    uid: 0,
    gid: 0,
    nlink: 1,
    rdev: 0,
    size: 0,
    blocks: 0,
    atime: at,
    mtime: at,
    ctime: at,
    change: 1,
    epoch: 1,
  };
}

/** Answers the parent as it is afterwards; the caller puts it. */
function addEntry(tx: Transaction, parent: Inode, name: string, ino: number): Inode {
  const cookie = parent.nextCookie ?? FIRST_COOKIE;
  putEntry(tx, parent.ino, name, { ino, cookie });
  return { ...parent, nextCookie: cookie + 1 };
}

function putEntry(tx: Transaction, parent: number, name: string, entry: Entry): void {
  tx.put(keys.entry(parent, name), entry);
  tx.put(keys.cookie(parent, entry.cookie), { name, ino: entry.ino } satisfies Listed);
}

function removeEntry(tx: Transaction, parent: number, name: string, entry: Entry): void {
  tx.remove(keys.entry(parent, name));
  tx.remove(keys.cookie(parent, entry.cookie));
}

function changesIn(
  entries: readonly { parent: number; name: string }[],
  parents: readonly Inode[],
  others: readonly Inode[] = [],
): Changes {
  const changed = parents.map(attrOf);
  return {
    entries: entries.map(({ parent, name }) => ({ parent, name })),
    attributes: [...others.map(attrOf), ...changed],
    parents: changed,
  };
}

function bothEntries(ask: RenameAsk): Changes['entries'] {
  return [
    { parent: ask.parent, name: ask.name },
    { parent: ask.newParent, name: ask.newName },
  ];
}

function checkEmpty(tx: Transaction, inode: Inode, name: string): void {
  for (const _ of tx.scan(keys.cookies(inode.ino), { limit: 1 })) throw new ExtmemError('ENOTEMPTY', `directory '${name}' is not empty`);
}

function checkName(name: string): void {
  if (name === '.' || name === '..' || name.includes('/') || name.includes('\0'))
    throw new ExtmemError('EINVAL', `'${name}' cannot be a name`);
  if (Buffer.byteLength(name) > limits.nameBytes) throw new ExtmemError('ENAMETOOLONG', `a name is longer than ${limits.nameBytes} bytes`);
}
