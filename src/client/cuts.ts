/**
 * Changes of a file's extents that only the manager may make: truncation both ways, and freeing a range. Native is kept from
 * filling or writing the range meanwhile (beginCut … endCut), so that nothing lands in memory that is somebody else's already.
 */
import { ExtmemError } from '../base/errors.js';
import type { Attr, SetAttr } from '../base/messages.js';
import { recordChange } from '../base/file_record.js';
import type { NativeMount } from '../binding/index.js';
import type { HeldFile, HeldFiles } from './held_files.js';
import type { Manager } from './manager.js';
import type { KnownRegions } from './regions.js';

export class Cuts {
  constructor(
    private readonly manager: Manager,
    private readonly native: NativeMount,
    private readonly held: HeldFiles,
    private readonly regions: KnownRegions,
  ) {}

  /** setattr with a size, of a file that is open here or not. */
  async resize(ino: number, set: SetAttr & { size: number }): Promise<Attr> {
    const file = await this.settled(ino);
    if (file === undefined) return (await this.manager.ask('setattr', { ino, set })).attr;
    const { attr } = await this.cut(file, set.size, -1, () => this.manager.ask('setattr', { ino, set, ...this.ownRecord(file) }));
    this.held.noteAttr(attr);
    return attr;
  }

  /** Frees [offset, offset+length), and zeroes what of it is not whole pages: it reads as zeros, the size stays. */
  async punch(ino: number, offset: number, length: number): Promise<void> {
    const file = await this.settled(ino);
    if (file === undefined) throw new ExtmemError('EBADF', `punching a hole into inode ${ino}: it is not open`);
    await this.cut(file, offset, length, () => this.manager.ask('punch', { ino, offset, length, ...this.ownRecord(file) }));
  }

  private async cut<Answer extends { attr?: Attr; record?: Uint8Array | undefined; edgesZeroed?: boolean | undefined }>(
    file: HeldFile,
    offset: number,
    length: number,
    ask: () => Promise<Answer>,
  ): Promise<Answer> {
    const { ino } = file;
    // Nothing was asked, nothing is uncertain.
    if (!this.manager.alive)
      throw new ExtmemError('EIO', `changing the size of inode ${ino}: the manager is not reachable; this works again when it is back`);
    await this.native.beginCut(ino, offset, length);
    let answer: Answer;
    try {
      if (this.held.get(ino) !== file) throw new ExtmemError('EIO', `changing the size of inode ${ino}: this mount was fenced meanwhile`);
      answer = await ask();
      if (answer.record !== undefined) await this.regions.fetchFor(answer.record, file.asked === 'write');
    } catch (error) {
      // Without an answer nobody knows whether it was done; after the session is resumed the manager's record decides.
      if (!this.manager.alive) file.uncertain = true;
      await this.native.endCut(ino);
      throw error;
    }
    await this.install(file, answer);
    return answer;
  }

  /** What others did to a shared file after the cut may have been told before the cut's answer. */
  private async install(file: HeldFile, { record, edgesZeroed }: { record?: Uint8Array | undefined; edgesZeroed?: boolean | undefined }) {
    const { ino } = file;
    const isNewest = record === undefined || recordChange(record) >= file.recordChange;
    if (isNewest && record !== undefined) file.recordChange = recordChange(record);
    const installed = this.native.endCut(ino, isNewest ? record : this.native.record(ino, false), edgesZeroed === true);
    const settled: Promise<void> = installed
      .catch(() => undefined)
      .then(() => {
        if (file.installing === settled) file.installing = undefined;
      });
    file.installing = settled;
    await installed;
  }

  private ownRecord(file: HeldFile): { record?: Uint8Array } {
    return file.mode === 'write' ? { record: this.native.record(file.ino, false) } : {};
  }

  private async settled(ino: number): Promise<HeldFile | undefined> {
    let file = this.held.get(ino);
    for (; file?.changing !== undefined; file = this.held.get(ino)) await file.changing;
    return file;
  }
}
