/**
 * The contract of the metadata store, and the keys in it.
 *
 * Reads are synchronous and see every transaction whose body has run. A body is synchronous: it runs at once, alone, and all
 * or nothing of it happens (what it throws is the transaction's failure). transact() resolves when the transaction survives
 * the death of this process, in the order of the bodies. So an embedded store can do it, and a leader's in-memory mirror of a
 * replicated one.
 *
 * Values are plain data (numbers, strings, Uint8Array, arrays, objects); what was put or got must not be changed afterwards.
 */
export interface ReadView {
  get<T>(key: string): T | undefined;
  /** Entries whose key begins with `prefix`, in order; `after`: beginning behind that key. Scanned keys are ASCII. */
  scan<T>(prefix: string, options?: { after?: string; limit?: number }): Iterable<[key: string, value: T]>;
}

export interface Transaction extends ReadView {
  put(key: string, value: unknown): void;
  remove(key: string): void;
}

export interface MetadataStore extends ReadView {
  /** How many keys begin with `prefix` (those under way may be missing). */
  count(prefix: string): number;
  transact<T>(body: (tx: Transaction) => T): Promise<T>;
  /** Resolves when everything that was transacted so far survives. */
  settled(): Promise<void>;
  close(): Promise<void>;
}

/** 2^53 has 14 hexadecimal digits: numbers sort as keys do. */
function hex(id: number): string {
  return id.toString(16).padStart(14, '0');
}

export const keys = {
  inode: (ino: number) => `i/${hex(ino)}`,
  inodes: 'i/',
  record: (ino: number) => `r/${hex(ino)}`,
  records: 'r/',
  xattrs: (ino: number) => `x/${hex(ino)}`,
  entry: (parent: number, name: string) => `d/${hex(parent)}/${name}`,
  /** Directory entries in the order of their cookies: the value is the name and the inode. */
  cookie: (parent: number, cookie: number) => `k/${hex(parent)}/${hex(cookie)}`,
  cookies: (parent: number) => `k/${hex(parent)}/`,
  orphan: (ino: number) => `o/${hex(ino)}`,
  orphans: 'o/',
  holder: (ino: number, client: number) => `g/${hex(ino)}/${hex(client)}`,
  holders: 'g/',
  /** Which client has a directory to itself. */
  directoryHolder: (ino: number) => `h/${hex(ino)}`,
  directoryHolders: 'h/',
  /** The last batch of names that was taken from a client. */
  nameBatch: (client: number) => `b/${hex(client)}`,
  locks: (ino: number) => `l/${hex(ino)}`,
  allLocks: 'l/',
  client: (client: number) => `c/${hex(client)}`,
  clients: 'c/',
  /** An appliance that has not acknowledged a fence. */
  owing: (appliance: string) => `f/${Buffer.from(appliance).toString('hex')}`,
  allOwing: 'f/',
  appliance: (id: string) => `a/${Buffer.from(id).toString('hex')}`,
  appliances: 'a/',
  /** An appliance on which nothing new is placed. */
  draining: (appliance: string) => `e/${Buffer.from(appliance).toString('hex')}`,
  allDraining: 'e/',
  /** A file of which an earlier state came back. */
  behind: (ino: number) => `s/${hex(ino)}`,
  /** A file whose access parameters have windows. */
  timed: (ino: number) => `w/${hex(ino)}`,
  allTimed: 'w/',
  region: (region: number) => `R/${hex(region)}`,
  regions: 'R/',
  /** Pieces that no record names any more and that are not yet zeroed. */
  freed: (sequence: number) => `p/${hex(sequence)}`,
  allFreed: 'p/',
  job: (id: number) => `j/${hex(id)}`,
  jobs: 'j/',
  counter: (name: string) => `m/next/${name}`,
  cluster: 'm/cluster',
  /** The number that a key ends with. */
  lastNumber: (key: string) => Number.parseInt(key.slice(key.lastIndexOf('/') + 1), 16),
  firstNumber: (key: string) => Number.parseInt(key.slice(2, 16), 16),
} as const;

/** The next number of a sequence that is never used again; of `count`, the first. */
export function takeNumber(tx: Transaction, name: string, count = 1): number {
  const key = keys.counter(name);
  const next = tx.get<number>(key) ?? 1;
  tx.put(key, next + count);
  return next;
}

/** Whether a number of the sequence was taken. */
export function isTaken(view: ReadView, name: string, number: number): boolean {
  return number < (view.get<number>(keys.counter(name)) ?? 1);
}
