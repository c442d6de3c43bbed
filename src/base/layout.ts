/**
 * Layouts in words, as users write them (--layout, user.extmem.layout, the HTTP interface): a name, and for those with copies how
 * many (`mirror:3`; two when it is not said). And what the copies must not share (--across, user.extmem.across).
 */
import { ExtmemError } from './errors.js';
import { ACROSS, LAYOUTS, type AcrossName, type LayoutName } from './messages.js';
import { MAX_COPIES } from './protocol.js';

/** How new extents of a file are laid; `copies` absent: one. */
export interface Layout {
  readonly layout: LayoutName;
  readonly copies?: number;
  readonly across?: AcrossName;
}

export const DEFAULT_LAYOUT: Layout = { layout: 'stripe' };
const DEFAULT_COPIES = 2;

export function hasCopies(layout: LayoutName): boolean {
  return layout === 'mirror' || layout === 'raid10';
}

/** Throws EINVAL. */
export function parseLayout(word: string): Layout {
  const [name, copies, ...rest] = word.split(':');
  const layout = LAYOUTS.find((known) => known === name);
  if (layout === undefined) throw new ExtmemError('EINVAL', `'${word}' is no layout; ${LAYOUTS.join(', ')} are`);
  if (!hasCopies(layout)) {
    if (copies !== undefined) throw new ExtmemError('EINVAL', `'${word}': ${layout} keeps one copy; mirror and raid10 keep several`);
    return { layout };
  }
  const count = copies === undefined ? DEFAULT_COPIES : Number(copies);
  if (rest.length > 0 || !Number.isInteger(count) || count < 2 || count > MAX_COPIES)
    throw new ExtmemError('EINVAL', `'${word}': ${layout} keeps 2 to ${MAX_COPIES} copies, as in ${layout}:3`);
  return { layout, copies: count };
}

export function formatLayout({ layout, copies }: Layout): string {
  return !hasCopies(layout) || copies === undefined || copies === DEFAULT_COPIES ? layout : `${layout}:${copies}`;
}

/** Throws EINVAL. */
export function parseAcross(word: string): AcrossName {
  const across = ACROSS.find((known) => known === word);
  if (across === undefined) throw new ExtmemError('EINVAL', `copies cannot be kept across '${word}'; ${ACROSS.join(', ')} can be`);
  return across;
}
