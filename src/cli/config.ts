/** `extmem config`: every setting, what holds and where it comes from. Secrets are not printed. */
import { ExitCode } from './exit.js';
import type { Invocation } from './invocation.js';
import { printJson, printLine, renderTable } from './output.js';
import { settings as table, type SettingName } from './settings.js';

const secrets: ReadonlySet<SettingName> = new Set(['token', 'key', 'storeKey']);

export async function runConfig(call: Invocation): Promise<ExitCode> {
  const names = Object.keys(table) as SettingName[];
  const rows = names.map((name) => {
    const origin = call.settings.origin(name);
    // Parsed for its errors: a value that nobody could use is told here too.
    call.settings.optional(name);
    const value = secrets.has(name) && origin.text !== undefined ? '(hidden)' : origin.text;
    return {
      name,
      value,
      from: value === undefined ? '' : origin.from,
      flag: table[name].flag.split(' ', 1)[0] ?? '',
      env: table[name].env,
    };
  });
  if (call.json) printJson(Object.fromEntries(rows.map(({ name, value, from }) => [name, { value: value ?? null, from }])));
  else
    printLine(
      renderTable(
        ['SETTING', 'VALUE', 'FROM', 'FLAG', 'VARIABLE'],
        rows.map((row) => [row.name, row.value ?? '-', row.from, row.flag, row.env]),
      ),
    );
  return ExitCode.ok;
}
