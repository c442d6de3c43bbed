/** The operations of the model test: each tells a mount, and changes or asks the model alike. */
import { crc32 } from '../../src/base/file_record.js';
import type { Lane, Handle } from './lane.js';
import type { ModelFile } from './model_file.js';

const MOST_HANDLES = 6;
const PUNCH_HOLE = 3; // with KEEP_SIZE
const ZERO_RANGE = 16;
const KEEP_SIZE = 1;

type Operation = (lane: Lane) => Promise<void>;

async function open(lane: Lane): Promise<void> {
  if (lane.handles.length >= MOST_HANDLES) return closeOne(lane);
  const { random } = lane;
  const name = random.pick(lane.names);
  const mount = lane.anyMount();
  const there = lane.files.get(name);
  if (there === undefined && random.chance(10)) return lane.tellFailing(mount, `os.open('${name}', os.O_RDWR)`, 'ENOENT');
  if (there !== undefined && random.chance(5))
    return lane.tellFailing(mount, `os.open('${name}', os.O_RDWR | os.O_CREAT | os.O_EXCL)`, 'EEXIST');
  const file = there ?? lane.newFile();
  if (there === undefined) put(lane, name, file);
  await lane.settle(file, mount);
  const writable = there === undefined || random.chance(80);
  const appends = writable && random.chance(15);
  const truncates = writable && there !== undefined && random.chance(8);
  const direct = random.chance(15);
  const flags = [
    writable ? 'os.O_RDWR' : 'os.O_RDONLY',
    there === undefined ? 'os.O_CREAT' : '',
    appends ? 'os.O_APPEND' : '',
    truncates ? 'os.O_TRUNC' : '',
    direct ? 'os.O_DIRECT' : '',
  ].filter((flag) => flag !== '');
  const handle = lane.newHandle({ mount, file, writable, appends });
  const fd = `fd${handle.id}`;
  if (truncates) file.resize(0);
  const size = await lane.tell(mount, file, `${fd} = os.open('${name}', ${flags.join(' | ')}); os.fstat(${fd}).st_size`);
  lane.equal(file, 'the size after open', size, file.size);
}

async function closeOne(lane: Lane): Promise<void> {
  const handle = lane.pickHandle(() => true);
  if (handle === undefined) return;
  // A mapping outlives its descriptor, or the other way round.
  if (handle.mappedBytes > 0 && (!handle.isOpen || lane.random.chance(50))) await lane.unmap(handle);
  else await lane.close(handle);
}

/** A descriptor to work with, after what other mounts stored is written. */
async function useHandle(lane: Lane, writable: boolean): Promise<Handle | undefined> {
  const handle = lane.pickHandle((one) => one.isOpen && (one.writable || !writable));
  if (handle === undefined) await open(lane);
  else await lane.settle(handle.file, handle.mount);
  return handle;
}

async function write(lane: Lane): Promise<void> {
  const handle = await useHandle(lane, true);
  if (handle === undefined) return;
  const { file, mount, id } = handle;
  const offset = handle.appends ? file.size : lane.pickOffset(file);
  const length = lane.pickLength(file.limit - offset);
  if (length === 0) return;
  const { data, code } = lane.pickData(length);
  const written = await lane.tell(mount, file, `os.pwrite(fd${id}, ${code}, ${offset})`);
  lane.equal(file, 'what was written', written, length);
  file.write(offset, data);
}

/** Every mount appends at the same time: what is there then is all of it, each whole, in some order. */
async function appendTogether(lane: Lane): Promise<void> {
  const [name, file] = await useName(lane);
  if (file === undefined) return;
  const mounts = Array.from({ length: lane.mountCount }, (_, mount) => mount);
  const most = Math.min(Math.floor((file.limit - file.size) / mounts.length), 1_000_000);
  if (most < 1) return;
  for (const mount of mounts) await lane.settle(file, mount);
  const pieces = mounts.map(() => lane.pickData(lane.pickLength(most)));
  await Promise.all(
    mounts.map((mount) =>
      lane.tell(
        mount,
        file,
        `one = os.open('${name}', os.O_WRONLY | os.O_APPEND); wrote = os.write(one, ${pieces[mount]!.code}); os.close(one); wrote`,
      ),
    ),
  );
  const before = file.size;
  const orders = permutations(pieces.map(({ data }) => data)).map((order) => Buffer.concat(order));
  const [length, sum] = await lane.tell<[number, number]>(lane.anyMount(), file, `seen(get('${name}')[${before}:])`);
  const found = orders.find((data) => data.length === length && crc32(data) === sum);
  if (found === undefined) lane.fail(file, `${length} bytes follow ${before}, which are not what ${mounts.length} mounts appended`);
  file.write(before, found);
}

