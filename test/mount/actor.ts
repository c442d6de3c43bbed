/**
 * A process that makes system calls on a mount when told to: Python, so that every call of POSIX and ctypes is at hand, and so that
 * the test's own process never waits in the kernel. What it opened and locked stays open until `end()` or a signal.
 */
import { spawn, type ChildProcess } from 'node:child_process';
import { createInterface } from 'node:readline';
import { python } from '../python.js';

const SERVER = `
import ast, ctypes, errno, fcntl, hashlib, json, mmap, os, random, stat, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
def checked(result):
    if result < 0: raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result
def fallocate(fd, mode, offset, length):
    checked(libc.fallocate(fd, mode, ctypes.c_int64(offset), ctypes.c_int64(length)))
def renameat2(old, new, flags):
    checked(libc.renameat2(-100, os.fsencode(old), -100, os.fsencode(new), flags))
def put(path, data):
    with open(path, 'wb') as file: file.write(data)
def get(path):
    with open(path, 'rb') as file: return file.read()
def sha(data): return hashlib.sha256(data).hexdigest()
def failure(call, *args):
    try: call(*args)
    except OSError as error: return errno.errorcode[error.errno]
    return 'no failure'
def answer(value): return list(value) if isinstance(value, (tuple, set)) else value.decode('latin-1') if isinstance(value, (bytes, bytearray)) else value
names = globals()
for line in sys.stdin:
    try:
        tree = ast.parse(json.loads(line))
        last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, 'told', 'exec'), names)
        value = None if last is None else eval(compile(ast.Expression(last.value), 'told', 'eval'), names)
        print(json.dumps({'value': answer(value)}, default=answer), flush=True)
    except OSError as error:
        print(json.dumps({'error': errno.errorcode.get(error.errno, '?'), 'why': str(error)}), flush=True)
    except Exception as error:
        print(json.dumps({'error': type(error).__name__, 'why': str(error)}), flush=True)
`;

interface Answer {
  value?: unknown;
  error?: string;
  why?: string;
}

export class Actor {
  private readonly child: ChildProcess;
  private readonly waiting: { resolve: (answer: Answer) => void; reject: (error: Error) => void }[] = [];
  readonly ended: Promise<void>;
  private complaint = '';

  constructor(folder?: string) {
    this.child = spawn(python, ['-ISu', '-c', SERVER], {
      stdio: ['pipe', 'pipe', 'pipe'],
      ...(folder === undefined ? {} : { cwd: folder }),
    });
    this.child.stderr?.on('data', (piece: Buffer) => (this.complaint += piece.toString()));
    if (this.child.stdout !== null)
      createInterface(this.child.stdout).on('line', (line) => this.waiting.shift()?.resolve(JSON.parse(line) as Answer));
    this.ended = new Promise((resolve) => {
      this.child.once('exit', () => {
        for (const { reject } of this.waiting.splice(0)) reject(new Error(`the actor ended: ${this.complaint}`));
        resolve();
      });
    });
  }

  get pid(): number {
    return this.child.pid ?? -1;
  }

  /** Runs Python statements; answers the value of the last expression. A bytes value comes as latin-1 text. */
  async do<Value = unknown>(code: string): Promise<Value> {
    const { value, error, why } = await this.tell(code);
    if (error !== undefined) throw new Error(`${error}: ${why ?? ''} in: ${code}`);
    return value as Value;
  }

  /** Runs statements that must fail; answers the errno's name. */
  async fails(code: string): Promise<string> {
    const { error, value } = await this.tell(code);
    return error ?? `no failure, but ${JSON.stringify(value)}`;
  }

  /** For what may end this process, such as SIGKILL or SIGBUS. */
  async end(signal: NodeJS.Signals = 'SIGKILL'): Promise<void> {
    this.child.kill(signal);
    await this.ended;
  }

  private tell(code: string): Promise<Answer> {
    return new Promise((resolve, reject) => {
      this.waiting.push({ resolve, reject });
      this.child.stdin?.write(`${JSON.stringify(code)}\n`);
    });
  }
}
