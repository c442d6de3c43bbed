/**
 * What clients, appliances and the manager say to each other on their sessions (one WebSocket each, MessagePack frames,
 * requests in both directions, answered by id; see session.ts). Requests of one side arrive in the order they were sent.
 *
 * Numbers are safe integers (below 2^53): inode, region and client ids, sizes, offsets. Times are [seconds, nanoseconds].
 * `record` is a file record as protocol.json's RecordHeader describes it (file_record.ts encodes and decodes it).
 */
import { Type, type Static, type TSchema } from '@sinclair/typebox';
import { CopyAsk } from './copy_message.js';
import { MAX_LINKS } from './protocol.js';

const Id = Type.Integer({ minimum: 0, maximum: Number.MAX_SAFE_INTEGER });
const Bytes = Type.Integer({ minimum: 0, maximum: Number.MAX_SAFE_INTEGER });
const Blob = Type.Uint8Array();
export const Time = Type.Tuple([Type.Integer(), Type.Integer({ minimum: 0, maximum: 999_999_999 })]);
export type Time = Static<typeof Time>;
/** One path component, 1 to 255 bytes of UTF-8, without '/' and NUL. */
const Name = Type.String({ minLength: 1, maxLength: 255 });

export const InodeKind = Type.Union([
  Type.Literal('file'),
  Type.Literal('directory'),
  Type.Literal('symlink'),
  Type.Literal('fifo'),
  Type.Literal('socket'),
  Type.Literal('character'),
  Type.Literal('block'),
]);
export type InodeKind = Static<typeof InodeKind>;

/** stat(2) of an inode. `change` counts every change of data or attributes; `blocks` are 512-byte units held in regions. */
export const Attr = Type.Object({
  ino: Id,
  kind: InodeKind,
  mode: Type.Integer(), // permission bits only (07777)
  uid: Type.Integer(),
  gid: Type.Integer(),
  nlink: Type.Integer(),
  rdev: Type.Integer(),
  size: Bytes,
  blocks: Bytes,
  atime: Time,
  mtime: Time,
  ctime: Time,
  change: Bytes,
  persisted: Type.Optional(Type.Boolean()), // its durability
  ownRegions: Type.Optional(Type.Boolean()), // it lies in regions of its own only: no slab of a mount's
});
export type Attr = Static<typeof Attr>;

/** What a client may cache of a file. */
export const DelegationMode = Type.Union([Type.Literal('none'), Type.Literal('read'), Type.Literal('write'), Type.Literal('shared')]);
export type DelegationMode = Static<typeof DelegationMode>;

/** A region as it is handed to a client: where, and the right to use it. `used` ([offset, length] pairs) only in provisions. */
export const RegionGrant = Type.Object({
  region: Id,
  bytes: Bytes,
  appliance: Type.String(),
  incarnation: Id,
  capability: Blob, // protocol Capability, encoded
  used: Type.Optional(Type.Array(Type.Tuple([Bytes, Bytes]))),
});
export type RegionGrant = Static<typeof RegionGrant>;

const Port = Type.Integer({ minimum: 1, maximum: 65535 });
export const Endpoint = Type.Object({ address: Type.String(), port: Port });
export type Endpoint = Static<typeof Endpoint>;

/** What an appliance gives of what it was told to donate: all, or less because its host is short of memory; `short`: less than what is
 *  in regions already. */
export const OfferState = Type.Union([Type.Literal('whole'), Type.Literal('lowered'), Type.Literal('short')]);
export type OfferState = Static<typeof OfferState>;

/** The backing store of an appliance. */
export const StoreInfo = Type.Object({
  usedBytes: Bytes,
  limitBytes: Bytes,
  absentBytes: Bytes, // restored, and still in the store only
  damagedPages: Type.Integer(),
  persistSeconds: Type.Number(), // what it takes to persist everything, as estimated
  lagSeconds: Type.Optional(Type.Number()), // persisted continuously: since the last time that all was
  bytesPerSecond: Type.Optional(Type.Number()), // persisted continuously: no faster
  batterySeconds: Type.Optional(Type.Number()),
  broken: Type.String(), // why nothing is persisted any more; else ''
});
export type StoreInfo = Static<typeof StoreInfo>;