function permutations<Item>(items: readonly Item[]): Item[][] {
  if (items.length <= 1) return [[...items]];
  return items.flatMap((first, index) => permutations(items.filter((_, other) => other !== index)).map((rest) => [first, ...rest]));
}

async function read(lane: Lane): Promise<void> {
  const handle = await useHandle(lane, false);
  if (handle === undefined) return;
  const { file, mount, id } = handle;
  const range = { offset: lane.pickOffset(file), length: lane.pickLength(file.limit) };
  await lane.check(mount, file, `os.pread(fd${id}, ${range.length}, ${range.offset})`, range);
}

async function readByName(lane: Lane): Promise<void> {
  const [name, file] = await useName(lane);
  if (file === undefined) return;
  const mount = lane.anyMount();
  await lane.settle(file, mount);
  await lane.check(mount, file, `get('${name}')`, { offset: 0, length: file.limit });
}

async function stat(lane: Lane): Promise<void> {
  const [name, file] = await useName(lane);
  if (file === undefined) return;
  const got = await lane.tell(lane.anyMount(), file, `s = os.stat('${name}'); s.st_size, s.st_nlink`);
  lane.equal(file, 'size and link count', got, [file.size, file.links]);
}

async function truncate(lane: Lane): Promise<void> {
  const handle = await useHandle(lane, true);
  if (handle === undefined) return;
  const { file, mount, id } = handle;
  const size = lane.random.chance(15) ? 0 : lane.pickOffset(file);
  file.resize(size);
  await lane.tell(mount, file, `os.ftruncate(fd${id}, ${size})`);
}

async function truncateByName(lane: Lane): Promise<void> {
  const [name, file] = await useName(lane);
  if (file === undefined) return;
  const mount = lane.anyMount();
  await lane.settle(file, mount);
  file.resize(lane.pickOffset(file));
  await lane.tell(mount, file, `os.truncate('${name}', ${file.size})`);
}

async function allocate(lane: Lane): Promise<void> {
  const handle = await useHandle(lane, true);
  if (handle === undefined) return;
  const { file, mount, id } = handle;
  const offset = lane.pickOffset(file);
  const length = lane.pickLength(file.limit - offset);
  const mode = lane.random.pick([0, KEEP_SIZE, PUNCH_HOLE, PUNCH_HOLE, ZERO_RANGE, ZERO_RANGE | KEEP_SIZE]);
  await lane.tell(mount, file, `fallocate(fd${id}, ${mode}, ${offset}, ${length})`);
  if ((mode & (PUNCH_HOLE | ZERO_RANGE) & ~KEEP_SIZE) !== 0) file.zero(offset, offset + length);
  if ((mode & KEEP_SIZE) === 0) file.resize(Math.max(file.size, offset + length));
}

async function synchronize(lane: Lane): Promise<void> {
  const handle = await useHandle(lane, false);
  if (handle !== undefined) await lane.tell(handle.mount, handle.file, `os.${lane.random.pick(['fsync', 'fdatasync'])}(fd${handle.id})`);
}

async function map(lane: Lane): Promise<void> {
  const handle = lane.pickHandle((one) => one.isOpen && one.writable && one.mappedBytes === 0 && one.file.size > 0);
  if (handle === undefined) return open(lane);
  const { file, mount, id } = handle;
  await lane.tell(mount, file, `map${id} = mmap.mmap(fd${id}, ${file.size})`);
  handle.mappedBytes = file.size;
}

/** A mapping, and a range of it that is within the file: beyond its end it would be SIGBUS. */
async function useMapping(lane: Lane): Promise<{ handle: Handle; offset: number; length: number } | undefined> {
  const handle = lane.pickHandle(({ mappedBytes, file }) => Math.min(mappedBytes, file.size) > 0);
  if (handle === undefined) {
    await map(lane);
    return undefined;
  }
  const end = Math.min(handle.mappedBytes, handle.file.size);
  const offset = Math.min(lane.pickOffset(handle.file), end - 1);
  await lane.settle(handle.file, handle.mount);
  await askForEnd(lane, handle);
  return { handle, offset, length: lane.pickLength(end - offset) };
}

/** Mappings go by the end that the kernel knows; see "What is not promised" in docs/semantics.md. */
async function askForEnd(lane: Lane, { mount, file, id, isOpen }: Handle): Promise<void> {
  if (lane.mountCount === 1) return;
  const size = await lane.tell(mount, file, isOpen ? `os.fstat(fd${id}).st_size` : `map${id}.size()`);
  lane.equal(file, 'the size of an open file', size, file.size);
}

