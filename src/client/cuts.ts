/**
 * Changes of a file's extents that only the manager may make: truncation both ways, and freeing a range. Of a file that is held
 * for writing native is kept from filling or writing the range meanwhile (beginCut … endCut), so that nothing lands in memory
 * that is somebody else's already. Of a shared file the manager pauses the writers of all mounts, ours too (pushes.ts).
 */
import { codeOf, ExtmemError } from '../base/errors.js';
import type { Attr, SetAttr } from '../base/messages.js';
import { recordChange } from '../base/file_record.js';
import type { NativeMount } from '../binding/index.js';
import type { HeldFile, HeldFiles } from './held_files.js';
import type { Manager } from './manager.js';
import type { KnownRegions } from './regions.js';

/** Each failed attempt means that the delegation has changed once more. */
const MAX_ATTEMPTS = 20;

interface Answered {
  attr?: Attr;
  record?: Uint8Array | undefined;
  edgesZeroed?: boolean | undefined;
}

export class Cuts {
  constructor(
    private readonly manager: Manager,
    private readonly native: NativeMount,
    private readonly held: HeldFiles,
    private readonly regions: KnownRegions,
  ) {}

  /** setattr with a size, of a file that is open here or not. */
  async resize(ino: number, set: SetAttr & { size: number }, { onlyGrow = false } = {}): Promise<Attr> {
    const { attr } = await this.retrying(ino, (file) =>
      this.change(file, { offset: set.size, length: -1 }, (own) =>
        this.manager.ask('setattr', { ino, set, ...own, ...(onlyGrow ? { onlyGrow } : {}) }),
      ),
    );
    this.held.noteAttr(attr);
    return attr;
  }

  /** Frees [offset, offset+length), and zeroes what of it is not whole pages: it reads as zeros, the size stays. */
  async punch(ino: number, offset: number, length: number): Promise<void> {
    await this.retrying(ino, (file) => {
      if (file === undefined) throw new ExtmemError('EBADF', `punching a hole into inode ${ino}: it is not open`);
      return this.change<Answered>(file, { offset, length }, (own) => this.manager.ask('punch', { ino, offset, length, ...own }));
    });
  }

  /** The delegation may change while the question is on its way; then it was not done. */
  private async retrying<Answer>(ino: number, change: (file: HeldFile | undefined) => Promise<Answer>): Promise<Answer> {
    for (let attempt = 1; ; attempt += 1) {
      try {
        return await change(await this.settled(ino));
      } catch (error) {
        if (codeOf(error) !== 'EAGAIN' || attempt === MAX_ATTEMPTS) throw error;
        if (this.held.get(ino) !== undefined) await this.native.flushFile(ino);
      }
    }
  }

  private change<Answer extends Answered>(
    file: HeldFile | undefined,
    range: { offset: number; length: number },
    ask: (own: { record?: Uint8Array }) => Promise<Answer>,
  ): Promise<Answer> {
    if (file === undefined || file.mode === 'shared') return ask({});
    return this.cut(file, range, () => ask(file.mode === 'write' ? { record: this.native.record(file.ino, false) } : {}));
  }

  private async cut<Answer extends Answered>(
    file: HeldFile,
    { offset, length }: { offset: number; length: number },
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

  private async settled(ino: number): Promise<HeldFile | undefined> {
    let file = this.held.get(ino);
    for (; file?.changing !== undefined; file = this.held.get(ino)) await file.changing;
    return file;
  }
}