export const ApplianceInfo = Type.Object({
  id: Type.String({ minLength: 1, maxLength: 64 }),
  hostId: Type.String(),
  address: Type.String(),
  port: Port,
  moreEndpoints: Type.Optional(Type.Array(Endpoint, { maxItems: MAX_LINKS - 1 })), // of other networks: clients use all at once
  rack: Type.Optional(Type.String({ maxLength: 64 })), // as its administrator labelled it
  linkName: Type.String(),
  verbs: Type.Optional(Type.Boolean()), // RDMA connections are taken on the same address and port
  incarnation: Id,
  donatedBytes: Bytes,
  reservedBytes: Bytes,
  residentBytes: Bytes,
  offer: Type.Optional(OfferState),
  store: Type.Optional(StoreInfo),
  draining: Type.Optional(Type.Boolean()), // nothing new is placed there, and what is there moves away
  state: Type.Union([Type.Literal('up'), Type.Literal('down')]),
});
export type ApplianceInfo = Static<typeof ApplianceInfo>;

export const RegionPiece = Type.Object({ region: Id, offset: Bytes, length: Bytes });
export type RegionPiece = Static<typeof RegionPiece>;

/** Ids from first to last. */
export const ClientRange = Type.Object({ first: Id, last: Id });
export type ClientRange = Static<typeof ClientRange>;
const ClientRanges = Type.Array(ClientRange);

/** In which way a client has a file open. */
const OpenState = Type.Union([Type.Literal('none'), Type.Literal('read'), Type.Literal('write')]);

/** The file as a client needs it to read and write: which mode was granted, where its bytes are, and the regions to attach. */
export const FileGrant = Type.Object({
  mode: DelegationMode,
  /** Of mode write: which delegation it is. None has the number of another one of the same client and file. */
  delegation: Type.Optional(Bytes),
  attr: Attr,
  record: Blob,
  regions: Type.Array(RegionGrant),
});
export type FileGrant = Static<typeof FileGrant>;

export const Lock = Type.Object({
  ino: Id,
  owner: Type.String(), // the kernel's lock owner, hexadecimal; the manager prefixes the client
  flock: Type.Boolean(),
  type: Type.Union([Type.Literal('read'), Type.Literal('write'), Type.Literal('unlock')]),
  start: Bytes,
  end: Bytes, // inclusive; MAX_SAFE_INTEGER means to the end of the file
  pid: Type.Integer(),
});
export type Lock = Static<typeof Lock>;

export const LAYOUTS = ['concat', 'stripe', 'mirror', 'raid10'] as const;
export const LayoutName = Type.Union(LAYOUTS.map((name) => Type.Literal(name)));
export type LayoutName = Static<typeof LayoutName>;

/** What the copies of a byte must not share. */
export const ACROSS = ['appliance', 'host', 'rack'] as const;
export const AcrossName = Type.Union(ACROSS.map((name) => Type.Literal(name)));
export type AcrossName = Static<typeof AcrossName>;

/** What an fsync promises: in the appliances' memory, or in their backing stores. */
export const Durability = Type.Union([Type.Literal('memory'), Type.Literal('persisted')]);
export type Durability = Static<typeof Durability>;

export const SetAttr = Type.Object({
  mode: Type.Optional(Type.Integer()),
  /** The mode without what a write by whoever has no CAP_FSETID takes away. */
  dropPrivileges: Type.Optional(Type.Boolean()),
  uid: Type.Optional(Type.Integer()),
  gid: Type.Optional(Type.Integer()),
  size: Type.Optional(Bytes),
  atime: Type.Optional(Time),
  mtime: Type.Optional(Time),
  ctime: Type.Optional(Time),
});
export type SetAttr = Static<typeof SetAttr>;

