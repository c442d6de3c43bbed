/** Mount points: what mountinfo says, and what is said about a place that cannot be mounted on. */
import { mkdirSync, mkdtempSync, rmSync, statSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from '@jest/globals';
import { answers, isExtmem, mountedAt, parseMountInfo, prepareMountPoint, resolveMountPoint } from '../../../src/cli/mount_point.js';

let folder = '';
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'extmem-mount-point-'));
});
afterEach(() => rmSync(folder, { recursive: true, force: true }));

const warnings: string[] = [];
const options = { create: false, warn: (message: string) => void warnings.push(message) };

describe('mountinfo', () => {
  const content = [
    '22 1 0:20 / /proc rw,relatime shared:5 - proc proc rw',
    '90 1 0:44 / /mnt/with\\040space rw,nosuid - fuse.extmem extmem rw,user_id=0',
    '91 1 0:45 / /mnt/other rw - fuse.sshfs host:/ rw',
    'not a line of it',
  ].join('\n');

  test('gives device, path, type and source, with escapes undone', () => {
    const entries = parseMountInfo(content);
    expect(entries).toHaveLength(3);
    expect(entries[1]).toEqual({ device: '0:44', mountPoint: '/mnt/with space', type: 'fuse.extmem', source: 'extmem' });
    expect(entries.map(isExtmem)).toEqual([false, true, false]);
  });

  test('tells what is mounted at exactly a path', () => {
    expect(mountedAt('/proc')?.type).toBe('proc');
    expect(mountedAt('/proc/self')).toBeUndefined();
  });
});

describe('preparing', () => {
  test('an empty folder is good, by its resolved path', async () => {
    const link = join(folder, 'link');
    mkdirSync(join(folder, 'real'));
    symlinkSync(join(folder, 'real'), link);
    expect(await prepareMountPoint(link, options)).toBe(join(folder, 'real'));
  });

  test('a missing folder offers --mkdir, or is made', async () => {
    const missing = join(folder, 'a/b');
    await expect(prepareMountPoint(missing, options)).rejects.toMatchObject({
      code: 'ENOENT',
      message: expect.stringContaining('--mkdir') as unknown,
    });
    await prepareMountPoint(missing, { ...options, create: true });
    expect(statSync(missing).isDirectory()).toBe(true);
  });

  test('a file is no mount point', async () => {
    writeFileSync(join(folder, 'file'), '');
    await expect(prepareMountPoint(join(folder, 'file'), options)).rejects.toMatchObject({ code: 'ENOTDIR' });
    await expect(prepareMountPoint(join(folder, 'file/below'), { ...options, create: true })).rejects.toMatchObject({ code: 'ENOTDIR' });
  });

  test('a folder with files is busy: they would be hidden', async () => {
    writeFileSync(join(folder, 'file'), '');
    await expect(prepareMountPoint(folder, options)).rejects.toMatchObject({
      code: 'EBUSY',
      message: expect.stringContaining('file') as unknown,
    });
  });

  test('hidden files, such as one that keeps the folder in a repository, do not matter', async () => {
    writeFileSync(join(folder, '.gitkeep'), '');
    expect(await prepareMountPoint(folder, options)).toBe(folder);
  });

  test('another file system that is mounted there is left alone', async () => {
    await expect(prepareMountPoint('/proc', options)).rejects.toMatchObject({
      code: 'EBUSY',
      message: expect.stringContaining('type proc') as unknown,
    });
  });
});

test('a path is resolved though its last part is missing', async () => {
  symlinkSync(folder, join(folder, 'self'));
  expect(await resolveMountPoint(join(folder, 'self/new'))).toBe(join(folder, 'new'));
});

test('a folder answers; a path that is not there does not', async () => {
  expect(await answers(folder)).toBe(true);
  expect(await answers(join(folder, 'missing'))).toBe(false);
});
