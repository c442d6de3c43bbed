// One file of random bytes in memory, served by the npm package fuse-native: MODULE FOLDER BYTES. Prints a line when it is mounted.
const { randomFillSync } = require('node:crypto');

const [, , module_, folder, bytes] = process.argv;
const Fuse = require(module_);
const content = Buffer.allocUnsafe(Number(bytes));
for (let at = 0; at < content.length; at += 1 << 24) randomFillSync(content, at, Math.min(1 << 24, content.length - at));

const now = new Date();
const stat = (path) => ({
  mtime: now,
  atime: now,
  ctime: now,
  nlink: 1,
  size: path === '/' ? 0 : content.length,
  mode: path === '/' ? 0o40755 : 0o100644,
  uid: process.getuid(),
  gid: process.getgid(),
});

const operations = {
  readdir: (path, done) => done(0, ['file']),
  getattr: (path, done) => (path === '/' || path === '/file' ? done(0, stat(path)) : done(Fuse.ENOENT)),
  open: (path, flags, done) => done(0, 1),
  read: (path, fd, buffer, length, position, done) => done(content.copy(buffer, 0, position, position + length)),
  write: (path, fd, buffer, length, position, done) => done(buffer.copy(content, position, 0, length)),
  truncate: (path, size, done) => done(0),
  fsync: (path, datasync, fd, done) => done(0),
  flush: (path, fd, done) => done(0),
  release: (path, fd, done) => done(0),
};

const fuse = new Fuse(folder, operations, { kernelCache: true, bigWrites: true, maxRead: 131072 });
fuse.mount((error) => {
  if (error) {
    process.stderr.write(`${error.message}\n`);
    process.exit(1);
  }
  process.stdout.write('mounted\n');
});
process.on('SIGTERM', () => process.exit(0));
