/**
 * Logs of every process: JSON lines on standard error, or readable lines when that is a terminal. Levels as pino has them;
 * EXTMEM_LOG sets the default.
 */
import { pino, type Logger } from 'pino';
import { PinoPretty } from 'pino-pretty';

export type { Logger } from 'pino';

export interface LoggerOptions {
  name: string;
  level?: string;
  pretty?: boolean;
}

export function createLogger(options: LoggerOptions): Logger {
  const level = options.level ?? process.env['EXTMEM_LOG'] ?? 'info';
  const pretty = options.pretty ?? process.stderr.isTTY;
  if (pretty) {
    const stream = PinoPretty({
      colorize: process.stderr.isTTY,
      destination: 2,
      sync: true,
      ignore: 'pid,hostname',
      translateTime: 'HH:MM:ss.l',
    });
    return pino({ name: options.name, level }, stream);
  }
  return pino({ name: options.name, level }, pino.destination({ dest: 2, sync: true }));
}
