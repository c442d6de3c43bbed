/**
 * A program for trace.test.ts: a manager, an appliance and a traced mount in one process (so that all trace points share one ring), the
 * appliance reached over tcp. Another process touches a page of a mapping; the trace points of that fault are printed as JSON.
 */
import { spawn } from 'node:child_process';
import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { pino } from 'pino';
import { createAppliance } from '../../src/appliance/index.js';
import { mountFileSystem } from '../../src/fs/mount.js';
import { createManager } from '../../src/manager/index.js';

const PAGES = 64;
const FAULTED_PAGE = 40;
const token = 'a token for this test only';

/** In another process: this one serves the mount, and would wait for itself. */
function python(script: string): Promise<void> {
  const child = spawn('python3', ['-c', script], { stdio: 'inherit' });
  return new Promise((resolve, reject) => {
    child.once('error', reject);
    child.once('exit', (code) => (code === 0 ? resolve() : reject(new Error(`python3 ended with ${String(code)}`))));
  });
}

async function main(folder: string): Promise<void> {
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
    transport: 'tcp',
    ioUring: process.env['EXTMEM_IO_URING'] === 'on' ? 'on' : 'off',
    readAheadBytes: 0,
    trace: true,
    log: logger,
  });
  const file = join(mountPoint, 'file');
  await python(`import os\nf = open(${JSON.stringify(file)}, 'wb')\nf.write(b'x' * ${PAGES * 4096})\nf.flush()\nos.fsync(f.fileno())`);
  await mount.evict();
  mount.native.takeTrace();
  await python(
    `import mmap, os\nfd = os.open(${JSON.stringify(file)}, os.O_RDONLY)\nm = mmap.mmap(fd, 0, prot=mmap.PROT_READ)\n` +
      `m.madvise(mmap.MADV_RANDOM)\nassert m[${FAULTED_PAGE * 4096}] == ord('x')`,
  );
  process.stdout.write(JSON.stringify(mount.native.takeTrace()));
  await mount.unmount();
  await appliance.close();
  await manager.close();
}

await main(process.argv[2] ?? '');
process.exit(0);