/** `cacheable` false: somebody writes to the file, only getattr knows its present attributes. */
export const DirectoryEntry = Type.Object({ name: Name, cookie: Bytes, attr: Attr, cacheable: Type.Optional(Type.Boolean()) });

/** What the holder of a directory has done in it, in the order in which it did it. `at`: when. */
export const NameOperation = Type.Union([
  /** A file was made, and is open or idle there with a write delegation. `ino` is one of its numbers. */
  Type.Object({
    kind: Type.Literal('create'),
    parent: Id,
    name: Name,
    ino: Id,
    mode: Type.Integer(),
    uid: Type.Integer(),
    gid: Type.Integer(),
    at: Time,
  }),
  /** A file lost its only name. `released`: its delegation went back with it; `record` is then its newest, if that changed. */
  Type.Object({
    kind: Type.Literal('unlink'),
    parent: Id,
    name: Name,
    ino: Id,
    released: Type.Boolean(),
    record: Type.Optional(Blob),
    at: Time,
  }),
]);
export type NameOperation = Static<typeof NameOperation>;

/** Inode numbers that nobody else gets. */
const NumberRange = Type.Object({ first: Id, count: Type.Integer({ minimum: 0, maximum: 65536 }) });

const Empty = Type.Object({});

/** One operation: what is asked, what is answered. Failures are errors with a `code` (errors.ts), mostly an errno name. */
function operation<Ask extends TSchema, Answer extends TSchema>(ask: Ask, answer: Answer) {
  return { ask, answer };
}

