/**
 * What native's reactors ask while they write: that the manager learns of a record, more room, agreement on extents of a shared
 * file, and that others drop what was just overwritten. Every question with an id is answered exactly once.
 */
import { codeOf, ExtmemError } from '../base/errors.js';
import type { Logger } from '../base/logger.js';
import { decodeRecord, encodeRecord, mergeExtents, recordChange } from '../base/file_record.js';
import type { NativeMount, Upcall } from '../binding/index.js';
import type { AttributeCache } from './attribute_cache.js';
import type { BoundedWait } from './bounded_wait.js';
import type { Commits } from './commits.js';
import type { HeldFiles } from './held_files.js';
import type { LockKeeper } from './lock_keeper.js';
import type { Manager } from './manager.js';
import type { LocalDirectories } from './local_directories.js';
import type { KnownRegions } from './regions.js';
import type { Reserve } from './reserve.js';

export type Question = Extract<
  Upcall,
  { kind: 'commit' | 'provision' | 'extend' | 'wrote' | 'claimEnd' | 'giveUpEnd' | 'dropPrivileges' | 'dropCopies' }
>;
type Asked<Kind extends Question['kind']> = Extract<Question, { kind: Kind }>;

export interface UpcallParts {
  manager: Manager;
  native: NativeMount;
  cache: AttributeCache;
  held: HeldFiles;
  regions: KnownRegions;
  locks: LockKeeper;
  commits: Commits;
  directories: LocalDirectories;
  reserve: Reserve;
  wait: BoundedWait;
  log: Logger;
  /** The one map of failures to errno (src/fs/errno.ts), given from above. */
  errnoOf: (failure: unknown) => { errno: number; expected: boolean };
}

export class Upcalls {
  constructor(private readonly parts: UpcallParts) {}

  answer(question: Question): void {
    const { native, errnoOf, log } = this.parts;
    this.handle(question)
      .then(
        (record) => native.answer(question.id, 0, record),
        (error: unknown) => {
          const { errno, expected } = errnoOf(error);
          if (!expected) log.error({ kind: question.kind, error }, 'answering the data path failed');
          native.answer(question.id, errno);
        },
      )
      .catch((error: unknown) => log.debug({ error }, 'an answer came after the mount was closed'));
  }

  private handle(question: Question): Promise<Uint8Array | undefined> {
    switch (question.kind) {
      case 'commit':
        return this.commit(question);
      case 'provision':
        return this.parts.reserve.provide(question.bytes).then(() => undefined);
      case 'extend':
        return this.extend(question);
      case 'wrote':
        return this.wrote(question);
      case 'claimEnd':
        return this.claimEnd(question);
      case 'giveUpEnd':
        return this.giveUpEnd(question);
      case 'dropPrivileges':
        return this.dropPrivileges(question);
      case 'dropCopies':
        return this.dropCopies(question);
    }
  }

  /** The manager takes records from whoever holds a file for writing; of others it makes sure that what it has survives. */
  private async commit({ node, record, owner }: Asked<'commit'>): Promise<undefined> {
    const { held, commits, directories, locks } = this.parts;
    const file = held.get(node);
    const isUnannounced = directories.isUnannounced(node);
    try {
      // Its record is not ours to promise before the manager said whether it was truncated.
      if (file?.uncertain === true)
        throw new ExtmemError('EIO', `committing inode ${node}: a truncation is uncertain until the manager is back`);
      if (file?.unlinked !== false) return;
      if (directories.isRefused(node)) throw new ExtmemError('EIO', `committing inode ${node}: the manager did not take its name`);
      if (record.length > 0) await commits.commit(node, record);
      else if (isUnannounced) await directories.settled();
    } catch (error) {
      // Without its name the record beside its first region is of no use to anybody.
      if (isUnannounced && codeOf(error) === 'ENOTCONN')
        throw new ExtmemError('EIO', `committing inode ${node}: the manager died before it knew the file`, { cause: error });
      throw error;
    } finally {
      if (owner !== '') await locks.releaseOwner(node, owner, false);
    }
  }

