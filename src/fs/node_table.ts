/**
 * Which inodes the kernel knows, and how often it was told: it forgets exactly as many look-ups as it was answered. What is
 * kept per inode on the kernel's behalf lives no longer than its knowledge.
 */
export class NodeTable {
  private readonly lookups = new Map<number, number>();

  /** An entry of this inode goes to the kernel. */
  count(ino: number): void {
    this.lookups.set(ino, (this.lookups.get(ino) ?? 0) + 1);
  }

  /** True: the kernel does not know the inode any more. */
  forget(ino: number, count: number): boolean {
    const left = (this.lookups.get(ino) ?? 0) - count;
    if (left > 0) {
      this.lookups.set(ino, left);
      return false;
    }
    this.lookups.delete(ino);
    return true;
  }

  get size(): number {
    return this.lookups.size;
  }
}
