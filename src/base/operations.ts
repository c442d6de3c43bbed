/** What a mount tells of the operations on its files to whoever watches them (C12). */

/** Of one file in one interval: requests of the kernel, not calls of programs; what the kernel's page cache answers is not seen. */
export interface FileOperations {
  ino: number;
  reads: number;
  readBytes: number;
  /** Of the reads, those that were answered from the mount's cache at once. */
  hits: number;
  writes: number;
  writtenBytes: number;
  /** Of the writes, what was stored through mappings. */
  mappedWrites: number;
  /** Chunks of 2 MiB, by where they begin, that were used most, hottest first; at most 8. */
  hot: { offset: number; operations: number }[];
}

export interface OperationsReport {
  /** When the interval ended, and how long it was. */
  atMs: number;
  intervalMs: number;
  /** Files that something was done with. */
  files: FileOperations[];
  /** Operations on files beyond those that there is room for. */
  otherOperations: number;
}

const HOT = 8;

/** Both together. */
export function addOperations(one: FileOperations, other: FileOperations): FileOperations {
  const hot = new Map(one.hot.map(({ offset, operations }) => [offset, operations]));
  for (const { offset, operations } of other.hot) hot.set(offset, (hot.get(offset) ?? 0) + operations);
  return {
    ino: one.ino,
    reads: one.reads + other.reads,
    readBytes: one.readBytes + other.readBytes,
    hits: one.hits + other.hits,
    writes: one.writes + other.writes,
    writtenBytes: one.writtenBytes + other.writtenBytes,
    mappedWrites: one.mappedWrites + other.mappedWrites,
    hot: hottest([...hot].map(([offset, operations]) => ({ offset, operations }))),
  };
}

export function hottest(chunks: FileOperations['hot']): FileOperations['hot'] {
  return chunks.sort((one, other) => other.operations - one.operations || one.offset - other.offset).slice(0, HOT);
}
