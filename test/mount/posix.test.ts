/**
 * POSIX as one mount keeps it, call by call. What a call promises here holds for every program; test/mount/programs.test.ts has some.
 */
import { chmodSync } from 'node:fs';
import { afterAll, beforeAll, beforeEach, describe, expect, test } from '@jest/globals';
import { Actor } from './actor.js';
import { run, succeed, TestCluster } from './cluster.js';

describe.each(['tcp', 'shm'] as const)('over %s', (transport) => {
  const cluster = new TestCluster({ transport, cache: '16M', memory: '256M' });
  let a: Actor;
  let b: Actor;
  let count = 0;
  /** A new name for each test, as a Python literal. */
  let name = '';

  beforeAll(async () => {
    await cluster.start();
    chmodSync(cluster.folder, 0o755);
    a = new Actor(cluster.mount().mountPoint);
    b = new Actor(cluster.mount().mountPoint);
  });
  afterAll(async () => {
    await Promise.all([a.end(), b.end()]);
    await cluster.stop();
  });
  beforeEach(async () => {
    count += 1;
    name = `file${count}_`; // no number at its end: tests add some
    await a.do(`name = '${name}'`);
    await b.do(`name = '${name}'`);
  });

  const as = (uid: number, shell: string): ReturnType<typeof run> =>
    run('setpriv', [`--reuid=${uid}`, `--regid=${uid}`, '--clear-groups', 'sh', '-c', `cd '${cluster.mount().mountPoint}' && ${shell}`]);

  describe('names', () => {
    test('a directory is made, listed, counted in nlink, and removed when it is empty', async () => {
      await a.do(`os.mkdir(name); os.mkdir(name + '/in'); put(name + '/in/f', b'x')`);
      expect(await a.do(`sorted(os.listdir(name)), os.stat(name).st_nlink`)).toEqual([['in'], 3]);
      expect(await a.fails(`os.rmdir(name)`)).toBe('ENOTEMPTY');
      expect(await a.fails(`os.rmdir(name + '/in/f')`)).toBe('ENOTDIR');
      expect(await a.fails(`os.unlink(name + '/in')`)).toBe('EISDIR');
      expect(await a.fails(`os.mkdir(name)`)).toBe('EEXIST');
      await a.do(`os.unlink(name + '/in/f'); os.rmdir(name + '/in'); os.rmdir(name)`);
      expect(await a.fails(`os.stat(name)`)).toBe('ENOENT');
    });

    test('rename replaces a file at once; what was replaced stays readable by who has it open', async () => {
      await a.do(`put(name, b'old'); put(name + '.new', b'newer'); fd = os.open(name, os.O_RDWR); os.rename(name + '.new', name)`);
      expect(await a.do(`get(name), os.pread(fd, 10, 0), os.fstat(fd).st_nlink, os.path.exists(name + '.new')`)).toEqual([
        'newer',
        'old',
        0,
        false,
      ]);
      expect(await a.do(`os.pwrite(fd, b'still', 0); os.pread(fd, 10, 0)`)).toBe('still');
      await a.do('os.close(fd)');
    });

    test('rename of directories: over an empty one, not over a full one, not into itself', async () => {
      await a.do(`[os.mkdir(name + one) for one in ('a', 'b', 'c')]; put(name + 'c/f', b'')`);
      await a.do(`os.rename(name + 'a', name + 'b')`);
      expect(await a.fails(`os.rename(name + 'b', name + 'c')`)).toBe('ENOTEMPTY');
      expect(await a.fails(`os.rename(name + 'c', name + 'c/d')`)).toBe('EINVAL');
      expect(await a.fails(`os.rename(name + 'b', name + 'c/f')`)).toBe('ENOTDIR');
      expect(await a.fails(`os.rename(name + 'c/f', name + 'b')`)).toBe('EISDIR');
      await a.do(`os.rename(name + 'b', name + 'c/moved')`);
      expect(await a.do(`os.stat(name + 'c').st_nlink, sorted(os.listdir(name + 'c'))`)).toEqual([3, ['f', 'moved']]);
    });

    test('RENAME_NOREPLACE refuses, RENAME_EXCHANGE swaps files and directories', async () => {
      await a.do(`put(name + '1', b'one'); put(name + '2', b'second'); os.mkdir(name + 'd')`);
      expect(await a.fails(`renameat2(name + '1', name + '2', 1)`)).toBe('EEXIST');
      await a.do(`renameat2(name + '1', name + '3', 1); renameat2(name + '3', name + '2', 2)`);
      expect(await a.do(`get(name + '2'), get(name + '3')`)).toEqual(['one', 'second']);
      await a.do(`renameat2(name + 'd', name + '2', 2)`);
      expect(await a.do(`os.path.isdir(name + '2'), get(name + 'd')`)).toEqual([true, 'one']);
      expect(await a.fails(`renameat2(name + 'd', name + 'absent', 2)`)).toBe('ENOENT');
    });

    test('hard links share everything; the bytes go with the last of them', async () => {
      await a.do(`put(name, b'12'); os.link(name, name + 'l'); os.chmod(name + 'l', 0o640); put(name + 'l', b'345')`);
      expect(await a.do(`s, t = os.stat(name), os.stat(name + 'l'); s.st_ino == t.st_ino, s.st_nlink, oct(s.st_mode), s.st_size`)).toEqual([
        true,
        2,
        '0o100640',
        3,
      ]);
      expect(await a.do(`os.unlink(name); os.stat(name + 'l').st_nlink, get(name + 'l')`)).toEqual([1, '345']);
      expect(await a.fails(`os.mkdir(name + 'd'); os.link(name + 'd', name + 'e')`)).toBe('EPERM');
      await a.do(`os.rename(name + 'l', name); os.link(name, name + 'l'); os.rename(name, name + 'l')`);
      expect(await a.do(`os.stat(name).st_nlink`)).toBe(2); // two names of one file: rename does nothing
    });

    test('symbolic links: absolute, relative, dangling, in a loop, of 4095 bytes', async () => {
      await a.do(
        `put(name, b'target'); os.symlink(name, name + 'r'); os.symlink('/no/where', name + 'd'); os.symlink(name + 'o', name + 'o')`,
      );
      expect(await a.do(`get(name + 'r'), os.readlink(name + 'd'), os.lstat(name + 'r').st_size == len(name)`)).toEqual([
        'target',
        '/no/where',
        true,
      ]);
      expect(await a.fails(`get(name + 'd')`)).toBe('ENOENT');
      expect(await a.fails(`get(name + 'o')`)).toBe('ELOOP');
      expect(await a.do(`os.symlink('x' * 4095, name + 'l'); len(os.readlink(name + 'l'))`)).toBe(4095);
      expect(await a.fails(`os.readlink(name)`)).toBe('EINVAL');
    });

    test('names of 255 bytes exist, of 256 do not; UTF-8 and blanks are kept; paths may be deep', async () => {
      expect(await a.do(`put('n' * 255, b'v'); get('n' * 255)`)).toBe('v');
      expect(await a.fails(`put('n' * 256, b'v')`)).toBe('ENAMETOOLONG');
      expect(await a.do(`os.mkdir(name); put(name + '/ä 日本 \\n"', b''); os.listdir(name) == ['ä 日本 \\n"']`)).toBe(true);
      expect(await a.do(`deep = '/'.join([name] + ['d' * 60] * 40); os.makedirs(deep); put(deep + '/f', b'deep'); get(deep + '/f')`)).toBe(
        'deep',
      );
    });

    test('O_EXCL, O_CREAT of what is there, O_DIRECTORY, a file used as a directory', async () => {
      await a.do(`put(name, b'123')`);
      expect(await a.fails(`os.open(name, os.O_CREAT | os.O_EXCL | os.O_RDWR)`)).toBe('EEXIST');
      expect(await a.do(`fd = os.open(name, os.O_CREAT | os.O_RDWR, 0o600); os.fstat(fd).st_size`)).toBe(3);
      expect(await a.do(`os.close(fd)`)).toBeNull();
      expect(await a.fails(`os.open(name, os.O_DIRECTORY)`)).toBe('ENOTDIR');
      expect(await a.fails(`get(name + '/x')`)).toBe('ENOTDIR');
      expect(await a.fails(`os.open('.', os.O_RDWR)`)).toBe('EISDIR');
    });

    test('fifo and socket nodes are kept', async () => {
      expect(await a.do(`os.mkfifo(name); stat.S_ISFIFO(os.stat(name).st_mode)`)).toBe(true);
      expect(await a.do(`os.mknod(name + 's', 0o600 | stat.S_IFSOCK); stat.S_ISSOCK(os.stat(name + 's').st_mode)`)).toBe(true);
    });

    test('2,000 files in one directory are listed, each once, while others come and go', async () => {
      await a.do(`os.mkdir(name); [os.close(os.open(f'{name}/{at}', os.O_CREAT)) for at in range(1000)]`);
      const churn = b.do(`
for at in range(400):
    os.close(os.open(f'{name}/come{at}', os.O_CREAT)); at % 2 and os.unlink(f'{name}/come{at}')
for at in range(1000, 2000): os.close(os.open(f'{name}/{at}', os.O_CREAT))`);
      const rounds = await a.do<number>(`
faults = 0
for _ in range(25):
    seen = os.listdir(name)
    if len(seen) != len(set(seen)) or not set(map(str, range(1000))) <= set(seen): faults += 1
faults`);
      expect(rounds).toBe(0);
      await churn;
      expect(await a.do(`len(os.listdir(name)), len([one for one in os.scandir(name) if one.is_file()])`)).toEqual([2200, 2200]);
      expect(await a.do(`[os.unlink(one.path) for one in os.scandir(name)]; os.rmdir(name)`)).toBeNull();
    });
  });

  describe('attributes', () => {
    test('mode and owner decide for another user', async () => {
      await a.do(`put(name, b'secret'); os.chmod(name, 0o600); os.mkdir(name + 'd', 0o755); os.chown(name + 'd', 65534, 65534)`);
      expect((await as(65534, `cat ${name}`)).stderr).toMatch(/Permission denied/);
      expect((await as(65534, `touch intruder`)).stderr).toMatch(/Permission denied/);
      expect((await as(65534, `chmod 666 ${name}`)).stderr).toMatch(/not permitted/);
      expect(await as(65534, `umask 027 && echo mine > ${name}d/f && cat ${name}d/f && stat -c '%u %g %a' ${name}d/f`)).toMatchObject({
        code: 0,
        stdout: 'mine\n65534 65534 640\n',
      });
      expect(await a.do(`os.chmod(name, 0o604); os.stat(name).st_mode & 0o7777`)).toBe(0o604);
      expect(await as(65534, `cat ${name}`)).toMatchObject({ code: 0, stdout: 'secret' });
      expect((await as(1, `echo > ${name}d/f`)).stderr).toMatch(/Permission denied/);
    });

    test('the sticky bit keeps others from removing; setgid on a directory is inherited; a write takes setuid away', async () => {
      await a.do(`os.mkdir(name); os.chmod(name, 0o1777)`);
      expect(await as(65534, `echo x > ${name}/theirs`)).toMatchObject({ code: 0 });
      expect((await as(1, `rm -f ${name}/theirs`)).stderr).toMatch(/not permitted/);
      await a.do(`os.mkdir(name + 'g'); os.chown(name + 'g', 65534, 7); os.chmod(name + 'g', 0o2775)`);
      expect(await as(65534, `touch ${name}g/f && mkdir ${name}g/d && stat -c '%g %a' ${name}g/f ${name}g/d`)).toMatchObject({
        code: 0,
        stdout: '7 644\n7 2755\n',
      });
      expect(
        await as(65534, `cp /bin/true ${name}g/s && chmod 4755 ${name}g/s && echo >> ${name}g/s && stat -c %a ${name}g/s`),
      ).toMatchObject({ code: 0, stdout: '755\n' });
      const direct = `dd if=/bin/true of=${name}g/s oflag=direct conv=notrunc bs=4K count=1 status=none`;
      expect(await as(65534, `chmod 6755 ${name}g/s && ${direct} && stat -c %a ${name}g/s`)).toMatchObject({ code: 0, stdout: '755\n' });
    });

    test('times are kept to the nanosecond, set and by themselves', async () => {
      await a.do(`put(name, b'x')`);
      await a.do(`os.utime(name, ns=(1_234_567_890_123_456_789, 1_111_111_111_987_654_321))`);
      await cluster.evict();
      expect(await a.do(`s = os.stat(name); str(s.st_atime_ns), str(s.st_mtime_ns)`)).toEqual([
        '1234567890123456789',
        '1111111111987654321',
      ]);
      await succeed('touch', ['-d', '2001-02-03 04:05:06.123456789', cluster.mount().path(name)]);
      await succeed('cp', ['-a', cluster.mount().path(name), cluster.mount().path(`${name}.a`)]);
      expect((await succeed('stat', ['-c', '%y', cluster.mount().path(`${name}.a`)])).slice(0, 29)).toBe('2001-02-03 04:05:06.123456789');
      const grows = `
before = os.stat(name); c = before.st_ctime_ns
with open(name, 'ab') as file: file.write(b'y')
after = os.stat(name); after.st_mtime_ns > before.st_mtime_ns, after.st_ctime_ns > c, after.st_ctime_ns - before.st_ctime_ns < 60e9`;
      expect(await a.do(grows)).toEqual([true, true, true]);
      expect(
        await a.do(
          `c = os.stat(name).st_ctime_ns; m = os.stat(name).st_mtime_ns; os.chmod(name, 0o600); s = os.stat(name); s.st_ctime_ns > c, s.st_mtime_ns == m`,
        ),
      ).toEqual([true, true]);
    });

    test('a file held open keeps the times that were set through it', async () => {
      await a.do(
        `fd = os.open(name, os.O_RDWR | os.O_CREAT); os.write(fd, b'12345'); os.utime(fd, ns=(5_000_000_001, 6_000_000_002)); os.close(fd)`,
      );
      await cluster.evict();
      expect(await b.do(`os.stat(name).st_mtime_ns, os.stat(name).st_atime_ns`)).toEqual([6_000_000_002, 5_000_000_001]);
    });

    test('extended attributes: set, got, listed, replaced, removed, large', async () => {
      await a.do(`put(name, b''); os.setxattr(name, 'user.one', b'1'); os.setxattr(name, 'user.large', b'L' * 60000)`);
      expect(await a.do(`os.getxattr(name, 'user.one'), len(os.getxattr(name, 'user.large'))`)).toEqual(['1', 60000]);
      expect(await a.do(`set(('user.one', 'user.large')) <= set(os.listxattr(name))`)).toBe(true);
      expect(await a.fails(`os.setxattr(name, 'user.one', b'2', os.XATTR_CREATE)`)).toBe('EEXIST');
      expect(await a.fails(`os.setxattr(name, 'user.two', b'2', os.XATTR_REPLACE)`)).toBe('ENODATA');
      expect(await a.do(`os.setxattr(name, 'user.one', b'\\0\\xff'); os.getxattr(name, 'user.one')`)).toBe('\0\xff');
      expect(await a.do(`os.removexattr(name, 'user.one'); 'user.one' in os.listxattr(name)`)).toBe(false);
      expect(await a.fails(`os.getxattr(name, 'user.one')`)).toBe('ENODATA');
      expect(await a.fails(`os.removexattr(name, 'user.one')`)).toBe('ENODATA');
    });

    test('user.extmem.layout and user.extmem.placement tell where a file lies', async () => {
      await a.do(`put(name, b'x' * 5000000)`);
      expect(await a.do(`os.getxattr(name, 'user.extmem.layout')`)).toMatch(/stripe|concat/);
      expect(await a.do(`os.getxattr(name, 'user.extmem.placement')`)).toMatch(/a1|a2/);
      expect(await a.fails(`os.setxattr(name, 'user.extmem.placement', b'x')`)).toMatch(/EPERM|EOPNOTSUPP|EACCES/);
    });

    test("statfs: the appliances' memory in total; less is free after a file, and as much again after it is gone", async () => {
      expect(await a.do(`s = os.statvfs('.'); s.f_blocks * s.f_frsize`)).toBe(2 * 256 * 1024 ** 2);
      await a.do(`import time
def free_reaches(test):
    until = time.monotonic() + 10
    while time.monotonic() < until:
        s = os.statvfs('.'); free = s.f_bavail * s.f_frsize
        if test(free): return True
        os.sched_yield()
    return free
s = os.statvfs('.'); before = s.f_bavail * s.f_frsize; put(name, bytes(1) * 20_000_000)`);
      expect(await a.do(`free_reaches(lambda free: before - 24e6 < free < before - 19e6)`)).toBe(true);
      expect(await a.do(`os.unlink(name); free_reaches(lambda free: free >= before)`)).toBe(true);
    });
  });

  describe('contents', () => {
    test('st_blocks is what is written, to the page, once a file is closed; what was reserved stays', async () => {
      for (const size of [100, 9000, 300_000, 2 ** 21 + 1, 9_000_001]) {
        await a.do(`put(name, bytes(1) * ${size})`);
        const blocks = Math.ceil(size / 4096) * 8;
        expect(await a.do(`os.stat(name).st_blocks`)).toBe(blocks);
        expect(await b.do(`get(name) == bytes(1) * ${size}, os.stat(name).st_blocks`)).toEqual([true, blocks]);
        await a.do('os.unlink(name)');
      }
      await a.do(`fd = os.open(name, os.O_RDWR | os.O_CREAT); os.write(fd, b'x' * 9000); fallocate(fd, 1, 0, 1_000_000); os.close(fd)`);
      expect(await a.do(`s = os.stat(name); s.st_size, s.st_blocks * 512 >= 1_000_000`)).toEqual([9000, true]);
    });

    test('truncation both ways, to odd sizes: what comes back is zeros', async () => {
      await a.do(`fd = os.open(name, os.O_RDWR | os.O_CREAT); data = random.randbytes(30000); os.pwrite(fd, data, 0)`);
      for (const sizes of [
        [12345, 20000],
        [1, 4097],
        [0, 8191],
        [4096, 4095, 4100],
      ]) {
        const [least] = [...sizes].sort((one, other) => one - other);
        await a.do(`os.pwrite(fd, data, 0); ${sizes.map((size) => `os.ftruncate(fd, ${size})`).join('; ')}`);
        const size = sizes.at(-1)!;
        expect(await a.do(`os.fstat(fd).st_size, get(name) == data[:${least!}] + bytes(${size} - ${least!})`)).toEqual([size, true]);
        await cluster.evict();
        expect(await b.do(`len(get(name))`)).toBe(size);
        expect(await a.do(`get(name) == data[:${least!}] + bytes(${size} - ${least!})`)).toBe(true);
      }
      await a.do(`os.close(fd)`);
    });

    test('a write beyond the end leaves a hole of zeros, also within the last page', async () => {
      await a.do(
        `fd = os.open(name, os.O_RDWR | os.O_CREAT); os.pwrite(fd, b'A' * 100, 0); os.pwrite(fd, b'B', 5000); os.pwrite(fd, b'C', 10_000_000)`,
      );
      const whole = `get(name) == b'A' * 100 + bytes(4900) + b'B' + bytes(9_994_999) + b'C'`;
      expect(await a.do(whole)).toBe(true);
      await a.do('os.close(fd)');
      await cluster.evict();
      expect(await b.do(whole)).toBe(true);
      expect(await a.do(`os.stat(name).st_blocks * 512 < 5_000_000`)).toBe(true);
    });

    test('old bytes beyond the end never come back: shrink, then write past the end', async () => {
      await a.do(
        `fd = os.open(name, os.O_RDWR | os.O_CREAT); os.pwrite(fd, b'X' * 9000, 0); os.fsync(fd); os.ftruncate(fd, 10); os.pwrite(fd, b'Y', 8999)`,
      );
      await cluster.evict();
      expect(await a.do(`os.pread(fd, 9000, 0) == b'X' * 10 + bytes(8989) + b'Y'`)).toBe(true);
      await a.do('os.close(fd)');
    });

    test('sizes are exact to the byte around pages and stripe units', async () => {
      for (const size of [1, 4095, 4096, 4097, 65_536, 2 ** 21 - 1, 2 ** 21, 2 ** 21 + 1, 2 ** 22 + 4097]) {
        expect(await a.do(`data = random.randbytes(${size}); put(name, data); os.stat(name).st_size`)).toBe(size);
        await cluster.evict();
        expect(await a.do(`os.stat(name).st_size == ${size} and get(name) == data`)).toBe(true);
      }
    });

    test('O_APPEND of several processes loses nothing', async () => {
      const append = (letter: string): string => `
fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
for at in range(400): os.write(fd, b'${letter}' * 37 + b'\\n')
os.close(fd)`;
      await Promise.all([a.do(append('a')), b.do(append('b'))]);
      expect(await a.do(`lines = get(name).split(b'\\n'); sorted((lines.count(b'a' * 37), lines.count(b'b' * 37))), len(lines)`)).toEqual([
        [400, 400],
        801,
      ]);
    });

    test.each(['before', 'after'])('whoever opens a file %s its appender and reads meanwhile sees whole records only', async (when) => {
      const count = 600;
      const openReader = (): Promise<unknown> => a.do(`reader = os.open(name, os.O_RDONLY | os.O_CREAT)`);
      if (when === 'before') await openReader();
      await b.do(`writer = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_APPEND)`);
      if (when === 'after') await openReader();
      const append = `for n in range(${count}): os.write(writer, b'r' * random.randint(1, 900) + b'.')
os.close(writer)`;
      // What was opened before, or on Linux before 6.6, reads through the kernel's cache: zeros for an append while that is under way.
      const follow = `
import time
strict = ${when === 'after' ? 'True' : 'False'} and tuple(int(part) for part in os.uname().release.split('.')[:2]) >= (6, 6)
data = b''
while data.count(b'.') < ${count}:
    data = os.pread(reader, 1 << 20, 0)
    hole = data.find(0)
    if hole >= 0 and not strict:
        for _ in range(500):  # it may be under way still
            data = os.pread(reader, hole + 1, 0)
            if data[hole] != 0: break
            time.sleep(0.01)
        assert data[hole] != 0, hole
        continue
    assert data.strip(b'r.') == b'' and data[-1:] != b'r', data[-100:]
os.close(reader)
data.count(b'.')`;
      const [, seen] = await Promise.all([b.do(append), a.do(follow)]);
      expect(seen).toBe(count);
    });

    test('O_TRUNC empties, also a file that others have open', async () => {
      await a.do(`put(name, b'z' * 9999); fd = os.open(name, os.O_RDONLY); os.pread(fd, 10, 0)`);
      await b.do(`os.close(os.open(name, os.O_WRONLY | os.O_TRUNC))`);
      expect(await a.do(`os.fstat(fd).st_size, os.pread(fd, 10, 0)`)).toEqual([0, '']);
      await a.do('os.close(fd)');
    });

    test('fallocate beyond the longest file there can be says so, however long the range', async () => {
      await a.do(`fd = os.open(name, os.O_RDWR | os.O_CREAT)`);
      for (const range of ['0, 2 ** 60', '2 ** 44, 4096', '4096, 2 ** 44']) {
        expect(await a.do(`failure(fallocate, fd, 1, ${range})`)).toBe('EFBIG');
      }
    });

    test('fallocate: mode 0 reserves and grows, KEEP_SIZE only reserves', async () => {
      await a.do(`fd = os.open(name, os.O_RDWR | os.O_CREAT); fallocate(fd, 0, 1000, 100_000)`);
      expect(await a.do(`s = os.fstat(fd); s.st_size, s.st_blocks * 512 >= 100_000, get(name) == bytes(101_000)`)).toEqual([
        101_000,
        true,
        true,
      ]);
      expect(await a.do(`fallocate(fd, 1, 0, 5_000_000); s = os.fstat(fd); s.st_size, s.st_blocks * 512 >= 5_000_000`)).toEqual([
        101_000,
        true,
      ]);
      expect(await a.do(`os.ftruncate(fd, 200_000); get(name) == bytes(200_000)`)).toBe(true);
      await a.do('os.close(fd)');
    });

    test.each([
      ['PUNCH_HOLE', 3],
      ['ZERO_RANGE', 16],
      ['ZERO_RANGE with KEEP_SIZE', 17],
    ])('fallocate %s with unaligned edges zeroes its range and nothing else', async (_what, mode) => {
      await a.do(`data = bytearray(random.randbytes(60_000)); put(name, data); fd = os.open(name, os.O_RDWR)`);
      for (const [from, length] of [
        [5000, 30_001],
        [1, 2],
        [4096, 4096],
        [4095, 2],
        [8000, 200],
        [59_990, 100],
      ] as const) {
        await a.do(
          `fallocate(fd, ${mode}, ${from}, ${length}); end = min(${from + length}, len(data)); data[${from}:end] = bytes(end - ${from})`,
        );
        if (mode === 16) await a.do(`data.extend(bytes(max(0, ${from + length} - len(data))))`);
        expect(await a.do(`os.pread(fd, 100_000, 0) == data, os.fstat(fd).st_size == len(data)`)).toEqual([true, true]);
      }
      await a.do('os.fsync(fd); os.close(fd)');
      await cluster.evict();
      expect(await b.do(`sha(get(name))`)).toBe(await a.do(`sha(data)`));
    });

    test('SEEK_DATA and SEEK_HOLE find data, holes and the end', async () => {
      await a.do(`fd = os.open(name, os.O_RDWR | os.O_CREAT); os.pwrite(fd, b'x' * 4096, 8_388_608); os.ftruncate(fd, 20_000_000)`);
      expect(await a.do(`os.lseek(fd, 0, os.SEEK_DATA) <= 8_388_608, os.lseek(fd, 0, os.SEEK_HOLE)`)).toEqual([true, 0]);
      expect(
        await a.do(`hole = os.lseek(fd, 8_388_608, os.SEEK_HOLE); hole >= 8_388_608 + 4096 and os.pread(fd, 10, hole) == bytes(10)`),
      ).toBe(true);
      expect(await a.fails(`os.lseek(fd, 19_000_000, os.SEEK_DATA)`)).toBe('ENXIO');
      expect(await a.fails(`os.lseek(fd, 20_000_000, os.SEEK_HOLE)`)).toBe('ENXIO');
      await a.do('os.close(fd)');
    });

    test('an unlinked file lives on for who has it open', async () => {
      await a.do(
        `fd = os.open(name, os.O_RDWR | os.O_CREAT); os.write(fd, b'before'); os.unlink(name); os.write(fd, b' after'); os.ftruncate(fd, 3_000_000)`,
      );
      expect(await a.do(`os.pread(fd, 20, 0)[:12], os.fstat(fd).st_nlink, os.fstat(fd).st_size, os.fsync(fd)`)).toEqual([
        'before after',
        0,
        3_000_000,
        null,
      ]);
      await cluster.evict();
      expect(await a.do(`os.pread(fd, 12, 0)`)).toBe('before after');
      expect(await b.fails(`get(name)`)).toBe('ENOENT');
      await a.do('os.close(fd)');
    });
  });

  describe('mappings', () => {
    test('stores through a shared mapping are read by others, and read calls see them', async () => {
      await a.do(
        `fd = os.open(name, os.O_RDWR | os.O_CREAT); os.posix_fallocate(fd, 0, 100_000); m = mmap.mmap(fd, 100_000); m[50_000:50_005] = b'store'`,
      );
      expect(await b.do(`fd = os.open(name, os.O_RDONLY); n = mmap.mmap(fd, 100_000, prot=mmap.PROT_READ); n[50_000:50_005]`)).toBe(
        'store',
      );
      expect(await b.do(`os.pread(fd, 5, 50_000)`)).toBe('store');
      await a.do(`os.pwrite(fd, b'write', 60_000)`);
      expect(await b.do(`n[60_000:60_005]`)).toBe('write');
      await a.do(`m.flush(); m.close(); os.close(fd)`);
      await cluster.evict();
      expect(await b.do(`n[50_000:50_005], n[60_000:60_005], os.close(fd)`)).toEqual(['store', 'write', null]);
    });

    test('msync makes stores durable: they survive dropping every cache', async () => {
      await a.do(`fd = os.open(name, os.O_RDWR | os.O_CREAT); os.posix_fallocate(fd, 0, 4_000_000); m = mmap.mmap(fd, 4_000_000)`);
      await a.do(`[m.__setitem__(slice(at, at + 3), b'abc') for at in range(0, 4_000_000, 4099)][:0]; m.flush()`);
      await cluster.evict();
      expect(await b.do(`data = get(name); all(data[at:at + 3] == b'abc' for at in range(0, 4_000_000 - 3, 4099))`)).toBe(true);
      await a.do('m.close(); os.close(fd)');
    });

    test('stores through a private mapping stay private', async () => {
      await a.do(
        `put(name, b'public' * 1000); fd = os.open(name, os.O_RDWR); m = mmap.mmap(fd, 6000, flags=mmap.MAP_PRIVATE); m[0:7] = b'private'`,
      );
      expect(await a.do(`m[0:7], os.pread(fd, 6, 0)`)).toEqual(['private', 'public']);
      await a.do('m.close(); os.close(fd)');
    });

    test('bytes beyond the end in the last page of a mapping are zeros, and are not written back', async () => {
      await a.do(`put(name, b'e' * 5000); fd = os.open(name, os.O_RDWR); m = mmap.mmap(fd, 5000)`);
      await a.do(`os.ftruncate(fd, 4999); os.ftruncate(fd, 8192); m.close(); m = mmap.mmap(fd, 8192)`);
      expect(await a.do(`m[4990:] == b'e' * 9 + bytes(8192 - 4999)`)).toBe(true);
      await a.do('m.close(); os.close(fd)');
    });

    test('touching a page that a truncation took away is SIGBUS, as on every file system', async () => {
      const victim = new Actor(cluster.mount().mountPoint);
      await victim.do(`put('${name}', b'e' * 9000); fd = os.open('${name}', os.O_RDWR); m = mmap.mmap(fd, 9000); m[8500]`);
      await a.do(`os.truncate(name, 100)`);
      await expect(victim.do(`m[8500]`)).rejects.toThrow(/ended/);
      await victim.ended;
    });
  });

  describe('locks', () => {
    test('fcntl locks exclude other processes by range, and go with any close of the file', async () => {
      await a.do(`fd = os.open(name, os.O_RDWR | os.O_CREAT); fcntl.lockf(fd, fcntl.LOCK_EX, 100, 50)`);
      await b.do(`fd = os.open(name, os.O_RDWR); fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 50, 0)`);
      expect(await b.fails(`fcntl.lockf(fd, fcntl.LOCK_SH | fcntl.LOCK_NB, 1, 149)`)).toBe('EAGAIN');
      expect(
        await b.do(`struct.unpack('hhqqi4x', fcntl.fcntl(fd, fcntl.F_GETLK, struct.pack('hhqqi4x', fcntl.F_WRLCK, 0, 120, 1, 0)))[:4]`),
      ).toEqual([1, 0, 50, 100]);
      await a.do(`os.close(os.open(name, os.O_RDONLY))`);
      await b.do(`fcntl.lockf(fd, fcntl.LOCK_SH | fcntl.LOCK_NB, 1, 149); os.close(fd)`);
      await a.do('os.close(fd)');
    });

    test('a waiting fcntl lock is granted when its holder unlocks, and when its holder dies', async () => {
      const holder = new Actor(cluster.mount().mountPoint);
      await holder.do(`fd = os.open('${name}', os.O_RDWR | os.O_CREAT); fcntl.lockf(fd, fcntl.LOCK_EX)`);
      const granted = a.do(`fd = os.open(name, os.O_RDWR); fcntl.lockf(fd, fcntl.LOCK_EX); 'mine'`);
      const also = b.do(`fd = os.open(name, os.O_RDWR); fcntl.lockf(fd, fcntl.LOCK_EX); 'mine too'`);
      await holder.end();
      const first = await Promise.race([granted.then(() => a), also.then(() => b)]);
      await first.do(`fcntl.lockf(fd, fcntl.LOCK_UN)`);
      expect(await Promise.all([granted, also])).toEqual(['mine', 'mine too']);
      await Promise.all([a.do('os.close(fd)'), b.do('os.close(fd)')]);
    });

    test('a waiting lock can be interrupted by a signal', async () => {
      await a.do(`fd = os.open(name, os.O_RDWR | os.O_CREAT); fcntl.flock(fd, fcntl.LOCK_EX)`);
      await b.do(`import signal
def alarm(*_): raise TimeoutError
signal.signal(signal.SIGALRM, alarm); fd = os.open(name, os.O_RDWR)`);
      expect(await b.fails(`signal.setitimer(signal.ITIMER_REAL, 0.05); fcntl.flock(fd, fcntl.LOCK_EX)`)).toMatch(/TimeoutError|EINTR|\?/);
      await a.do('os.close(fd)');
      await b.do('fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB); os.close(fd)');
    });

    test('flock belongs to the open file: exclusive, shared, upgraded, dropped by the last close', async () => {
      await a.do(`fd = os.open(name, os.O_RDWR | os.O_CREAT); fcntl.flock(fd, fcntl.LOCK_SH)`);
      await b.do(`fd = os.open(name, os.O_RDWR); fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)`);
      expect(await a.fails(`fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)`)).toBe('EAGAIN');
      await b.do(`other = os.dup(fd); os.close(fd)`);
      expect(await a.fails(`fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)`)).toBe('EAGAIN');
      await b.do(`os.close(other)`);
      await a.do(`fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB); os.close(fd)`);
    });
  });
});