/** Asked by a client (a mount) of the manager. */
export const clientOperations = {
  /** First on the session. `resume` names an earlier session of the same process: within its lease it keeps its delegations. */
  hello: operation(
    Type.Object({
      version: Type.Integer(),
      name: Type.String({ maxLength: 128 }),
      hostId: Type.String(),
      resume: Type.Optional(Type.Object({ client: Id, generation: Type.Integer(), secret: Type.String() })),
      /** Keys of allocations, as whoever mounts was given them. */
      keys: Type.Optional(Type.Array(Type.String({ minLength: 1, maxLength: 1024 }), { maxItems: 8 })),
    }),
    Type.Object({
      client: Id,
      generation: Type.Integer(),
      secret: Type.String(),
      key: Blob, // towards the appliances: HMAC(cluster key, 'E' | client | generation)
      resumed: Type.Boolean(),
      leaseMs: Type.Integer(),
      rootIno: Id,
      cluster: Type.String(),
      appliances: Type.Array(ApplianceInfo),
    }),
  ),
  /** Keeps the lease; every other request does so too. */
  renew: operation(Empty, Empty),
  /** attr absent: no such name (a negative entry that may be cached). The client is told before anybody changes the entry. */
  lookup: operation(Type.Object({ parent: Id, name: Name }), Type.Object({ attr: Type.Optional(Attr), cacheable: Type.Boolean() })),
  getattr: operation(Type.Object({ ino: Id }), Type.Object({ attr: Attr, cacheable: Type.Boolean() })),
  /** With `size`: others' caches are recalled first; `record` is the caller's current one if it holds the write delegation. Then
   *  it zeroes the page that the new end is in; else the manager has done that (edgesZeroed). EAGAIN: whether it holds the write
   *  delegation has just changed. onlyGrow: a size below the present one changes nothing. */
  setattr: operation(
    Type.Object({ ino: Id, set: SetAttr, record: Type.Optional(Blob), onlyGrow: Type.Optional(Type.Boolean()) }),
    Type.Object({ attr: Attr, record: Type.Optional(Blob), edgesZeroed: Type.Optional(Type.Boolean()) }),
  ),
  readlink: operation(Type.Object({ ino: Id }), Type.Object({ target: Type.String() })),
  readdir: operation(
    Type.Object({ ino: Id, cookie: Bytes, limit: Type.Integer({ minimum: 1, maximum: 4096 }) }),
    Type.Object({ entries: Type.Array(DirectoryEntry), end: Type.Boolean() }),
  ),
  /** `parents` here and below: the directories that were changed, as they are now. */
  /** Makes a name. With `open`, a file is opened for writing in the same step. `exclusive`: EEXIST if there; otherwise what is there is answered.
   *  `delegate`: a directory that was made is the caller's to make and remove files in (`names`), with at least so many inode numbers
   *  more for that. Nobody else sees it before it was recalled. */
  create: operation(
    Type.Object({
      parent: Id,
      name: Name,
      kind: InodeKind,
      mode: Type.Integer(),
      uid: Type.Integer(),
      gid: Type.Integer(),
      rdev: Type.Integer(),
      target: Type.Optional(Type.String({ maxLength: 4095 })),
      open: Type.Boolean(),
      exclusive: Type.Boolean(),
      delegate: Type.Optional(Type.Object({ numbers: Type.Integer({ minimum: 0, maximum: 65536 }) })),
    }),
    Type.Object({
      attr: Attr,
      parents: Type.Array(Attr),
      grant: Type.Optional(FileGrant),
      delegated: Type.Optional(
        Type.Object({
          layout: LayoutName,
          copies: Type.Optional(Type.Integer()),
          across: Type.Optional(AcrossName),
          numbers: NumberRange,
        }),
      ),
    }),
  ),
  link: operation(Type.Object({ ino: Id, newParent: Id, newName: Name }), Type.Object({ attr: Attr, parents: Type.Array(Attr) })),
  /** directory: rmdir. Answers the inode's remaining attributes (nlink 0: it lives until its last holder releases it). */
  unlink: operation(
    Type.Object({ parent: Id, name: Name, directory: Type.Boolean() }),
    Type.Object({ attr: Attr, parents: Type.Array(Attr) }),
  ),
  /** exchange and noReplace as in renameat2(2). `replaced`: the inode that lost this name. */
  rename: operation(
    Type.Object({
      parent: Id,
      name: Name,
      newParent: Id,
      newName: Name,
      noReplace: Type.Boolean(),
      exchange: Type.Boolean(),
    }),
    Type.Object({ replaced: Type.Optional(Attr), moved: Attr, parents: Type.Array(Attr) }),
  ),
  /** What was done in delegated directories. Batches come in order of their rising numbers; one that was taken already changes nothing.
   *  All of a batch is taken in one step, but for what is answered as failed. Answered when it survives the manager's death. */
  names: operation(
    Type.Object({ sequence: Type.Integer({ minimum: 1 }), operations: Type.Array(NameOperation) }),
    Type.Object({ failed: Type.Array(Type.Object({ index: Type.Integer(), code: Type.String() })) }),
  ),
  inodeNumbers: operation(Type.Object({ count: Type.Integer({ minimum: 1, maximum: 65536 }) }), NumberRange),
  returnDirectories: operation(Type.Object({ directories: Type.Array(Id) }), Empty),
  getxattrs: operation(Type.Object({ ino: Id }), Type.Object({ xattrs: Type.Record(Type.String(), Blob) })),
  /** value absent: removed (ENODATA if it was not there). create / replace as in setxattr(2). */
  setxattr: operation(
    Type.Object({
      ino: Id,
      name: Type.String({ minLength: 1, maxLength: 255 }),
      value: Type.Optional(Blob),
      create: Type.Boolean(),
      replace: Type.Boolean(),
    }),
    Type.Object({ attr: Attr }),
  ),
  statfs: operation(Empty, Type.Object({ totalBytes: Bytes, freeBytes: Bytes, files: Bytes })),

  /** A delegation: asked for at open (mode read or write); the answer may be `shared`. Held until released or recalled. */
  acquire: operation(Type.Object({ ino: Id, mode: Type.Union([Type.Literal('read'), Type.Literal('write')]) }), FileGrant),
  /** Gives a delegation back (no handle is open any more). An unlinked inode goes with its last holder. */
  release: operation(Type.Object({ ino: Id, record: Type.Optional(Blob) }), Empty),
  /** A write delegation that was recalled is given up: everything is written back, this is the last record, and so is the file open
   *  from now on. Comes before the recall is answered, and again until it is answered; taken once (`delegation`, as it was granted). */
  gaveUp: operation(
    Type.Object({
      ino: Id,
      delegation: Bytes,
      open: OpenState,
      record: Blob,
    }),
    Empty,
  ),
  /** Records of files whose write delegation is held: size, times, change counter and extents become the manager's. Answered when they survive its death. */
  commit: operation(
    Type.Object({ records: Type.Array(Blob) }),
    Type.Object({ failed: Type.Array(Type.Object({ ino: Id, code: Type.String() })) }),
  ),
  /** Frees the whole pages of a range of the file (fallocate PUNCH_HOLE); the new record is answered. `record` and edgesZeroed as in setattr. */
  punch: operation(
    Type.Object({ ino: Id, offset: Bytes, length: Bytes, record: Type.Optional(Blob) }),
    Type.Object({ record: Blob, edgesZeroed: Type.Boolean() }),
  ),
  /** Shared mode: extents proposed by the caller for holes in the file; those of whoever came first count. Unused pieces go back to the caller.
   *  room: of a file in regions of its own, in any mode: where the manager is to fill the holes; the record is the caller's newest. */
  extend: operation(
    Type.Object({ ino: Id, record: Blob, room: Type.Optional(Type.Object({ offset: Bytes, length: Bytes })) }),
    Type.Object({ record: Blob, regions: Type.Array(RegionGrant), unused: Type.Array(RegionPiece) }),
  ),
  /** Shared mode: this range was just written; answered when all other holders have dropped it from their caches, and only then is
   *  the file longer. Beyond the end only whoever has claimed it may write. holdsPages: the caller's kernel may hold pages of the
   *  file locked until this is answered, so that nobody waits for it to drop them. */
  wrote: operation(
    Type.Object({ ino: Id, offset: Bytes, length: Bytes, mtime: Time, holdsPages: Type.Optional(Type.Boolean()) }),
    Type.Object({ attr: Attr }),
  ),
  /** Shared mode: nobody else makes the file longer until the caller answers yieldEnd. Answers how long it is. unclean: the caller
   *  has written behind the end before, and not told. */
  claimEnd: operation(
    Type.Object({ ino: Id, unclean: Type.Boolean(), holdsPages: Type.Boolean() }),
    Type.Object({ attr: Attr, record: Type.Optional(Blob) }),
  ),
  /** What is at these places did not take a write that other copies of it took: it counts no more. Answered when all other holders
   *  have the record, which is the answer. `record` as in setattr. The last copy of anything is not dropped. */
  dropCopies: operation(
    Type.Object({ ino: Id, record: Type.Optional(Blob), places: Type.Array(Type.Object({ region: Id, offset: Bytes })) }),
    Type.Object({ record: Blob }),
  ),
  /** Shared mode: making the file longer failed half way. What was written behind its end is cleared away before it gets longer. */
  giveUpEnd: operation(Type.Object({ ino: Id }), Empty),

  /** More room to carve files from: regions of this client's own, spread over the appliances (or these only). ENOSPC when there is none at all. */
  provision: operation(
    Type.Object({ bytes: Bytes, appliances: Type.Optional(Type.Array(Type.String())) }),
    Type.Object({ regions: Type.Array(RegionGrant) }),
  ),
  /** Grants for regions that a record names but the caller does not know. */
  regions: operation(Type.Object({ regions: Type.Array(Id) }), Type.Object({ regions: Type.Array(RegionGrant) })),

  getlk: operation(Lock, Type.Object({ conflict: Type.Optional(Lock) })),
  /** wait: answered when the lock is granted. `waiter` names the wait for cancelLock (EINTR is then answered). EAGAIN if taken and not wait. */
  setlk: operation(Type.Object({ lock: Lock, wait: Type.Boolean(), waiter: Type.Optional(Type.String()) }), Empty),
  cancelLock: operation(Type.Object({ waiter: Type.String() }), Empty),
  /** The caller holds exactly these locks of an inode: it kept them by itself until now, or lost its session while they changed. */
  restateLocks: operation(Type.Object({ ino: Id, locks: Type.Array(Lock) }), Empty),
  goodbye: operation(Empty, Empty), // clean unmount: delegations, locks, provision given back; no fence needed
} as const;

