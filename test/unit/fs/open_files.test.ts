/** Which opens go past the kernel's cache. */
import { constants } from 'node:fs';
import { beforeEach, describe, expect, test } from '@jest/globals';
import { OpenFiles } from '../../../src/fs/open_files.js';

const { O_APPEND, O_RDONLY, O_RDWR, O_WRONLY } = constants;

describe.each([true, false])('the kernel maps files that are open direct: %s', (mapsDirect) => {
  let files: OpenFiles;
  let handle = 0;
  const open = (flags: number, mode: 'write' | 'shared' = 'write'): boolean => {
    const direct = files.goesDirect({ ino: 5, mode }, flags);
    files.add(++handle, { ino: 5, mode: 'write', direct });
    return direct;
  };
  beforeEach(() => {
    files = new OpenFiles();
    files.mapsDirect = mapsDirect;
    handle = 0;
  });

  test('an appender to a file that others have too', () => {
    expect(open(O_RDONLY, 'shared')).toBe(false);
    expect(open(O_WRONLY | O_APPEND, 'shared')).toBe(true);
    expect(open(O_RDWR | O_APPEND, 'shared')).toBe(mapsDirect);
  });

  test('the first to open a file of this mount alone, if it appends, and whoever opens it beside it', () => {
    expect(open(O_WRONLY | O_APPEND)).toBe(mapsDirect);
    expect(open(O_RDONLY)).toBe(mapsDirect);
    expect(open(O_WRONLY | O_APPEND)).toBe(mapsDirect);
  });

  test('no appender to a file of this mount alone that is read through the cache, until it is closed', () => {
    expect(open(O_RDONLY)).toBe(false);
    expect(open(O_WRONLY | O_APPEND)).toBe(false);
    expect(files.size).toBe(2);
    expect([files.take(1)?.ino, files.take(2)?.ino, files.take(2)]).toEqual([5, 5, undefined]);
    expect(open(O_WRONLY | O_APPEND)).toBe(mapsDirect);
  });
});
