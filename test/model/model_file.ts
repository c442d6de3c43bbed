/** What a file must contain, in memory; and the seeded random numbers that the model test is made of. */

/** mulberry32: small, and the same on every machine. */
export class Random {
  constructor(private state: number) {}

  /** 0 … bound-1 */
  below(bound: number): number {
    this.state = (this.state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(this.state ^ (this.state >>> 15), 1 | this.state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return Math.floor((((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32) * bound);
  }

  /** Both included. */
  between(least: number, most: number): number {
    return least + this.below(most - least + 1);
  }

  chance(percent: number): boolean {
    return this.below(100) < percent;
  }

  pick<Item>(items: readonly Item[]): Item {
    return items[this.below(items.length)]!;
  }
}

export class ModelFile {
  size = 0;
  /** Names that lead to it. */
  links = 0;
  private bytes = Buffer.alloc(0); // zero from `size` on

  /** `limit`: it never grows beyond; small files are overwritten more often than large ones. */
  constructor(
    readonly id: number,
    readonly limit: number,
  ) {}

  write(offset: number, data: Buffer): void {
    this.resize(Math.max(this.size, offset + data.length));
    data.copy(this.bytes, offset);
  }

  resize(size: number): void {
    if (size < this.size) this.bytes.fill(0, size, this.size);
    if (size > this.bytes.length) {
      const larger = Buffer.alloc(Math.min(this.limit, Math.max(size, 2 * this.bytes.length)));
      this.bytes.copy(larger);
      this.bytes = larger;
    }
    this.size = size;
  }

  zero(offset: number, end: number): void {
    if (offset < Math.min(end, this.size)) this.bytes.fill(0, offset, Math.min(end, this.size));
  }

  /** As a read: no more than there is. */
  read(offset: number, bytes: number): Buffer {
    return this.bytes.subarray(Math.min(offset, this.size), Math.min(offset + bytes, this.size));
  }

  isZero(offset: number, end: number): boolean {
    const range = this.read(offset, Math.max(0, end - offset));
    return range.equals(Buffer.alloc(range.length));
  }
}

/** Where two contents differ, in a line; `at`: the file offset at which both begin. */
export function describeDifference(got: Buffer, wanted: Buffer, at: number): string {
  const least = Math.min(got.length, wanted.length);
  let first = 0;
  while (first < least && got[first] === wanted[first]) ++first;
  if (first === least && got.length !== wanted.length) return `${got.length} bytes were read at ${at} instead of ${wanted.length}`;
  let last = least - 1;
  while (last > first && got[last] === wanted[last]) --last;
  const hex = (bytes: Buffer): string => bytes.subarray(first, first + 8).toString('hex');
  const offset = at + first;
  return (
    `the first byte that differs is at ${offset} (page ${Math.floor(offset / 4096)} + ${offset % 4096}), the last at ${at + last}: ` +
    `there is ${hex(got)}…, the model has ${hex(wanted)}…`
  );
}
