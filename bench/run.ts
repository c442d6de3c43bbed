/** Measures rows over one link: ours and the row's peer, alternating, started when they are needed and stopped afterwards. */
import { compare, skippedLine, tableLine, type Result, type Round, type Skipped } from './report.js';
import { linksOf, type Peer, type Row } from './rows/row.js';
import { FILE_BYTES } from './rows/streams.js';
import { ExtmemTarget } from './targets/extmem.js';
import { FuseNativeTarget } from './targets/fuse_native.js';
import { NbdFuseTarget } from './targets/nbdfuse.js';
import { NullDaemonTarget } from './targets/null_daemon.js';
import { SshfsTarget } from './targets/sshfs.js';
import { SwapTarget } from './targets/swap.js';
import { Unavailable, type Link, type SessionKind, type Target } from './targets/target.js';
import { TmpfsTarget } from './targets/tmpfs.js';

const peers: Record<Peer, (link: Link, session: SessionKind) => Target> = {
  nbdfuse: (link) => new NbdFuseTarget(link),
  sshfs: () => new SshfsTarget(),
  tmpfs: () => new TmpfsTarget(),
  null: (_link, session) => new NullDaemonTarget(session),
  'fuse-native': () => new FuseNativeTarget(),
  'swap file': () => new SwapTarget('swap file'),
  zram: () => new SwapTarget('zram'),
  'no read-ahead': (link) => new ExtmemTarget(link, { readAhead: false }),
};

export interface Wanted {
  rows: readonly Row[];
  rounds: number;
  /** Ends the run before its next round; what was started is stopped. */
  signal: AbortSignal;
}

export interface Found {
  results: Result[];
  skipped: Skipped[];
}

/** Says on stderr what is under way: a run takes minutes. */
function progress(text: string): void {
  process.stderr.write(process.stderr.isTTY ? `\r\x1b[K${text}` : `${text}\n`);
}

async function measureRow(row: Row, ours: Target, peer: Target | undefined, { rounds, signal }: Wanted): Promise<Round[]> {
  const samples: Round[] = [];
  // The first tens of thousands of faults after a start are slow with every daemon: one round is not counted.
  for (let round = peer === undefined ? 1 : 0; round <= rounds; ++round) {
    signal.throwIfAborted();
    progress(`${row.id}, ${ours.name}: ${round === 0 ? 'warming up' : `round ${round} of ${rounds}`}`);
    const sample = { ours: await row.measure(ours), peer: peer === undefined ? {} : await row.measure(peer) };
    if (round > 0) samples.push(sample);
  }
  return samples;
}

/** The peer of the rows that are being measured. One that cannot be had is asked for once. */
class PeerInUse {
  private kind: Peer | undefined;
  private target: Target | undefined;
  private failure: Unavailable | undefined;

  constructor(
    private readonly link: Link,
    private readonly session: SessionKind,
  ) {}

  async of(row: Row): Promise<Target | undefined> {
    if (row.peer !== this.kind) {
      await this.stop();
      this.kind = row.peer;
      if (row.peer !== undefined) await this.start(row.peer);
    }
    if (this.failure !== undefined) throw this.failure;
    return this.target;
  }

  async stop(): Promise<void> {
    await this.target?.stop();
    this.target = this.failure = undefined;
  }

  private async start(kind: Peer): Promise<void> {
    this.target = peers[kind](this.link, this.session);
    progress(`starting ${this.target.name}`);
    try {
      await this.target.start(FILE_BYTES);
    } catch (error) {
      if (!(error instanceof Unavailable)) throw error;
      await this.stop();
      this.failure = error;
    }
  }
}

export async function benchLink(link: Link, wanted: Wanted): Promise<Found> {
  const found: Found = { results: [], skipped: [] };
  const rows = wanted.rows.filter((one) => linksOf(one).includes(link));
  if (rows.length === 0) return found;
  const ours = new ExtmemTarget(link);
  let peer: PeerInUse | undefined;
  try {
    progress(`starting ${ours.name}`);
    await ours.start(FILE_BYTES);
    const session = await ours.session();
    peer = new PeerInUse(link, session);
    for (const row of rows) {
      try {
        if (row.needsUring === true && session !== 'io_uring')
          throw new Unavailable('FUSE over io_uring is not switched on, and only root may, on Linux 6.14 or newer');
        const theirs = await peer.of(row);
        const samples = await measureRow(row, ours, theirs, wanted);
        progress('');
        for (const comparison of row.comparisons.filter(({ reach }) => reach[link] !== undefined)) {
          const result = compare(row, comparison, samples, { link, session, peer: theirs?.name });
          process.stdout.write(tableLine(result));
          found.results.push(result);
        }
      } catch (error) {
        wanted.signal.throwIfAborted();
        // What failed in one row is told there, and keeps nobody from the others' figures.
        if (!(error instanceof Unavailable)) process.exitCode = 1;
        const skipped = { row: row.id, link, reason: error instanceof Error ? (error.message.split('\n')[0] ?? '') : String(error) };
        process.stdout.write(skippedLine(skipped));
        found.skipped.push(skipped);
      }
    }
  } finally {
    await peer?.stop();
    await ours.stop();
  }
  return found;
}
