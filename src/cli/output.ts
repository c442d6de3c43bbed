/** What commands print: tables and facts for people on standard output, JSON for programs, errors and progress on standard error. */
import { codeOf, messageOf } from '../base/errors.js';

let json = false;

/** Errors become JSON too, once a command has said that it speaks JSON. */
export function speakJson(on: boolean): void {
  json = on;
}

export function printJson(value: unknown): void {
  process.stdout.write(`${JSON.stringify(value, undefined, process.stdout.isTTY ? 2 : undefined)}\n`);
}

export function printLine(line: string): void {
  process.stdout.write(`${line}\n`);
}

export function printWarning(message: string): void {
  process.stderr.write(`extmem: warning: ${message}\n`);
}

export function printError(error: unknown): void {
  const told = { error: { code: codeOf(error), message: messageOf(error) } };
  process.stderr.write(json ? `${JSON.stringify(told)}\n` : `extmem: ${messageOf(error)}\n`);
  if (process.env['EXTMEM_DEBUG'] && error instanceof Error) process.stderr.write(`${error.stack ?? ''}\n`);
}

/** Columns aligned; those whose every cell is a number or a size to the right. */
export function renderTable(header: readonly string[], rows: readonly (readonly string[])[]): string {
  const widths = header.map((title, column) => Math.max(title.length, ...rows.map((row) => (row[column] ?? '').length)));
  const right = header.map((_, column) => rows.length > 0 && rows.every((row) => /^(-|[\d.]+( ?[KMGTP]?i?B|%)?)$/.test(row[column] ?? '')));
  const line = (cells: readonly string[]): string =>
    cells
      .map((cell, column) => (right[column] ? cell.padStart(widths[column] ?? 0) : cell.padEnd(widths[column] ?? 0)))
      .join('  ')
      .trimEnd();
  return [line(header), ...rows.map(line)].join('\n');
}

/** `label: value` lines with the values under each other. */
export function renderFacts(facts: readonly (readonly [string, string])[]): string {
  const width = Math.max(...facts.map(([label]) => label.length));
  return facts.map(([label, value]) => `${`${label}:`.padEnd(width + 1)} ${value}`).join('\n');
}

/** A line that rewrites itself on a terminal, and says nothing elsewhere. */
export class Progress {
  private shown = 0;
  private readonly enabled = process.stderr.isTTY && !json;

  show(message: string): void {
    if (!this.enabled) return;
    process.stderr.write(`\r${message.padEnd(this.shown)}`);
    this.shown = message.length;
  }

  clear(): void {
    if (this.enabled && this.shown > 0) process.stderr.write(`\r${' '.repeat(this.shown)}\r`);
    this.shown = 0;
  }
}