/** Asked by the manager of a client. */
export const clientPushes = {
  /** Flush, then keep no more than `to`. The answer says how the file is still open here, its newest record, and the locks that it
   *  kept by itself (absent: the manager keeps them already). */
  recall: operation(
    Type.Object({ ino: Id, to: DelegationMode }),
    Type.Object({
      open: OpenState,
      locks: Type.Optional(Type.Array(Lock)),
    }),
  ),
  /** Others want to see a directory: answered when everything done in it is with the manager; from then on it is nobody's. */
  recallDirectory: operation(Type.Object({ directory: Id }), Empty),
  /** The delegation is now this (the others went away). Answered at once. */
  grant: operation(Type.Object({ grant: FileGrant }), Empty),
  /** Current attributes of a file that this client holds for writing. */
  attributes: operation(Type.Object({ ino: Id }), Type.Object({ record: Type.Optional(Blob) })),
  /** Drop cached names (also in the kernel). Answered when done. */
  invalidateEntries: operation(Type.Object({ entries: Type.Array(Type.Object({ parent: Id, name: Name })) }), Empty),
  /** Drop cached attributes, and data of the range when length > 0 (length -1: to the end). attr: the new ones. cut: what the record
   *  no longer has is used again once this is answered: no read there may go on. Writers go on with the record. */
  invalidate: operation(
    Type.Object({
      ino: Id,
      offset: Bytes,
      length: Type.Integer(),
      attr: Type.Optional(Attr),
      record: Type.Optional(Blob),
      cut: Type.Optional(Type.Boolean()),
    }),
    Empty,
  ),
  /** Shared mode, before a cut: answered when nobody here writes to the file. They wait for `invalidate` with `cut`. */
  pauseWriters: operation(Type.Object({ ino: Id }), Empty),
  /** Shared mode: another client makes the file longer. Answered when nobody here does; unclean: as claimEnd's. */
  yieldEnd: operation(Type.Object({ ino: Id }), Type.Object({ unclean: Type.Boolean() })),
  /** What this client may do with the data of a file has changed, or may have. */
  access: operation(
    Type.Object({ ino: Id, read: Type.Boolean(), write: Type.Boolean(), ownRegions: Type.Boolean(), regions: Type.Array(RegionGrant) }),
    Empty,
  ),
  /** Nothing more is to be carved from these regions of this client's provision. */
  retire: operation(Type.Object({ regions: Type.Array(Id) }), Empty),
  /** Pieces of this client's provision that are free again (zeroed). */
  freed: operation(Type.Object({ pieces: Type.Array(RegionPiece) }), Empty),
  /** Appliances that joined, left, or came back with another incarnation; regions that are gone for good. */
  appliances: operation(Type.Object({ appliances: Type.Array(ApplianceInfo), lostRegions: Type.Array(Id) }), Empty),
} as const;

