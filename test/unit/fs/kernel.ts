/** Plays the kernel towards a FileSystem: encodes requests as it does, hands them in, takes the replies apart. */
import { pino } from 'pino';
import type { MountClient } from '../../../src/client/mount_client.js';
import { FileSystem } from '../../../src/fs/file_system.js';
import { opcodeOf } from '../../../src/fs/opcode_table.js';
import type { MemoryNative, Told } from '../client/memory_native.js';

export interface Entry {
  node: number;
  entryMs: number;
  attrMs: number;
  size: number;
  mode: number;
  nlink: number;
}

export class Kernel {
  readonly fileSystem: FileSystem;
  readonly endings: number[] = [];
  private nextId = 100;

  constructor(
    client: MountClient,
    private readonly native: MemoryNative,
  ) {
    this.fileSystem = new FileSystem({ client, log: pino({ level: 'silent' }), onEnded: (errno) => this.endings.push(errno) });
  }

  /** The request's id; its reply comes at native. */
  send(name: string | number, node: number, body: Buffer = Buffer.alloc(0), who: { uid?: number; gid?: number } = {}): number {
    const id = this.nextId;
    this.nextId += 1;
    const opcode = typeof name === 'number' ? name : opcodeOf(name);
    this.fileSystem.handle({ kind: 'request', id, unique: id, opcode, node, uid: who.uid ?? 0, gid: who.gid ?? 0, pid: 42, body });
    return id;
  }

  ask(name: string | number, node: number, body?: Buffer, who?: { uid?: number; gid?: number }): Promise<Told> {
    return this.native.told('replies', this.send(name, node, body, who));
  }

  /** The reply if it was given before the request returned. */
  askAtOnce(name: string, node: number, body?: Buffer): Told | undefined {
    return this.native.replies.get(this.send(name, node, body));
  }

  async lookup(parent: number, name: string): Promise<Entry> {
    return parseEntry(await this.ask('LOOKUP', parent, text(name)));
  }

  async getattr(node: number): Promise<{ size: number; mode: number; nlink: number; attrMs: number }> {
    const { body } = await this.ask('GETATTR', node, Buffer.alloc(16));
    const [mode, nlink] = [body.readUInt32LE(76), body.readUInt32LE(80)];
    return { size: Number(body.readBigUInt64LE(24)), mode, nlink, attrMs: milliseconds(body, 0, 8) };
  }

  async open(node: number, flags: number): Promise<{ handle: bigint; openFlags: number; errno: number }> {
    const body = Buffer.alloc(8);
    body.writeUInt32LE(flags, 0);
    const told = await this.ask('OPEN', node, body);
    return told.errno !== 0
      ? { handle: 0n, openFlags: 0, errno: told.errno }
      : { handle: told.body.readBigUInt64LE(0), openFlags: told.body.readUInt32LE(8), errno: 0 };
  }

  async create(parent: number, name: string, flags = 0o2): Promise<Entry & { handle: bigint; errno: number }> {
    const head = Buffer.alloc(16);
    head.writeUInt32LE(flags | 0o100, 0);
    head.writeUInt32LE(0o100644, 4);
    const told = await this.ask('CREATE', parent, Buffer.concat([head, text(name)]));
    return { ...parseEntry(told), handle: told.errno === 0 ? told.body.readBigUInt64LE(128) : 0n, errno: told.errno };
  }

  release(node: number, handle: bigint, releaseFlags = 0, owner = 0n): Promise<Told> {
    const body = Buffer.alloc(24);
    body.writeBigUInt64LE(handle, 0);
    body.writeUInt32LE(releaseFlags, 12);
    body.writeBigUInt64LE(owner, 16);
    return this.ask('RELEASE', node, body);
  }