  private async extend({ node, record, offset, length }: Asked<'extend'>): Promise<Uint8Array> {
    const { held, manager, native, regions, cache } = this.parts;
    if (length === 0 && held.get(node)?.soleHolder === true) return this.extendAlone(node, record);
    const room = length === 0 ? {} : { room: { offset, length } };
    const agreed = await manager.ask('extend', { ino: node, record, ...room });
    regions.put(agreed.regions);
    const file = held.get(node); // native takes the record itself, unless it has a newer one by now
    if (file !== undefined && file.mode !== 'write') file.recordChange = Math.max(file.recordChange, recordChange(agreed.record));
    if (agreed.unused.length > 0) native.freeSlabs(agreed.unused);
    cache.dropAttr(node);
    return agreed.record;
  }

  /** The manager waits for our answer to its recall, and this write is part of that: nobody else has the file yet. */
  private extendAlone(node: number, proposed: Uint8Array): Uint8Array {
    const { native } = this.parts;
    const { record, unused } = mergeExtents(decodeRecord(native.record(node, false)), decodeRecord(proposed));
    const merged = encodeRecord(record);
    native.putFile(node, 'shared', merged); // before the answer: the recall's record must have it
    if (unused.length > 0) native.freeSlabs(unused);
    return merged;
  }

  private async wrote({ node, offset, length, mtimeSec, mtimeNsec, holdsPages }: Asked<'wrote'>): Promise<undefined> {
    const { held, manager, cache } = this.parts;
    const file = held.get(node);
    if (file?.soleHolder === true) return;
    const { attr } = await manager.ask('wrote', { ino: node, offset, length, mtime: [mtimeSec, mtimeNsec], holdsPages });
    held.noteAttr(attr);
    cache.dropAttr(node);
  }

  private async claimEnd({ node, holdsPages }: Asked<'claimEnd'>): Promise<undefined> {
    const { held, manager, native, regions } = this.parts;
    const file = held.get(node);
    if (file?.handingOver === true) throw new ExtmemError('EAGAIN', `the end of inode ${node} is being handed over`);
    if (file?.soleHolder === true) return;
    const { attr, record } = await manager.ask('claimEnd', { ino: node, unclean: file?.unclean === true, holdsPages });
    const heldNow = held.get(node);
    if (heldNow !== undefined) heldNow.unclean = false;
    if (record !== undefined) {
      await regions.fetchFor(record, true);
      if (heldNow !== undefined && heldNow === held.get(node)) held.noteRecord(heldNow, record);
    }
    held.noteAttr(attr);
    native.setSize(node, attr.size);
  }

  /** Told again with the next session if it cannot be told now. */
  private async giveUpEnd({ node }: Asked<'giveUpEnd'>): Promise<undefined> {
    const { held, manager } = this.parts;
    const file = held.get(node);
    if (file === undefined) return;
    file.unclean = true;
    await manager.ask('giveUpEnd', { ino: node });
    file.unclean = false;
  }

  /** Native takes from the answer which copies count; the rest of it is older than what it has, of a file that it writes to. */
  private async dropCopies({ node, record, places }: Asked<'dropCopies'>): Promise<Uint8Array> {
    const { manager, held } = this.parts;
    if (held.get(node)?.uncertain === true)
      throw new ExtmemError('EIO', `dropping copies of inode ${node}: a truncation is uncertain until the manager is back`);
    return (await manager.ask('dropCopies', { ino: node, record, places })).record;
  }

  /** As the kernel does it for what goes through its cache (inode(7)). */
  private async dropPrivileges({ node }: Asked<'dropPrivileges'>): Promise<undefined> {
    const { held, manager, native, cache, wait } = this.parts;
    const { attr } = await manager.ask('setattr', { ino: node, set: { dropPrivileges: true } });
    held.noteAttr(attr);
    cache.replaceAttr(attr);
    await wait.settle(native.invalidateInode(node, -1, 0), 'attributes'); // only these: what the kernel locks of it is the writer's
  }
}
