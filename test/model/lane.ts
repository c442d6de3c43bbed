/**
 * One sequence of operations on files of its own, through one or more mounts, beside a model of what these files contain. Each
 * operation is a line of Python for an Actor, so that the log of a run that failed reads as a program.
 *
 * A store through a mapping is seen by the mount it is on; others are promised it after msync or munmap. So whatever
 * another mount does with the file is preceded by an msync (`settle`).
 */
import { crc32 } from '../../src/base/file_record.js';
import type { Actor } from '../mount/actor.js';
import { within } from '../mount/cluster.js';
import { describeDifference, ModelFile, type Random } from './model_file.js';

const HANG_MS = 60_000;
const LOG_LINES = 16;
const PAGE = 4096;
const UNIT = 2 * 1024 * 1024; // of a stripe: what is special about offsets happens around its multiples
const LIMITS = [40_000, 1_000_000, 12 * 1024 * 1024];

/** Statements that every actor knows; `pool` is the file of random bytes that all data is cut from. */
export function prelude(pool: string): string {
  return `import zlib
pool = get(${JSON.stringify(pool)})
def P(at, length): return pool[at:at + length]
def seen(data):
    global got
    got = data
    return len(data), zlib.crc32(data)
def extents(fd, at):
    where = []
    for whence in (os.SEEK_DATA, os.SEEK_HOLE):
        try: where.append(os.lseek(fd, at, whence))
        except OSError as error: where.append(-error.errno)
    return where`;
}

export interface Handle {
  /** In Python: `fd3` the descriptor, `map3` the mapping. */
  readonly id: number;
  readonly mount: number;
  readonly file: ModelFile;
  readonly writable: boolean;
  readonly appends: boolean;
  isOpen: boolean;
  /** 0: not mapped. */
  mappedBytes: number;
  /** Stored to since the last msync. */
  unsynced: boolean;
}

interface Logged {
  step: number;
  mount: number;
  file: number | undefined;
  text: string;
}

export interface LaneOptions {
  name: string;
  random: Random;
  /** One for each mount. */
  actors: readonly Actor[];
  pool: Buffer;
  evict(mount: number): Promise<void>;
}

export class Lane {
  readonly random: Random;
  readonly files = new Map<string, ModelFile>();
  readonly handles: Handle[] = [];
  readonly names: string[];
  step = 0;
  private nextId = 1;
  private readonly log: Logged[] = [];
  private actors: readonly Actor[];

  constructor(private readonly options: LaneOptions) {
    this.actors = options.actors;
    this.random = options.random;
    this.names = ['a', 'b', 'c', 'd'].map((name) => `${options.name}/${name}`);
  }

  get mountCount(): number {
    return this.actors.length;
  }

  anyMount(): number {
    return this.random.below(this.mountCount);
  }

  newFile(): ModelFile {
    return new ModelFile(this.nextId++, this.random.pick(LIMITS));
  }

  newHandle(handle: Omit<Handle, 'id' | 'isOpen' | 'mappedBytes' | 'unsynced'>): Handle {
    const made = { ...handle, id: this.nextId++, isOpen: true, mappedBytes: 0, unsynced: false };
    this.handles.push(made);
    return made;
  }

  /** A handle that fits, if there is one. */
  pickHandle(fits: (handle: Handle) => boolean): Handle | undefined {
    const fitting = this.handles.filter(fits);
    return fitting.length === 0 ? undefined : this.random.pick(fitting);
  }

  /** An offset in [0, limit): anywhere, or where something may be special about it. */
  pickOffset({ size, limit }: ModelFile): number {
    const { random } = this;
    const offsets = [
      (): number => random.below(size + 1),
      (): number => random.below(size + 1),
      (): number => random.below(limit / PAGE) * PAGE,
      (): number => size + random.between(-5000, 5000),
      (): number => random.below(limit / UNIT + 1) * UNIT + random.between(-5000, 5000),
    ];
    return Math.min(Math.max(random.pick(offsets)(), 0), limit - 1);
  }

  pickLength(most: number): number {
    const { random } = this;
    const length = random.pick([
      (): number => random.between(1, 100),
      (): number => random.between(1, PAGE),
      (): number => PAGE * random.between(1, 8),
      (): number => random.between(1, 65_536),
      (): number => random.between(1, 1_500_000),
    ])();
    return Math.min(length, most);
  }

  /** Bytes to write, and how Python gets them. */
  pickData(length: number): { data: Buffer; code: string } {
    const { pool } = this.options;
    const at = this.random.below(pool.length - length);
    return { data: pool.subarray(at, at + length), code: `P(${at}, ${length})` };
  }

  /** Runs an operation on a mount; it must succeed. */
  async tell<Value>(mount: number, file: ModelFile | undefined, code: string): Promise<Value> {
    this.note(mount, file, code);
    try {
      return await within(this.actors[mount]!.do<Value>(code), HANG_MS, `no answer within ${HANG_MS / 1000} s`);
    } catch (error) {
      return this.fail(file, error instanceof Error ? error.message : String(error));
    }
  }

