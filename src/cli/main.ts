#!/usr/bin/env node
/** The `extmem` command. Runs one command, and ends with its exit code (exit.ts). */
import { CommanderError } from 'commander';
import { ExitCode, exitCodeOf } from './exit.js';
import { printError } from './output.js';
import { buildProgram } from './program.js';

async function main(): Promise<ExitCode> {
  let exitCode: ExitCode = ExitCode.ok;
  const program = buildProgram((code) => (exitCode = code));
  try {
    await program.parseAsync();
  } catch (error) {
    // Commander has printed its own message already: help and version end with 0, wrong usage does not.
    if (error instanceof CommanderError) return error.exitCode === 0 ? ExitCode.ok : ExitCode.usage;
    printError(error);
    return exitCodeOf(error);
  }
  return exitCode;
}

// A reader that has seen enough (`extmem ls | head`) is no failure.
process.stdout.on('error', (error: NodeJS.ErrnoException) => process.exit(error.code === 'EPIPE' ? ExitCode.ok : ExitCode.failed));

process.exitCode = await main();
// Whatever a library still holds open must not keep a finished command alive; what was printed is flushed first.
process.stdout.write('', () => process.exit());
