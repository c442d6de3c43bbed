/** Who watches a mount's operations: each at an interval of its own, all told everything; nothing is counted while nobody watches. */
import { afterEach, beforeEach, expect, jest, test } from '@jest/globals';
import type { FileOperations, OperationsReport } from '../../../src/base/operations.js';
import { Watching, type Watcher } from '../../../src/fs/watching.js';

class Counting {
  on: boolean[] = [];
  private files: FileOperations[] = [];

  watchOperations(on: boolean): void {
    this.on.push(on);
  }
  takeOperations(): { files: FileOperations[]; otherOperations: number } {
    return { files: this.files.splice(0), otherOperations: 0 };
  }
  read(ino: number, offset = 0): void {
    const hot = [{ offset, operations: 1 }];
    this.files.push({ ino, reads: 1, readBytes: 10, hits: 1, writes: 0, writtenBytes: 0, mappedWrites: 0, hot });
  }
}

let native: Counting;
let watching: Watching;

function watch(
  intervalMs: number,
  more: Partial<Watcher> = {},
): { told: OperationsReport[]; stop: () => void; reads: (ino: number) => number[] } {
  const told: OperationsReport[] = [];
  const stop = watching.add({ intervalMs, tell: (report) => told.push(report) > 0, end: () => undefined, ...more });
  const reads = (ino: number): number[] => told.map(({ files }) => files.find((one) => one.ino === ino)?.reads ?? 0);
  return { told, stop, reads };
}

beforeEach(() => {
  jest.useFakeTimers();
  native = new Counting();
  watching = new Watching(native);
});
afterEach(() => {
  watching.close();
  jest.useRealTimers();
});

test('each is told all that was done since it was last told, whoever else looked meanwhile', () => {
  const often = watch(100);
  const seldom = watch(300);
  for (let turn = 0; turn < 6; turn += 1) {
    native.read(1);
    jest.advanceTimersByTime(100);
  }
  expect(often.reads(1)).toEqual([1, 1, 1, 1, 1, 1]);
  expect(seldom.reads(1)).toEqual([3, 3]);
});

test('who begins is not told of what was before; who watches one file is told of that one', () => {
  const first = watch(100);
  native.read(1);
  const second = watch(100, { ino: 1 });
  native.read(1);
  native.read(2);
  jest.advanceTimersByTime(100);
  expect([first.reads(1), first.reads(2)]).toEqual([[2], [1]]);
  expect([second.reads(1), second.reads(2)]).toEqual([[1], [0]]);
});

test('who cannot take a report gets it with the next', () => {
  let ready = false;
  const told: OperationsReport[] = [];
  watching.add({ intervalMs: 100, tell: (report) => ready && told.push(report) > 0, end: () => undefined });
  native.read(1, 1);
  jest.advanceTimersByTime(100);
  ready = true;
  native.read(1, 2);
  jest.advanceTimersByTime(100);
  expect(told.map(({ files }) => files.map(({ reads, hot }) => [reads, hot.length]))).toEqual([[[2, 2]]]);
});

test('it is counted from the first watcher to the last', () => {
  const first = watch(100);
  const second = watch(100);
  first.stop();
  expect(native.on).toEqual([true]);
  second.stop();
  second.stop();
  expect(native.on).toEqual([true, false]);
});

test('more files than there is room for are counted together', () => {
  const { told } = watch(100);
  for (let ino = 1; ino <= 5000; ino += 1) native.read(ino);
  jest.advanceTimersByTime(100);
  expect(told.map(({ files, otherOperations }) => [files.length, otherOperations])).toEqual([[4096, 904]]);
});

test('an interval that is none, and one watcher too many, are refused', () => {
  for (const intervalMs of [0, 99, 3_600_001, NaN]) expect(() => watch(intervalMs)).toThrow(/between 100 and 3600000 ms/);
  for (let count = 0; count < 16; count += 1) watch(100);
  expect(() => watch(100)).toThrow(/16 watch this mount already/);
});