  setattr(node: number, valid: number, fields: { size?: number; mode?: number; mtime?: number; uid?: number } = {}): Promise<Told> {
    const body = Buffer.alloc(88);
    body.writeUInt32LE(valid, 0);
    body.writeBigUInt64LE(BigInt(fields.size ?? 0), 16);
    body.writeBigInt64LE(BigInt(fields.mtime ?? 0), 40);
    body.writeUInt32LE(fields.mode ?? 0, 68);
    body.writeUInt32LE(fields.uid ?? 0, 76);
    return this.ask('SETATTR', node, body);
  }

  /** All names of a directory, read in small pieces as the kernel does. */
  async list(node: number, bytes = 512, plus = false): Promise<string[]> {
    const opened = await this.ask('OPENDIR', node, Buffer.alloc(8));
    const handle = opened.body.readBigUInt64LE(0);
    const names: string[] = [];
    for (let offset = 0n; ;) {
      const body = Buffer.alloc(40);
      body.writeBigUInt64LE(handle, 0);
      body.writeBigUInt64LE(offset, 8);
      body.writeUInt32LE(bytes, 16);
      const told = await this.ask(plus ? 'READDIRPLUS' : 'READDIR', node, body);
      if (told.body.length === 0) break;
      for (let at = 0; at < told.body.length;) {
        const start = at + (plus ? 128 : 0);
        const nameBytes = told.body.readUInt32LE(start + 16);
        offset = told.body.readBigUInt64LE(start + 8);
        names.push(told.body.toString('utf8', start + 24, start + 24 + nameBytes));
        at = start + ((24 + nameBytes + 7) & ~7);
      }
    }
    const release = Buffer.alloc(24);
    release.writeBigUInt64LE(handle, 0);
    await this.ask('RELEASEDIR', node, release);
    return names;
  }

  lock(name: 'GETLK' | 'SETLK' | 'SETLKW', node: number, type: 0 | 1 | 2, owner: bigint, flock = false): number {
    const body = Buffer.alloc(48);
    body.writeBigUInt64LE(owner, 8);
    body.writeBigUInt64LE(0x7fff_ffff_ffff_ffffn, 24);
    body.writeUInt32LE(type, 32);
    body.writeUInt32LE(42, 36);
    body.writeUInt32LE(flock ? 1 : 0, 40);
    return this.send(name, node, body);
  }

  setxattr(node: number, name: string, value: string, flags = 0): Promise<Told> {
    const head = Buffer.alloc(8);
    head.writeUInt32LE(Buffer.byteLength(value), 0);
    head.writeUInt32LE(flags, 4);
    return this.ask('SETXATTR', node, Buffer.concat([head, text(name), Buffer.from(value)]));
  }

  getxattr(node: number, name: string, room: number): Promise<Told> {
    const head = Buffer.alloc(8);
    head.writeUInt32LE(room, 0);
    return this.ask('GETXATTR', node, Buffer.concat([head, text(name)]));
  }
}

export function text(name: string): Buffer {
  return Buffer.from(`${name}\0`, 'utf8');
}

export function named(fields: number[], name: string): Buffer {
  const head = Buffer.alloc(fields.length * 4);
  for (const [index, value] of fields.entries()) head.writeUInt32LE(value, index * 4);
  return Buffer.concat([head, text(name)]);
}

function milliseconds(body: Buffer, secondsAt: number, nanosecondsAt: number): number {
  return Number(body.readBigUInt64LE(secondsAt)) * 1000 + body.readUInt32LE(nanosecondsAt) / 1_000_000;
}

function parseEntry({ errno, body }: Told): Entry {
  if (errno !== 0) return { node: 0, entryMs: 0, attrMs: 0, size: 0, mode: 0, nlink: 0 };
  return {
    node: Number(body.readBigUInt64LE(0)),
    entryMs: milliseconds(body, 16, 32),
    attrMs: milliseconds(body, 24, 36),
    size: Number(body.readBigUInt64LE(48)),
    mode: body.readUInt32LE(100),
    nlink: body.readUInt32LE(104),
  };
}
