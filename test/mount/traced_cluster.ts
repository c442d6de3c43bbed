/**
 * A program for trace.test.ts: another process touches a page of a mapping of a traced mount, whose appliance is reached over tcp; the
 * trace points of that fault are printed as JSON.
 */
import { execFile } from 'node:child_process';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { python } from '../python.js';
import { startTraced } from '../traced_process.js';

const PAGES = 64;
const FAULTED_PAGE = 40;

const store = (script: string): Promise<unknown> => promisify(execFile)(python, ['-c', script]);

const [, , folder = ''] = process.argv;
const { mount, mountPoint, stop } = await startTraced(folder, {
  transport: 'tcp',
  ioUring: process.env['EXTMEM_IO_URING'] === 'on' ? 'on' : 'off',
});
const file = JSON.stringify(join(mountPoint, 'file'));
await store(`import os\nf = open(${file}, 'wb')\nf.write(b'x' * ${PAGES * 4096})\nf.flush()\nos.fsync(f.fileno())`);
await mount.evict();
mount.native.takeTrace();
await store(
  `import mmap, os\nfd = os.open(${file}, os.O_RDONLY)\nm = mmap.mmap(fd, 0, prot=mmap.PROT_READ)\n` +
    `m.madvise(mmap.MADV_RANDOM)\nassert m[${FAULTED_PAGE * 4096}] == ord('x')`,
);
process.stdout.write(JSON.stringify(mount.native.takeTrace()));
await stop();
process.exit(0);
