/** `extmem completion`: a bash script, written from the commands as they are declared, so that it cannot fall behind them. */
import type { Command } from 'commander';
import { ExitCode, UsageError } from './exit.js';
import type { Invocation } from './invocation.js';
import { printLine } from './output.js';
import { buildProgram } from './program.js';

const choices: Record<string, string> = {
  '--transport': 'auto shm tcp verbs',
  '--layout': 'stripe concat mirror raid10',
  '--across': 'appliance host rack',
  '--strategy': 'spread best-fit',
  '--rebuild': 'auto off',
  '--log-level': 'trace debug info warn error silent',
};
/** Commands whose arguments are folders of this machine, or files. */
const folders = ['up', 'mount', 'umount'];
const files = ['evict', 'warm', 'pin', 'unpin'];

export async function runCompletion(call: Invocation): Promise<ExitCode> {
  const shell = call.args[0] ?? 'bash';
  if (shell !== 'bash') throw new UsageError(`there is no completion for '${shell}'; there is one for bash`);
  printLine(renderBashCompletion(buildProgram(() => undefined)));
  return ExitCode.ok;
}

function flagsOf(command: Command): string[] {
  return [...command.options.map((option) => option.long ?? option.short ?? ''), '--help'];
}

export function renderBashCompletion(program: Command): string {
  const commands = program.commands;
  const cases = commands.map((command) => `    ${command.name()}) flags='${flagsOf(command).join(' ')}' ;;`);
  const values = Object.entries(choices).map(([flag, names]) => `    ${flag}) COMPREPLY=($(compgen -W '${names}' -- "$word")); return ;;`);
  return `# bash completion for extmem
_extmem() {
  local word="\${COMP_WORDS[COMP_CWORD]}" before="\${COMP_WORDS[COMP_CWORD-1]}" command='' flags='' index
  COMPREPLY=()
  for ((index = 1; index < COMP_CWORD; index++)); do
    case "\${COMP_WORDS[index]}" in -*) ;; *) command="\${COMP_WORDS[index]}"; break ;; esac
  done
  if [[ -z "$command" ]]; then
    COMPREPLY=($(compgen -W '${commands.map((command) => command.name()).join(' ')} --help --version' -- "$word"))
    return
  fi
  case "$before" in
${values.join('\n')}
    --config|--token-file|--state-dir|--dir|--tls-ca|--tls-cert|--tls-key|--mount-point) COMPREPLY=($(compgen -f -- "$word")); return ;;
  esac
  case "$command" in
${cases.join('\n')}
  esac
  if [[ "$word" == -* ]]; then
    COMPREPLY=($(compgen -W "$flags" -- "$word"))
    return
  fi
  case "$command" in ${folders.join('|')}) COMPREPLY=($(compgen -d -- "$word")) ;; ${files.join('|')}) COMPREPLY=($(compgen -f -- "$word")) ;; completion) COMPREPLY=($(compgen -W bash -- "$word")) ;; esac
}
complete -o filenames -F _extmem extmem`;
}
