/**
 * Programs that use a mount and know what it must answer. Each is a process of its own that goes on until SIGTERM, then reads back
 * everything it wrote and prints a Report; it ends early when it was given a wrong byte, or an error that nobody had announced.
 */
import { spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { python } from '../python.js';
import { until } from '../until.js';

export interface Report {
  operations: number;
  /** Failed calls; only such as a dead manager may cause, else they are a complaint. */
  refused: number;
  longestMs: number;
  /** What was wrong; empty when nothing was. */
  complaint: string;
}

/** argv: folder, seed. SIGUSR1 and SIGUSR2: from now on names may, may not be refused (the manager is away). */
const PRELUDE = `
import json, mmap, os, random, signal, sqlite3, struct, sys, time
folder, seed = sys.argv[1], int(sys.argv[2])
random.seed(seed)
going, excused = True, False
operations = refused = 0
longest = 0.0
def stop(*_):
    global going
    going = False
def excuse(number, _):
    global excused
    excused = number == signal.SIGUSR1
signal.signal(signal.SIGTERM, stop)
signal.signal(signal.SIGUSR1, excuse)
signal.signal(signal.SIGUSR2, excuse)
def timed(call, *args):
    global operations, longest
    begun = time.monotonic()
    try: return call(*args)
    finally:
        operations += 1
        longest = max(longest, time.monotonic() - begun)
def ready(): print('ready', flush=True)
def report(complaint=''):
    print(json.dumps({'operations': operations, 'refused': refused, 'longestMs': round(longest * 1000), 'complaint': complaint}), flush=True)
    os._exit(1 if complaint else 0)
`;

/** Pages that name themselves and their version, written and read by calls and through a mapping. */
const PAGES = `${PRELUDE}
PAGES = 4096
versions = [0] * PAGES
path = os.path.join(folder, 'pages-%d' % seed)
file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
def page(number): return struct.pack('<QQ', number, versions[number]) * 256
def check(number, got, how):
    if got != page(number):
        found = struct.unpack('<QQ', got[:16]) if len(got) >= 16 else got
        report('page %d by %s: version %d was written, %r was read' % (number, how, versions[number], found))
try:
    os.posix_fallocate(file, 0, PAGES * 4096)
    for number in range(PAGES): os.pwrite(file, page(number), number * 4096)
    os.fsync(file)
    mapped = mmap.mmap(file, PAGES * 4096)
    ready()
    while going:
        number, count = random.randrange(PAGES), random.choice((1, 1, 1, 8, 64))
        choice = random.random()
        numbers = range(number, min(number + count, PAGES))
        if choice < 0.35:
            for one in numbers: versions[one] += 1
            timed(os.pwrite, file, b''.join(map(page, numbers)), number * 4096)
        elif choice < 0.5:
            versions[number] += 1
            mapped[number * 4096:(number + 1) * 4096] = page(number)
        elif choice < 0.75:
            got = timed(os.pread, file, len(numbers) * 4096, number * 4096)
            for index, one in enumerate(numbers): check(one, got[index * 4096:(index + 1) * 4096], 'read')
        elif choice < 0.97: check(number, timed(lambda: mapped[number * 4096:(number + 1) * 4096]), 'mapping')
        elif choice < 0.99: timed(os.fsync, file)
        else: timed(os.posix_fadvise, file, 0, 0, os.POSIX_FADV_DONTNEED)
    mapped.flush()
    os.fsync(file)
    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    for number in range(PAGES): check(number, os.pread(file, 4096, number * 4096), 'the last read')
except OSError as error:
    report('%s after %d operations' % (error, operations))
report()
`;

/** A database whose rows are known: a commit that was answered stays, one that was refused may have happened or not. */
const DATABASE = `${PRELUDE}
path = os.path.join(folder, 'database-%d' % seed)
rows = {}
def connect():
    one = sqlite3.connect(path, isolation_level=None, timeout=10)
    one.execute('pragma journal_mode=%s' % ('wal' if seed % 2 else 'delete'))
    return one
def change():
    key, text = random.randrange(200), os.urandom(random.randrange(2000)).hex()
    doubtful[key] = text
    database.execute('begin immediate')
    database.execute('insert or replace into t values(?, ?)', (key, text))
    database.execute('commit')
    rows.update(doubtful)
    doubtful.clear()
def look():
    for key, text in database.execute('select k, v from t'):
        if rows.get(key) == text: continue
        if doubtful.get(key) != text: report('row %d is not what was committed' % key)
        rows[key] = text
    doubtful.clear()
    if database.execute('select count(*) from t').fetchone()[0] != len(rows): report('rows are missing')
def settle():
    global database, refused
    refused += 1
    try: database.close()
    except sqlite3.Error: pass
    end = time.monotonic() + 60
    while True:
        time.sleep(0.5)
        try:
            database = connect()
            return look()
        except sqlite3.Error as error:
            if time.monotonic() > end: report('the database does not come back: %s' % error)
doubtful = {}
database = connect()
database.execute('create table if not exists t(k integer primary key, v text)')
ready()
while going:
    was_excused = excused
    try:
        timed(change)
        if operations % 50 == 0: look()
    except sqlite3.Error as error:
        if not (was_excused or excused): report('%s after %d operations' % (error, operations))
        settle()
try:
    look()
    verdict = database.execute('pragma integrity_check').fetchone()[0]
    if verdict != 'ok': report('integrity_check: %s' % verdict)
    database.close()
except sqlite3.Error as error:
    report('at the end: %s' % error)
report()
`;

export class Workload {
  private output = '';
  private noise = '';
  /** It is at work. */
  readonly ready: Promise<void>;
  readonly ended: Promise<Report>;
  isOver = false;

  private constructor(
    readonly name: string,
    private readonly child: ChildProcess,
    read: (output: string, code: number | null, noise: string) => Report,
    ready?: Promise<void>,
  ) {
    child.stdout?.on('data', (piece: Buffer) => (this.output += piece.toString()));
    const over = once(child, 'close').then(() => undefined);
    this.ready = Promise.race([over, ready ?? once(child.stdout ?? child, 'data').then(() => undefined)]);
    child.stderr?.on('data', (piece: Buffer) => (this.noise += piece.toString()));
    this.ended = new Promise((done) =>
      child.once('close', (code) => {
        this.isOver = true;
        try {
          done(read(this.output, code, this.noise));
        } catch {
          done({ operations: 0, refused: 0, longestMs: 0, complaint: `exit ${code ?? 'by a signal'}: ${this.noise.slice(-2000)}` });
        }
      }),
    );
  }

  static pages(folder: string, seed: number): Workload {
    return new Workload('pages', startScript(PAGES, folder, seed), reportIn);
  }

  static database(folder: string, seed: number): Workload {
    return new Workload('sqlite3', startScript(DATABASE, folder, seed), reportIn);
  }

  /** fio writes blocks that carry checksums, and verifies each some blocks later. */
  static fio(folder: string, seed: number): Workload {
    const file = join(folder, `fio-${seed}`);
    // At this pace it is not through before it is told to end: each pass opens the file anew, which takes the manager.
    const job = [`--randseed=${seed}`, `--filename=${file}`, '--size=192M', '--bs=4k-16k', '--rate_iops=100'];
    const check = ['--rw=randwrite', '--verify=crc32c', '--verify_backlog=64', '--verify_fatal=1', '--verify_state_save=0'];
    const child = spawn('fio', ['--name=chaos', ...job, ...check, '--ioengine=psync', '--fsync=32', '--output-format=json'], {
      stdio: ['ignore', 'pipe', 'pipe'],
    });
    const ready = until('fio is at work', () => existsSync(file) && statSync(file).blocks > 0);
    return new Workload(
      'fio',
      child,
      (output, code, noise) => {
        const [job] = (JSON.parse(output.slice(output.indexOf('{'))) as { jobs: FioJob[] }).jobs;
        if (job === undefined) throw new Error('fio told nothing');
        const failed = job.error !== 0 || (code !== 0 && code !== 128);
        return {
          operations: job.read.total_ios + job.write.total_ios,
          refused: 0,
          longestMs: Math.round(Math.max(job.read.clat_ns.max, job.write.clat_ns.max) / 1e6),
          complaint: failed
            ? `fio ended with ${code ?? 'a signal'}, error ${job.error}: ${noise.slice(-1000)}${output.slice(0, output.indexOf('{'))}`
            : '',
        };
      },
      ready,
    );
  }

  /** Whether calls that need the manager may be refused from now on. */
  excuse(may: boolean): void {
    if (this.name === 'sqlite3' && !this.isOver) this.child.kill(may ? 'SIGUSR1' : 'SIGUSR2');
  }

  finish(): Promise<Report> {
    this.child.kill(this.name === 'fio' ? 'SIGINT' : 'SIGTERM');
    return this.ended;
  }

  kill(): void {
    this.child.kill('SIGKILL');
  }
}

interface FioJob {
  error: number;
  read: { total_ios: number; clat_ns: { max: number } };
  write: { total_ios: number; clat_ns: { max: number } };
}

/** The last line; before it, that it was ready. */
function reportIn(output: string): Report {
  return JSON.parse(output.trim().split('\n').at(-1) ?? '') as Report;
}

function startScript(script: string, folder: string, seed: number): ChildProcess {
  return spawn(python, ['-c', script, folder, String(seed)], { stdio: ['ignore', 'pipe', 'pipe'] });
}
