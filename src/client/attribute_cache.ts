/**
 * Names, attributes and extended attributes that the manager said may be cached: it tells us before it changes any of them, as
 * long as our lease runs. Bounded (least recently used go first).
 *
 * Invariants: nothing is answered without a lease; nothing is kept that was asked for before an invalidation and answered after
 * it (`beginFill` takes a stamp, `keep*` compares it); a lost session empties everything.
 */
import { LRUCache } from 'lru-cache';
import type { Attr } from '../base/messages.js';
import type { Manager } from './manager.js';

const MAX_ATTRIBUTES = 262_144;
const MAX_ENTRIES = 262_144;
const MAX_XATTR_INODES = 65_536;

export type Xattrs = Record<string, Uint8Array>;
/** When a question was asked, in invalidations. */
export type FillStamp = number;
/** The inode that a cached name leads to; 0: there is no such name. */
const NEGATIVE = 0;

export class AttributeCache {
  private readonly attributes = new LRUCache<number, Attr>({ max: MAX_ATTRIBUTES });
  private readonly entries = new LRUCache<string, number>({ max: MAX_ENTRIES });
  private readonly xattrs = new LRUCache<number, Xattrs>({ max: MAX_XATTR_INODES });
  private invalidations: FillStamp = 0;
  private hits = 0;
  private misses = 0;

  constructor(private readonly manager: Pick<Manager, 'leaseLeftMs'>) {}

  attr(ino: number): Attr | undefined {
    return this.counted(this.valid ? this.attributes.get(ino) : undefined);
  }

  /** The inode of a name, 0 when it is known not to exist, undefined when nothing is known. */
  entry(parent: number, name: string): number | undefined {
    return this.valid ? this.entries.get(entryKey(parent, name)) : undefined;
  }

  xattrsOf(ino: number): Xattrs | undefined {
    return this.counted(this.valid ? this.xattrs.get(ino) : undefined);
  }

  beginFill(): FillStamp {
    return this.invalidations;
  }

  /** Answers whether what was asked at `stamp` may still be believed, that is: handed to the kernel with a lease. */
  mayKeep(stamp: FillStamp): boolean {
    return stamp === this.invalidations && this.valid;
  }

  keepAttr(stamp: FillStamp, attr: Attr): void {
    if (this.mayKeep(stamp)) this.attributes.set(attr.ino, attr);
  }

  keepEntry(stamp: FillStamp, parent: number, name: string, ino: number | undefined): void {
    if (this.mayKeep(stamp)) this.entries.set(entryKey(parent, name), ino ?? NEGATIVE);
  }

  keepXattrs(stamp: FillStamp, ino: number, xattrs: Xattrs): void {
    if (this.mayKeep(stamp)) this.xattrs.set(ino, xattrs);
  }

  /** Somebody else changes it: what is being asked about it just now may be old already. */
  invalidateAttr(ino: number): void {
    this.invalidations += 1;
    this.dropAttr(ino);
  }

  invalidateEntry(parent: number, name: string): void {
    this.invalidations += 1;
    this.entries.delete(entryKey(parent, name));
  }

  /** We changed it ourselves and do not know what it is now. Answers that come later have seen the change. */
  dropAttr(ino: number): void {
    this.attributes.delete(ino);
    this.xattrs.delete(ino);
  }

  dropEntry(parent: number, name: string): void {
    this.entries.delete(entryKey(parent, name));
  }

  /**
   * We changed it ourselves. The manager goes on telling us what it told us before, so what was cached stays cached, with the
   * new value (unless that has been overtaken: answers to two requests may come in another order than they were served). Answers
   * whether it is.
   */
  replaceAttr(attr: Attr): boolean {
    const before = this.valid ? this.attributes.get(attr.ino) : undefined;
    if (before !== undefined && before.change > attr.change) return true;
    this.dropAttr(attr.ino);
    if (before !== undefined) this.attributes.set(attr.ino, attr);
    return before !== undefined;
  }

  /** The same for a name that is gone. */
  replaceEntry(parent: number, name: string): void {
    const key = entryKey(parent, name);
    if (this.valid && this.entries.has(key)) this.entries.set(key, NEGATIVE);
  }

  /** All that the kernel may have been told to believe. */
  *cachedEntries(): Generator<{ parent: number; name: string }> {
    for (const key of this.entries.keys()) {
      const slash = key.indexOf('/');
      yield { parent: Number(key.slice(0, slash)), name: key.slice(slash + 1) };
    }
  }

  cachedInodes(): IterableIterator<number> {
    return this.attributes.keys();
  }

  /** The kernel forgot the inode: nobody will ask soon. What others cached of it stays valid, so the stamp does not move. */
  forget(ino: number): void {
    this.dropAttr(ino);
  }

  clear(): void {
    this.invalidations += 1;
    this.attributes.clear();
    this.entries.clear();
    this.xattrs.clear();
  }

  counters(): Record<string, number> {
    return {
      attributes: this.attributes.size,
      entries: this.entries.size,
      hits: this.hits,
      misses: this.misses,
      invalidations: this.invalidations,
    };
  }

  private get valid(): boolean {
    return this.manager.leaseLeftMs() > 0;
  }

  private counted<Value>(value: Value | undefined): Value | undefined {
    if (value === undefined) this.misses += 1;
    else this.hits += 1;
    return value;
  }
}

/** A name has no '/', so the key is unambiguous. */
function entryKey(parent: number, name: string): string {
  return `${parent}/${name}`;
}
