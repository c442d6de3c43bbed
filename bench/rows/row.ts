/** One measurement of the comparison, made the same way on every target. */
import type { Link, Target } from '../targets/target.js';

export type Figures = Record<string, number>;

export type Peer = 'nbdfuse' | 'sshfs' | 'tmpfs' | 'null' | 'fuse-native' | 'swap file' | 'zram' | 'no read-ahead';

/** One figure of a measurement held against the peer's. */
export interface Comparison {
  figure: string;
  title: string;
  unit: string;
  better: 'lower' | 'higher';
  /** It is held against a bound of its own, though the row has a peer. */
  alone?: true;
  /**
   * Ours over the peer's, by link; without a peer the figure itself. 'shown': nothing is to be reached. A link that is not named is not
   * measured.
   */
  reach: Partial<Record<Link, number | 'shown'>>;
}

export interface Row {
  id: string;
  group:
    | 'fault'
    | 'seq'
    | 'write'
    | 'direct'
    | 'warm'
    | 'copy'
    | 'files'
    | 'footprint'
    | 'null'
    | 'fuse-native'
    | 'pressure'
    | 'read-ahead'
    | 'store';
  /** Undefined: the figure is held against a bound of its own. */
  peer: Peer | undefined;
  /** Measured only where the mount's requests come over io_uring. */
  needsUring?: boolean;
  comparisons: readonly Comparison[];
  measure(target: Target): Promise<Figures>;
}

export const linksOf = (row: Row): Link[] => [...new Set(row.comparisons.flatMap(({ reach }) => Object.keys(reach) as Link[]))];
