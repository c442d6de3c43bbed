/** One way to declare every command: its flags and settings, --json and --config, examples in --help, and its exit code. */
import type { Command } from 'commander';
import { exitCodeHelp, type ExitCode } from './exit.js';
import { speakJson } from './output.js';
import { addSettings, defaultSources, resolveSettings, type SettingName, type Settings } from './settings.js';

export interface Invocation {
  args: readonly string[];
  settings: Settings;
  json: boolean;
  /** A flag without a value that is no setting, by commander's name for it. */
  has(flag: string): boolean;
  /** A flag with a value that is no setting. */
  text(flag: string): string | undefined;
}

export interface CommandSpec {
  /** Name and arguments, as in `create <path>`. */
  usage: string;
  summary: string;
  details?: string;
  settings?: readonly SettingName[];
  /** Flags that are no settings: [flag, help]. */
  flags?: readonly (readonly [string, string])[];
  examples: readonly string[];
}

/** Commands tell their exit code through this. */
export type Finish = (code: ExitCode) => void;

export function define(program: Command, finish: Finish, spec: CommandSpec, act: (call: Invocation) => Promise<ExitCode>): void {
  const command = program.command(spec.usage).summary(spec.summary);
  command.description(spec.details === undefined ? spec.summary : `${spec.summary}\n\n${spec.details}`);
  const names = spec.settings ?? [];
  addSettings(command, names);
  for (const [flag, help] of spec.flags ?? []) command.option(flag, help);
  command.option('--config <path>', 'configuration file, after /etc/extmem.json and ~/.config/extmem.json [EXTMEM_CONFIG]');
  command.option('--json', 'print JSON');
  command.addHelpText('after', `\nExamples:\n${spec.examples.map((example) => `  ${example}`).join('\n')}\n${exitCodeHelp}`);
  command.action(async () => {
    const flags = command.opts<Record<string, unknown>>();
    const json = flags['json'] === true;
    speakJson(json);
    const config = typeof flags['config'] === 'string' ? flags['config'] : undefined;
    finish(
      await act({
        args: command.args,
        settings: resolveSettings(names, flags, defaultSources(config)),
        json,
        has: (flag) => flags[flag] === true,
        text: (flag) => (typeof flags[flag] === 'string' ? flags[flag] : undefined),
      }),
    );
  });
}
