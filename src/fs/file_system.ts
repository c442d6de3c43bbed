/**
 * The file system as the kernel sees it, without the kernel: takes what native hands up, finds the handler (opcode_table.ts),
 * answers. Handlers are thin: they decode, ask the client, encode. What is cached is answered before `handle` returns.
 *
 * Invariants: each request is answered exactly once; a FUSE node id is the manager's inode number; every entry that goes out
 * with a node id is counted, and a FORGET takes it back.
 */
import { ExtmemError } from '../base/errors.js';
import type { Logger } from '../base/logger.js';
import type { Attr } from '../base/messages.js';
import type { NativeMount, Upcall } from '../binding/index.js';
import type { MountClient } from '../client/mount_client.js';
import { EINVAL, ENOSYS, ESTALE, errnoOf } from './errno.js';
import { encodeEntry, type Validity } from './fuse_wire.js';
import type { DirectoryHandle } from './directories.js';
import { NodeTable } from './node_table.js';
import { OpenFiles } from './open_files.js';
import { findOperation } from './opcode_table.js';

export type Request = Extract<Upcall, { kind: 'request' }>;
/** The reply's body; undefined: success without one. */
export type Reply = Uint8Array | undefined;

const NO_VALIDITY: Validity = { entryMs: 0, attrMs: 0 };

export class FileSystem {
  readonly client: MountClient;
  readonly native: NativeMount;
  readonly nodes = new NodeTable();
  readonly files = new OpenFiles();
  readonly directories = new Map<number, DirectoryHandle>();
  nextDirectoryHandle = 1;

  private readonly log: Logger;
  private readonly onEnded: (errno: number) => void;
  private requests = 0;

  constructor(options: { client: MountClient; log: Logger; onEnded(errno: number): void }) {
    this.client = options.client;
    this.native = options.client.native;
    this.log = options.log;
    this.onEnded = (errno) => options.onEnded(errno);
  }

  handle(call: Upcall): void {
    switch (call.kind) {
      case 'request':
        return this.serve(call);
      case 'interrupt':
        return this.client.locks.interrupt(call.unique);
      case 'forget':
        return this.forget(call.nodes);
      case 'ended':
        return this.onEnded(call.errno);
      case 'commit':
      case 'provision':
      case 'extend':
      case 'wrote':
      case 'claimEnd':
      case 'giveUpEnd':
      case 'dropPrivileges':
      case 'dropCopies':
        return this.client.answerUpcall(call);
    }
  }

  /** Attributes as they are now: those of a file that is written here are native's. */
  current(attr: Attr): Attr {
    if (attr.kind !== 'file' || this.client.held.get(attr.ino)?.mode !== 'write') return attr;
    const state = this.native.fileState(attr.ino);
    if (state === undefined) return attr;
    const { size, blocks, mtime, ctime } = state;
    return { ...attr, size, blocks, mtime, ctime: isLater(attr.ctime, ctime) ? attr.ctime : ctime };
  }

  /** How long the kernel may believe the attributes of an inode. A shared file's change without a word to us. */
  attrMs(ino: number, cacheable: boolean): number {
    return cacheable && this.client.held.get(ino)?.mode !== 'shared' ? this.client.validityMs() : 0;
  }

  /** An entry for the kernel, which counts it. */
  entry(attr: Attr, cacheable: { entry: boolean; attr: boolean }): Buffer {
    this.nodes.count(attr.ino);
    return encodeEntry(this.current(attr), this.validity(attr.ino, cacheable));
  }

  validity(ino: number, cacheable: { entry: boolean; attr: boolean }): Validity {
    if (!cacheable.entry && !cacheable.attr) return NO_VALIDITY;
    return { entryMs: cacheable.entry ? this.client.validityMs() : 0, attrMs: this.attrMs(ino, cacheable.attr) };
  }

  /** Throws when a handle is good for nothing any more: this mount was fenced since it was opened (client/rejoining.ts). */
  checkHandle(handle: number): void {
    const errno = this.files.has(handle) ? this.native.handleErrno(handle) : 0;
    if (errno !== 0)
      throw new ExtmemError(errno === ESTALE ? 'ESTALE' : 'EIO', 'the handle is of no use since this mount was fenced; open the file anew');
  }

  counters(): Record<string, number> {
    return {
      requests: this.requests,
      inodesKnownToKernel: this.nodes.size,
      openFiles: this.files.size,
      openDirectories: this.directories.size,
    };
  }

  private serve(request: Request): void {
    this.requests += 1;
    const operation = findOperation(request.opcode);
    if (operation === undefined) return this.native.reply(request.id, ENOSYS);
    if (request.body.length < operation.minBodyBytes) return this.native.reply(request.id, EINVAL);
    let reply: Reply | Promise<Reply>;
    try {
      reply = operation.handle(this, request);
    } catch (error) {
      return this.fail(request, operation.name, error);
    }
    if (reply instanceof Promise) {
      reply
        .then(
          (body) => this.native.reply(request.id, 0, body),
          (error: unknown) => this.fail(request, operation.name, error),
        )
        .catch((error: unknown) => this.log.debug({ error }, 'a reply came after the mount was closed'));
    } else {
      this.native.reply(request.id, 0, reply);
    }
  }

  private fail(request: Request, name: string, error: unknown): void {
    const { errno, expected } = errnoOf(error);
    if (!expected) this.log.error({ operation: name, node: request.node, error }, 'serving a request of the kernel failed');
    this.native.reply(request.id, errno);
  }

  private forget(nodes: { node: number; count: number }[]): void {
    for (const { node, count } of nodes) {
      if (!this.nodes.forget(node, count)) continue;
      this.client.cache.forget(node);
      this.native.forgetKernelPages(node);
    }
  }
}

function isLater(one: readonly [number, number], other: readonly [number, number]): boolean {
  return one[0] > other[0] || (one[0] === other[0] && one[1] > other[1]);
}