/** The versions of regions' access parameters, of those that ever had any. */
const AccessVersions = Type.Array(Type.Object({ region: Id, version: Type.Integer({ minimum: 0, maximum: 0xffff_ffff }) }));

/** Asked by an appliance of the manager. */
export const applianceOperations = {
  /** First on every session, before the appliance can serve (and so knows its port): what it needs to begin. */
  join: operation(
    Type.Object({ version: Type.Integer(), id: Type.String({ minLength: 1, maxLength: 64 }) }),
    Type.Object({ clusterKey: Blob, access: AccessVersions }),
  ),
  hello: operation(
    Type.Object({
      version: Type.Integer(),
      appliance: ApplianceInfo,
      /** First hello of a process: what its backing store had. exact: with all that was ever acknowledged. */
      restored: Type.Optional(Type.Array(Type.Object({ region: Id, bytes: Bytes, exact: Type.Boolean() }))),
    }),
    Type.Object({
      clusterKey: Blob,
      heartbeatMs: Type.Integer(),
      /** Clients whose grants are dead: to be fenced before anything is served. */
      dead: ClientRanges,
      /** Regions of this incarnation that the manager knows; any other is to be destroyed. */
      regions: Type.Array(Id),
      /** What was handed out by older versions is to be taken back. */
      access: AccessVersions,
    }),
  ),
  /** `donatedBytes` is what is offered now. */
  heartbeat: operation(
    Type.Object({ donatedBytes: Bytes, reservedBytes: Bytes, residentBytes: Bytes, offer: OfferState, store: Type.Optional(StoreInfo) }),
    Empty,
  ),
  /** kept: what it holds is in its backing store, and comes back with it. */
  goodbye: operation(Type.Object({ kept: Type.Optional(Type.Boolean()) }), Empty),
} as const;

