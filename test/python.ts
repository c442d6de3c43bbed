/**
 * The Python that tests start, by hundreds: the interpreter itself. `python3` may be a script that looks for one at each start, as
 * version managers have it, which costs several times what the interpreter does.
 */
import { execFileSync } from 'node:child_process';

export const python = execFileSync('python3', ['-c', 'import sys; print(sys.executable)'], { encoding: 'utf8' }).trim();
