/**
 * Extended attributes: those that programs set, and `user.extmem.*`, which say and set how a file is kept (E5).
 */
import { ExtmemError } from '../base/errors.js';
import { DEFAULT_LAYOUT, formatLayout, parseAcross, parseLayout } from '../base/layout.js';
import type { Ask, clientOperations } from '../base/messages.js';
import type { Allocations } from './allocations.js';
import type { Identity } from './access.js';
import type { Delegations } from './delegations.js';
import type { Files } from './files.js';
import { checkLabel, findInode, layoutOf, touch, type Inode } from './inode.js';
import { limits } from './limits.js';
import { keys, type MetadataStore, type Transaction } from './metadata_store.js';
import { putInode } from './names.js';
import type { Protection } from './protection.js';

const OURS = 'user.extmem.';
const LAYOUT = 'user.extmem.layout';
const ACROSS = 'user.extmem.across';
const DURABILITY = 'user.extmem.durability';
const ACCESS = 'user.extmem.access';
const LABEL = 'user.extmem.label';

type Stored = Record<string, Uint8Array>;
type SetAsk = Ask<typeof clientOperations, 'setxattr'>;

export interface XattrParts {
  store: MetadataStore;
  files: Files;
  delegations: Delegations;
  allocations: Allocations;
  protection: Protection;
}

function setDurability(inode: Inode, ask: SetAsk): Inode {
  if (inode.kind !== 'file') throw new ExtmemError('EPERM', `inode ${inode.ino} is no file: it has no durability`);
  const asked = ask.value === undefined ? 'memory' : Buffer.from(ask.value).toString();
  if (asked !== 'memory' && asked !== 'persisted') throw new ExtmemError('EINVAL', `'${asked}' is no durability; memory and persisted are`);
  const { durability: _, ...rest } = touch(inode, 'attributes');
  return asked === 'memory' ? rest : { ...rest, durability: asked };
}

function setLabel(inode: Inode, ask: SetAsk): Inode {
  const { label: _, ...rest } = touch(inode, 'attributes');
  const label = ask.value === undefined ? '' : checkLabel(Buffer.from(ask.value).toString());
  return label === '' ? rest : { ...rest, label };
}

/** Of the layout or of what its copies must not share, the one that is set, or unset. */
function withLayout(inode: Inode, ask: SetAsk): Inode {
  const word = ask.value === undefined ? undefined : Buffer.from(ask.value).toString();
  if (ask.name === ACROSS) {
    const { across: _, ...rest } = inode;
    return word === undefined ? rest : { ...rest, across: parseAcross(word) };
  }
  const { layout: _layout, copies: _copies, ...rest } = inode;
  return { ...rest, ...(word === undefined ? DEFAULT_LAYOUT : parseLayout(word)) };
}

export class Xattrs {
  constructor(private readonly parts: XattrParts) {}

  list(ino: number): Stored {
    const { store, delegations, allocations } = this.parts;
    const inode = findInode(store, ino);
    const all: Stored = { ...store.get<Stored>(keys.xattrs(ino)) };
    if (inode.kind !== 'file' && inode.kind !== 'directory') return all;
    all[LAYOUT] = Buffer.from(formatLayout(layoutOf(inode)));
    if (inode.across !== undefined) all[ACROSS] = Buffer.from(inode.across);
    if (inode.label !== undefined) all[LABEL] = Buffer.from(inode.label);
    if (inode.kind === 'directory') return all;
    all[DURABILITY] = Buffer.from(inode.durability ?? 'memory');
    all[ACCESS] = Buffer.from(this.parts.protection.describe(inode).rules);
    all[`${OURS}placement`] = Buffer.from(JSON.stringify(allocations.placementOf(ino)));
    const holders = delegations.holders(ino).map(({ client, row }) => ({ client, mode: row.mode, open: row.open }));
    all[`${OURS}lease`] = Buffer.from(JSON.stringify(holders));
    return all;
  }

  async set(ask: SetAsk, who: Identity): Promise<Inode> {
    const { store, protection } = this.parts;
    protection.checkChange(findInode(store, ask.ino), who);
    if (ask.name === ACCESS) {
      const rules = ask.value === undefined ? '' : Buffer.from(ask.value).toString();
      return (await protection.change(ask.ino, { rules }, who)).inode;
    }
    return this.parts.store.transact((tx) => {
      const inode = findInode(tx, ask.ino);
      const next = ask.name.startsWith(OURS) ? this.setOurs(inode, ask) : this.setStored(tx, inode, ask);
      putInode(tx, next);
      return next;
    });
  }

  private setOurs(inode: Inode, ask: SetAsk): Inode {
    if (ask.name === DURABILITY) return setDurability(inode, ask);
    if (ask.name === LABEL && (inode.kind === 'file' || inode.kind === 'directory')) return setLabel(inode, ask);
    if (ask.name !== LAYOUT && ask.name !== ACROSS) throw new ExtmemError('EPERM', `${ask.name} says how things are; it cannot be set`);
    if (inode.kind !== 'file' && inode.kind !== 'directory') throw new ExtmemError('EPERM', `inode ${inode.ino} has no layout`);
    const next = withLayout(inode, ask);
    this.parts.allocations.checkApart(layoutOf(next));
    if (inode.kind === 'file') {
      const { store, files, delegations } = this.parts;
      const isEmpty = inode.size === 0 && files.extents(store, inode.ino).length === 0;
      if (!isEmpty) throw new ExtmemError('EBUSY', `inode ${inode.ino} has contents: its layout is chosen while it is empty`);
      if (delegations.isHeld(inode.ino)) throw new ExtmemError('EBUSY', `inode ${inode.ino} is open: its layout is chosen before`);
    }
    return touch(next, 'attributes');
  }

  private setStored(tx: Transaction, inode: Inode, ask: SetAsk): Inode {
    if (!/^(user|trusted|security)\../.test(ask.name))
      throw new ExtmemError('EOPNOTSUPP', `extended attribute ${ask.name}: names begin with user., trusted. or security.`);
    const stored = tx.get<Stored>(keys.xattrs(inode.ino)) ?? {};
    const exists = Object.hasOwn(stored, ask.name);
    const { [ask.name]: _, ...others } = stored;
    if (ask.value === undefined) {
      if (!exists) throw new ExtmemError('ENODATA', `inode ${inode.ino} has no ${ask.name}`);
      if (Object.keys(others).length === 0) tx.remove(keys.xattrs(inode.ino));
      else tx.put(keys.xattrs(inode.ino), others);
      return touch(inode, 'attributes');
    }
    if (ask.create && exists) throw new ExtmemError('EEXIST', `inode ${inode.ino} has ${ask.name} already`);
    if (ask.replace && !exists) throw new ExtmemError('ENODATA', `inode ${inode.ino} has no ${ask.name}`);
    if (ask.value.length > limits.xattrValueBytes)
      throw new ExtmemError('E2BIG', `an extended attribute is larger than ${limits.xattrValueBytes} bytes`);
    const all: Stored = { ...others, [ask.name]: Uint8Array.from(ask.value) };
    const bytes = Object.entries(all).reduce((sum, [name, value]) => sum + Buffer.byteLength(name) + value.length, 0);
    if (Object.keys(all).length > limits.xattrsPerInode || bytes > limits.xattrBytesPerInode)
      throw new ExtmemError('ENOSPC', `inode ${inode.ino} has no room for more extended attributes`);
    tx.put(keys.xattrs(inode.ino), all);
    return touch(inode, 'attributes');
  }
}
