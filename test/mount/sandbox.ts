/** A sandbox for one program: system calls that are answered with EPERM, as seccomp profiles of containers do. */
import { python } from '../python.js';

/** Their numbers are the same on every architecture. */
export const systemCalls = { io_uring_setup: 425, io_uring_enter: 426 } as const;

// A seccomp filter: load the number; for each forbidden one, jump to EPERM; allow.
const SCRIPT = `
import ctypes, os, struct, sys
numbers = [int(number) for number in sys.argv[1].split(',')]
program = [(0x20, 0, 0, 0)]
program += [(0x15, len(numbers) - index, 0, number) for index, number in enumerate(numbers)]
program += [(0x06, 0, 0, 0x7fff0000), (0x06, 0, 0, 0x00050001)]
code = ctypes.create_string_buffer(b''.join(struct.pack('HBBI', *one) for one in program))
filter = ctypes.create_string_buffer(struct.pack('HxxxxxxP', len(program), ctypes.addressof(code)))
libc = ctypes.CDLL(None, use_errno=True)
if libc.prctl(38, 1, 0, 0, 0) != 0 or libc.prctl(22, 2, filter, 0, 0) != 0: raise OSError(ctypes.get_errno(), 'no seccomp here')
os.execvp(sys.argv[2], sys.argv[2:])
`;

/** To be put before a program and its arguments. */
export function forbidding(...names: (keyof typeof systemCalls)[]): string[] {
  return [python, '-c', SCRIPT, names.map((name) => systemCalls[name]).join(',')];
}
