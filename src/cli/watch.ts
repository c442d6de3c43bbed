/** `extmem watch`: what is read and written on a mount, interval by interval (C12). */
import { stat } from 'node:fs/promises';
import { ExtmemError } from '../base/errors.js';
import type { OperationsReport } from '../base/operations.js';
import { formatSize } from '../base/size.js';
import { onOperations } from '../client/index.js';
import { ExitCode, UsageError } from './exit.js';
import { findFile } from './file_cache.js';
import type { Invocation } from './invocation.js';
import { extmemMounts, resolveMountPoint } from './mount_point.js';
import { printJson, printLine, renderTable } from './output.js';

export async function runWatch(call: Invocation): Promise<ExitCode> {
  const intervalMs = numberOf(call, 'interval') ?? 1000;
  const count = numberOf(call, 'count') ?? Infinity;
  const { mountPoint, file } = await placeOf(call.args[0]);
  let told = 0;
  const watch = await onOperations(
    mountPoint,
    (report) => {
      if (told >= count) return;
      told += 1;
      if (call.json) printJson(report);
      else render(report);
      if (told >= count) watch.close();
    },
    { intervalMs, ...(file === undefined ? {} : { file }) },
  );
  await watch.ended;
  return ExitCode.ok;
}

/** A file on a mount, a mount point, or the only mount that there is. */
async function placeOf(path: string | undefined): Promise<{ mountPoint: string; file?: string }> {
  const mounts = extmemMounts().map(({ mountPoint }) => mountPoint);
  if (path === undefined) {
    const [only, another] = mounts;
    if (only === undefined) throw new ExtmemError('ENOTCONN', 'there is no mount here; extmem mount makes one');
    if (another !== undefined) throw new UsageError(`say which: ${mounts.join(', ')}, or a file on one of them`);
    return { mountPoint: only };
  }
  const resolved = await resolveMountPoint(path);
  if (mounts.includes(resolved)) return { mountPoint: resolved };
  const { absolute, mountPoint } = await findFile(path);
  await stat(absolute);
  return { mountPoint, file: absolute };
}

function numberOf(call: Invocation, flag: string): number | undefined {
  const text = call.text(flag);
  if (text === undefined) return undefined;
  if (!/^[1-9]\d{0,8}$/.test(text)) throw new UsageError(`--${flag} ${text}: it is a whole number, 1 or more`);
  return Number(text);
}

function render({ atMs, files, otherOperations }: OperationsReport): void {
  const rows = files.map((file) => [
    String(file.ino),
    String(file.reads),
    formatSize(file.readBytes),
    String(file.hits),
    String(file.reads - file.hits),
    String(file.writes),
    formatSize(file.writtenBytes),
    String(file.mappedWrites),
    file.hot
      .slice(0, 3)
      .map(({ offset, operations }) => `${formatSize(offset)} (${operations})`)
      .join(', '),
  ]);
  const head = ['INODE', 'READS', 'READ', 'HITS', 'MISSES', 'WRITES', 'WRITTEN', 'OF MAPPINGS', 'MOST USED AT (OPERATIONS)'];
  printLine(`${new Date(atMs).toISOString()}${rows.length === 0 ? ': nothing' : ''}`);
  if (rows.length > 0) printLine(`${renderTable(head, rows)}\n`);
  if (otherOperations > 0) printLine(`and ${otherOperations} operations on other files\n`);
}