  /** Runs an operation that must fail. */
  async tellFailing(mount: number, code: string, wanted: string): Promise<void> {
    this.note(mount, undefined, `${code}  # must fail with ${wanted}`);
    const failure = await within(this.actors[mount]!.fails(code), HANG_MS, `no answer within ${HANG_MS / 1000} s`);
    if (failure !== wanted) this.fail(undefined, `${wanted} was expected, not ${failure}`);
  }

  /** Reads with an expression and compares with the model, byte by byte. */
  async check(mount: number, file: ModelFile, expression: string, range: { offset: number; length: number }): Promise<void> {
    const wanted = file.read(range.offset, range.length);
    const [length, sum] = await this.tell<[number, number]>(mount, file, `seen(${expression})`);
    if (length === wanted.length && sum === crc32(wanted)) return;
    const got = Buffer.from(await this.actors[mount]!.do<string>('got'), 'latin1');
    this.fail(file, describeDifference(got, wanted, range.offset));
  }

  equal(file: ModelFile | undefined, what: string, got: unknown, wanted: unknown): void {
    const [left, right] = [JSON.stringify(got), JSON.stringify(wanted)];
    if (left !== right) this.fail(file, `${what} is ${left}, the model has ${right}`);
  }

  async evict(mount: number): Promise<void> {
    this.note(mount, undefined, '(evict)');
    await this.options.evict(mount);
  }

  /** What was stored through mappings on other mounts than this is written, so that this one must see it. */
  async settle(file: ModelFile, mount: number): Promise<void> {
    for (const handle of this.handles) {
      if (handle.file === file && handle.mount !== mount && handle.unsynced) await this.sync(handle);
    }
  }

  async sync(handle: Handle): Promise<void> {
    await this.tell(handle.mount, handle.file, `map${handle.id}.flush()`);
    handle.unsynced = false;
  }

  async unmap(handle: Handle): Promise<void> {
    await this.tell(handle.mount, handle.file, `map${handle.id}.close()`);
    handle.mappedBytes = 0;
    handle.unsynced = false;
    this.dropIfGone(handle);
  }

  async close(handle: Handle): Promise<void> {
    await this.tell(handle.mount, handle.file, `os.close(fd${handle.id})`);
    handle.isOpen = false;
    this.dropIfGone(handle);
  }

  /** Everything is as the model says, seen from every mount; then nothing is open any more. */
  async finish(): Promise<void> {
    for (const handle of [...this.handles]) {
      await this.settle(handle.file, handle.mount);
      if (handle.isOpen)
        await this.check(handle.mount, handle.file, `os.pread(fd${handle.id}, ${handle.file.limit}, 0)`, whole(handle.file));
      if (handle.mappedBytes > 0) await this.unmap(handle);
      if (handle.isOpen) await this.close(handle);
    }
    for (let mount = 0; mount < this.mountCount; ++mount) await this.checkNames(mount);
  }

  /** With a mount that was started since. */
  async readAgain(actor: Actor): Promise<void> {
    this.actors = [actor];
    await this.checkNames(0);
  }

  private async checkNames(mount: number): Promise<void> {
    for (const name of this.names) {
      const file = this.files.get(name);
      if (file === undefined) await this.tellFailing(mount, `os.stat('${name}')`, 'ENOENT');
      else await this.check(mount, file, `get('${name}')`, whole(file));
    }
  }

  fail(file: ModelFile | undefined, what: string): never {
    const isAbout = (entry: Logged): boolean =>
      entry.file === undefined || entry.file === file?.id || entry.text.includes(`'${this.options.name}/`);
    const about = file === undefined ? this.log : this.log.filter(isAbout);
    const lines = about.slice(-LOG_LINES).map(({ step, mount, file: id, text }) => {
      const shown = id === undefined ? '' : `file ${id}: `;
      return `  ${step} on mount ${mount + 1}: ${shown}${text}`;
    });
    const size = file === undefined ? '' : ` (file ${file.id}, ${file.size} bytes in the model)`;
    throw new Error(`${this.options.name}, step ${this.step}: ${what}${size}\n${lines.join('\n')}`);
  }

  private note(mount: number, file: ModelFile | undefined, text: string): void {
    this.log.push({ step: this.step, mount, file: file?.id, text });
    if (this.log.length > 40 * LOG_LINES) this.log.splice(0, 20 * LOG_LINES);
  }

  private dropIfGone(handle: Handle): void {
    if (!handle.isOpen && handle.mappedBytes === 0) this.handles.splice(this.handles.indexOf(handle), 1);
  }
}

function whole(file: ModelFile): { offset: number; length: number } {
  return { offset: 0, length: file.limit };
}
