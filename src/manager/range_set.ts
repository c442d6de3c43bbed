/**
 * A set of bytes of one region, as sorted ranges that neither touch nor overlap: which of them are in use.
 */
export class RangeSet {
  private starts: number[] = [];
  private ends: number[] = [];
  private sum = 0;

  get bytes(): number {
    return this.sum;
  }

  get count(): number {
    return this.starts.length;
  }

  /** [offset, length] pairs, sorted. */
  list(): [number, number][] {
    return this.starts.map((start, index) => [start, (this.ends[index] as number) - start]);
  }

  /** What is not in the set, of a region of so many bytes. */
  gaps(regionBytes: number): { offset: number; length: number }[] {
    const out: { offset: number; length: number }[] = [];
    let at = 0;
    for (let index = 0; index < this.starts.length; index++) {
      const start = this.starts[index] as number;
      if (start > at) out.push({ offset: at, length: start - at });
      at = this.ends[index] as number;
    }
    if (at < regionBytes) out.push({ offset: at, length: regionBytes - at });
    return out;
  }

  overlaps(offset: number, length: number): boolean {
    const index = this.firstEndingAfter(offset);
    return index < this.starts.length && (this.starts[index] as number) < offset + length;
  }

  /** Adds the range whatever of it is there already. */
  add(offset: number, length: number): void {
    if (length <= 0) return;
    let start = offset;
    let end = offset + length;
    const first = this.firstEndingAfter(offset - 1); // one that ends at `offset` is joined
    let after = first;
    while (after < this.starts.length && (this.starts[after] as number) <= end) {
      start = Math.min(start, this.starts[after] as number);
      end = Math.max(end, this.ends[after] as number);
      this.sum -= (this.ends[after] as number) - (this.starts[after] as number);
      after++;
    }
    this.starts.splice(first, after - first, start);
    this.ends.splice(first, after - first, end);
    this.sum += end - start;
  }

  remove(offset: number, length: number): void {
    const end = offset + length;
    const first = this.firstEndingAfter(offset);
    const starts: number[] = [];
    const ends: number[] = [];
    let after = first;
    while (after < this.starts.length && (this.starts[after] as number) < end) {
      const from = this.starts[after] as number;
      const to = this.ends[after] as number;
      this.sum -= Math.min(to, end) - Math.max(from, offset);
      if (from < offset) {
        starts.push(from);
        ends.push(offset);
      }
      if (to > end) {
        starts.push(end);
        ends.push(to);
      }
      after++;
    }
    this.starts.splice(first, after - first, ...starts);
    this.ends.splice(first, after - first, ...ends);
  }

  /** Index of the first range that ends after `offset`. */
  private firstEndingAfter(offset: number): number {
    let low = 0;
    let high = this.ends.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if ((this.ends[middle] as number) <= offset) low = middle + 1;
      else high = middle;
    }
    return low;
  }
}