/** What was done with a region, as far as its appliance sees it (A13): messages, and what clients tell of their own writes. */
export const RegionUsage = Type.Object({
  operations: Type.Integer(),
  bytesRead: Bytes,
  bytesWritten: Bytes,
  toldChunks: Type.Integer(), // of 2 MiB, that clients have written themselves, each time that it was found out
  lastAccessMs: Type.Integer(), // since the epoch; 0: never
  given: Type.Boolean(), // clients were given the memory itself: the rest of what they do there is not seen
  hot: Type.Array(Type.Object({ offset: Bytes, heat: Type.Number() })), // chunks of 2 MiB, hottest first
});
export type RegionUsage = Static<typeof RegionUsage>;

export const RegionInfo = Type.Object({
  region: Id,
  bytes: Bytes,
  residentBytes: Bytes,
  thin: Type.Boolean(),
  absentBytes: Bytes, // restored or freed, and in the backing store only
  damagedPages: Type.Integer(),
  accessVersion: Type.Integer(),
  /** It is being copied to the backing store, or brought home from there. */
  activity: Type.Union([Type.Literal('none'), Type.Literal('persisting'), Type.Literal('restoring')]),
  usage: RegionUsage,
});
export type RegionInfo = Static<typeof RegionInfo>;

export const Sensor = Type.Object({
  chip: Type.String(),
  label: Type.String(),
  value: Type.Number(),
  critical: Type.Optional(Type.Number()), // the chip calls anything from here on critical
});
export type Sensor = Static<typeof Sensor>;

/** Per cent of the last ten seconds in which some, or all, tasks waited for it. */
const Pressure = Type.Object({ someOf10s: Type.Number(), allOf10s: Type.Number() });

/** By persisting and freeing: of what was meant, what takes no memory any more, and what does because clients hold it themselves. */
export const Freed = Type.Object({ freedBytes: Bytes, heldBytes: Bytes });
export type Freed = Static<typeof Freed>;

/** Of the backing store of an appliance that has one: its device, and how persisting goes. */
export const StoreHealth = Type.Object({
  path: Type.String(),
  device: Type.Optional(Type.String()), // absent where the kernel shows none behind the file system
  readOnly: Type.Optional(Type.Boolean()),
  errors: Type.Optional(Type.Number()),
  freeBytes: Type.Optional(Bytes), // of its file system; a device is the store's own
  usedBytes: Bytes,
  persistSeconds: Type.Number(),
  batterySeconds: Type.Optional(Type.Number()),
  failure: Type.String(), // of the last persist; else ''
  broken: Type.String(), // why nothing is persisted any more; else ''
});
export type StoreHealth = Static<typeof StoreHealth>;

