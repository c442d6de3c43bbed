/** sshfs without ssh in between (plain TCP to sftp-server, its fastest form) over a tmpfs. */
import { type ChildProcess } from 'node:child_process';
import { existsSync } from 'node:fs';
import { mkdir, mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { freePort } from '../../test/free_port.js';
import { until } from '../../test/until.js';
import { fill, launch, run, START_MS, stopProcess, Unavailable, unmount, type Target } from './target.js';

const sftpServer = ['/usr/lib/openssh/sftp-server', '/usr/lib/sftp-server', '/usr/libexec/sftp-server'].find((path) => existsSync(path));

export class SshfsTarget implements Target {
  readonly name = 'sshfs tcp';
  private home = '';
  private server: ChildProcess | undefined;
  private fuse: ChildProcess | undefined;

  get folder(): string {
    return join(this.home, 'mnt');
  }
  get file(): string {
    return join(this.folder, 'bench');
  }

  async start(bytes: number): Promise<void> {
    if (sftpServer === undefined) throw new Unavailable('sftp-server is not installed: npm run bench installs it');
    this.home = await mkdtemp(join(tmpdir(), 'sshfs-bench-'));
    const store = join(this.home, 'store');
    await Promise.all([mkdir(store), mkdir(this.folder)]);
    await run('mount', ['-t', 'tmpfs', 'none', store]);
    const port = await freePort();
    const listen = `TCP-LISTEN:${port},bind=127.0.0.1,fork,nodelay,reuseaddr`;
    this.server = await launch('socat', [listen, `EXEC:${sftpServer}`], 'ignore');
    const options = `directport=${port},kernel_cache,auto_cache,max_conns=2`;
    const isMounted = async (): Promise<boolean> => {
      if (this.fuse !== undefined && this.fuse.exitCode === null) return run('mountpoint', ['-q', this.folder]).then(() => true);
      this.fuse = await launch('sshfs', ['-f', '-o', options, `localhost:${store}`, this.folder], 'ignore');
      return false;
    };
    await until('sshfs is ready', isMounted, START_MS);
    await fill(this.file, bytes);
  }
  evict(): Promise<void> {
    return Promise.resolve(); // it keeps attributes only
  }
  async stop(): Promise<void> {
    if (this.home === '') return; // never started
    await unmount(this.folder);
    await stopProcess(this.fuse);
    await stopProcess(this.server);
    await unmount(join(this.home, 'store'));
    await rm(this.home, { recursive: true, force: true });
  }
}
