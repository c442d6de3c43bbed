/** Which opens go past the kernel's cache. */
import { constants } from 'node:fs';
import { beforeEach, describe, expect, test } from '@jest/globals';
import { OpenFiles } from '../../../src/fs/open_files.js';

const { O_APPEND, O_RDONLY, O_RDWR, O_WRONLY } = constants;

describe.each([true, false])('the kernel maps files that are open direct: %s', (mapsDirect) => {
  let files: OpenFiles;
  let handle = 0;
  const open = (flags: number): boolean => {
    const direct = files.goesDirect(5, flags);
    files.add(++handle, { ino: 5, mode: 'write', direct });
    return direct;
  };
  beforeEach(() => {
    files = new OpenFiles();
    files.mapsDirect = mapsDirect;
    handle = 0;
  });

  test('whoever appends; where that would make mmap fail, only who cannot map', () => {
    expect(open(O_WRONLY | O_APPEND)).toBe(true);
    expect(open(O_RDWR | O_APPEND)).toBe(mapsDirect);
  });

  test('whoever opens it beside an appender, if it can still be mapped, until that has closed it', () => {
    expect(open(O_RDONLY)).toBe(false);
    expect(open(O_WRONLY | O_APPEND)).toBe(true);
    expect(open(O_RDONLY)).toBe(mapsDirect);
    expect(files.size).toBe(3);
    expect([files.take(2)?.ino, files.take(3)?.ino, files.take(3)]).toEqual([5, 5, undefined]);
    expect(open(O_RDWR)).toBe(false);
  });
});