/** What is absent, the machine has no sensor for, or does not show here (a virtual machine, a container). */
export const ApplianceHealth = Type.Object({
  store: Type.Optional(StoreHealth),
  temperatures: Type.Optional(Type.Array(Sensor)), // degrees Celsius
  voltages: Type.Optional(Type.Array(Sensor)), // V
  fans: Type.Optional(Type.Array(Sensor)), // turns per minute
  /** Since the machine started. */
  memoryErrors: Type.Optional(Type.Array(Type.Object({ controller: Type.String(), corrected: Type.Number(), uncorrected: Type.Number() }))),
  power: Type.Optional(
    Type.Array(
      Type.Object({
        source: Type.String(),
        kind: Type.String(),
        online: Type.Optional(Type.Boolean()),
        percent: Type.Optional(Type.Number()),
        status: Type.Optional(Type.String()),
      }),
    ),
  ),
  blockDevices: Type.Optional(
    Type.Array(
      Type.Object({
        device: Type.String(),
        readOnly: Type.Boolean(),
        state: Type.Optional(Type.String()),
        errors: Type.Optional(Type.Number()),
      }),
    ),
  ),
  pressure: Type.Optional(Type.Object({ memory: Pressure, cpu: Pressure, io: Pressure })),
});
export type ApplianceHealth = Static<typeof ApplianceHealth>;

/** Asked by the manager of an appliance. Codes: ENOSPC, EEXIST, ENOENT, EINVAL. */
export const appliancePushes = {
  createRegion: operation(Type.Object({ region: Id, bytes: Bytes, thin: Type.Boolean() }), Empty),
  resizeRegion: operation(Type.Object({ region: Id, bytes: Bytes }), Empty),
  destroyRegions: operation(Type.Object({ regions: Type.Array(Id) }), Empty),
  punch: operation(Type.Object({ pieces: Type.Array(RegionPiece) }), Empty),
  /** Of each piece the hashes (8 bytes) of its parts of SUM_BYTES: copies are compared without being sent (C14). */
  sum: operation(Type.Object({ pieces: Type.Array(RegionPiece) }), Type.Object({ sums: Type.Array(Blob) })),
  /** These pieces, whose bytes are zero, get those of pieces elsewhere. Once it is answered, or its session has ended, nothing more of
   *  it happens; nor in regions that are punched or destroyed meanwhile. EIO: a source cannot be read; ECANCELED; ETIMEDOUT. */
  copy: operation(CopyAsk, Empty),
  /** Answered when these pieces, or everything if none are named, are durable as they are now, and, with `free`, their memory is given
   *  back: so many bytes of it. Not so many others, which clients hold themselves. ENOTSUP: there is no backing store; ESTORE: it
   *  fails, or is full. */
  persist: operation(Type.Object({ pieces: Type.Array(RegionPiece), free: Type.Optional(Type.Boolean()) }), Freed),
  /** All clients that are dead, not only those that died since. */
  fence: operation(Type.Object({ dead: ClientRanges }), Empty),
  /** Capabilities of older versions are void, and what was handed out by them is taken back when this is answered, but for that
   *  of the clients that keep what they have. */
  setAccess: operation(Type.Object({ regions: AccessVersions, keep: Type.Array(Id) }), Empty),
  listRegions: operation(Empty, Type.Object({ regions: Type.Array(RegionInfo) })),
  /** A5, and what of it somebody should look at. */
  health: operation(Empty, Type.Object({ health: ApplianceHealth, worries: Type.Array(Type.String()) })),
  listRecords: operation(Empty, Type.Object({ records: Type.Array(Type.Object({ region: Id, ino: Id, record: Blob })) })),
  /** Those that are not there are no error. */
  removeRecords: operation(Type.Object({ records: Type.Array(Type.Object({ region: Id, ino: Id })) }), Empty),
} as const;

export type Operations = Record<string, { ask: TSchema; answer: TSchema }>;
export type Ask<Table extends Operations, Name extends keyof Table> = Static<Table[Name]['ask']>;
export type Answer<Table extends Operations, Name extends keyof Table> = Static<Table[Name]['answer']>;
