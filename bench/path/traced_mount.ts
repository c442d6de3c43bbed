/**
 * A program for the ladder: LINK hit|miss FOLDER. Another process, pinned, touches pages of a traced mount in random order. Prints the steps
 * of a fault as JSON.
 */
import { execFile } from 'node:child_process';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { startTraced } from '../../test/traced_process.js';
import { stepsOf } from './steps.js';

/** Their trace points, about ten each, fit into the ring. */
const PAGES = 1024;
const PAGE_BYTES = 4096;
const run = promisify(execFile);

const python = (script: string): Promise<unknown> => run('taskset', ['-c', '0', 'python3', '-c', script]);

const [, , link = '', kind = '', folder = ''] = process.argv;
const { mount, mountPoint, stop } = await startTraced(folder, {
  transport: link === 'tcp' ? 'tcp' : 'shm',
  ioUring: process.env['EXTMEM_IO_URING'] === 'off' ? 'off' : 'auto',
});
const path = join(mountPoint, 'file');
const touch =
  `import mmap, os, random\nfd = os.open(${JSON.stringify(path)}, os.O_RDONLY)\nm = mmap.mmap(fd, 0, prot=mmap.PROT_READ)\nm.madvise(mmap.MADV_RANDOM)\n` +
  `pages = list(range(${PAGES}))\nrandom.shuffle(pages)\nfor page in pages: m[page * ${PAGE_BYTES}]`;
await run('dd', ['if=/dev/urandom', `of=${path}`, `bs=${PAGE_BYTES}`, `count=${PAGES}`, 'conv=fsync', 'status=none']);
await mount.evict();
await python(touch); // the first are slow with every daemon
await mount.evict();
if (kind === 'hit') await run('dd', [`if=${path}`, 'of=/dev/null', 'bs=64K', 'iflag=direct', 'status=none']);
mount.native.takeTrace();
await python(touch);
process.stdout.write(JSON.stringify(stepsOf(mount.native.takeTrace())));
await stop();
process.exit(0);
