/**
 * Sizes as people write them: `8G`, `512MiB`, `1.5t`, `4096`. All units are powers of 1024 (`GB` means `GiB`, as with memory
 * everywhere); results are whole, safe numbers of bytes.
 */
const units = ['', 'K', 'M', 'G', 'T', 'P'] as const;
const pattern = /^\s*(\d+(?:\.\d+)?)\s*([kmgtp]?)(i?b)?\s*$/i;

/** Bytes, or a TypeError that says what is accepted. */
export function parseSize(text: string): number {
  const match = pattern.exec(text);
  if (match === null) throw new TypeError(`'${text}' is not a size; write a number with K, M, G, T or P, as in 512MiB or 8G`);
  const [, number = '', unit = '', suffix = ''] = match;
  if (unit === '' && /^ib$/i.test(suffix)) throw new TypeError(`'${text}' is not a size; 'iB' needs K, M, G, T or P before it`);
  const power = units.indexOf(unit.toUpperCase() as (typeof units)[number]);
  const bytes = Math.round(Number(number) * 1024 ** power);
  if (!Number.isSafeInteger(bytes)) throw new TypeError(`'${text}' is too large; at most 8P can be told`);
  return bytes;
}

/** Three significant digits at most: `1.5 GiB`, `512 MiB`, `0 B`. */
export function formatSize(bytes: number): string {
  let value = Math.abs(bytes);
  let power = 0;
  // 1023.5 would print as '1024': the next unit begins where rounding does.
  while (power < units.length - 1 && Number(value.toPrecision(4)) >= 1024) {
    value /= 1024;
    power += 1;
  }
  const digits = power === 0 || value >= 100 ? 0 : value >= 10 ? 1 : 2;
  const number = value.toFixed(digits).replace(/\.?0+$/, digits === 0 ? '$&' : '');
  return `${bytes < 0 ? '-' : ''}${number} ${units[power] ?? ''}${power === 0 ? 'B' : 'iB'}`;
}

/** Without a space and exact, so that parseSize() gives the same number back: `8G`, `1536M`, `4097`. */
export function formatExactSize(bytes: number): string {
  let value = bytes;
  let power = 0;
  while (power < units.length - 1 && value !== 0 && value % 1024 === 0) {
    value /= 1024;
    power += 1;
  }
  return `${value}${units[power] ?? ''}`;
}