async function store(lane: Lane): Promise<void> {
  const use = await useMapping(lane);
  if (use === undefined) return;
  const { handle, offset, length } = use;
  const { data, code } = lane.pickData(length);
  await lane.tell(handle.mount, handle.file, `map${handle.id}[${offset}:${offset + length}] = ${code}`);
  handle.file.write(offset, data);
  handle.unsynced = true;
  if (lane.random.chance(30)) await lane.sync(handle);
}

async function load(lane: Lane): Promise<void> {
  const use = await useMapping(lane);
  if (use === undefined) return;
  const { handle, offset, length } = use;
  await lane.check(handle.mount, handle.file, `map${handle.id}[${offset}:${offset + length}]`, { offset, length });
}

/** Where the file says that there is a hole, the model must have zeros. */
async function seek(lane: Lane): Promise<void> {
  const handle = await useHandle(lane, false);
  if (handle === undefined) return;
  const { file, mount, id } = handle;
  // The kernel does not tell of pages that only a mapping has touched.
  for (const other of lane.handles) if (other.file === file && other.unsynced) await lane.sync(other);
  const at = lane.pickOffset(file);
  const [data, hole] = await lane.tell<[number, number]>(mount, file, `extents(fd${id}, ${at})`);
  const none = -6; // ENXIO
  if (at >= file.size) return lane.equal(file, `SEEK_DATA and SEEK_HOLE at ${at}`, [data, hole], [none, none]);
  const isSound = (data === none || data >= at) && hole >= at && hole <= file.size;
  if (!isSound || !file.isZero(at, data === none ? file.size : data))
    lane.fail(file, `SEEK_DATA at ${at} gives ${data}, SEEK_HOLE ${hole}`);
  const next = await lane.tell<[number, number]>(mount, file, `extents(fd${id}, ${hole})`);
  const holeEnd = next[0] === none ? file.size : next[0];
  if (!file.isZero(hole, holeEnd)) lane.fail(file, `there is data in the hole from ${hole} to ${holeEnd}`);
}

async function rename(lane: Lane): Promise<void> {
  const [from, file] = await useName(lane);
  if (file === undefined) return;
  const to = lane.random.pick(lane.names);
  const replaced = lane.files.get(to);
  if (lane.random.chance(20) && replaced !== undefined) {
    await lane.tell(lane.anyMount(), file, `renameat2('${from}', '${to}', 2)  # exchange`);
    lane.files.set(from, replaced).set(to, file);
    return;
  }
  await lane.tell(lane.anyMount(), file, `os.rename('${from}', '${to}')`);
  if (replaced === file) return; // two names of one file, or the same name: nothing happens
  if (replaced !== undefined) replaced.links -= 1;
  lane.files.delete(from);
  lane.files.set(to, file);
}

async function link(lane: Lane): Promise<void> {
  const [name, file] = await useName(lane);
  const free = lane.names.filter((one) => !lane.files.has(one));
  if (file === undefined || free.length === 0) return;
  const other = lane.random.pick(free);
  await lane.tell(lane.anyMount(), file, `os.link('${name}', '${other}')`);
  put(lane, other, file);
}

async function unlink(lane: Lane): Promise<void> {
  const [name, file] = await useName(lane);
  if (file === undefined) return;
  await lane.tell(lane.anyMount(), file, `os.unlink('${name}')`);
  lane.files.delete(name);
  file.links -= 1;
}

async function forget(lane: Lane): Promise<void> {
  const handle = await useHandle(lane, false);
  if (handle !== undefined) await lane.tell(handle.mount, handle.file, `os.posix_fadvise(fd${handle.id}, 0, 0, os.POSIX_FADV_DONTNEED)`);
}

export function evict(lane: Lane): Promise<void> {
  return lane.evict(lane.anyMount());
}

/** A name that leads somewhere; else something is opened. */
async function useName(lane: Lane): Promise<[string, ModelFile | undefined]> {
  const name = lane.random.pick(lane.names);
  const file = lane.files.get(name);
  if (file === undefined) await open(lane);
  return [name, file];
}

function put(lane: Lane, name: string, file: ModelFile): void {
  lane.files.set(name, file);
  file.links += 1;
}

const weights: readonly [Operation, number][] = [
  [write, 20],
  [appendTogether, 4],
  [read, 16],
  [store, 8],
  [load, 6],
  [open, 8],
  [closeOne, 5],
  [truncate, 5],
  [truncateByName, 2],
  [allocate, 6],
  [synchronize, 4],
  [map, 3],
  [readByName, 2],
  [stat, 3],
  [seek, 3],
  [rename, 3],
  [link, 1],
  [unlink, 2],
  [forget, 3],
  [evict, 3],
];
const total = weights.reduce((sum, [, weight]) => sum + weight, 0);

export function pickOperation(lane: Lane): Operation {
  let left = lane.random.below(total);
  for (const [operation, weight] of weights) {
    if (left < weight) return operation;
    left -= weight;
  }
  return read;
}
