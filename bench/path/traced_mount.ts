/**
 * A program for the ladder: LINK hit|miss FOLDER. A manager, an appliance and a traced mount in one process, so that all trace points
 * share one clock and one ring; another process, pinned, touches pages in random order. Prints the steps of a fault as JSON.
 */
import { execFile } from 'node:child_process';
import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { pino } from 'pino';
import { createAppliance } from '../../src/appliance/index.js';
import { mountFileSystem } from '../../src/fs/mount.js';
import { createManager } from '../../src/manager/index.js';
import { stepsOf } from './steps.js';

/** Their trace points, about ten each, fit into the ring. */
const PAGES = 1024;
const PAGE_BYTES = 4096;
const token = 'a token for this run only';
const run = promisify(execFile);

/** In another process: this one serves the mount, and would wait for itself. */
const python = (script: string): Promise<unknown> => run('taskset', ['-c', '0', 'python3', '-c', script]);

async function main(link: string, kind: string, folder: string): Promise<void> {
  const logger = pino({ level: 'silent' });
  const mountPoint = join(folder, 'mnt');
  mkdirSync(mountPoint);
  const manager = await createManager({ host: '127.0.0.1', port: 0, stateDir: join(folder, 'manager'), token, logger });
  const appliance = await createAppliance({
    manager: manager.url,
    token,
    id: 'a1',
    memoryBytes: 512 * 1024 * 1024,
    listen: { address: '127.0.0.1' },
    logger,
  });
  const mount = await mountFileSystem({
    mountPoint,
    manager: manager.url,
    token,
    transport: link === 'tcp' ? 'tcp' : 'shm',
    ioUring: process.env['EXTMEM_IO_URING'] === 'off' ? 'off' : 'auto',
    readAheadBytes: 0,
    trace: true,
    log: logger,
  });
  const file = JSON.stringify(join(mountPoint, 'file'));
  const touch =
    `import mmap, os, random\nfd = os.open(${file}, os.O_RDONLY)\nm = mmap.mmap(fd, 0, prot=mmap.PROT_READ)\nm.madvise(mmap.MADV_RANDOM)\n` +
    `pages = list(range(${PAGES}))\nrandom.shuffle(pages)\nfor page in pages: m[page * ${PAGE_BYTES}]`;
  await run('dd', ['if=/dev/urandom', `of=${join(mountPoint, 'file')}`, `bs=${PAGE_BYTES}`, `count=${PAGES}`, 'conv=fsync', 'status=none']);
  await mount.evict();
  await python(touch); // the first are slow with every daemon
  await mount.evict();
  if (kind === 'hit') await run('dd', [`if=${join(mountPoint, 'file')}`, 'of=/dev/null', 'bs=64K', 'iflag=direct', 'status=none']);
  mount.native.takeTrace();
  await python(touch);
  process.stdout.write(JSON.stringify(stepsOf(mount.native.takeTrace())));
  await mount.unmount();
  await appliance.close();
  await manager.close();
}

const [, , link = '', kind = '', folder = ''] = process.argv;
await main(link, kind, folder);
process.exit(0);
