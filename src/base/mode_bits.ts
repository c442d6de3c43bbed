/** Bits of a file's mode that the others do not speak of (inode(7)). */
const S_ISUID = 0o4000;
export const S_ISGID = 0o2000;
const S_IXGRP = 0o0010;

/** What it would be without what a write by somebody without CAP_FSETID takes away. */
export function withoutPrivileges(mode: number): number {
  const isSetGroup = (mode & (S_ISGID | S_IXGRP)) === (S_ISGID | S_IXGRP);
  return mode & ~(S_ISUID | (isSetGroup ? S_ISGID : 0));
}

export function isPrivileged(mode: number): boolean {
  return withoutPrivileges(mode) !== mode;
}
